package container

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
)

// What a health check does where its configuration is silent, and what is kept
// of its results: Docker's figures.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthOutput        = 4096 // bytes kept of one probe
	healthLog           = 5    // probes kept
	healthDrain         = 100 * time.Millisecond
)

// prober runs the health check of one container, for as long as one run of it
// lasts and is not paused. There is a goroutine only for containers that have a
// check.
type prober struct {
	s     Execs
	c     *Container
	run   uint64 // Status.ProcStart of the run that it watches
	stop  chan struct{}
	start time.Time
}

// healthTest returns the command of a container's check: nil for none.
func healthTest(cfg *container.Config) []string {
	h := cfg.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		if len(h.Test) > 1 {
			return h.Test[1:]
		}
	case "CMD-SHELL":
		shell := cfg.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(append([]string(nil), shell...), h.Test[1:]...)
	}
	return nil
}

// validateHealth refuses times that make no sense, in Docker's words.
func validateHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.v != 0 && d.v < container.MinimumDuration {
			return errs.New(errs.Invalid, "%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return errs.New(errs.Invalid, "Retries in Healthcheck cannot be negative")
	}
	return nil
}

// watchHealth begins to probe the present run of a container. c.mu is held.
func (s Execs) watchHealth(c *Container) {
	if c.prober != nil || healthTest(c.Record().Config) == nil {
		return
	}
	st := c.Status()
	p := &prober{s: s, c: c, run: st.ProcStart, stop: make(chan struct{}), start: st.StartedAt}
	c.prober = p
	go p.loop()
}

// unwatchHealth ends the probing: what is not watched does not count as
// healthy. c.mu is held, and st is about to be saved.
func (c *Container) unwatchHealth(st *Status) {
	if c.prober != nil {
		close(c.prober.stop)
		c.prober = nil
	}
	if st.Health != "" {
		st.Health = container.Unhealthy
	}
}

func orDefault(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return d
}

// interval is the time to the next probe: shorter while the container is still
// starting up.
func (p *prober) interval() time.Duration {
	h := p.c.Record().Config.Healthcheck
	if h.StartPeriod > 0 && time.Since(p.start) < h.StartPeriod && p.c.Status().Health == container.Starting {
		return orDefault(h.StartInterval, healthStartInterval)
	}
	return orDefault(h.Interval, healthInterval)
}

func (p *prober) loop() {
	timer := time.NewTimer(p.interval())
	defer timer.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-timer.C:
		}
		r := p.probe()
		select {
		case <-p.stop:
			return // the container ended meanwhile: no result
		default:
		}
		if p.s.closing.Load() {
			return
		}
		p.record(r)
		timer.Reset(p.interval())
	}
}

// probe runs the check once.
func (p *prober) probe() *container.HealthcheckResult {
	cfg := p.c.Record().Config
	r := &container.HealthcheckResult{Start: time.Now(), ExitCode: -1}
	defer func() { r.End = time.Now() }()
	ex := p.s.newExec(p.c, container.ExecCreateRequest{Cmd: healthTest(cfg), AttachStdout: true, AttachStderr: true})
	p.s.event(p.c, execAction(events.ActionExecCreate, ex.req.Cmd), "execID", ex.id)
	ex.started, ex.running = true, true
	req, err := p.s.execRequest(ex, ExecStartOptions{})
	if err != nil {
		ex.failed(126)
		p.s.forgetExec(ex)
		r.Output = err.Error()
		return r
	}
	remote, local, err := keeper.SocketPair()
	if err != nil {
		ex.failed(126)
		p.s.forgetExec(ex)
		r.Output = err.Error()
		return r
	}
	req.Attach = []keeper.AttachSpec{{Stdout: true, Stderr: true}}
	p.s.event(p.c, execAction(events.ActionExecStart, ex.req.Cmd), "execID", ex.id)
	err = p.s.launchExec(context.Background(), ex, req, []int{remote})
	_ = unix.Close(remote)
	defer p.s.forgetExec(ex)
	if err != nil {
		_ = local.Close()
		r.Output = err.Error()
		return r
	}
	out := readBounded(local)
	timeout := orDefault(cfg.Healthcheck.Timeout, healthTimeout)
	late := time.NewTimer(timeout)
	defer late.Stop()
	select {
	case <-ex.done:
		out.wait(healthDrain) // a child may hold the output open
		r.ExitCode, r.Output = *ex.code, out.text()
	case <-late.C:
		_ = p.s.keeper.Signal(context.Background(), string(p.c.Record().ID), ex.id, int(unix.SIGKILL))
		r.Output = fmt.Sprintf("Health check exceeded timeout (%v)", timeout)
		select {
		case <-ex.done:
		case <-time.After(time.Second):
		}
		out.wait(healthDrain)
		if text := out.text(); text != "" {
			r.Output += ": " + text
		}
	case <-p.stop:
	}
	_ = local.Close()
	return r
}

