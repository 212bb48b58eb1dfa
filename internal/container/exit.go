package container

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/keeper"
)

// onExit is called by the keeper's client for every process that ended, and
// when one is killed for want of memory, in order.
func (s *Service) onExit(e keeper.Exit) {
	<-s.ready
	if e.ExecID != "" {
		Execs{s}.exited(e)
		return
	}
	s.mu.RLock()
	c := s.byID[ID(e.ID)]
	s.mu.RUnlock()
	if c == nil {
		_ = s.keeper.Forget(context.Background(), e.ID) // removed: nobody wants to know
		return
	}
	if e.Running {
		go c.outOfMemory(s, e)
		return
	}
	go s.exited(c, e)
}

// outOfMemory tells that a process of a container was killed, which itself may
// go on. When it has ended meanwhile its exit tells.
func (c *Container) outOfMemory(s *Service, e keeper.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := *c.Status()
	if !st.Phase.Running() || e.At.Before(st.StartedAt) {
		return
	}
	if !st.OOMKilled {
		st.OOMKilled = true
		if err := s.save(c, st); err != nil {
			s.o.Log.Error("cannot record an OOM kill", "id", c.Record().ID, "error", err)
		}
	}
	s.event(c, events.ActionOOM)
}

// exited is the only way out of running. It runs once for each exit: the phase
// tells whether it has been here.
func (s *Service) exited(c *Container, e keeper.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := *c.Status()
	if !st.Phase.Running() || e.At.Before(st.StartedAt) {
		return
	}
	r := c.Record()
	if s.o.Systemd != nil { // before a restart, which has a scope of the same name
		s.o.Systemd.Stop(context.Background(), scopeName(r.ID))
	}
	ran := e.At.Sub(st.StartedAt)
	st.Phase, st.Pid, st.ProcStart = Exited, 0, 0
	st.Stopped = c.stopAsked.Load()
	if e.Lost && c.killed.Load() {
		e.Code, e.Lost = 128+int(unix.SIGKILL), false // nobody saw it, but there is no doubt
	}
	if e.Lost {
		st.Error = "the exit code was lost with the process's parent"
	}
	newlyOOM := e.OOM && !st.OOMKilled
	st.ExitCode, st.OOMKilled, st.FinishedAt = e.Code, st.OOMKilled || e.OOM, e.At
	c.unwatchHealth(&st)
	restart := !s.closing.Load() && shouldRestart(r.HostConfig.RestartPolicy, &st)
	if restart {
		st.Phase = Restarting
		st.RestartCount++
	}
	if err := s.save(c, st); err != nil {
		s.o.Log.Error("cannot record an exit", "id", r.ID, "error", err)
	}
	go func() { _ = s.keeper.Forget(context.Background(), string(r.ID)) }()
	if newlyOOM {
		s.event(c, events.ActionOOM)
	}
	attrs := []string{"exitCode", strconv.Itoa(e.Code), "execDuration", strconv.Itoa(int(ran.Seconds()))}
	s.event(c, events.ActionDie, attrs...)
	if (Nets{s}).own(r) {
		s.o.Networks.Release(string(r.ID))
	} else {
		c.networkEvent(s, events.ActionDisconnect)
	}
	if len(r.Mounts) > 0 {
		volumes{s}.end(r)
	}
	// Who waits for the stop may have another use for the addresses and ports: those
	// are free by now.
	c.io.Lock()
	if c.stopped != nil {
		close(c.stopped)
		c.stopped = nil
	}
	var idle []*Exec
	for _, ex := range c.execs {
		if !ex.end(137, e.At) && ex.neverStarted() {
			idle = append(idle, ex)
		}
	}
	c.io.Unlock()
	for _, ex := range idle { // not for the container's next life
		Execs{s}.forgetExec(ex)
	}
	// An exit is one also when the restart policy has more in mind.
	c.wake(false, container.WaitResponse{StatusCode: int64(e.Code)})
	if restart {
		s.scheduleRestart(c, ran)
		return
	}
	if r.HostConfig.AutoRemove {
		if err := s.remove(c, RemoveOptions{Volumes: true}); err != nil {
			s.o.Log.Error("cannot remove a container", "id", r.ID, "error", err)
		}
	}
}

// shouldRestart applies a restart policy to a container that has just ended.
func shouldRestart(p container.RestartPolicy, st *Status) bool {
	if st.Stopped {
		return false
	}
	switch p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return true
	case container.RestartPolicyOnFailure:
		return st.ExitCode != 0 && (p.MaximumRetryCount == 0 || st.RestartCount < p.MaximumRetryCount)
	default:
		return false
	}
}

const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = time.Minute
	backoffReset = 10 * time.Second // a run as long as this was no failure to start
)

// scheduleRestart starts the container again after a pause that doubles with
// each failure. c.mu is held.
func (s *Service) scheduleRestart(c *Container, ran time.Duration) {
	if ran >= backoffReset || c.backoff == 0 {
		c.backoff = backoffFirst
	} else {
		c.backoff = min(2*c.backoff, backoffMax)
	}
	c.retry = time.AfterFunc(c.backoff, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.Status().Phase != Restarting || s.closing.Load() {
			return
		}
		if err := s.start(context.Background(), c); err != nil {
			s.o.Log.Warn("cannot restart a container", "id", c.Record().ID, "error", err)
			st := *c.Status()
			if shouldRestart(c.Record().HostConfig.RestartPolicy, &st) {
				st.Phase, st.Error = Restarting, err.Error()
				st.RestartCount++
				_ = s.save(c, st)
				s.scheduleRestart(c, 0)
				return
			}
			c.wake(false, container.WaitResponse{StatusCode: int64(st.ExitCode)})
		}
	})
}
