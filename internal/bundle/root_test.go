package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// host is a state directory and a bundle, with this binary as the runtime.
type host struct {
	t    *testing.T
	dir  string
	spec *specs.Spec
}

func newHost(t *testing.T) *host {
	t.Helper()
	enginetest.RequireRoot(t)
	h := &host{t: t, dir: t.TempDir()}
	root := h.dir + "/bundle/rootfs"
	for _, d := range []string{"bin", "etc"} {
		h.must(os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	raw, err := os.ReadFile("/bin/busybox")
	h.must(err)
	h.must(os.WriteFile(root+"/bin/busybox", raw, 0o755))
	for _, n := range []string{"sh", "id", "cat", "ls", "sleep", "hostname", "tty", "stty", "ps", "ip", "touch", "echo"} {
		h.must(os.Symlink("busybox", root+"/bin/"+n))
	}
	h.reset()
	t.Cleanup(func() {
		for _, e := range h.list() {
			h.run("delete", "--force", e)
		}
	})
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) reset() *specs.Spec {
	h.spec = exampleSpec()
	h.spec.Process.Terminal, h.spec.Process.Rlimits = false, nil
	h.spec.Process.Env = []string{"PATH=/sbin:/bin"}
	return h.spec
}

func (h *host) command(args ...string) *exec.Cmd {
	h.t.Helper()
	raw, err := json.Marshal(h.spec)
	h.must(err)
	// In one step: a runtime that runs already may be reading it.
	h.must(os.WriteFile(h.dir+"/bundle/config.new", raw, 0o600))
	h.must(os.Rename(h.dir+"/bundle/config.new", h.dir+"/bundle/config.json"))
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", h.dir + "/state"}, args...)...)
	cmd.Dir, cmd.Env = h.dir+"/bundle", append(os.Environ(), "BERTH_RUNTIME_TEST=1")
	return cmd
}

// run calls the runtime; its output goes through a file, since a container
// that it leaves behind holds its stdio.
func (h *host) run(args ...string) (string, int) {
	h.t.Helper()
	f, err := os.CreateTemp(h.dir, "out")
	h.must(err)
	defer f.Close()
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = f, f
	_ = cmd.Run()
	raw, err := os.ReadFile(f.Name())
	h.must(err)
	return string(raw), cmd.ProcessState.ExitCode()
}

func (h *host) ok(args ...string) string {
	h.t.Helper()
	out, code := h.run(args...)
	if code != 0 {
		h.t.Fatalf("%v: exit %d: %s", args, code, out)
	}
	return out
}

func (h *host) list() []string {
	out, _ := h.run("list", "-q")
	return strings.Fields(out)
}

func (h *host) status(id string) string {
	h.t.Helper()
	var s specs.State
	h.must(json.Unmarshal([]byte(h.ok("state", id)), &s))
	return string(s.Status)
}

func (h *host) until(id, want string) {
	h.t.Helper()
	for range 200 {
		if h.status(id) == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatalf("%s is %s, want %s", id, h.status(id), want)
}

func TestRun(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Args = []string{"sh", "-c", "id -u; hostname; echo $$; touch /x; ip addr show lo; exit 5"}
	out, code := h.run("run", "a")
	if code != 5 || !strings.HasPrefix(out, "0\nberth\n1\n") || !strings.Contains(out, "Read-only file system") || !strings.Contains(out, "LOOPBACK,UP") {
		t.Errorf("exit %d: %s", code, out)
	}
	h.spec.Process.Args = []string{"sh", "-c", "kill -9 $$"}
	h.spec.Linux.Namespaces = h.spec.Linux.Namespaces[1:] // no pid namespace: pid 1 could not kill itself
	if _, code = h.run("run", "a"); code != 137 {
		t.Errorf("exit %d after SIGKILL", code)
	}
	if l := h.list(); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
	if m, _ := filepath.Glob("/sys/fs/cgroup/*/berth-runtime/a"); len(m) != 0 {
		t.Errorf("left behind: %v", m)
	}
}

func TestLife(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Args = []string{"sleep", "60"}
	h.spec.Annotations = map[string]string{"a": "b"}
	limit := int64(50)
	h.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	id := "life"
	h.ok("create", "--pid-file", h.dir+"/pid", id)
	pid, err := os.ReadFile(h.dir + "/pid")
	h.must(err)
	var s specs.State
	h.must(json.Unmarshal([]byte(h.ok("state", id)), &s))
	if strconv.Itoa(s.Pid) != string(pid) || s.Status != specs.StateCreated || s.Bundle != h.dir+"/bundle" || s.Annotations["a"] != "b" || s.Version != specs.Version {
		t.Errorf("%+v, pid file %s", s, pid)
	}
	if _, code := h.run("create", id); code == 0 {
		t.Error("the id was taken twice")
	}
	h.ok("start", id)
	h.until(id, "running")
	if out, code := h.run("start", id); code == 0 || !strings.Contains(out, "cannot start a container in the running state") {
		t.Errorf("%d %s", code, out)
	}
	if out, code := h.run("exec", "-u", "7:8", "-e", "A=b", "--cwd", "/etc", id, "sh", "-c", `echo $A $PWD; id -u; id -g; exit 3`); code != 3 || out != "b /etc\n7\n8\n" {
		t.Errorf("exec: %d %q", code, out)
	}
	if out, code := h.run("exec", id, "nope"); code != 255 || !strings.Contains(out, `exec failed: unable to start container process: exec: \"nope\": executable file not found in $PATH`) {
		t.Errorf("exec: %d %s", code, out)
	}
	h.ok("exec", "-d", "--pid-file", h.dir+"/pid2", id, "sleep", "50")
	var pids []int
	h.must(json.Unmarshal([]byte(h.ok("ps", "-f", "json", id)), &pids))
	if len(pids) != 2 {
		t.Errorf("ps: %v", pids)
	}
	h.ok("pause", id)
	h.until(id, "paused")
	if _, code := h.run("exec", id, "id"); code != 255 {
		t.Error("exec in a paused container")
	}
	h.ok("resume", id)
	h.until(id, "running")
	if out, code := h.run("delete", id); code == 0 || !strings.Contains(out, "that is not stopped: running") {
		t.Errorf("delete: %d %s", code, out)
	}
	h.ok("kill", id, "SIGKILL")
	h.until(id, "stopped")
	if out, code := h.run("kill", id, "TERM"); code == 0 || !strings.Contains(out, "container not running") {
		t.Errorf("kill: %d %s", code, out)
	}
	h.ok("delete", id)
	if out, code := h.run("state", id); code == 0 || !strings.Contains(out, `container \"life\" does not exist`) {
		t.Errorf("state: %d %s", code, out)
	}
}

func TestDeleteForce(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Args = []string{"sleep", "60"}
	for _, started := range []bool{false, true} {
		h.ok("create", "f")
		if started {
			h.ok("start", "f")
			h.ok("pause", "f")
		}
		h.ok("delete", "--force", "f")
		if l := h.list(); len(l) != 0 {
			t.Fatalf("left behind: %v", l)
		}
	}
	h.ok("create", "f")
	h.ok("delete", "f") // created only: nothing is lost
}

func TestCreateErrors(t *testing.T) {
	h := newHost(t)
	cases := []struct {
		name   string
		change func(*specs.Spec)
		want   string
	}{
		{"command not found", func(s *specs.Spec) { s.Process.Args = []string{"nope"} }, `exec: \"nope\": executable file not found in $PATH`},
		{"no file", func(s *specs.Spec) { s.Process.Args = []string{"/nope"} }, `exec: \"/nope\": stat /nope: no such file or directory`},
		{"no root", func(s *specs.Spec) { s.Root.Path = "none" }, "invalid rootfs"},
		{"no bind source", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such", Options: []string{"rbind"}})
		}, "no such file or directory"},
		{"bad namespace path", func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/no/such" }, "cannot open the network namespace"},
		{"hook fails", func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		}, "error running hook: exit status 1"},
		{"a terminal without a socket", func(s *specs.Spec) { s.Process.Terminal = true }, "cannot allocate tty"},
		{"rlimit", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}}
		}, "error setting rlimits for ready process"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			c.change(h.reset())
			out, code := h.run("create", "e")
			if code != 1 || !strings.Contains(out, c.want) {
				t.Errorf("exit %d: %s; want %s", code, out, c.want)
			}
			if l := h.list(); len(l) != 0 {
				t.Errorf("left behind: %v", l)
			}
			if m, _ := filepath.Glob("/sys/fs/cgroup/*/berth-runtime/e"); len(m) != 0 {
				t.Errorf("left behind: %v", m)
			}
		})
	}
	h.t = t
	// What only execve finds out is told by start.
	h.reset().Process.Args = []string{"/bin"}
	h.ok("create", "e")
	if out, code := h.run("start", "e"); code != 1 || !strings.Contains(out, `exec: \"/bin\": permission denied`) {
		t.Errorf("start: %d %s", code, out)
	}
	h.until("e", "stopped")
	h.ok("delete", "e")
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Terminal, h.spec.Process.ConsoleSize = true, &specs.Box{Height: 33, Width: 44}
	h.spec.Process.Args = []string{"sh", "-c", "tty; stty size; sleep 60"}
	sock := h.dir + "/console"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	h.must(err)
	defer l.Close()
	receive := func() *os.File {
		t.Helper()
		_ = l.SetDeadline(time.Now().Add(10 * time.Second))
		c, err := l.AcceptUnix()
		h.must(err)
		defer c.Close()
		buf, oob := make([]byte, 64), make([]byte, 64)
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		h.must(err)
		m, err := unix.ParseSocketControlMessage(oob[:oobn])
		h.must(err)
		fds, err := unix.ParseUnixRights(&m[0])
		h.must(err)
		if len(fds) != 1 || n == 0 {
			t.Fatalf("%d descriptors, %q", len(fds), buf[:n])
		}
		h.must(unix.SetNonblock(fds[0], true))
		return os.NewFile(uintptr(fds[0]), "terminal")
	}
	expect := func(f *os.File, want string) {
		t.Helper()
		_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := ""
		for !strings.Contains(got, want) {
			b := make([]byte, 256)
			n, err := f.Read(b)
			if err != nil && n == 0 {
				t.Fatalf("%q, then %v; want %q", got, err, want)
			}
			got += string(b[:n])
		}
	}
	h.ok("create", "--console-socket", sock, "t")
	m := receive()
	defer m.Close()
	h.ok("start", "t")
	expect(m, "/dev/pts/0\r\n33 44\r\n")
	h.ok("exec", "-d", "-t", "--console-socket", sock, "t", "sh", "-c", "tty; echo hello")
	m2 := receive()
	defer m2.Close()
	expect(m2, "/dev/pts/1\r\nhello\r\n")
	h.ok("delete", "--force", "t")
}