// record takes note of a result, and tells when the state of health changes.
func (p *prober) record(r *container.HealthcheckResult) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	st := *p.c.Status()
	if st.Phase != Running || st.ProcStart != p.run || p.c.prober != p {
		return
	}
	h := p.c.Record().Config.Healthcheck
	now := &container.Health{}
	if old := p.c.health.Load(); old != nil {
		*now = *old
	}
	log := append(append([]*container.HealthcheckResult(nil), now.Log...), r)
	now.Log = log[max(0, len(log)-healthLog):]
	before := st.Health
	if r.ExitCode == 0 {
		now.FailingStreak = 0
		st.Health = container.Healthy
	} else if before != container.Starting || r.Start.Sub(p.start) >= h.StartPeriod {
		retries := h.Retries
		if retries <= 0 {
			retries = healthRetries
		}
		if now.FailingStreak++; now.FailingStreak >= retries {
			st.Health = container.Unhealthy
		}
	}
	now.Status = st.Health
	p.c.health.Store(now)
	if st.Health == before {
		return
	}
	if err := p.s.save(p.c, st); err != nil {
		p.s.o.Log.Error("cannot record the health of a container", "id", p.c.Record().ID, "error", err)
	}
	p.s.event(p.c, events.Action(string(events.ActionHealthStatus)+": "+string(st.Health)))
}

// restartHealth begins a new count; earlier results stay readable.
func (c *Container) restartHealth() {
	h := &container.Health{}
	if old := c.health.Load(); old != nil {
		h.Log = old.Log
	}
	c.health.Store(h)
}

// healthOf is what inspect shows; nil for a container without a check.
func (c *Container) healthOf(st *Status) *container.Health {
	if st.Health == "" || st.Health == container.NoHealthcheck {
		return nil
	}
	out := &container.Health{Log: []*container.HealthcheckResult{}}
	if h := c.health.Load(); h != nil {
		*out = *h
	}
	if out.Log == nil {
		out.Log = []*container.HealthcheckResult{}
	}
	out.Status = st.Health
	return out
}

// healthStatus is the state of health as the filters name it.
func (st *Status) healthStatus() container.HealthStatus {
	if st.Health == "" {
		return container.NoHealthcheck
	}
	return st.Health
}

// bounded is the beginning of a stream; the rest is read and dropped, so that
// the process that writes it never waits.
type bounded struct {
	mu   sync.Mutex
	buf  []byte
	over bool
	done chan struct{}
}

func readBounded(f io.Reader) *bounded {
	b := &bounded{done: make(chan struct{})}
	go func() {
		defer close(b.done)
		chunk := make([]byte, healthOutput)
		for {
			n, err := f.Read(chunk)
			b.mu.Lock()
			room := healthOutput - len(b.buf)
			b.buf = append(b.buf, chunk[:min(n, room)]...)
			b.over = b.over || n > room
			b.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return b
}

func (b *bounded) wait(d time.Duration) {
	select {
	case <-b.done:
	case <-time.After(d):
	}
}

func (b *bounded) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return string(b.buf) + "..."
	}
	return string(b.buf)
}
