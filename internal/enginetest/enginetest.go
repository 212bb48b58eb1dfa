// Package enginetest starts whole engines for tests, and looks for what they leave
// behind.
//
//	func TestPause(t *testing.T) {
//		e := enginetest.Start(t)
//		for _, c := range e.Clients() { // docker and berth
//			id := c.Must("run", "-d", enginetest.Image, "sleep", "100")
//			c.Must("pause", id)
//		}
//	}
//
// Each engine has its own network namespace, data root, exec root, cgroups and
// sockets, so tests run in parallel and touch nothing of the machine. It has one
// image, Image: busybox and its applets. When the test ends all containers and
// other images are removed, and the leak check (leak.go) compares what is there
// with what was there in the beginning: mounts, cgroups, processes, descriptors,
// files. A test may kill berthd (Kill9Daemon, Restart) and the keeper
// (KillKeeper) as it likes; the check stands.
package enginetest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Image is the image that every engine has.
const Image = "busybox"

// Engine is a running engine of one test.
type Engine struct {
	Dir      string // everything of this engine is below it
	DataRoot string
	ExecRoot string
	Socket   string
	Bin      string // where berth, berthd and berth-keeper are
	HTTP     *http.Client

	t      testing.TB
	args   []string
	env    []string
	host   bool       // no network namespace of its own
	passed []*os.File // listening sockets for berthd, as a service manager passes them
	netns  *os.File   // nil with host
	mu     sync.Mutex
	daemon *exec.Cmd
	done   chan struct{} // closed when the daemon has ended
	base   snapshot
	leaks  bool
}

// Option changes how an engine is started.
type Option func(*Engine)

// WithArgs adds flags of berthd.
func WithArgs(args ...string) Option { return func(e *Engine) { e.args = append(e.args, args...) } }

// WithEnv adds to berthd's environment.
func WithEnv(env ...string) Option { return func(e *Engine) { e.env = append(e.env, env...) } }

// WithBin takes the programs from another directory.
func WithBin(dir string) Option { return func(e *Engine) { e.Bin = dir } }

// HostNetwork leaves the engine in the machine's network namespace: only for tests
// that fetch something. The default network is "none" then; the engine makes no
// bridge and touches no firewall.
func HostNetwork() Option {
	return func(e *Engine) {
		e.host = true
		e.args = append(e.args, "--bridge", "none", "--iptables=false")
	}
}

// WithListener passes berthd an open socket and -H fd://, as systemd does.
func WithListener(f *os.File) Option {
	return func(e *Engine) {
		e.passed = append(e.passed, f)
		e.args = append(e.args, "-H", "fd://")
	}
}