func TestHookOrder(t *testing.T) {
	h := newHost(t)
	hook := func(name string) []specs.Hook {
		script := fmt.Sprintf("echo %s $(cat | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') >> %s/hooks", name, h.dir)
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}}
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	h.must(err)
	inside := hook("createContainer") // in the container's namespaces, with the host's files
	inside[0].Args[2] += fmt.Sprintf("; [ $(readlink /proc/self/ns/mnt) != '%s' ] && mkdir %[2]s/hooked && mount -t tmpfs hooked %[2]s/hooked && echo mounted > %[2]s/hooked/by", own, h.dir+"/bundle/rootfs")
	started := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat /hooked/by > /started; hostname >> /started"}, Env: []string{"PATH=/bin"}}} // in the container, with its files
	h.spec.Hooks = &specs.Hooks{
		Prestart:      hook("prestart"), //nolint:staticcheck // deprecated, and still asked for
		CreateRuntime: hook("createRuntime"), CreateContainer: inside, StartContainer: started, Poststart: hook("poststart"), Poststop: hook("poststop"),
	}
	h.spec.Hostname, h.spec.Root.Readonly = "hooked-box", false
	h.spec.Process.Args = []string{"sleep", "60"}
	h.ok("create", "h")
	if _, err := os.Stat(h.dir + "/bundle/rootfs/hooked/by"); err == nil {
		t.Error("what a hook mounted in the container is there on the host")
	}
	h.ok("start", "h")
	if raw, err := os.ReadFile(h.dir + "/bundle/rootfs/started"); err != nil || string(raw) != "mounted\nhooked-box\n" {
		t.Errorf("startContainer: %q %v", raw, err)
	}
	h.ok("kill", "h", "KILL")
	h.until("h", "stopped")
	h.ok("delete", "h")
	raw, err := os.ReadFile(h.dir + "/hooks")
	h.must(err)
	if want := "prestart creating\ncreateRuntime creating\ncreateContainer creating\npoststart running\npoststop stopped\n"; string(raw) != want {
		t.Errorf("%s", raw)
	}
}

