package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// Config is what a keeper is started with.
type Config struct {
	ExecRoot string // the socket and the journal are in <ExecRoot>/keeper
	DataRoot string // logs are below it
	Parent   string // cgroup parent of tasks that name none, "/berth"
	Log      *slog.Logger
}

// Keeper holds the tasks.
type Keeper struct {
	cfg     Config
	rt      *runtime.Runtime
	cgroups *runtime.Cgroups
	loop    *loop
	pool    *pool
	journal *journal
	build   string

	mu      sync.Mutex // guards the maps and every task but its stdio; taken before loop.mu
	tasks   map[string]*task
	filters map[string]*Filter
	clients map[*conn]struct{}
	orphans map[string]entry         // in the journal, not adopted yet
	leaving map[string]chan struct{} // ended tasks that another runtime has not forgotten yet; each is closed then
	holding bool                     // an upgrade is under way: no request is taken

	ttys       atomic.Int64 // names of console sockets
	hostNS     int          // the host's mount namespace, from the first task of another runtime on; 0 before
	lockFD     int          // holds the exec root against another keeper
	listenFD   int
	listenFile *os.File // keeps listenFD open

	busy    sync.WaitGroup // requests under way
	slots   chan struct{}  // starts under way, about one for each processor
	relays  relays
	reaping chan func() // work behind the exit: cgroups, mount namespaces
}

// task is a container's first process. What an exec needs later is kept, the
// specification is not.
type task struct {
	id       string
	pid      int
	pidFD    int
	start    uint64
	at       time.Time
	cgroup   *runtime.Cgroup
	mountNS  int
	nsFlags  uint64 // namespaces that an exec joins
	term     bool
	frozen   bool
	exit     *Exit
	kept     []int // see Client.Keep
	io       *stdio
	exec     map[string]*execution
	src      *source
	oom      oomWatch
	oci      *OCIRuntime // the runtime that runs it, nil for the engine's own
	adopted  bool        // not a child of this process
	starting bool
}

type execution struct {
	id    string
	task  *task
	pid   int
	pidFD int
	io    *stdio
	src   *source
	term  bool
}

// New makes a keeper and, where there was one before it, takes over its tasks.
func New(cfg Config) (*Keeper, error) {
	rt, err := runtime.New()
	if err != nil {
		return nil, err
	}
	k := &Keeper{
		cfg: cfg, rt: rt, cgroups: runtime.NewCgroups(rt.Host), build: Build(),
		tasks: map[string]*task{}, filters: map[string]*Filter{}, clients: map[*conn]struct{}{},
		slots: make(chan struct{}, max(2, goruntime.NumCPU())), reaping: make(chan func(), 4096),
	}
	if k.loop, err = newLoop(cfg.Log, k.exited); err != nil {
		return nil, err
	}
	dir := filepath.Join(cfg.ExecRoot, "keeper")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if k.journal, err = openJournal(filepath.Join(dir, "journal"), cfg.Log); err != nil {
		return nil, err
	}
	k.orphans = k.journal.entries()
	k.sweep()
	if err := k.cgroups.RestrictDevices(cfg.Parent); err != nil {
		return nil, fmt.Errorf("cannot prepare the cgroup %s: %w", cfg.Parent, err)
	}
	k.pool = newPool(k)
	return k, nil
}

// Serve answers engines on l until the listener is closed.
func (k *Keeper) Serve(l *net.UnixListener) error {
	go k.loop.run()
	go k.reap()
	k.pool.start()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		if !peerIsUs(c) {
			_ = c.Close()
			continue
		}
		go k.client(&conn{c: c})
	}
}

// client serves one engine.
func (k *Keeper) client(c *conn) {
	defer func() {
		k.mu.Lock()
		delete(k.clients, c)
		k.mu.Unlock()
		_ = c.c.Close()
	}()
	for {
		m, fds, err := c.receive()
		if err != nil {
			return
		}
		k.mu.Lock()
		if k.holding {
			k.mu.Unlock()
			closeAll(fds)
			return
		}
		k.busy.Add(1)
		k.mu.Unlock()
		go func() {
			defer k.busy.Done()
			k.handle(c, m, fds)
		}()
	}
}

