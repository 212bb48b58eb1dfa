package container

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
)

// StopOptions say how a container is asked to end.
type StopOptions struct {
	Signal  string // "" is the container's own
	Timeout *int   // seconds before it is killed; nil is the container's own, -1 forever
}

const defaultStopTimeout = 10 // seconds

// parseSignal reads a signal's name or number.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n <= 0 || n > 64 {
			return 0, errs.New(errs.Invalid, "invalid signal: %s", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	const rtMin, rtMax = 34, 64
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		if n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "+")); err == nil && rtMin+n <= rtMax {
			return unix.Signal(rtMin + n), nil
		}
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		if n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "-")); err == nil && rtMax-n >= rtMin {
			return unix.Signal(rtMax - n), nil
		}
	}
	return 0, errs.New(errs.Invalid, "invalid signal: %s", s)
}

func stopSignal(c *container.Config) unix.Signal {
	if c.StopSignal != "" {
		if sig, err := parseSignal(c.StopSignal); err == nil {
			return sig
		}
	}
	return unix.SIGTERM
}

// Kill sends a signal.
func (s *Service) Kill(ctx context.Context, ref, signal string) error {
	failed := func(err error) error { return errs.Wrap(errs.KindOf(err), err, "cannot kill container: "+ref) }
	sig := unix.SIGKILL
	if signal != "" {
		var err error
		if sig, err = parseSignal(signal); err != nil {
			return failed(err)
		}
	}
	c, err := s.Get(ref)
	if err != nil {
		return failed(err)
	}
	if !c.settled().Phase.Running() {
		return failed(errNotRunning(c))
	}
	// A user's kill is a stop: the restart policy does not act. Docker counts
	// the stop signal and SIGKILL.
	if sig == unix.SIGKILL || sig == stopSignal(c.Record().Config) {
		s.markStopped(c)
	}
	ended := c.exitChan()
	if err := s.signal(ctx, c, sig); err != nil || sig != unix.SIGKILL || ended == nil {
		return err
	}
	// Nothing outlives SIGKILL, and what comes next counts on that: rm, rename, start.
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(killPatience):
		return failed(errNoExit(c))
	}
}

// killPatience is how long a process may take to be gone after SIGKILL.
const killPatience = 10 * time.Second

func errNoExit(c *Container) error {
	return errs.New(errs.Internal, "cannot stop container: %s: tried to kill container, but did not receive an exit event", c.Record().ID)
}

// markStopped notes that a user ended the container: its restart policy does
// not act. The exit persists it.
func (s *Service) markStopped(c *Container) { c.stopAsked.Store(true) }

// signal sends sig and tells of it. A process that has just ended is no error.
func (s *Service) signal(ctx context.Context, c *Container, sig unix.Signal) error {
	id := string(c.Record().ID)
	err := s.keeper.Signal(ctx, id, "", int(sig))
	var f *keeper.Failure
	if errors.As(err, &f) && f.Kind != "" {
		err = nil
	}
	if err != nil {
		return errs.Wrap(errs.Internal, err, "cannot kill container: "+id)
	}
	if sig == unix.SIGKILL {
		c.killed.Store(true)
	}
	if sig == unix.SIGKILL && c.Status().Phase == Paused {
		_ = s.keeper.Freeze(ctx, id, false) // a frozen process does not die on v1
	}
	s.event(c, events.ActionKill, "signal", strconv.Itoa(int(sig)))
	return nil
}

// Stop asks a container to end, and kills it when it does not.
func (s *Service) Stop(ctx context.Context, ref string, o StopOptions) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	if c.Status().Phase == Restarting {
		c.mu.Lock()
		if c.retry != nil {
			c.retry.Stop()
		}
		if st := *c.Status(); st.Phase == Restarting {
			st.Phase, st.Stopped = Exited, true
			err := s.save(c, st)
			c.mu.Unlock()
			c.wake(false, container.WaitResponse{StatusCode: int64(st.ExitCode)})
			s.event(c, events.ActionStop)
			return err
		}
		c.mu.Unlock()
	}
	if !c.settled().Phase.Running() {
		return errs.New(errs.NotModified, "container %s is already stopped", c.Record().ID)
	}
	if err := s.stop(ctx, c, o); err != nil {
		return err
	}
	s.event(c, events.ActionStop)
	return nil
}