func TestJoinNamespaces(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Args = []string{"sleep", "60"}
	h.ok("create", "one")
	h.ok("start", "one")
	var s specs.State
	h.must(json.Unmarshal([]byte(h.ok("state", "one")), &s))
	h.reset().Process.Args = []string{"sh", "-c", "ps; hostname"}
	h.spec.Hostname = ""
	for i, ns := range h.spec.Linux.Namespaces {
		switch ns.Type {
		case specs.PIDNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.IPCNamespace:
			file := map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "pid", specs.UTSNamespace: "uts", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc"}[ns.Type]
			h.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", s.Pid, file)
		}
	}
	if out := h.ok("run", "two"); !strings.Contains(out, "sleep 60") || !strings.Contains(out, "berth\n") {
		t.Errorf("%s", out)
	}
}

// Nothing of the runtime's making is seen by the host or stays.
func TestNoTrace(t *testing.T) {
	h := newHost(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	h.must(err)
	h.spec.Process.Args = []string{"cat", "/proc/self/mountinfo"}
	out := h.ok("run", "n")
	after, err := os.ReadFile("/proc/self/mountinfo")
	h.must(err)
	if strings.Contains(string(after), h.dir) && !bytes.Equal(before, after) {
		t.Error("a mount is left behind")
	}
	if strings.Contains(out, "/state/n") {
		t.Errorf("the container sees the runtime's mounts: %s", out)
	}
}

func TestStdin(t *testing.T) {
	h := newHost(t)
	h.spec.Process.Args = []string{"cat"}
	cmd := h.command("run", "s")
	cmd.Stdin = strings.NewReader("through\n")
	out, err := cmd.Output()
	if err != nil || string(out) != "through\n" {
		t.Errorf("%q %v", out, err)
	}
	cmd = h.command("run", "s")
	in, err := cmd.StdinPipe()
	h.must(err)
	h.must(cmd.Start())
	h.until2("s")
	h.must(cmd.Process.Signal(unix.SIGTERM)) // passed on; process 1 has no handler, so it stays
	time.Sleep(50 * time.Millisecond)
	_, _ = io.WriteString(in, "x")
	in.Close()
	h.must(cmd.Wait())
}

func (h *host) until2(id string) {
	for range 200 {
		if _, code := h.run("state", id); code == 0 && h.status(id) == "running" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.t.Fatal("it does not start")
}

// Descriptors from 3 on go to the process when asked for, and no others.
func TestPreserve(t *testing.T) {
	h := newHost(t)
	r, w, err := os.Pipe()
	h.must(err)
	defer r.Close()
	file, err := os.CreateTemp(h.dir, "in")
	h.must(err)
	defer file.Close()
	_, err = file.WriteAt([]byte("given"), 0)
	h.must(err)
	h.spec.Process.Args = []string{"sh", "-c", "cat <&3 >&4; [ -e /proc/$$/fd/5 ] && echo leak >&4; echo $LISTEN_FDS >&4"}
	h.spec.Mounts = append(h.spec.Mounts, specs.Mount{Destination: "/a", Type: "bind", Source: "/tmp", Options: []string{"bind"}}, specs.Mount{Destination: "/b", Type: "bind", Source: "/tmp", Options: []string{"bind"}})
	h.spec.Root.Readonly = false
	cmd := h.command("run", "--preserve-fds", "1", "p")
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{file, w, file} // the last is one too many
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	h.must(w.Close())
	got, err := io.ReadAll(r)
	h.must(err)
	if string(got) != "given1\n" {
		t.Errorf("the process wrote %q", got)
	}
	if out, code := h.run("run", "--preserve-fds", "40", "q"); code == 0 || !strings.Contains(out, "please check that preserved-fd") {
		t.Errorf("descriptors that are not there: %d %s", code, out)
	}
	if left := h.list(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
