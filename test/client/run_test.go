package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// img is written where a table needs the image between flags and command.
const img = enginetest.Image

func TestRun(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Berth("run", "-d", "--name", "base", "--network", "none", img, "sleep", "1000")

	cases := []struct {
		name string
		args []string
		in   string
		out  string // exact, trimmed
		has  string // in stdout
		err  string // in stderr
		code int
	}{
		{name: "stdout", args: []string{img, "echo", "hello"}, out: "hello"},
		{name: "stderr", args: []string{img, "sh", "-c", "echo oops >&2"}, err: "oops"},
		{name: "exit code", args: []string{img, "sh", "-c", "exit 42"}, code: 42},
		{name: "killed", args: []string{img, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, code: 137},
		{name: "command not found", args: []string{img, "no-such-command"}, code: 127, err: "executable file not found in $PATH"},
		{name: "no such file", args: []string{img, "/no/such/file"}, code: 127, err: "no such file or directory"},
		{name: "not executable", args: []string{img, "/etc/passwd"}, code: 126, err: "permission denied"},
		{name: "a directory", args: []string{img, "/etc"}, code: 126},
		{name: "no such image", args: []string{"no-such-image"}, code: 125, err: "no-such-image"},
		{name: "stdin", args: []string{"-i", img, "cat"}, in: "through\n", out: "through"},
		{name: "large stdin", args: []string{"-i", img, "wc", "-c"}, in: strings.Repeat("x", 3<<20), out: "3145728"},
		{name: "large stdout", args: []string{img, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' y | fold -w 100 | wc -l"}, out: "29999"},
		{name: "env", args: []string{"-e", "A=1", "-e", "B=two words", img, "sh", "-c", `echo "$A-$B"`}, out: "1-two words"},
		{name: "home", args: []string{img, "sh", "-c", "echo $HOME $PATH"}, out: "/root /bin:/sbin"},
		{name: "workdir", args: []string{"-w", "/home/new/dir", img, "pwd"}, out: "/home/new/dir"},
		{name: "user", args: []string{"-u", "berth", img, "id"}, out: "uid=1000(berth) gid=1001(berth) groups=1001(berth),2000(extra),2001(more)"},
		{name: "user and group", args: []string{"-u", "1000:2000", img, "id"}, out: "uid=1000(berth) gid=2000(extra) groups=2000(extra)"},
		{name: "group-add", args: []string{"-u", "berth", "--group-add", "3000", img, "id", "-G"}, has: "3000"},
		{name: "hostname", args: []string{"-h", "box", img, "sh", "-c", "hostname; cat /etc/hostname"}, out: "box\nbox"},
		{name: "domainname", args: []string{"-h", "box", "--domainname", "example.com", img, "cat", "/proc/sys/kernel/domainname"}, out: "example.com"},
		{name: "entrypoint", args: []string{"--entrypoint", "echo", img, "a", "b"}, out: "a b"},
		{name: "bind", args: []string{"-v", host + ":/mnt", img, "sh", "-c", "cat /mnt/file; echo x > /mnt/rw"}, out: "from the host"},
		{name: "bind read-only", args: []string{"-v", host + ":/mnt:ro", img, "sh", "-c", "echo x > /mnt/ro"}, code: 1, err: "Read-only file system"},
		{name: "bind one file", args: []string{"-v", host + "/file:/etc/motd", img, "cat", "/etc/motd"}, out: "from the host"},
		{name: "mount", args: []string{"--mount", "type=bind,src=" + host + ",dst=/mnt,readonly", img, "cat", "/mnt/file"}, out: "from the host"},
		{name: "tmpfs", args: []string{"--tmpfs", "/scratch:size=1m,mode=1777", img, "sh", "-c", "grep ' /scratch ' /proc/mounts"}, has: "size=1024k"},
		{name: "read-only", args: []string{"--read-only", img, "touch", "/x"}, code: 1, err: "Read-only file system"},
		{name: "read-only with tmpfs", args: []string{"--read-only", "--tmpfs", "/tmp", img, "sh", "-c", "touch /tmp/x && echo ok"}, out: "ok"},
		{name: "init", args: []string{"--init", img, "sh", "-c", "echo $$; cat /proc/1/comm"}, has: "init"},
		{name: "pid 1", args: []string{img, "sh", "-c", "echo $$"}, out: "1"},
		{name: "network none", args: []string{"--network", "none", img, "sh", "-c", "ls /sys/class/net | grep -v lo | wc -l"}, out: "0"},
		{name: "network host", args: []string{"--network", "host", img, "readlink", "/proc/self/ns/net"}, has: "net:["},
		{name: "network container", args: []string{"--network", "container:base", img, "true"}},
		{name: "pid host", args: []string{"--pid", "host", img, "sh", "-c", "[ $$ != 1 ] && echo yes"}, out: "yes"},
		{name: "pid container", args: []string{"--pid", "container:base", img, "ps"}, has: "sleep 1000"},
		{name: "ipc host", args: []string{"--ipc", "host", img, "true"}},
		{name: "uts host", args: []string{"--uts", "host", img, "true"}},
		{name: "cap drop", args: []string{"--cap-drop", "ALL", img, "sh", "-c", "grep CapEff /proc/self/status"}, has: "0000000000000000"},
		{name: "cap add", args: []string{"--cap-drop", "ALL", "--cap-add", "NET_ADMIN", img, "sh", "-c", "grep CapEff /proc/self/status"}, has: "0000000000001000"},
		{name: "default caps", args: []string{img, "sh", "-c", "grep CapEff /proc/self/status"}, has: "00000000a80425fb"},
		{name: "privileged", args: []string{"--privileged", img, "sh", "-c", "mkdir /m && mount -t tmpfs none /m && echo ok"}, out: "ok"},
		{name: "seccomp", args: []string{img, "sh", "-c", "grep ^Seccomp: /proc/self/status"}, has: "2"},
		{name: "unconfined", args: []string{"--security-opt", "seccomp=unconfined", img, "sh", "-c", "grep ^Seccomp: /proc/self/status"}, has: "0"},
		{name: "no-new-privileges", args: []string{"--security-opt", "no-new-privileges", img, "sh", "-c", "grep NoNewPrivs /proc/self/status"}, has: "1"},
		{name: "ulimit", args: []string{"--ulimit", "nofile=321:654", img, "sh", "-c", "ulimit -n; ulimit -Hn"}, out: "321\n654"},
		{name: "sysctl", args: []string{"--sysctl", "net.ipv4.ip_forward=1", "--network", "none", img, "cat", "/proc/sys/net/ipv4/ip_forward"}, out: "1"},
		{name: "shm size", args: []string{"--shm-size", "2m", img, "sh", "-c", "df -k /dev/shm | tail -1"}, has: "2048"},
		{name: "add-host", args: []string{"--add-host", "peer:10.1.2.3", img, "cat", "/etc/hosts"}, has: "10.1.2.3"},
		{name: "device", args: []string{"--device", "/dev/null:/dev/other", img, "sh", "-c", "echo x > /dev/other && ls -l /dev/other"}, has: "1,   3"},
		{name: "label", args: []string{"-l", "a=b", img, "true"}},
		{name: "oom score", args: []string{"--oom-score-adj", "77", img, "cat", "/proc/self/oom_score_adj"}, out: "77"},
		{name: "stop signal", args: []string{"--stop-signal", "SIGUSR1", img, "true"}},
		{name: "env file", args: []string{"--env-file", filepath.Join(host, "env"), img, "sh", "-c", "echo $FROMFILE"}, out: "yes"},
		{name: "devices", args: []string{img, "sh", "-c", "echo x >/dev/null && head -c 4 /dev/urandom | wc -c && test -c /dev/tty && test -L /dev/fd && ls /dev | tr '\\n' ' '"}, has: "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"},
		{name: "proc is its own", args: []string{img, "sh", "-c", "ls /proc | grep -c '^[0-9]'"}},
		{name: "one root", args: []string{img, "sh", "-c", "grep -c ' / ' /proc/mounts"}, out: "1"},
	}
	if err := os.WriteFile(filepath.Join(host, "env"), []byte("# comment\nFROMFILE=yes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				r := c.RunIn(strings.NewReader(tc.in), append([]string{"run", "--rm"}, tc.args...)...)
				if r.Code != tc.code {
					t.Errorf("exit code %d, want %d", r.Code, tc.code)
				}
				if tc.out != "" && strings.TrimSpace(r.Out) != tc.out {
					t.Errorf("stdout %q, want %q", strings.TrimSpace(r.Out), tc.out)
				}
				if !strings.Contains(r.Out, tc.has) {
					t.Errorf("stdout %q, want %q in it", r.Out, tc.has)
				}
				if !strings.Contains(r.Err, tc.err) {
					t.Errorf("stderr %q, want %q in it", r.Err, tc.err)
				}
				if t.Failed() {
					t.Logf("%q\nout: %s\nerr: %s", r.Args, r.Out, r.Err)
				}
			})
		}
		if left := c.Must("ps", "-aq"); len(strings.Fields(left)) != 1 {
			t.Errorf("--rm has left containers behind: %s", c.Must("ps", "-a"))
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	read := func(v1, v2 string) string {
		if enginetest.CgroupV2() {
			return "cat /sys/fs/cgroup/" + v2
		}
		return "cat /sys/fs/cgroup/" + v1
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		if got := c.Must("run", "--rm", "-m", "64m", img, "sh", "-c", read("memory/memory.limit_in_bytes", "memory.max")); got != "67108864" {
			t.Errorf("memory limit %q", got)
		}
		if got := c.Must("run", "--rm", "--pids-limit", "50", img, "sh", "-c", read("pids/pids.max", "pids.max")); got != "50" {
			t.Errorf("pids limit %q", got)
		}
		want := "50000"
		if enginetest.CgroupV2() {
			want = "50000 100000"
		}
		if got := c.Must("run", "--rm", "--cpus", "0.5", img, "sh", "-c", read("cpu/cpu.cfs_quota_us", "cpu.max")); got != want {
			t.Errorf("cpu quota %q", got)
		}
		r := c.Run("run", "--name", "oom", "-m", "16m", "--memory-swap", "16m", img, "sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
		if r.Code != 137 || c.Inspect("oom", "{{.State.OOMKilled}}") != "true" {
			t.Errorf("out of memory: exit code %d, OOMKilled %s", r.Code, c.Inspect("oom", "{{.State.OOMKilled}}"))
		}
		c.Must("rm", "oom")
	})
}

func TestRunDetached(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	r := c.Run("run", "-d", img)
	if id := strings.TrimSpace(r.Out); r.Code != 0 || len(id) != 64 {
		t.Errorf("stdout holds %q, want an id", r.Out)
	}
	// run looks for a moment only: on a slow machine the shell may still be there.
	if lines := strings.Count(strings.TrimSpace(r.Err), "\n"); r.Err != "" && !strings.Contains(r.Err, "-it") || lines > 1 {
		t.Errorf("no good hint on stderr: %q", r.Err)
	}
	r = c.Run("run", "-d", img, "sleep", "100")
	if r.Err != "" {
		t.Errorf("a hint where none is needed: %q", r.Err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		id := c.Must("create", "--name", "first", img, "true")
		if r := c.Run("create", "--name", "first", img, "true"); r.Code == 0 || !strings.Contains(r.Err, `The container name "/first" is already in use by container`) {
			t.Errorf("a second container of one name: %d %s", r.Code, r.Err)
		}
		if got := c.Inspect(id[:12], "{{.Name}}"); got != "/first" {
			t.Errorf("by prefix: %q", got)
		}
		c.Must("rename", "first", "second")
		if got := c.Inspect("second", "{{.Id}}"); got != id {
			t.Errorf("after rename: %q", got)
		}
		if r := c.Run("inspect", "first"); r.Code == 0 {
			t.Error("the old name is still there")
		}
		c.Must("create", "--name", "first", img, "true")
		c.Must("rm", "first", "second")
		if r := c.Run("rm", "second"); r.Code == 0 || !strings.Contains(r.Err, "No such container: second") {
			t.Errorf("removing twice: %d %s", r.Code, r.Err)
		}
		if name := c.Inspect(c.Must("create", img), "{{.Name}}"); !strings.Contains(name, "_") {
			t.Errorf("a made-up name: %q", name)
		}
	})
}