// handle runs one request and answers it.
func (k *Keeper) handle(c *conn, m *message, fds []int) {
	reply := &message{ID: m.ID}
	var out []int
	body, out, err := k.dispatch(c, m, fds)
	if err == nil && body != nil {
		reply.Body, err = json.Marshal(body)
	}
	if err != nil {
		reply.Error = failure(err)
	}
	if err := c.send(reply, out); err != nil {
		k.cfg.Log.Debug("an engine did not take its answer", "op", m.Op, "error", err)
	}
}

func failure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	var se *runtime.StartError
	if errors.As(err, &se) {
		return &Failure{Msg: se.Error(), Kind: KindStart, Stage: string(se.Stage), Errno: int(se.Errno), Path: se.Path}
	}
	return &Failure{Msg: err.Error()}
}

// dispatch decodes and runs a request. It closes fds unless they are kept; the
// descriptors returned stay the keeper's.
func (k *Keeper) dispatch(c *conn, m *message, fds []int) (body any, out []int, err error) {
	take := func(v any) error { return json.Unmarshal(m.Body, v) }
	switch m.Op {
	case "hello":
		return k.hello(c), nil, nil
	case "start":
		var r StartRequest
		if err := take(&r); err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		return k.start(&r, fds)
	case "exec":
		var r ExecRequest
		if err := take(&r); err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		b, err := k.startExec(&r, fds)
		return b, nil, err
	case "adopt":
		var r AdoptRequest
		if err := take(&r); err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		return nil, nil, k.adopt(&r, fds)
	case "relay":
		var r RelayRequest
		if err := take(&r); err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		return nil, nil, k.relays.serve(k.loop, &r, fds)
	case "keep":
		var t Target
		if err := take(&t); err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		return nil, nil, keep(k, t.ID, fds)
	}
	var t Target
	if err := take(&t); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	if m.Op != "attach" && m.Op != "upgrade" {
		closeAll(fds)
	}
	switch m.Op {
	case "attach":
		return nil, nil, k.attach(&t, fds)
	case "fds":
		return k.handles(t.ID)
	case "kept":
		return k.keptOf(t.ID)
	case "signal":
		return nil, nil, k.signal(&t)
	case "resize":
		return nil, nil, k.resize(&t)
	case "freeze":
		return nil, nil, k.freeze(&t)
	case "update":
		return nil, nil, k.update(&t)
	case "pids":
		b, err := k.pids(&t)
		return b, nil, err
	case "forget":
		k.forget(t.ID)
		return nil, nil, nil
	case "upgrade":
		defer closeAll(fds)
		if len(fds) != 1 {
			return nil, nil, errors.New("an upgrade needs the new program")
		}
		return nil, nil, k.upgrade(fds[0])
	case "shutdown":
		return nil, nil, k.shutdown()
	default:
		return nil, nil, fmt.Errorf("the keeper knows no %q", m.Op)
	}
}

func (k *Keeper) hello(c *conn) *Hello {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.clients[c] = struct{}{}
	h := &Hello{Version: Version, Build: k.build, Pid: os.Getpid()}
	for _, t := range k.tasks {
		if !t.starting {
			h.Tasks = append(h.Tasks, TaskInfo{ID: t.id, Pid: t.pid, StartTime: t.start, At: t.at, Cgroup: t.cgroup.Rel, Frozen: t.frozen, Exit: t.exit})
		}
	}
	for id := range k.orphans {
		h.Orphans = append(h.Orphans, id)
	}
	return h
}

func notFound(id string) error {
	return &Failure{Msg: fmt.Sprintf("no task %s", id), Kind: KindNotFound}
}

// running returns the task id if it has not ended.
func (k *Keeper) running(id string) (*task, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tasks[id]
	if t == nil || t.starting {
		return nil, notFound(id)
	}
	if t.exit != nil {
		return nil, &Failure{Msg: fmt.Sprintf("task %s has ended", id), Kind: KindState}
	}
	return t, nil
}

// stdioOf returns the stdio of a task or of one of its execs.
func (k *Keeper) stdioOf(t *Target) (*stdio, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	task := k.tasks[t.ID]
	if task == nil || task.starting {
		return nil, notFound(t.ID)
	}
	if t.ExecID == "" {
		return task.io, nil
	}
	ex := task.exec[t.ExecID]
	if ex == nil {
		return nil, notFound(t.ExecID)
	}
	return ex.io, nil
}

func (k *Keeper) attach(t *Target, fds []int) error {
	io, err := k.stdioOf(t)
	if err != nil || t.Attach == nil || len(fds) != 1 {
		closeAll(fds)
		return err
	}
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	io.attach(fds[0], *t.Attach)
	return nil
}

