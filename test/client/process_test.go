package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// step is one command of a client and what it must say.
type step struct {
	args string // split at blanks; "IMG" is the image
	out  string // exact, trimmed, when not empty
	err  string // in stderr
	code int
}

func (s step) run(t *testing.T, c *enginetest.Client) {
	t.Helper()
	args := strings.Fields(strings.ReplaceAll(s.args, "IMG", img))
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "␣", " ")
	}
	r := c.Run(args...)
	out := strings.TrimSpace(strings.ReplaceAll(r.Out, "\r", ""))
	if r.Code != s.code || s.out != "" && out != s.out || !strings.Contains(r.Err, s.err) {
		t.Errorf("%s: %d\nout %q\nerr %q\nwant %d %q %q", s.args, r.Code, r.Out, r.Err, s.code, s.out, s.err)
	}
}

// Namespaces that containers share with each other or the host, and the
// words that say why not.
func TestSharedNamespaces(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Docker("run", "-d", "--name", "private", "--network", "none", img, "sleep", "1000")
	e.Docker("run", "-d", "--name", "open", "--network", "none", "--ipc", "shareable", "--tmpfs", "/t", img, "sh", "-c", "echo shared > /dev/shm/f; exec sleep 1000")
	e.Docker("create", "--name", "stopped", "--network", "none", img, "true")
	full := func(name string) string { return e.Client("docker").Inspect(name, "{{.Id}}") }
	private, stopped := full("private"), full("stopped")
	enginetest.Eventually(t, "the donor has written", func() bool { return e.Client("docker").Run("exec", "open", "test", "-s", "/dev/shm/f").Code == 0 })
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, s := range []step{
			{"run --rm --network none --ipc container:private IMG true", "", "failed to join IPC namespace: container " + private + ": non-shareable IPC (hint: use IpcMode:shareable for the donor container)", 125},
			{"run --rm --network none --ipc container:open IMG cat /dev/shm/f", "shared", "", 0},
			{"run --rm --network none --ipc container:open IMG sh -c echo␣back>/dev/shm/g", "", "", 0},
			{"exec open cat /dev/shm/g", "back", "", 0},
			{"run --rm --network none --ipc container:stopped IMG true", "", "failed to join IPC namespace: container " + stopped + " is not running", 125},
			{"run --rm --network none --ipc container:nobody IMG true", "", "No such container: nobody", 125},
			{"run --rm --network none --ipc none IMG ls /dev/shm", "", "No such file or directory", 1},
			{"run --rm --network none --ipc private IMG ls -d /dev/shm", "/dev/shm", "", 0},
			{"run --rm --network none --ipc odd IMG true", "", "invalid IPC mode: odd", 125},
			{"run --rm --network none --pid container:private IMG sh -c ps|grep␣-c␣'[s]leep␣1000'", "1", "", 0},
			{"run --rm --network none --pid container:stopped IMG true", "", "failed to join PID namespace: container " + stopped + " is not running", 125},
			{"run --rm --network none --pid odd IMG true", "", "invalid PID mode", 125},
			{"run --rm --network container:stopped IMG true", "", "cannot join network namespace of a non running container: container stopped is created", 125},
			{"run --rm --network container: IMG true", "", "invalid network mode: invalid container format container:<name|id>", 125},
			{"run --rm --network none --uts host -h x IMG true", "", "conflicting options: hostname and the UTS mode", 125},
			{"run --rm --network none --uts odd IMG true", "", "invalid UTS mode", 125},
			{"run --rm --network none --cgroupns private IMG sh -c cut␣-d:␣-f3␣/proc/self/cgroup|sort␣-u", "/", "", 0},
			{"run --rm --network none --userns host IMG sh -c tr␣-s␣'␣'␣</proc/self/uid_map", "0 0 4294967295", "", 0},
			{"run --rm --network none --userns odd IMG true", "", "invalid USER mode", 125},
		} {
			s.run(t, c)
		}
	})
	// A sharer finds its donor again by its id, whatever it is called now, and
	// the donor's new namespaces when it was started again.
	d := e.Client("docker")
	d.Must("run", "-d", "--name", "joiner", "--network", "container:open", "--pid", "container:open", "--ipc", "container:open", img, "sleep", "1000")
	if got := d.Inspect("joiner", "{{.HostConfig.PidMode}}"); got != "container:"+full("open") {
		t.Errorf("PidMode: %s", got)
	}
	d.Must("rename", "open", "renamed")
	d.Must("restart", "-t", "0", "renamed")
	d.Must("restart", "-t", "0", "joiner")
	for _, ns := range []string{"pid", "ipc", "net"} {
		if a, b := d.Must("exec", "joiner", "readlink", "/proc/self/ns/"+ns), d.Must("exec", "renamed", "readlink", "/proc/self/ns/"+ns); a != b {
			t.Errorf("%s namespaces: %s and %s", ns, a, b)
		}
	}
	d.Must("rm", "-f", "joiner")
	d.Must("stop", "-t", "0", "renamed")
	e.Restart()
	step{"run --rm --network none --pid container:renamed IMG true", "", " is not running", 125}.run(t, d)
	d.Must("rm", "-f", "private", "renamed", "stopped")
}

