package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ClientConfig says where a keeper is and how one is started.
type ClientConfig struct {
	Config
	Program string // the berth-keeper to start, and to upgrade to
	// OnExit is called for each process that ends, and for each time that a task
	// runs out of memory, in order, from one goroutine.
	OnExit func(Exit)
	// OnBack is called when the connection was lost and is there again: what
	// Hello tells may differ from what the engine believes.
	OnBack func(*Hello)
}

// Client is the engine's side. It is safe for use by several goroutines.
type Client struct {
	cfg ClientConfig

	mu      sync.Mutex
	conn    *conn
	next    uint64
	pending map[uint64]chan reply
	held    map[string][]int // task id → pidfd and terminal: what a new keeper needs
	sent    map[string]bool  // seccomp filters that this connection's keeper has
	closed  bool
	started bool // Connect has returned
	mending bool // somebody connects again

	exits chan Exit
}

type reply struct {
	m   *message
	fds []int
}

// ErrLost is the answer to requests under way when the keeper went away. The
// client connects again by itself.
var ErrLost = errors.New("the connection to the keeper was lost")

// Connect finds the keeper of the exec root, or starts one, and brings it to
// this build. The hello tells which tasks it has.
func Connect(cfg ClientConfig) (*Client, *Hello, error) {
	c := &Client{cfg: cfg, pending: map[uint64]chan reply{}, held: map[string][]int{}, sent: map[string]bool{}, exits: make(chan Exit, 1024)}
	go func() {
		for e := range c.exits {
			if e.ExecID == "" && !e.Running {
				c.drop(e.ID)
			}
			cfg.OnExit(e)
		}
	}()
	h, err := c.connect()
	for end := time.Now().Add(dyingTime); errors.Is(err, ErrLost) && time.Now().Before(end); h, err = c.connect() {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		return nil, nil, err
	}
	if want := BuildOf(cfg.Program); want != "" && want != h.Build {
		if err := c.upgrade(); err != nil {
			cfg.Log.Warn("the keeper could not be upgraded; the old one goes on", "error", err)
		} else if h, err = c.connect(); err != nil {
			return nil, nil, err
		}
	}
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	return c, h, nil
}

func (c *Client) socket() string { return filepath.Join(c.cfg.ExecRoot, "keeper", "socket") }

