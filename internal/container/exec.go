package container

import (
	"context"
	"errors"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/stdmux"
)

// Exec is one more process in a container, from its create until some time
// after its end.
type Exec struct {
	id  string
	c   *Container
	req container.ExecCreateRequest

	mu      sync.Mutex
	started bool
	running bool
	pid     int
	code    *int
	done    chan struct{}
}

// ExecStartOptions say how an exec is started. Tty is about the stream only: whether
// the output comes as it is, or framed. Whether the process has a terminal was said
// when the exec was created, and clients may say different things.
type ExecStartOptions struct {
	Detach, Tty bool
	ConsoleSize *[2]uint // height, width; without Tty it is not looked at
}

func utoa(n uint) string { return strconv.FormatUint(uint64(n), 10) }

// execKept is how long an ended exec can still be inspected.
const execKept = 5 * time.Minute

// ExecCreate sets up an exec in a running container.
func (s Execs) ExecCreate(_ context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	c, err := s.Get(ref)
	if err != nil {
		return "", err
	}
	switch c.settled().Phase {
	case Running:
	case Paused:
		return "", errs.New(errs.Conflict, "Container %s is paused, unpause the container before exec", ref)
	default:
		return "", errNotRunning(c)
	}
	if len(req.Cmd) == 0 {
		return "", errs.New(errs.Invalid, "No exec command specified")
	}
	if _, err := detachKeys(req.DetachKeys); err != nil {
		return "", err
	}
	ex := s.newExec(c, req)
	s.event(c, execAction(events.ActionExecCreate, req.Cmd), "execID", ex.id)
	return ex.id, nil
}

// execAction is an exec's action with its command, as Docker writes it: a blank
// follows the program's name even without arguments.
func execAction(a events.Action, cmd []string) events.Action {
	return events.Action(string(a) + ": " + cmd[0] + " " + strings.Join(cmd[1:], " "))
}

// newExec registers an exec of c.
func (s Execs) newExec(c *Container, req container.ExecCreateRequest) *Exec {
	ex := &Exec{id: string(newID()), c: c, req: req, done: make(chan struct{})}
	c.io.Lock()
	c.execs[ex.id] = ex
	c.io.Unlock()
	s.mu.Lock()
	s.execs[ex.id] = ex
	s.mu.Unlock()
	return ex
}

func (s Execs) exec(id string) (*Exec, error) {
	s.mu.RLock()
	ex := s.execs[id]
	s.mu.RUnlock()
	if ex != nil {
		if _, err := s.Get(string(ex.c.Record().ID)); err != nil {
			ex = nil // it went with its container
		}
	}
	if ex == nil {
		return nil, errs.New(errs.NotFound, "No such exec instance: %s", id)
	}
	return ex, nil
}

// ExecStart runs an exec and, unless detached, connects the client with it.
func (s Execs) ExecStart(ctx context.Context, id string, o ExecStartOptions, hijack func(tty bool) (Conn, error)) error {
	ex, err := s.exec(id)
	if err != nil {
		return err
	}
	c := ex.c
	switch c.Status().Phase {
	case Running:
	case Paused:
		return errPaused(c)
	default:
		return errNotRunning(c)
	}
	ex.mu.Lock()
	if ex.started {
		ex.mu.Unlock()
		return errs.New(errs.Conflict, "exec %s has already run", id)
	}
	ex.started, ex.running = true, true
	ex.mu.Unlock()
	req, err := s.execRequest(ex, o)
	if err != nil {
		ex.failed(126)
		s.forgetExecLater(ex)
		if o.Detach {
			return err
		}
		conn, herr := hijack(o.Tty)
		if herr != nil {
			return herr
		}
		defer conn.Close()
		tell(conn, o.Tty, err)
		return nil
	}
	s.event(c, execAction(events.ActionExecStart, ex.req.Cmd), "execID", ex.id)
	if o.Detach {
		return s.launchExec(ctx, ex, req, nil)
	}
	conn, err := hijack(o.Tty)
	if err != nil {
		ex.failed(126)
		return err
	}
	defer conn.Close()
	remote, local, err := keeper.SocketPair()
	if err != nil {
		ex.failed(126)
		return err
	}
	defer local.Close()
	req.Attach = []keeper.AttachSpec{{Stdin: ex.req.AttachStdin, Stdout: ex.req.AttachStdout, Stderr: ex.req.AttachStderr, Mux: !o.Tty}}
	err = s.launchExec(ctx, ex, req, []int{remote})
	_ = unix.Close(remote)
	if err != nil {
		tell(conn, o.Tty, err)
		return nil
	}
	keys, _ := detachKeys(ex.req.DetachKeys)
	if !ex.req.Tty || !ex.req.AttachStdin {
		keys = nil
	}
	// The connection ends only when the exit code can be asked for.
	gate := &lastConn{Conn: conn, done: ex.done}
	if errors.Is(pump(ctx, gate, local, keys, ex.req.AttachStdin), errDetached) {
		s.event(c, events.ActionExecDetach, "execID", ex.id)
	}
	return nil
}