func (k *Keeper) handles(id string) (any, []int, error) {
	t, err := k.running(id)
	if err != nil {
		return nil, nil, err
	}
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	return &StartReply{Pid: t.pid, StartTime: t.start, Cgroup: t.cgroup.Rel, At: t.at}, t.handles(), nil
}

// handles are the descriptors that an engine holds so that a killed keeper
// ends nothing: the pidfd, and the read ends or the terminal.
func (t *task) handles() []int {
	out := []int{t.pidFD}
	for _, s := range t.io.out {
		if s != nil {
			out = append(out, s.fd)
		}
	}
	return out
}

func (k *Keeper) signal(t *Target) error {
	task, err := k.running(t.ID)
	if err != nil {
		return err
	}
	fd := task.pidFD
	if t.ExecID != "" {
		k.mu.Lock()
		ex := task.exec[t.ExecID]
		k.mu.Unlock()
		if ex == nil {
			return notFound(t.ExecID)
		}
		fd = ex.pidFD
	}
	err = unix.PidfdSendSignal(fd, unix.Signal(t.Signal), nil, 0)
	if err == unix.ESRCH { //nolint:errorlint // a bare errno
		return &Failure{Msg: "the process has ended", Kind: KindState}
	}
	return err
}

func (k *Keeper) resize(t *Target) error {
	io, err := k.stdioOf(t)
	if err != nil {
		return err
	}
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	if !io.term || io.out[1] == nil {
		return &Failure{Msg: "the process has no terminal", Kind: KindState}
	}
	return unix.IoctlSetWinsize(io.out[1].fd, unix.TIOCSWINSZ, &unix.Winsize{Row: t.Height, Col: t.Width})
}

func (k *Keeper) freeze(t *Target) error {
	task, err := k.running(t.ID)
	if err != nil {
		return err
	}
	if err := k.cgroups.Freeze(task.cgroup, t.Frozen); err != nil {
		return err
	}
	k.mu.Lock()
	task.frozen = t.Frozen
	k.mu.Unlock()
	return nil
}

func (k *Keeper) update(t *Target) error {
	task, err := k.running(t.ID)
	if err != nil {
		return err
	}
	if err := k.cgroups.Apply(task.cgroup, t.Limits); err != nil {
		return err
	}
	if limitsMemory(t.Limits) {
		task.watchOOM(k, false)
	}
	return nil
}

func (k *Keeper) pids(t *Target) ([]int, error) {
	task, err := k.running(t.ID)
	if err != nil {
		return nil, err
	}
	return k.cgroups.Pids(task.cgroup)
}

// forget drops an ended task.
func (k *Keeper) forget(id string) {
	k.mu.Lock()
	t := k.tasks[id]
	if t != nil && t.exit != nil {
		delete(k.tasks, id)
	} else {
		t = nil
	}
	k.mu.Unlock()
	if t != nil {
		k.journal.write(entry{Op: opForget, ID: id})
	}
}

// broadcast sends an event to every engine.
func (k *Keeper) broadcast(op string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		k.cfg.Log.Error("cannot encode an event", "error", err)
		return
	}
	k.mu.Lock()
	clients := make([]*conn, 0, len(k.clients))
	for c := range k.clients {
		clients = append(clients, c)
	}
	k.mu.Unlock()
	for _, c := range clients {
		_ = c.send(&message{Op: op, Body: body}, nil) // a lost engine asks again with hello
	}
}

// shutdown ends the keeper, which has no task any more.
func (k *Keeper) shutdown() error {
	k.mu.Lock()
	for _, t := range k.tasks {
		if t.exit == nil {
			k.mu.Unlock()
			return &Failure{Msg: "tasks are running", Kind: KindState}
		}
	}
	k.holding = true
	k.mu.Unlock()
	k.pool.close()
	go func() {
		k.busy.Wait()
		k.flushReaping()
		_ = os.Remove(filepath.Join(k.cfg.ExecRoot, "keeper", "socket"))
		k.cgroups.RemoveParent(k.cfg.Parent)
		k.cgroups.RemoveParent(k.cfg.Parent + devicesSuffix)
		os.Exit(0)
	}()
	return nil
}

var nsBits = map[specs.LinuxNamespaceType]uint64{
	specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.UTSNamespace: unix.CLONE_NEWUTS, specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.PIDNamespace: unix.CLONE_NEWPID,
	specs.UserNamespace: unix.CLONE_NEWUSER,
}