// connect dials, starting a keeper when none answers, and says hello.
func (c *Client) connect() (*Hello, error) {
	addr := &net.UnixAddr{Name: c.socket(), Net: "unix"}
	uc, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		ended, err := c.spawn()
		if err != nil {
			return nil, err
		}
		// One that still clears up after another is waited for; one that has ended is not.
		deadline := time.Now().Add(30 * time.Second)
		for wait := 200 * time.Microsecond; ; wait = min(wait+wait/4, 50*time.Millisecond) {
			if uc, err = net.DialUnix("unix", nil, addr); err == nil {
				break
			}
			select {
			case <-ended:
				deadline = time.Time{}
			case <-time.After(wait):
			}
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("the keeper did not start (see %s): %w", c.logFile(), err)
			}
		}
	}
	cn := &conn{c: uc}
	c.mu.Lock()
	c.conn = cn
	c.sent = map[string]bool{}
	c.mu.Unlock()
	go c.read(cn)
	raw, _, err := c.call(context.Background(), "hello", struct{}{}, nil)
	if err != nil {
		return nil, err
	}
	h := &Hello{}
	if err := json.Unmarshal(raw, h); err != nil {
		return nil, err
	}
	if len(h.Orphans) > 0 {
		for _, id := range h.Orphans {
			c.mu.Lock()
			fds := c.held[id]
			c.mu.Unlock()
			if _, _, err := c.call(context.Background(), "adopt", &AdoptRequest{ID: id}, fds); err != nil {
				c.cfg.Log.Warn("a task could not be adopted", "id", id, "error", err)
			}
		}
		if raw, _, err = c.call(context.Background(), "hello", struct{}{}, nil); err != nil {
			return nil, err
		}
		h = &Hello{}
		if err := json.Unmarshal(raw, h); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (c *Client) logFile() string { return filepath.Join(c.cfg.ExecRoot, "keeper", "log") }

// spawn starts a keeper, detached from this process's session and life.
// The channel is closed when it has ended.
func (c *Client) spawn() (ended <-chan struct{}, err error) {
	dir := filepath.Join(c.cfg.ExecRoot, "keeper")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	_ = os.Remove(c.socket()) // of a keeper that was killed: nothing answers there
	log, err := os.OpenFile(c.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess(c.cfg.Program, []string{
		"berth-keeper", "--exec-root", c.cfg.ExecRoot, "--data-root", c.cfg.DataRoot, "--cgroup-parent", c.cfg.Parent,
	}, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot start the keeper: %w", err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); _, _ = p.Wait() }()
	return gone, nil
}

// upgrade has the keeper re-execute itself as cfg.Program.
func (c *Client) upgrade() error {
	f, err := os.Open(c.cfg.Program)
	if err != nil {
		return err
	}
	defer f.Close()
	c.mu.Lock()
	cn := c.conn
	c.mu.Unlock()
	if _, _, err := c.call(context.Background(), "upgrade", &Target{}, []int{int(f.Fd())}); err != nil {
		return err
	}
	// The old program closes every connection when it is replaced.
	deadline := time.Now().Add(5 * time.Second)
	for {
		c.mu.Lock()
		gone := c.conn != cn
		c.mu.Unlock()
		if gone {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("it did not re-execute itself in time")
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// read delivers replies and events until the connection ends.
func (c *Client) read(cn *conn) {
	for {
		m, fds, err := cn.receive()
		if err != nil {
			c.disconnected(cn)
			return
		}
		if m.ID == 0 {
			closeAll(fds)
			var e Exit
			if (m.Op == "exit" || m.Op == "oom") && json.Unmarshal(m.Body, &e) == nil {
				c.exits <- e
			}
			continue
		}
		c.mu.Lock()
		ch := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if ch == nil {
			closeAll(fds)
			continue
		}
		ch <- reply{m, fds}
	}
}

// disconnected fails what is under way and, unless the client is closing or an
// upgrade is going on, connects again.
func (c *Client) disconnected(cn *conn) {
	_ = cn.c.Close()
	c.mu.Lock()
	if c.conn != cn {
		c.mu.Unlock()
		return
	}
	c.conn = nil
	waiting := c.pending
	c.pending = map[uint64]chan reply{}
	mend := c.started && !c.closed && !c.mending && c.cfg.OnBack != nil
	c.mending = c.mending || mend
	c.mu.Unlock()
	for _, ch := range waiting {
		close(ch)
	}
	if !mend {
		return // Connect, or the one that mends, sees the error and tries again
	}
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		h, err := c.connect()
		c.mu.Lock()
		lost, closed := c.conn == nil, c.closed
		c.mending = !closed && (err != nil || lost)
		again := c.mending
		c.mu.Unlock()
		switch {
		case closed:
			return
		case !again: // from here on a loss is seen by the reader of the new connection
			c.cfg.OnBack(h)
			return
		case err != nil && !(errors.Is(err, ErrLost) && wait < dyingTime):
			c.cfg.Log.Error("the keeper is gone and cannot be started again", "error", err)
		}
		time.Sleep(wait)
	}
}

// dyingTime is about how long the socket of a killed keeper may still take
// connections, which are lost at once: it closes after those that keeper had.
const dyingTime = 100 * time.Millisecond

// mendTime is how long a request waits for a lost keeper to be back.
const mendTime = 5 * time.Second

// awaitMended returns when no new keeper is being started and given its tasks.
func (c *Client) awaitMended(ctx context.Context) {
	for end := time.Now().Add(mendTime); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		mending := c.mending && !c.closed
		c.mu.Unlock()
		if !mending {
			return
		}
	}
}

// call sends a request and waits for its answer.
func (c *Client) call(ctx context.Context, op string, body any, fds []int) (json.RawMessage, []int, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	ch := make(chan reply, 1)
	if op != "hello" && op != "adopt" {
		c.awaitMended(ctx)
	}
	c.mu.Lock()
	cn := c.conn
	if cn == nil {
		c.mu.Unlock()
		return nil, nil, ErrLost
	}
	c.next++
	id := c.next
	c.pending[id] = ch
	c.mu.Unlock()
	if err := cn.send(&message{ID: id, Op: op, Body: raw}, fds); err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return nil, nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return nil, nil, ErrLost
		}
		if r.m.Error != nil {
			closeAll(r.fds)
			return nil, nil, r.m.Error
		}
		return r.m.Body, r.fds, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return nil, nil, ctx.Err()
	}
}

// withFilter leaves the code of a filter out when the keeper has it already.
func (c *Client) withFilter(f *Filter) *Filter {
	if f == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent[f.Key] {
		return &Filter{Key: f.Key}
	}
	return f
}

// wantsFilter reports whether the keeper, a new one, does not have the filter
// that a request names.
func wantsFilter(err error) bool {
	var f *Failure
	return errors.As(err, &f) && f.Kind == KindFilter
}

// filterSent notes that the keeper has f: only an answer shows that.
func (c *Client) filterSent(f *Filter) {
	if f != nil {
		c.mu.Lock()
		c.sent[f.Key] = true
		c.mu.Unlock()
	}
}

// Start starts a task. The descriptors stay the caller's.
func (c *Client) Start(ctx context.Context, r *StartRequest, fds []int) (*StartReply, error) {
	full := r.Filter
	r.Filter = c.withFilter(full)
	raw, got, err := c.call(ctx, "start", r, fds)
	if wantsFilter(err) {
		r.Filter = full
		raw, got, err = c.call(ctx, "start", r, fds)
	}
	if err != nil {
		return nil, err
	}
	c.filterSent(r.Filter)
	c.hold(r.ID, got, r.Spec.Process.Terminal)
	if len(got) > 0 && ended(got[0]) {
		c.drop(r.ID) // its exit was told before this answer
	}
	out := &StartReply{}
	return out, json.Unmarshal(raw, out)
}

// ended reports whether the process of a pidfd is over.
func ended(pidFD int) bool {
	p := []unix.PollFd{{Fd: int32(pidFD), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// hold keeps a task's pidfd and terminal. Pipes need not be kept: the process
// itself holds both ends of them.
func (c *Client) hold(id string, fds []int, term bool) {
	if !term && len(fds) > 1 {
		closeAll(fds[1:])
		fds = fds[:1]
	}
	c.mu.Lock()
	old := c.held[id]
	c.held[id] = fds
	c.mu.Unlock()
	closeAll(old)
}

func (c *Client) drop(id string) {
	c.mu.Lock()
	fds := c.held[id]
	delete(c.held, id)
	c.mu.Unlock()
	closeAll(fds)
}

// Hold asks for the descriptors of a running task that an engine before this
// one started.
func (c *Client) Hold(ctx context.Context, id string, term bool) error {
	_, fds, err := c.call(ctx, "fds", &Target{ID: id}, nil)
	if err != nil {
		return err
	}
	c.hold(id, fds, term)
	return nil
}

// Exec starts one more process in a task.
func (c *Client) Exec(ctx context.Context, r *ExecRequest, fds []int) (*StartReply, error) {
	full := r.Filter
	r.Filter = c.withFilter(full)
	raw, got, err := c.call(ctx, "exec", r, fds)
	if wantsFilter(err) {
		r.Filter = full
		raw, got, err = c.call(ctx, "exec", r, fds)
	}
	if err != nil {
		return nil, err
	}
	c.filterSent(r.Filter)
	closeAll(got)
	out := &StartReply{}
	return out, json.Unmarshal(raw, out)
}

func (c *Client) do(ctx context.Context, op string, t *Target, fds ...int) error {
	_, got, err := c.call(ctx, op, t, fds)
	closeAll(got)
	return err
}

// Attach gives a socket to a process. fd stays the caller's.
func (c *Client) Attach(ctx context.Context, id, execID string, spec AttachSpec, fd int) error {
	return c.do(ctx, "attach", &Target{ID: id, ExecID: execID, Attach: &spec}, fd)
}

// Signal sends a signal to a task's first process, or to an exec.
func (c *Client) Signal(ctx context.Context, id, execID string, sig int) error {
	return c.do(ctx, "signal", &Target{ID: id, ExecID: execID, Signal: sig})
}

// Resize sets the size of a terminal, in characters.
func (c *Client) Resize(ctx context.Context, id, execID string, height, width uint16) error {
	return c.do(ctx, "resize", &Target{ID: id, ExecID: execID, Height: height, Width: width})
}

// Freeze pauses or resumes a task.
func (c *Client) Freeze(ctx context.Context, id string, frozen bool) error {
	return c.do(ctx, "freeze", &Target{ID: id, Frozen: frozen})
}

// Update changes limits of a running task.
func (c *Client) Update(ctx context.Context, t *Target) error { return c.do(ctx, "update", t) }

// Forget drops an ended task.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.do(ctx, "forget", &Target{ID: id})
}

// Pids lists a task's processes.
func (c *Client) Pids(ctx context.Context, id string) ([]int, error) {
	raw, _, err := c.call(ctx, "pids", &Target{ID: id}, nil)
	if err != nil {
		return nil, err
	}
	var pids []int
	return pids, json.Unmarshal(raw, &pids)
}

// Shutdown ends a keeper that has no running task; else it stays. It is the
// client's last call: a connection lost from here on is not made again.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.do(ctx, "shutdown", &Target{})
}

// Close ends the connection. Tasks and keeper go on.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	cn := c.conn
	held := c.held
	c.held = map[string][]int{}
	c.mu.Unlock()
	for _, fds := range held {
		closeAll(fds)
	}
	if cn != nil {
		_ = cn.c.Close()
	}
}

// SocketPair makes a connected pair of stream sockets: one for a process's
// side, given to the keeper, one to read and write here.
func SocketPair() (remote int, local *net.UnixConn, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	f := os.NewFile(uintptr(p[1]), "attach")
	defer f.Close()
	cn, err := net.FileConn(f)
	if err != nil {
		_ = unix.Close(p[0])
		return -1, nil, err
	}
	return p[0], cn.(*net.UnixConn), nil
}