// tell writes why there is no process to the client's stream, which has begun.
func tell(conn Conn, raw bool, err error) {
	text := []byte(err.Error() + "\r\n")
	if !raw {
		text = append(stdmux.AppendHeader(nil, 1, len(text)), text...)
	}
	_, _ = conn.Write(text)
}

// lastConn holds the end of a stream back until the process is known to have ended.
type lastConn struct {
	Conn
	done <-chan struct{}
}

func (l *lastConn) CloseWrite() error {
	select {
	case <-l.done:
	case <-time.After(time.Second): // it closed its output and runs on
	}
	return l.Conn.CloseWrite()
}

// execRequest builds the process of an exec: the container's own, changed by
// what the exec asks for.
func (s Execs) execRequest(ex *Exec, o ExecStartOptions) (*keeper.ExecRequest, error) {
	r := ex.c.Record()
	user := ex.req.User
	if user == "" {
		user = r.Config.User
	}
	root, err := unix.Open("/proc/"+strconv.Itoa(ex.c.Status().Pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errNotRunning(ex.c)
	}
	defer unix.Close(root)
	id, err := resolveUser(root, user, r.HostConfig.GroupAdd)
	if err != nil {
		return nil, err
	}
	hc := *r.HostConfig
	privileged := ex.req.Privileged
	if privileged {
		hc.Privileged = true
	}
	rec := *r
	cfg := *r.Config
	cfg.Tty, cfg.Env = ex.req.Tty, mergeEnv(r.Config.Env, ex.req.Env)
	if ex.req.WorkingDir != "" {
		if !path.IsAbs(ex.req.WorkingDir) {
			return nil, errs.New(errs.Invalid, "OCI runtime exec failed: exec failed: Cwd must be an absolute path")
		}
		cfg.WorkingDir = ex.req.WorkingDir
	}
	hc.ConsoleSize = [2]uint{}
	if o.ConsoleSize != nil && o.Tty {
		hc.ConsoleSize = *o.ConsoleSize
	} else if ex.req.ConsoleSize != nil {
		hc.ConsoleSize = *ex.req.ConsoleSize
	}
	rec.Config, rec.HostConfig = &cfg, &hc
	rec.Path, rec.Args = ex.req.Cmd[0], ex.req.Cmd[1:]
	p, err := buildProcess(&rec, specInput{user: id, defaults: *s.def.Load(), caps: s.caps()})
	if err != nil {
		return nil, err
	}
	req := &keeper.ExecRequest{ID: string(r.ID), ExecID: ex.id, Process: p, Stdin: ex.req.AttachStdin}
	if s.userns.holds(r.HostConfig) {
		if req.IDs, err = s.userns.hostIDs(p.User); err != nil {
			return nil, err
		}
	}
	if !privileged {
		if req.Filter, err = s.seccomp.of(r, &specs.Spec{Process: p}, s.def.Load().Seccomp); err != nil {
			return nil, err
		}
	}
	return req, nil
}

// mergeEnv puts over's variables in the place of, or after, those of base.
func mergeEnv(base, over []string) []string {
	out := append([]string(nil), base...)
	for _, e := range over {
		name, _, hasValue := strings.Cut(e, "=")
		found := false
		for i, b := range out {
			if n, _, _ := strings.Cut(b, "="); n == name {
				found = true
				if hasValue {
					out[i] = e
				} else {
					out = append(out[:i], out[i+1:]...)
				}
				break
			}
		}
		if !found && hasValue {
			out = append(out, e)
		}
	}
	return out
}

func (s Execs) launchExec(ctx context.Context, ex *Exec, req *keeper.ExecRequest, fds []int) error {
	if _, ok := s.def.Load().Runtimes[ex.c.Record().HostConfig.Runtime]; ok {
		fd, err := hostMounts()
		if err != nil {
			ex.failed(126)
			return err
		}
		defer unix.Close(fd)
		req.Filter, req.Host, fds = nil, len(fds), append(fds, fd) // the runtime knows its own filter
	}
	reply, err := s.keeper.Exec(context.WithoutCancel(ctx), req, fds)
	if err != nil {
		defer s.forgetExecLater(ex)
		if f := startFailure("exec", err); f != nil {
			ex.failed(f.code)
			kind := errs.Internal
			if f.code != 128 {
				kind = errs.Invalid
			}
			return &errs.Error{Kind: kind, Op: "exec", Err: f}
		}
		ex.failed(126)
		return keeperError(err)
	}
	ex.mu.Lock()
	ex.pid = reply.Pid
	ex.mu.Unlock()
	return nil
}

func (e *Exec) failed(code int) { e.end(code, time.Now()) }

// end records the exit code, once.
func (e *Exec) end(code int, _ time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.code != nil || !e.started {
		return false
	}
	e.code, e.running = &code, false
	close(e.done)
	return true
}

func (e *Exec) neverStarted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.started
}

