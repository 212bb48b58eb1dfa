package runtime

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// box is a container's surroundings for tests: a root filesystem with busybox.
type box struct {
	t    *testing.T
	rt   *Runtime
	dir  string
	root string
	spec *specs.Spec
	cg   *Cgroups
}

func newBox(t *testing.T) *box {
	t.Helper()
	enginetest.RequireRoot(t)
	rt, err := New()
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, rt: rt, dir: t.TempDir(), cg: NewCgroups(rt.Host)}
	b.root = b.dir + "/root"
	for _, d := range []string{"root/bin", "root/proc", "root/sys", "root/dev", "root/etc", "empty", "base"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	b.write("/bin/busybox", string(raw), 0o755)
	for _, name := range []string{"sh", "id", "cat", "ls", "true", "sleep", "hostname", "ps", "grep", "touch", "mount", "echo", "kill"} {
		if err := os.Symlink("busybox", b.root+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	b.reset()
	return b
}

func (b *box) write(name, text string, mode os.FileMode) {
	b.t.Helper()
	if err := os.WriteFile(b.root+name, []byte(text), mode); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(b.root+name, mode); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) reset() *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_SETGID", "CAP_SETUID", "CAP_KILL"}
	b.spec = &specs.Spec{
		Hostname: "box", Root: &specs.Root{},
		Process: &specs.Process{
			Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}},
			MaskedPaths: append(DefaultMaskedPaths(), "/etc/none"), ReadonlyPaths: DefaultReadonlyPaths(),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Options: []string{defaultShmOption}},
			{Destination: "/dev/mqueue", Type: "mqueue", Options: []string{"nosuid"}},
			{Destination: "/sys", Type: "sysfs", Options: []string{"ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro", "nosuid"}},
		},
	}
	return b.spec
}