// stop returns when the container has ended and its exit is recorded.
func (s *Service) stop(ctx context.Context, c *Container, o StopOptions) error {
	cfg := c.Record().Config
	sig := stopSignal(cfg)
	if o.Signal != "" {
		var err error
		if sig, err = parseSignal(o.Signal); err != nil {
			return err
		}
	}
	seconds := defaultStopTimeout
	if cfg.StopTimeout != nil {
		seconds = *cfg.StopTimeout
	}
	if o.Timeout != nil {
		seconds = *o.Timeout
	}
	ended := c.exitChan()
	if ended == nil {
		return nil
	}
	s.markStopped(c)
	ctx = context.WithoutCancel(ctx) // a client that went away does not leave it half stopped
	if c.Status().Phase == Paused && sig != unix.SIGKILL {
		_ = s.keeper.Freeze(ctx, string(c.Record().ID), false)
	}
	if err := s.signal(ctx, c, sig); err != nil {
		return err
	}
	// A signal that is not the last word gets its time; with none, SIGKILL
	// follows after a moment in which a well-behaved process can still exit.
	var patience <-chan time.Time
	if seconds >= 0 {
		patience = time.After(time.Duration(seconds) * time.Second)
	}
	select {
	case <-ended:
		return nil
	case <-patience:
	}
	if err := s.signal(ctx, c, unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(killPatience):
		return errNoExit(c)
	}
}

// exitChan is closed when the present run is over and recorded; nil when none is on.
func (c *Container) exitChan() <-chan struct{} {
	c.io.Lock()
	defer c.io.Unlock()
	if !c.Status().Phase.Running() {
		return nil
	}
	if c.stopped == nil {
		c.stopped = make(chan struct{})
	}
	return c.stopped
}

// Restart stops a container if it runs, and starts it.
func (s *Service) Restart(ctx context.Context, ref string, o StopOptions) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	auto := c.Record().HostConfig.AutoRemove
	if auto && c.Status().Phase.Running() {
		s.setAutoRemove(c, false) // the stop in the middle must not remove it
		defer s.setAutoRemove(c, true)
	}
	if c.Status().Phase.Running() {
		if err := s.stop(ctx, c, o); err != nil {
			return errs.Wrap(errs.KindOf(err), err, "Cannot restart container "+ref)
		}
		s.event(c, events.ActionStop)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Status().Phase.Running() {
		if err := s.start(ctx, c); err != nil {
			return errs.Wrap(errs.KindOf(err), err, "Cannot restart container "+ref)
		}
	}
	s.event(c, events.ActionRestart)
	return nil
}

func (s *Service) setAutoRemove(c *Container, on bool) {
	r := *c.Record()
	hc := *r.HostConfig
	hc.AutoRemove = on
	r.HostConfig = &hc
	c.rec.Store(&r)
}

// Pause freezes every process of a container.
func (s *Service) Pause(ctx context.Context, ref string) error { return s.freeze(ctx, ref, true) }

// Unpause lets them go on.
func (s *Service) Unpause(ctx context.Context, ref string) error { return s.freeze(ctx, ref, false) }

func (s *Service) freeze(ctx context.Context, ref string, frozen bool) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := *c.Status()
	id := c.Record().ID
	switch {
	case frozen && st.Phase == Paused:
		return errs.New(errs.Conflict, "container %s is already paused", id)
	case frozen && st.Phase != Running:
		return errs.New(errs.Conflict, "container %s is not running", id)
	case !frozen && st.Phase != Paused:
		return errs.New(errs.Conflict, "Container %s is not paused", id)
	}
	if err := s.keeper.Freeze(ctx, string(id), frozen); err != nil {
		return errs.Wrap(errs.Internal, err, "cannot pause container "+string(id))
	}
	st.Phase = Running
	action := events.ActionUnPause
	if frozen {
		st.Phase, action = Paused, events.ActionPause
		c.unwatchHealth(&st)
	}
	if err := s.save(c, st); err != nil {
		return err
	}
	if !frozen {
		Execs{s}.watchHealth(c)
	}
	s.event(c, action)
	return nil
}