func (s Execs) exited(ev keeper.Exit) {
	ex, err := s.exec(ev.ExecID)
	if err != nil {
		return
	}
	if ex.end(ev.Code, ev.At) {
		s.event(ex.c, events.ActionExecDie, "execID", ex.id, "exitCode", strconv.Itoa(ev.Code))
	}
	s.forgetExecLater(ex)
}

func (s Execs) forgetExecLater(ex *Exec) {
	ex.c.io.Lock()
	delete(ex.c.execs, ex.id)
	ex.c.io.Unlock()
	time.AfterFunc(execKept, func() { s.forgetExec(ex) })
}

// forgetExec drops an exec that nobody can ask for any more.
func (s Execs) forgetExec(ex *Exec) {
	ex.c.io.Lock()
	delete(ex.c.execs, ex.id)
	ex.c.io.Unlock()
	s.mu.Lock()
	delete(s.execs, ex.id)
	s.mu.Unlock()
}

// ExecInspect tells how an exec is.
func (s Execs) ExecInspect(_ context.Context, id string) (container.ExecInspectResponse, error) {
	ex, err := s.exec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	privileged := ex.req.Privileged
	out := container.ExecInspectResponse{
		ID: ex.id, Running: ex.running, ExitCode: ex.code, OpenStdin: ex.req.AttachStdin, OpenStdout: ex.req.AttachStdout,
		OpenStderr: ex.req.AttachStderr, CanRemove: ex.code != nil, ContainerID: string(ex.c.Record().ID), Pid: ex.pid,
		DetachKeys: []byte(ex.req.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{
			Tty: ex.req.Tty, Entrypoint: ex.req.Cmd[0], Arguments: ex.req.Cmd[1:], Privileged: &privileged, User: ex.req.User,
		},
	}
	return out, nil
}

// ExecResize sets the size of an exec's terminal.
func (s Execs) ExecResize(ctx context.Context, id string, height, width uint) error {
	ex, err := s.exec(id)
	if err != nil {
		return err
	}
	if p := ex.c.Status().Phase; p != Running && p != Paused {
		return errNotRunning(ex.c)
	}
	ex.mu.Lock()
	running := ex.running && ex.pid != 0
	ex.mu.Unlock()
	if !running {
		// The client resizes as soon as it has asked for the start.
		return errs.New(errs.Conflict, "exec process is not started")
	}
	return keeperError(s.keeper.Resize(ctx, string(ex.c.Record().ID), id, uint16(height), uint16(width)))
}

func itoa(n int) string { return strconv.Itoa(n) }