// launch starts the box's process; wait returns its output and exit code.
func (b *box) launch(change func(*Launch)) (p *Process, wait func() (string, int), err error) {
	t := b.t
	t.Helper()
	var u []func()
	defer func() {
		for _, f := range u {
			f()
		}
	}()
	rootFD, err := unix.OpenTree(unix.AT_FDCWD, b.root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	u = append(u, func() { _ = unix.Close(rootFD) })
	dev, err := NewDevTree(nil)
	if err != nil {
		t.Fatal(err)
	}
	u = append(u, dev.Close)
	g, err := b.cg.Make("/berth-test-runtime/" + filepath.Base(b.dir) + "-" + filepath.Base(filepath.Dir(b.dir)))
	if err != nil {
		t.Fatal(err)
	}
	drop := func() { _ = b.cg.Remove(g); b.cg.RemoveParent("/berth-test-runtime") }
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	u = append(u, func() { w.Close(); null.Close() })
	l := &Launch{
		Spec: b.spec, Stdio: [3]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, RootFD: rootFD, Dev: dev, CgroupV1: g.V1, CgroupV2: g.V2FD, CgroupView: -1,
		Base: b.dir + "/base", Empty: b.dir + "/empty", PrivateMounts: true, StartFD: -1, Join: -1,
	}
	if change != nil {
		change(l)
	}
	if p, err = b.rt.Start(l); err != nil {
		r.Close()
		drop()
		return nil, nil, err
	}
	return p, func() (string, int) {
		t.Helper()
		w.Close()
		out, _ := io.ReadAll(r)
		r.Close()
		code := reap(t, p.Pid)
		_ = unix.Close(p.PidFD)
		if p.MountNS >= 0 {
			_ = unix.Close(p.MountNS)
		}
		drop()
		return string(out), code
	}, nil
}

// reap is the exit status of a child, as a shell tells it.
func reap(t *testing.T, pid int) int {
	t.Helper()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (b *box) run(args ...string) (string, int) {
	b.t.Helper()
	b.spec.Process.Args = args
	_, wait, err := b.launch(nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return wait()
}

func TestStart(t *testing.T) {
	b := newBox(t)
	out, code := b.run("sh", "-c", `hostname; id -u; echo $$; cat /proc/self/status | grep -E 'CapInh|CapAmb|NoNewPrivs|CapBnd'; ls /proc/self/fd | cat; ls /proc/acpi 2>/dev/null | cat; ls /dev`)
	if code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	for _, want := range []string{"box\n0\n1\n", "CapInh:\t0000000000000000", "CapBnd:\t00000000000000e1", "CapAmb:\t0000000000000000", "null\n", "ptmx\n", "shm\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, code := b.run("sh", "-c", "exit 42"); code != 42 {
		t.Errorf("exit code %d", code)
	}
	if out, _ := b.run("sh", "-c", "echo x >/proc/sys/kernel/hostname; cat /proc/kcore | busybox wc -c; touch /sys/x"); !strings.Contains(out, "ead-only") || !strings.Contains(out, "\n0\n") {
		t.Errorf("the masks: %s", out)
	}
}

// No descriptor but stdio reaches the command, and its working directory is its own.
func TestStartLeaksNothing(t *testing.T) {
	b := newBox(t)
	out, code := b.run("sh", "-c", "exec ls -l /proc/self/fd")
	if code > 1 || strings.Contains(out, "memfd") || strings.Count(out, "->") != 3 { // ls's own directory is gone when it is read
		t.Errorf("exit %d, descriptors:\n%s", code, out)
	}
	for n := 3; n < 12; n++ {
		b.spec.Process.Cwd = "/proc/self/fd/" + string(rune('0'+n%10))
		b.spec.Process.Args = []string{"true"}
		_, wait, err := b.launch(nil)
		if err == nil {
			_, _ = wait()
			t.Errorf("the working directory %s can be entered", b.spec.Process.Cwd)
		}
	}
}

func TestStartErrors(t *testing.T) {
	b := newBox(t)
	b.write("/bin/plain", "data", 0o644)
	b.write("/bin/script", "#!/no/such/interpreter\n", 0o755)
	b.write("/bin/garbage", "\x01\x02garbage", 0o755)
	b.write("/file", "", 0o644)
	cases := []struct {
		name   string
		change func(*specs.Spec)
		stage  Stage
		errno  unix.Errno
		text   string
	}{
		{"not found", func(s *specs.Spec) { s.Process.Args = []string{"nope"} }, StageExec, unix.ENOENT, `exec: "nope": executable file not found in $PATH`},
		{"no PATH", func(s *specs.Spec) { s.Process.Env = nil }, StageExec, unix.ENOENT, `exec: "true": executable file not found in $PATH`},
		{"not found by path", func(s *specs.Spec) { s.Process.Args = []string{"/bin/nope"} }, StageExec, unix.ENOENT, `exec: "/bin/nope": stat /bin/nope: no such file or directory`},
		{"not executable", func(s *specs.Spec) { s.Process.Args = []string{"/bin/plain"} }, StageExec, unix.EACCES, `exec: "/bin/plain": permission denied`},
		{"not executable, by PATH", func(s *specs.Spec) { s.Process.Args = []string{"plain"} }, StageExec, unix.EACCES, `exec: "plain": permission denied`},
		{"a directory", func(s *specs.Spec) { s.Process.Args = []string{"/bin"} }, StageExec, unix.EISDIR, `exec: "/bin": is a directory`},
		{"no interpreter", func(s *specs.Spec) { s.Process.Args = []string{"/bin/script"} }, StageExec, unix.ENOENT, ""},
		{"no program", func(s *specs.Spec) { s.Process.Args = []string{"/bin/garbage"} }, StageExec, unix.ENOEXEC, `exec /bin/garbage: exec format error`},
		{"a file on the way", func(s *specs.Spec) { s.Process.Args = []string{"/file/x"} }, StageExec, unix.ENOTDIR, ""},
		{"no working directory", func(s *specs.Spec) { s.Process.Cwd = "/sys/no" }, StageCwd, unix.ENOENT, `chdir to cwd ("/sys/no") set in config.json failed: no such file or directory`},
		{"a file as working directory", func(s *specs.Spec) { s.Process.Cwd = "/file" }, StageCwd, unix.ENOTDIR, ""},
		{"a user out of range", func(s *specs.Spec) { s.Process.User.UID = 0xffffffff }, "", 0, ""},
		{"a bad rlimit", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 5}}
		}, StageRlimit, unix.EINVAL, "error setting rlimits for ready process: error setting rlimit type RLIMIT_NOFILE: invalid argument"},
		{"a sysctl that is not there", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} }, StageSysctl, unix.ENOENT, ""},
		{"/proc is a link", func(s *specs.Spec) {
			s.Mounts[0].Destination = "/proc"
			must(t, os.Remove(b.root+"/proc"))
			must(t, os.Symlink("etc", b.root+"/proc"))
		}, StageMount, 0, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			c.change(b.reset())
			_, wait, err := b.launch(nil)
			if err == nil {
				out, code := wait()
				if c.stage == "" {
					return
				}
				t.Fatalf("started: %d %s", code, out)
			}
			var se *StartError
			if !errors.As(err, &se) {
				t.Fatalf("%T %v", err, err)
			}
			if c.stage != "" && se.Stage != c.stage || c.errno != 0 && se.Errno != c.errno {
				t.Errorf("stage %s, errno %v (%v); want %s, %v", se.Stage, se.Errno, err, c.stage, c.errno)
			}
			if c.text != "" && err.Error() != c.text {
				t.Errorf("%q, want %q", err, c.text)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestInit(t *testing.T) {
	b := newBox(t)
	b.spec.Process.Args = []string{"sh", "-c", "echo $$; exit 9"}
	_, wait, err := b.launch(func(l *Launch) { l.Init = true })
	if err != nil {
		t.Fatal(err)
	}
	if out, code := wait(); out != "2\n" || code != 9 {
		t.Errorf("%q, exit %d", out, code)
	}
}

// With the host's processes in sight and all capabilities still there, the way
// to the working directory must not lead out of the container.
func TestWorkDirStaysInside(t *testing.T) {
	b := newBox(t)
	for link, target := range map[string]string{"/out": "/proc/1/root", "/fd": "/proc/self/fd/401", "/up": "../../../.."} {
		must(t, os.Symlink(target, b.root+link))
	}
	canary := t.TempDir()
	for _, cwd := range []string{"/proc/1/root", "/proc/1/cwd", "/out", "/out" + canary + "/a", "/fd", "/fd" + canary + "/b", "/proc/1/root" + canary + "/c"} {
		s := b.reset()
		s.Linux.Namespaces = s.Linux.Namespaces[1:] // the host's processes
		s.Process.Cwd, s.Process.Args = cwd, []string{"sh", "-c", "pwd"}
		_, wait, err := b.launch(nil)
		if err == nil {
			out, _ := wait()
			t.Errorf("the working directory %s is entered: %s", cwd, out)
		}
	}
	if e, _ := os.ReadDir(canary); len(e) != 0 {
		t.Errorf("%v was made outside", e)
	}
	for cwd, want := range map[string]string{"/new/dir": "/new/dir", "/up/etc": "/etc", "/dev/shm": "/dev/shm"} {
		b.reset().Process.Cwd = cwd
		if out, _ := b.run("busybox", "pwd"); !strings.HasPrefix(out, want) {
			t.Errorf("%s: %q, want %s", cwd, out, want)
		}
	}
}

// How a process ended can be asked of its pidfd after it was reaped: this is
// what an adopted container's exit code comes from.
func TestExitStatus(t *testing.T) {
	b := newBox(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 12": 12} {
		b.reset().Process.Args = []string{"sh", "-c", script}
		p, wait, err := b.launch(nil)
		must(t, err)
		fd, err := unix.FcntlInt(uintptr(p.PidFD), unix.F_DUPFD_CLOEXEC, 3)
		must(t, err)
		_, _ = wait()
		if code, ok := ExitStatus(fd); ok && code != want {
			t.Errorf("%s: %d", script, code)
		} else if !ok {
			t.Log("this kernel does not tell exit codes by pidfd: it takes Linux 6.15")
		}
		_ = unix.Close(fd)
	}
}

// The OCI command line: create waits before execve, start lets it go.
func TestStartFD(t *testing.T) {
	b := newBox(t)
	for _, c := range []struct {
		args []string
		late unix.Errno // what execve says after the start
		out  string
	}{{[]string{"echo", "hi"}, 0, "hi\n"}, {[]string{"/bin"}, unix.EACCES, ""}} {
		b.reset().Process.Args = c.args
		start, late := pipe(t), pipe(t)
		p, wait, err := b.launch(func(l *Launch) { l.StartFD, l.LateFD = start[0], late[1] })
		if err != nil {
			t.Fatal(err)
		}
		if exe, _ := os.Readlink("/proc/" + strconv.Itoa(p.Pid) + "/exe"); !strings.Contains(exe, "berth-init") {
			t.Errorf("the process is %q before its start", exe)
		}
		_ = unix.Close(late[1])
		if _, err := unix.Write(start[1], []byte{0}); err != nil {
			t.Fatal(err)
		}
		var buf [16]byte
		n, err := readFull(late[0], buf[:])
		if err != nil || (n == 16) != (c.late != 0) || n == 16 && unix.Errno(buf[8]) != c.late {
			t.Errorf("late report: %d bytes, %v, % x", n, err, buf)
		}
		if out, _ := wait(); out != c.out {
			t.Errorf("output %q", out)
		}
	}
	b.reset().Process.Args = []string{"nope"}
	start, late := pipe(t), pipe(t)
	_, _, err := b.launch(func(l *Launch) { l.StartFD, l.LateFD = start[0], late[1] })
	var se *StartError
	if !errors.As(err, &se) || se.Stage != StageExec || se.Errno != unix.ENOENT {
		t.Errorf("%v: what is not there is told before the start", err)
	}
}

func pipe(t *testing.T) [2]int {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(p[0]); _ = unix.Close(p[1]) })
	return p
}

