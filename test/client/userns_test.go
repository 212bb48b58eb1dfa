package client

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// withSubordinateIDs starts berthd where /etc gives subordinate ids to the
// user "dockremap": in a mount namespace with an /etc of its own.
func withSubordinateIDs(t *testing.T) enginetest.Option {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	for name, extra := range map[string]string{
		"passwd": "dockremap:x:997:996::/:/bin/false\n", "group": "dockremap:x:996:\n", "hosts": "", "resolv.conf": "",
		"subuid": "dockremap:100000:65536\n", "subgid": "dockremap:200000:65536\n",
	} {
		var raw []byte
		if !strings.HasPrefix(name, "sub") {
			raw, _ = os.ReadFile("/etc/" + name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(raw, extra...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	real := enginetest.Binaries(t)
	for _, p := range []string{"berth", "berth-keeper", "berth-init", "berth-runtime"} {
		if err := os.Symlink(filepath.Join(real, p), filepath.Join(bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount --bind %s /etc && exec %s/berthd \"$@\"' berthd \"$@\"\n", dir, real)
	if err := os.WriteFile(filepath.Join(bin, "berthd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return enginetest.WithBin(bin)
}

// Containers in user namespaces: --userns-remap.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, withSubordinateIDs(t), enginetest.WithArgs("--userns-remap=default"))
	if root := e.Docker("info", "--format", "{{.DockerRootDir}} {{.SecurityOptions}}"); !strings.HasPrefix(root, e.DataRoot+"/100000.200000 ") || !strings.Contains(root, "name=userns") {
		t.Errorf("info: %s", root)
	}
	if out, err := exec.Command("stat", "-c", "%u %g %a", e.DataRoot, e.DataRoot+"/100000.200000").Output(); err != nil || string(out) != "0 200000 710\n0 200000 710\n" {
		t.Errorf("data root: %q %v", out, err)
	}
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Docker("run", "-d", "--name", "base", "--ipc", "shareable", "--network", "none", img, "sh", "-c", "echo one > /made; mkdir /d; chown 1000:1001 /d; rm -r /home; echo x > /dev/shm/shared; exec sleep 1000")
	enginetest.Eventually(t, "the container has made its files", func() bool {
		return e.Client("docker").Run("exec", "base", "test", "-e", "/dev/shm/shared").Code == 0
	})
	for _, c := range []struct {
		name string
		args []string
		out  string // exact, when not empty
		err  string
		code int
	}{
		{"mapping", []string{"run", "--rm", img, "sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '"}, "0 100000 65536\n 0 200000 65536", "", 0},
		{"owners", []string{"run", "--rm", img, "stat", "-c", "%u:%g", "/", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/dev", "/dev/null", "/dev/pts", "/dev/shm"}, strings.TrimSpace(strings.Repeat("0:0\n", 8)), "", 0},
		{"new files", []string{"run", "--rm", img, "sh", "-c", "touch /x && mkdir -p /new/dir && stat -c %u:%g /x /new/dir"}, "0:0\n0:0", "", 0},
		{"chown", []string{"run", "--rm", img, "sh", "-c", "touch /x && chown berth:extra /x && stat -c %u:%g /x"}, "1000:2000", "", 0},
		{"a user", []string{"run", "--rm", "-u", "berth", img, "id"}, "uid=1000(berth) gid=1001(berth) groups=1001(berth),2000(extra),2001(more)", "", 0},
		{"working directory", []string{"run", "--rm", "-w", "/a/b", img, "stat", "-c", "%u:%g", "/a", "."}, "0:0\n0:0", "", 0},
		{"standard output", []string{"run", "--rm", "-u", "berth", img, "sh", "-c", "echo out > /dev/stdout"}, "out", "", 0},
		{"capabilities", []string{"run", "--rm", img, "grep", "CapEff", "/proc/self/status"}, "CapEff:\t00000000a80425fb", "", 0},
		{"no power over the host", []string{"run", "--rm", "--cap-add", "ALL", "-v", host + ":/h", img, "sh", "-c", "chown 0:0 /h/file; mknod /x c 1 3; echo done"}, "done", "Operation not permitted", 0},
		{"limits above the daemon's", []string{"run", "--rm", "--ulimit", "nofile=100:200", img, "sh", "-c", "ulimit -n; ulimit -Hn"}, "100\n200", "", 0},
		{"oom score", []string{"run", "--rm", "--oom-score-adj", "77", img, "cat", "/proc/self/oom_score_adj"}, "77", "", 0},
		{"sysctl", []string{"run", "--rm", "--sysctl", "net.ipv4.ip_forward=1", "--network", "none", img, "cat", "/proc/sys/net/ipv4/ip_forward"}, "1", "", 0},
		{"host name", []string{"run", "--rm", "-h", "box", img, "hostname"}, "box", "", 0},
		{"read-only", []string{"run", "--rm", "--read-only", "--tmpfs", "/t", img, "sh", "-c", "touch /t/x; touch /x"}, "", "Read-only file system", 1},
		{"init", []string{"run", "--rm", "--init", img, "sh", "-c", "cat /proc/1/comm"}, "docker-init", "", 0},
		{"loopback", []string{"run", "--rm", "--network", "none", img, "sh", "-c", "ping -c 1 127.0.0.1 >/dev/null && echo up"}, "up", "", 0},
		{"sysfs", []string{"run", "--rm", "--network", "none", img, "ls", "/sys/class/net"}, "lo", "", 0},
		{"cgroup namespace", []string{"run", "--rm", "--cgroupns", "private", img, "sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u"}, "/", "", 0},
		{"seccomp", []string{"run", "--rm", img, "grep", "Seccomp:", "/proc/self/status"}, "Seccomp:\t2", "", 0},
		{"not found", []string{"run", "--rm", img, "no-such-command"}, "", "executable file not found in $PATH", 127},
		{"unmapped user", []string{"run", "--rm", "-u", "65536", img, "true"}, "", "is not mapped", 125},
		{"exec", []string{"exec", "base", "sh", "-c", "id -u; tr -s ' ' < /proc/self/uid_map"}, "0\n 0 100000 65536", "", 0},
		{"exec as a user", []string{"exec", "-u", "1000", "base", "sh", "-c", "id -u; touch /d/by-exec; stat -c %u:%g /d/by-exec"}, "1000\n1000:1001", "", 0},
		{"exec with a terminal", []string{"exec", "-t", "base", "sh", "-c", "stat -c %u:%g $(tty)"}, "0:5", "", 0},
		{"a bind source that is made", []string{"run", "--rm", "-v", t.TempDir() + "/made/here:/m", img, "sh", "-c", "touch /m/x && stat -c %u:%g /m /m/x"}, "0:0\n0:0", "", 0},
		{"a bind of the host", []string{"run", "--rm", "-v", host + ":/h", img, "stat", "-c", "%u:%g", "/h/file"}, "65534:65534", "", 0},
		{"shared pid namespace", []string{"run", "--rm", "--pid", "container:base", img, "sh", "-c", "ps | grep -c 'sleep 100[0]'"}, "1", "", 0},
		{"shared ipc namespace", []string{"run", "--rm", "--ipc", "container:base", img, "cat", "/dev/shm/shared"}, "x", "", 0},
		{"shared network", []string{"run", "--rm", "--network", "container:base", img, "ls", "/sys/class/net"}, "lo", "", 0},
		{"the host's ipc namespace", []string{"run", "--rm", "--ipc", "host", img, "true"}, "", "", 0},
		{"the host's user namespace", []string{"run", "--rm", "--userns", "host", img, "sh", "-c", "tr -s ' ' < /proc/self/uid_map; stat -c %u:%g / /etc/passwd /etc/hosts"}, "0 0 4294967295\n0:0\n0:0\n0:0", "", 0},
		{"privileged on the host", []string{"run", "--rm", "--userns", "host", "--privileged", img, "true"}, "", "", 0},
		{"privileged", []string{"run", "--rm", "--privileged", img, "true"}, "", "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode", 125},
		{"the host's network", []string{"run", "--rm", "--network", "host", img, "true"}, "", "cannot share the host's network namespace when user namespaces are enabled", 125},
		{"the host's processes", []string{"run", "--rm", "--pid", "host", img, "true"}, "", "cannot share the host PID namespace when user namespaces are enabled", 125},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := e.Client("docker").Run(c.args...)
			if r.Code != c.code || c.out != "" && strings.TrimSpace(strings.ReplaceAll(r.Out, "\r", "")) != c.out || !strings.Contains(r.Err, c.err) {
				t.Errorf("%q: %d\nout %q\nerr %q", c.args, r.Code, r.Out, r.Err)
			}
		})
	}

	// Outside the container its ids are the container's, whether it runs or not.
	owners := func(what, tar string) {
		t.Helper()
		for _, line := range []string{"0/0 made", "1000/1001 d/"} {
			own, name, _ := strings.Cut(line, " ")
			found := false
			for l := range strings.Lines(tar) {
				f := strings.Fields(l)
				found = found || len(f) > 5 && f[1] == own && f[len(f)-1] == name
			}
			if !found {
				t.Errorf("%s: no %q in\n%s", what, line, tar)
			}
		}
	}
	list := func(args ...string) string {
		t.Helper()
		file := filepath.Join(host, "tar")
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		cmd := e.Client("docker").Command(args...)
		cmd.Stdout = out
		err = cmd.Run()
		_ = out.Close()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		l, err := exec.Command("tar", "-tvf", file, "--numeric-owner").Output()
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return strings.ReplaceAll(string(l), "./", "")
	}
	if diff := e.Docker("diff", "base"); !strings.Contains(diff, "A /made") || !strings.Contains(diff, "D /home") || strings.Contains(diff, "/etc") {
		t.Errorf("diff: %s", diff)
	}
	for _, state := range []string{"running", "stopped"} {
		owners(state+" cp", list("cp", "base:/made", "-")+list("cp", "base:/d", "-"))
		owners(state+" export", list("export", "base"))
		e.Docker("cp", filepath.Join(host, "file"), "base:/copied-"+state)
		e.Docker("cp", host, "base:/tree-"+state)
		e.Docker("stop", "-t", "0", "base")
	}
	e.Docker("start", "base")
	if got := e.Docker("exec", "base", "stat", "-c", "%u:%g", "/copied-running", "/tree-running", "/tree-running/file", "/copied-stopped", "/tree-stopped"); got != strings.TrimSpace(strings.Repeat("0:0\n", 5)) {
		t.Errorf("owners of copies: %s", got)
	}
	e.Docker("commit", "base", "made")
	if got := e.Docker("run", "--rm", "made", "stat", "-c", "%u:%g", "/made", "/d", "/copied-running"); got != "0:0\n1000:1001\n0:0" {
		t.Errorf("owners in the image of it: %s", got)
	}
	e.Restart()
	if got := e.Docker("exec", "base", "id", "-u"); got != "0" {
		t.Errorf("exec after a restart of the engine: %s", got)
	}
	e.Docker("rm", "-f", "base")
}

// What dockerd says when the mapping cannot be made.
func TestUserNamespaceErrors(t *testing.T) {
	t.Parallel()
	bin := enginetest.Binaries(t)
	for spec, want := range map[string]string{
		"no-such-user-here": `failed to start daemon: Error during uid lookup for "no-such-user-here": no matching entries in passwd file`,
		"0:1:2":             `failed to start daemon: Invalid user/group specification in --userns-remap: "0:1:2"`,
	} {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "berthd"), "--data-root", filepath.Join(dir, "d"), "--exec-root", filepath.Join(dir, "x"),
			"-H", "unix://"+filepath.Join(dir, "s"), "-p", filepath.Join(dir, "pid"), "--bridge", "none", "--iptables=false", "--userns-remap", spec)
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(strings.ReplaceAll(string(out), `\"`, `"`), want) {
			t.Errorf("%s: %v %s", spec, err, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "d", "state")); err == nil {
			t.Errorf("%s: state was made", spec)
		}
	}
}