// What a process is given, and Docker's words for what it is not given.
func TestProcessFlags(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	dir := t.TempDir()
	put := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	bad, odd := put("bad", "no json"), put("odd", `{"defaultAction":"SCMP_ACT_NONE"}`)
	noChmod := put("nochmod", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}`)
	e.Docker("run", "-d", "--name", "base", "--network", "none", img, "sleep", "1000")
	e.Docker("run", "-d", "--name", "asuser", "--network", "none", "-u", "berth", img, "sleep", "1000")
	const run = "run --rm --network none "
	const user, group = "unable to find user %: no matching entries in passwd file", "unable to find group %: no matching entries in group file"
	lacks := func(text, name string) string { return strings.ReplaceAll(text, "%", name) }
	const outOfRange = "uids and gids must be in range 0-2147483647"
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, s := range []step{
			// users
			{run + "IMG id", "uid=0(root) gid=0(root) groups=0(root),2001(more)", "", 0},
			{run + "-u 1000 IMG id", "uid=1000(berth) gid=1001(berth) groups=1001(berth),2000(extra),2001(more)", "", 0},
			{run + "-u 1234 IMG id", "uid=1234 gid=0(root) groups=0(root)", "", 0},
			{run + "-u berth:more IMG id", "uid=1000(berth) gid=2001(more) groups=2001(more)", "", 0},
			{run + "-u 1000: IMG id", "uid=1000(berth) gid=1001(berth) groups=1001(berth),2000(extra),2001(more)", "", 0},
			{run + "-u :2000 IMG id", "uid=0(root) gid=2000(extra) groups=2000(extra)", "", 0},
			{run + "-u 1000:2000:x IMG id", "uid=1000(berth) gid=2000(extra) groups=2000(extra)", "", 0},
			{run + "-u 2147483647 IMG id -u", "2147483647", "", 0},
			{run + "-u 2147483648 IMG id", "", outOfRange, 125},
			{run + "-u 4294967296 IMG id", "", outOfRange, 125},
			{run + "-u -1 IMG id", "", outOfRange, 125},
			{run + "-u 0:2147483648 IMG id", "", outOfRange, 125},
			{run + "-u 18446744073709551616 IMG id", "", lacks(user, "18446744073709551616"), 125},
			{run + "-u nosuch IMG id", "", lacks(user, "nosuch"), 125},
			{run + "-u 0:nosuch IMG id", "", lacks(group, "nosuch"), 125},
			{run + "-u berth --group-add extra --group-add 3000 IMG id -G", "1001 2000 2001 3000", "", 0},
			{run + "--group-add nosuch IMG id", "", lacks(group, "nosuch"), 125},
			{"exec asuser id -u", "1000", "", 0},
			{"exec -u 0 asuser id -u", "0", "", 0},
			{"exec -u 1234:5 base id -g", "5", "", 0},
			{"exec -u nosuch base id", lacks(user, "nosuch"), "", 126},
			{"exec -u 2147483648 base id", outOfRange, "", 126},
			{"exec -u 0:nosuch base id", lacks(group, "nosuch"), "", 126},
			// exec
			{"exec -w /tmp base pwd", "/tmp", "", 0},
			{"exec -w tmp base pwd", "OCI runtime exec failed: exec failed: Cwd must be an absolute path", "", 126},
			{"exec -e A=1 base sh -c echo␣$A", "1", "", 0},
			{"exec -d base touch /by-exec", "", "", 0},
			{"exec -t base tty", "/dev/pts/0", "", 0},
			{"exec --detach-keys odd base true", "", "etach keys (odd)", 1},
			{"exec --privileged base grep -c Seccomp:␣*0 /proc/self/status", "", "", 1},
			{"exec --privileged base sh -c mount␣-t␣tmpfs␣t␣/tmp&&umount␣/tmp", "", "", 0},
			// capabilities
			{run + "--cap-add net_admin IMG grep CapEff /proc/self/status", "CapEff:\t00000000a80435fb", "", 0},
			{run + "--cap-add CAP_NET_ADMIN --cap-drop cap_chown IMG grep CapEff /proc/self/status", "CapEff:\t00000000a80435fa", "", 0},
			{run + "--cap-drop ALL -u berth --cap-add SYS_TIME IMG grep CapBnd /proc/self/status", "CapBnd:\t0000000002000000", "", 0},
			{run + "--cap-add x IMG true", "", `invalid CapAdd: unknown capability: "CAP_X"`, 125},
			{run + "--privileged --cap-drop CAP_X IMG true", "", `invalid CapDrop: unknown capability: "CAP_X"`, 125},
			{run + "IMG grep CapInh /proc/self/status", "CapInh:\t0000000000000000", "", 0},
			// security options
			{run + "--security-opt seccomp=unconfined IMG grep Seccomp: /proc/self/status", "Seccomp:\t0", "", 0},
			{run + "--security-opt seccomp=" + noChmod + " IMG chmod 700 /tmp", "", "Operation not permitted", 1},
			{run + "--privileged --security-opt seccomp=" + noChmod + " IMG chmod 700 /tmp", "", "Operation not permitted", 1},
			{run + "--privileged --security-opt label=disable IMG grep Seccomp: /proc/self/status", "Seccomp:\t0", "", 0},
			{run + "--security-opt seccomp=" + bad + " IMG true", "", "", 125},
			{run + "--security-opt seccomp=" + odd + " IMG true", "", "string SCMP_ACT_NONE is not a valid action for seccomp", 125},
			{run + "--security-opt no-new-privileges:true IMG grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1", "", 0},
			{run + "--security-opt no-new-privileges=false IMG grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0", "", 0},
			{run + "--security-opt apparmor=unconfined --security-opt label=disable IMG true", "", "", 0},
			{run + "--security-opt systempaths=unconfined IMG grep -c ␣/proc/ /proc/mounts", "0", "", 1},
			{run + "--security-opt writable-cgroups=true --cgroupns private IMG sh -c touch␣/sys/fs/cgroup/x␣2>&1|grep␣-c␣Read-only", "0", "", 1},
			{run + "--security-opt x=y IMG true", "", `invalid --security-opt 2: "x=y"`, 125},
			// the kernel's settings
			{run + "--sysctl kernel.shmmax=12345678 IMG cat /proc/sys/kernel/shmmax", "12345678", "", 0},
			{run + "--ipc host --sysctl kernel.shmmax=1 IMG true", "", `sysctl "kernel.shmmax" is not allowed in the hosts ipc namespace`, 125},
			{"run --rm --network host --sysctl net.ipv4.ip_forward=1 IMG true", "", `sysctl "net.ipv4.ip_forward" not allowed in host network namespace`, 125},
			{run + "--sysctl net.nosuch=1 IMG true", "", "open /proc/sys/net/nosuch: no such file or directory", 127},
			{run + "-u 1000 IMG cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0", "", 0},
			{run + "--ulimit core=1024 --ulimit nofile=99:100 IMG sh -c ulimit␣-c;ulimit␣-n;ulimit␣-Hn", "2\n99\n100", "", 0},
			{run + "--oom-score-adj 1001 IMG true", "", "Invalid value 1001, range for oom score adj is [-1000, 1000]", 125},
			// files
			{run + "--tmpfs /t:size=1m,mode=700,uid=1000,gid=2000 IMG stat -c %a␣%u␣%g /t", "700 1000 2000", "", 0},
			{run + "--tmpfs /t:nonsense IMG true", "", `invalid tmpfs option "nonsense"`, 125},
			{run + "--tmpfs / IMG true", "", "invalid specification: destination can't be '/'", 125},
			{run + "--tmpfs // IMG true", "", "invalid specification: destination can't be '/'", 125},
			{run + "-w /etc/passwd IMG true", "", "Cannot mkdir: /etc/passwd is not a directory", 125},
			{run + "-w tmp IMG true", "", "the working directory 'tmp' is invalid, it needs to be an absolute path", 125},
			// names and variables
			{run + "-h box --domainname dom IMG cat /etc/hostname", "box", "", 0},
			{run + "-e PATH=/bin -e HOSTNAME=y -e B=1 IMG env", "PATH=/bin\nHOSTNAME=y\nB=1\nHOME=/root", "", 0},
			{run + "--annotation =b IMG true", "", "invalid Annotations: the empty string is not permitted as an annotation key", 125},
			{run + "--stop-signal odd IMG true", "", "invalid signal: odd", 125},
		} {
			s.run(t, c)
		}
		c.Must("create", "--name", "timeless", "--network", "none", "--stop-timeout", "-1", "--stop-signal", "10", "--annotation", "a=b", img, "true")
		if got := c.Inspect("timeless", "{{.Config.StopTimeout}} {{.Config.StopSignal}} {{.HostConfig.Annotations}}"); got != "-1 10 map[a:b]" {
			t.Errorf("inspect: %s", got)
		}
		c.Must("rm", "timeless")
		if left := c.Must("ps", "-aq"); len(strings.Fields(left)) != 2 {
			t.Errorf("refused containers were left: %s", c.Must("ps", "-a"))
		}
	})
	e.Docker("rm", "-f", "base", "asuser")
}