func TestExec(t *testing.T) {
	b := newBox(t)
	b.spec.Process.Args = []string{"sleep", "60"}
	p, wait, err := b.launch(nil)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(pr specs.Process) (string, int, error) {
		r, w, err := os.Pipe()
		must(t, err)
		defer r.Close()
		defer w.Close()
		l := &Launch{
			Spec: &specs.Spec{Process: &pr, Linux: b.spec.Linux}, Stdio: [3]int{int(w.Fd()), int(w.Fd()), int(w.Fd())},
			CgroupV2: -1, CgroupView: -1, StartFD: -1, Join: p.PidFD, JoinPid: true,
		}
		e, err := b.rt.Exec(l)
		if err != nil {
			return "", 0, err
		}
		w.Close()
		out, _ := io.ReadAll(r)
		code := reap(t, e.Pid)
		_ = unix.Close(e.PidFD)
		return string(out), code, nil
	}
	out, code, err := exec(specs.Process{Args: []string{"sh", "-c", "hostname; ps | grep -c sleep; id -u; exit 3"}, Env: []string{"PATH=/bin"}, User: specs.User{UID: 7, GID: 8}})
	if err != nil || code != 3 || !strings.HasPrefix(out, "box\n") || !strings.HasSuffix(out, "7\n") {
		t.Errorf("%q, %d, %v", out, code, err)
	}
	var se *StartError
	if _, _, err = exec(specs.Process{Args: []string{"nope"}, Env: []string{"PATH=/bin"}}); !errors.As(err, &se) || se.Errno != unix.ENOENT {
		t.Errorf("%v", err)
	}
	if _, _, err = exec(specs.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/nope"}); !errors.As(err, &se) || se.Stage != StageCwd {
		t.Errorf("%v", err)
	}
	must(t, unix.PidfdSendSignal(p.PidFD, unix.SIGKILL, nil, 0))
	if _, code := wait(); code != 137 {
		t.Errorf("exit %d after SIGKILL", code)
	}
}
