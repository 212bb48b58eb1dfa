package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// cgroups returns the manager of this machine's cgroups.
func cgroups() (*runtime.Cgroups, error) {
	h, err := runtime.ReadHost()
	if err != nil {
		return nil, err
	}
	return runtime.NewCgroups(h), nil
}

// frozen reads whether a cgroup is stopped.
func frozen(g *runtime.Cgroup) bool {
	for _, dir := range g.V1 {
		if raw, err := os.ReadFile(dir + "/freezer.state"); err == nil {
			return strings.TrimSpace(string(raw)) != "THAWED"
		}
	}
	raw, err := os.ReadFile(g.V2 + "/cgroup.events")
	return err == nil && strings.Contains(string(raw), "frozen 1")
}

// start lets a created container go on to its program.
func (p *program) start(r *record) error {
	switch st := r.status(nil); st {
	case specs.StateCreated:
	case specs.StateStopped:
		return errors.New("cannot start a container that has stopped")
	default:
		return fmt.Errorf("cannot start a container in the %s state", st)
	}
	late, err := unix.Open(r.fifo("late"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(late)
	_ = unix.SetNonblock(late, false)
	fd, err := unix.Open(r.fifo("start"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot start the container: %w", err)
	}
	if h := r.Spec.Hooks; h != nil && len(h.StartContainer) > 0 {
		if err := p.startHooks(r, h.StartContainer); err != nil {
			_ = unix.Close(fd)
			return err
		}
	}
	// The name goes first: who comes next finds the container running.
	err = os.Remove(r.fifo("start"))
	if err == nil {
		_, err = unix.Write(fd, []byte{0})
	}
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	if err := lateError(r, late); err != nil {
		return err
	}
	_ = os.Remove(r.fifo("late"))
	if h := r.Spec.Hooks; h != nil {
		for i := range h.Poststart {
			if err := runHook(&h.Poststart[i], r.state(specs.StateRunning)); err != nil {
				p.note("poststart hook %d: %v", i, err)
			}
		}
	}
	return nil
}

// startHooks runs the startContainer hooks: in the container, as its process,
// which waits for its start.
func (p *program) startHooks(r *record, hooks []specs.Hook) error {
	rt, err := runtime.New()
	if err != nil {
		return err
	}
	pidFD, err := r.pidFD()
	if err != nil {
		return err
	}
	defer unix.Close(pidFD)
	in := &inside{rt, pidFD, r.Spec.Linux.Namespaces, runtime.NewCgroups(rt.Host).Find(r.Cgroup), r.Spec.Process}
	for i := range hooks {
		if err := in.run(&hooks[i], r.state(specs.StateCreated)); err != nil {
			_ = p.kill(r, unix.SIGKILL, false)
			return err
		}
	}
	return nil
}

// lateError reads the reports of failed execves, to the end that a successful
// one makes.
func lateError(r *record, fd int) error {
	var failed error
	var buf [16]byte
	left := len(runtime.Candidates(r.Spec.Process))
	for n := 0; ; {
		m, err := unix.Read(fd, buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			if left > 0 {
				return nil
			}
			return startError(failed)
		}
		if n += m; n == len(buf) {
			n, left = 0, left-1
			errno := unix.Errno(binary.LittleEndian.Uint64(buf[8:]))
			var e *runtime.StartError
			if !errors.As(failed, &e) || errno == unix.EACCES || e.Errno == unix.ENOENT {
				failed = &runtime.StartError{Stage: runtime.StageExec, Path: r.Spec.Process.Args[0], Errno: errno}
			}
		}
	}
}

// kill sends a signal to the container's process, or to all.
func (p *program) kill(r *record, sig unix.Signal, all bool) error {
	if all {
		c, err := cgroups()
		if err != nil {
			return err
		}
		g := c.Find(r.Cgroup)
		pids, err := c.Pids(g)
		if err != nil {
			return err
		}
		return c.Signal(g, pids, sig)
	}
	fd, err := r.pidFD()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return errNotRunning
		}
		return err
	}
	if sig == unix.SIGKILL { // on v1 a frozen process does not die
		if c, err := cgroups(); err == nil && frozen(c.Find(r.Cgroup)) {
			return c.Freeze(c.Find(r.Cgroup), false)
		}
	}
	return nil
}

// delete removes what is left of a container.
func (p *program) delete(r *record, force bool) error {
	c, err := cgroups()
	if err != nil {
		return err
	}
	st := r.status(c)
	if st != specs.StateStopped && st != specs.StateCreated && st != specs.StateCreating && !force {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", r.ID, st)
	}
	g := c.Find(r.Cgroup)
	if r.alive() {
		if err := p.kill(r, unix.SIGKILL, false); err != nil && !errors.Is(err, errNotRunning) {
			return err
		}
		if err := r.waitEnd(10 * time.Second); err != nil {
			return err
		}
	}
	// Without a pid namespace of its own, or with one joined, others may be left.
	c.KillAll(g)
	if err := c.Remove(g); err != nil {
		p.note("cannot remove the cgroup: %v", err)
	}
	if path.Dir(r.Cgroup) == defaultParent {
		c.RemoveParent(defaultParent)
	}
	if h := r.Spec.Hooks; h != nil {
		for i := range h.Poststop {
			if err := runHook(&h.Poststop[i], r.state(specs.StateStopped)); err != nil {
				p.note("poststop hook %d: %v", i, err)
			}
		}
	}
	return os.RemoveAll(r.dir)
}

// waitEnd waits for the process to end; reaping it is its parent's work.
func (r *record) waitEnd(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for d := time.Millisecond; r.alive(); d = min(2*d, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s does not end", r.ID)
		}
		time.Sleep(d)
	}
	return nil
}

// freeze pauses or resumes a container.
func (p *program) freeze(r *record, on bool) error {
	c, err := cgroups()
	if err != nil {
		return err
	}
	switch st := r.status(c); {
	case on && st != specs.StateRunning && st != specs.StateCreated:
		return fmt.Errorf("container not running or created: %s", st)
	case !on && st != statusPaused:
		return errors.New("container not paused")
	}
	return c.Freeze(c.Find(r.Cgroup), on)
}