// Start starts an engine, which ends with the test.
func Start(t testing.TB, opts ...Option) *Engine {
	t.Helper()
	RequireRoot(t)
	// Not t.TempDir: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "be")
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{
		Dir: dir, DataRoot: filepath.Join(dir, "d"), ExecRoot: filepath.Join(dir, "x"), Socket: filepath.Join(dir, "s"),
		Bin: Binaries(t), t: t, leaks: true,
	}
	for _, o := range opts {
		o(e)
	}
	e.HTTP = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.Socket)
		},
	}}
	if err := os.MkdirAll(filepath.Join(dir, "h"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !e.host {
		if e.netns, err = newNetworkNamespace(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(e.end)
	e.StartDaemon()
	e.loadImage()
	e.base = e.snapshot()
	return e
}

// StartDaemon starts berthd in the engine's network namespace and waits until it answers.
func (e *Engine) StartDaemon() {
	e.t.Helper()
	if err := e.TryStartDaemon(); err != nil {
		e.t.Fatalf("%v\n%s", err, e.Log())
	}
}

// TryStartDaemon is StartDaemon for engines that may not start.
func (e *Engine) TryStartDaemon() error {
	log, err := os.OpenFile(filepath.Join(e.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{
		"--data-root", e.DataRoot, "--exec-root", e.ExecRoot, "-p", filepath.Join(e.Dir, "pid"), "-H", "unix://" + e.Socket,
	}, e.args...)
	cmd := exec.Command(filepath.Join(e.Bin, "berthd"), args...)
	cmd.Env = append(cleanEnv(), e.env...)
	if len(e.passed) > 0 { // LISTEN_PID is known only to the process itself
		cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, args...)...)
		cmd.Env = append(append(cleanEnv(), e.env...), fmt.Sprintf("LISTEN_FDS=%d", len(e.passed)))
		cmd.ExtraFiles = e.passed
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := e.Inside(cmd.Start); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	e.mu.Lock()
	e.daemon, e.done = cmd, done
	e.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if resp, err := e.HTTP.Get("http://berth/_ping"); err == nil {
			_ = resp.Body.Close()
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("berthd ended: %s", cmd.ProcessState)
		default:
		}
	}
	return fmt.Errorf("berthd does not answer")
}

// Inside calls f on a thread in the engine's network namespace, where its TCP ports are.
func (e *Engine) Inside(f func() error) error {
	if e.host {
		return f()
	}
	return inNamespace(e.netns, f)
}

// SetBin changes where the next daemon's programs are.
func (e *Engine) SetBin(dir string) { e.Bin = dir }

// DaemonPID is the process id of berthd.
func (e *Engine) DaemonPID() int { return e.daemon.Process.Pid }

// Kill9Daemon kills berthd as a crash would.
func (e *Engine) Kill9Daemon() {
	e.t.Helper()
	e.mu.Lock()
	cmd, done := e.daemon, e.done
	e.mu.Unlock()
	_ = cmd.Process.Kill()
	<-done
	e.HTTP.CloseIdleConnections()
}

// StopDaemon ends berthd with SIGTERM, and fails the test when it does not end well.
func (e *Engine) StopDaemon() {
	e.t.Helper()
	_ = e.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.done:
		if !e.daemon.ProcessState.Success() {
			e.t.Errorf("berthd ended with %s\n%s", e.daemon.ProcessState, e.Log())
		}
	case <-time.After(20 * time.Second):
		e.t.Errorf("berthd does not end on SIGTERM\n%s", e.Log())
		e.Kill9Daemon()
	}
	e.HTTP.CloseIdleConnections()
}

// Restart kills berthd and starts it again.
func (e *Engine) Restart() {
	e.t.Helper()
	e.Kill9Daemon()
	e.StartDaemon()
}

// KeeperPIDs are the keepers of this engine's exec root: one, as a rule.
func (e *Engine) KeeperPIDs() []int {
	return processes(func(pid int, args []string) bool {
		return len(args) > 2 && strings.HasSuffix(args[0], "berth-keeper") && contains(args, e.ExecRoot)
	})
}

// KillKeeper kills the keeper as a crash would, and waits until it is gone.
func (e *Engine) KillKeeper() {
	e.t.Helper()
	pids := e.KeeperPIDs()
	if len(pids) == 0 {
		e.t.Fatal("there is no keeper")
	}
	for _, pid := range pids {
		kill9(pid)
	}
}

// Log is what berthd and the keeper have said.
func (e *Engine) Log() string {
	d, _ := os.ReadFile(filepath.Join(e.Dir, "log"))
	k, _ := os.ReadFile(filepath.Join(e.ExecRoot, "keeper", "log"))
	return tailOf("berthd", d) + tailOf("berth-keeper", k)
}

func tailOf(name string, b []byte) string {
	if len(b) > 8192 {
		b = b[len(b)-8192:]
	}
	if len(b) == 0 {
		return ""
	}
	return "--- " + name + " ---\n" + string(b)
}

// end removes everything and checks for leaks.
func (e *Engine) end() {
	t := e.t
	if !e.host {
		defer e.netns.Close()
	}
	if e.leaks && e.running() {
		e.checkLeaks()
	}
	if t.Failed() {
		t.Log(e.Log())
	}
	if e.running() {
		e.StopDaemon()
		if e.leaks {
			for _, name := range []string{e.Socket, filepath.Join(e.Dir, "pid")} {
				if _, err := os.Lstat(name); err == nil {
					t.Errorf("berthd has left %s behind", name)
				}
			}
		}
	}
	for _, pid := range e.KeeperPIDs() { // it outlives berthd by design
		kill9(pid)
	}
	for _, pid := range e.containerPIDs() {
		if e.leaks && !t.Failed() {
			t.Errorf("process %d is left: %q", pid, cmdline(pid))
		}
		kill9(pid)
	}
	e.removeCgroups()
	for _, m := range mountsBelow(e.Dir) {
		t.Errorf("a mount is left: %s", m)
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if err := removeAll(e.Dir); err != nil {
		t.Error(err)
	}
}

func (e *Engine) running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == nil {
		return false
	}
	select {
	case <-e.done:
		return false
	default:
		return true
	}
}

// removeAll is os.RemoveAll that does not stop at attributes like immutable directories.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// newNetworkNamespace makes a network namespace with its loopback up.
func newNetworkNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{err: err}
			return
		}
		if err := loopbackUp(); err != nil {
			c <- result{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- result{f, err}
	}()
	r := <-c
	return r.f, r.err
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// Inside returns what calls a function on a thread in the network namespace of a container:
// a socket that is made there stays there.
func (c *Client) Inside(container string) func(f func() error) error {
	return func(f func() error) error {
		ns, err := os.Open("/proc/" + c.Inspect(container, "{{.State.Pid}}") + "/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		return inNamespace(ns, f)
	}
}

// inNamespace calls f on a thread in the network namespace.
func inNamespace(ns *os.File, f func() error) error {
	c := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			c <- err
			return
		}
		c <- f()
	}()
	return <-c
}

func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "DOCKER_") && !strings.HasPrefix(kv, "BERTH_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	return env
}

func (e *Engine) loadImage() {
	e.t.Helper()
	resp, err := e.HTTP.Post("http://berth/images/create?fromSrc=-&repo="+Image+"&tag=latest&changes="+
		"CMD%20%5B%22sh%22%5D&changes=ENV%20PATH%3D%2Fbin%3A%2Fsbin", "application/x-tar", rootfs(e.t))
	if err != nil {
		e.t.Fatalf("import: %v\n%s", err, e.Log())
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || strings.Contains(string(b), "errorDetail") {
		e.t.Fatalf("import: %s: %s", resp.Status, b)
	}
}

// Reload has berthd read its configuration file again.
func (e *Engine) Reload() {
	e.t.Helper()
	if err := e.daemon.Process.Signal(syscall.SIGHUP); err != nil {
		e.t.Fatal(err)
	}
}
