package container

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
)

// Conn is a client's side of a connection: Read is its input, Write its output.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// AttachOptions say what a client is attached to.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream                bool // live; else only Logs
	Logs                  bool // what was written before, first
	Raw                   bool // never multiplex
	DetachKeys            string
}

// pendingAttach waits for a start.
type pendingAttach struct {
	fd   int
	spec keeper.AttachSpec
}

// Attach connects a client with a container's stdio until either ends. The
// connection goes straight through the keeper; this process only copies.
func (s Streams) Attach(ctx context.Context, ref string, o AttachOptions, hijack func(tty bool) (Conn, error)) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	keys, err := detachKeys(o.DetachKeys)
	if err != nil {
		return err
	}
	st, cfg := c.Status(), c.Record().Config
	switch st.Phase {
	case Paused:
		return errs.New(errs.Conflict, "container %s is paused, unpause the container before attach", ref)
	case Restarting:
		return errs.New(errs.Conflict, "container %s is restarting, wait until the container is running", ref)
	}
	mux := !cfg.Tty && !o.Raw
	if !o.Stream {
		conn, err := hijack(cfg.Tty)
		if err != nil {
			return err
		}
		defer conn.Close()
		return s.replay(ctx, c, o, mux, conn)
	}
	// Registered before the client has its answer: it may start the container
	// as soon as it has.
	remote, local, err := keeper.SocketPair()
	if err != nil {
		return err
	}
	defer local.Close()
	spec := keeper.AttachSpec{Stdin: o.Stdin && cfg.OpenStdin, Stdout: o.Stdout, Stderr: o.Stderr, Mux: mux}
	if err := s.attach(ctx, c, remote, spec); err != nil {
		return err
	}
	conn, err := hijack(cfg.Tty)
	if err != nil {
		return err
	}
	defer conn.Close()
	if o.Logs {
		if err := s.replay(ctx, c, o, mux, conn); err != nil {
			return err
		}
	}
	s.event(c, events.ActionAttach)
	if !spec.Stdin || !cfg.Tty && o.DetachKeys == "" {
		keys = nil
	}
	if errors.Is(pump(ctx, &endConn{Conn: conn, c: c, gone: ctx.Done()}, local, keys, spec.Stdin), errDetached) {
		s.event(c, events.ActionDetach)
	}
	return nil
}

// endConn holds the end of a container's stream back until its exit is recorded:
// clients ask for the exit code as soon as they have seen the end.
type endConn struct {
	Conn
	c    *Container
	gone <-chan struct{}
}

// ReadFrom leaves the copying to the connection, which may know a shorter way.
func (e *endConn) ReadFrom(src io.Reader) (int64, error) { return io.Copy(e.Conn, src) }

func (e *endConn) CloseWrite() error {
	ended := e.c.exitChan()
	if ended == nil {
		e.c.mu.Lock() // its end may be faster than the start that is still at work
		ended = e.c.exitChan()
		e.c.mu.Unlock()
	}
	if ended != nil {
		select {
		case <-ended:
		case <-e.gone:
		case <-time.After(time.Second): // it closed its output and runs on
		}
	}
	return e.Conn.CloseWrite()
}

// attach gives fd to the running process, or keeps it for the next start. It is
// the keeper's, or closed, afterwards.
func (s Streams) attach(ctx context.Context, c *Container, fd int, spec keeper.AttachSpec) error {
	c.io.Lock()
	if !c.Status().Phase.Running() {
		c.attach = append(c.attach, pendingAttach{fd, spec})
		c.io.Unlock()
		return nil
	}
	c.io.Unlock()
	defer unix.Close(fd)
	err := s.keeper.Attach(ctx, string(c.Record().ID), "", spec, fd)
	var f *keeper.Failure
	if errors.As(err, &f) && f.Kind == keeper.KindNotFound {
		return nil // it has just ended: so does the attachment
	}
	return err
}

var errDetached = errors.New("detached")

// pump copies between a client and a process until the process's output ends,
// the client is gone, or it types the detach keys.
func pump(ctx context.Context, conn Conn, local *net.UnixConn, keys []byte, stdin bool) error {
	detached := make(chan struct{})
	var once sync.Once
	go func() {
		if !stdin {
			// Nothing is expected; a client that closes is gone.
			_, _ = io.Copy(io.Discard, conn)
			_ = local.CloseWrite()
			return
		}
		if feed(local, conn, keys) {
			once.Do(func() { close(detached) })
			_ = local.Close()
			return
		}
		_ = local.CloseWrite()
	}()
	stop := context.AfterFunc(ctx, func() { _ = local.Close() })
	defer stop()
	_, err := io.Copy(conn, local)
	select {
	case <-detached:
		return errDetached
	default:
	}
	_ = conn.CloseWrite()
	return err
}

// feed copies input until its end, or until the detach keys: then it returns
// true. Keys that begin the sequence are held back until it is clear.
func feed(dst io.Writer, src io.Reader, keys []byte) (detached bool) {
	if len(keys) == 0 {
		_, _ = io.Copy(dst, src)
		return false
	}
	buf := make([]byte, 4096)
	matched := 0
	for {
		n, err := src.Read(buf)
		out := make([]byte, 0, n+len(keys))
		for _, b := range buf[:n] {
			if b == keys[matched] {
				if matched++; matched == len(keys) {
					_, _ = dst.Write(out)
					return true
				}
				continue
			}
			out = append(out, keys[:matched]...)
			matched = 0
			if b == keys[0] {
				matched = 1
				if len(keys) == 1 {
					_, _ = dst.Write(out)
					return true
				}
				continue
			}
			out = append(out, b)
		}
		if len(out) > 0 {
			if _, werr := dst.Write(out); werr != nil {
				return false
			}
		}
		if err != nil {
			if matched > 0 {
				_, _ = dst.Write(keys[:matched])
			}
			return false
		}
	}
}

// detachKeys reads "ctrl-p,ctrl-q"; "" is that default.
func detachKeys(text string) ([]byte, error) {
	if text == "" {
		text = "ctrl-p,ctrl-q"
	}
	var keys []byte
	for _, k := range splitKeys(text) {
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
		case len(k) == 6 && k[:5] == "ctrl-" && k[5] >= 'a' && k[5] <= 'z':
			keys = append(keys, k[5]-'a'+1)
		case len(k) == 6 && k[:5] == "ctrl-" && strings.IndexByte("@[\\]^_", k[5]) >= 0:
			keys = append(keys, k[5]-'@')
		default:
			return nil, errs.New(errs.Invalid, "Invalid detach keys (%s) provided", text)
		}
	}
	return keys, nil
}

func splitKeys(text string) []string {
	var out []string
	start := 0
	for i := 0; i <= len(text); i++ {
		if i == len(text) || text[i] == ',' && i > start {
			out = append(out, text[start:i])
			start = i + 1
		}
	}
	return out
}

// Resize sets the size of a container's terminal.
func (s Streams) Resize(ctx context.Context, ref string, height, width uint) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	if !c.Status().Phase.Running() {
		return errNotRunning(c)
	}
	err = s.keeper.Resize(ctx, string(c.Record().ID), "", uint16(height), uint16(width))
	if err == nil {
		s.event(c, events.ActionResize, "height", utoa(height), "width", utoa(width))
	}
	return keeperError(err)
}

// keeperError gives a keeper's failure the kind that the API needs.
func keeperError(err error) error {
	var f *keeper.Failure
	if errors.As(err, &f) {
		switch f.Kind {
		case keeper.KindNotFound, keeper.KindState:
			return errs.New(errs.Conflict, "%s", f.Msg)
		}
	}
	return err
}
