package keeper

import (
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// watch has the loop tell when the task ends. loop.mu is held.
func (t *task) watch(l *loop) {
	fd, err := unix.FcntlInt(uintptr(t.pidFD), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		fd = t.pidFD
	}
	t.src = &source{fd: fd, task: t}
	l.add(t.src)
	l.want(t.src, unix.EPOLLIN)
}

// exited is called by the loop when a pidfd, or a port that is relayed, is readable.
func (k *Keeper) exited(s *source) {
	switch {
	case s.ex != nil:
		k.execExited(s)
		return
	case s.oom != nil:
		s.oom.outOfMemory(k, s)
		return
	case s.relay != nil:
		s.relay.ready(k.loop)
		return
	}
	t := s.task
	k.relays.end(k.loop, t.id)
	code, lost := reapPid(t.pidFD, t.adopted, t.pid, t.start)
	k.loop.mu.Lock()
	k.loop.remove(s)
	limited := t.oom.end(k.loop)
	t.io.drain(k.loop.buf)
	done := t.io.drained()
	if !done && t.nsFlags&unix.CLONE_NEWPID == 0 {
		// Others may hold the outputs; they are read on, the task has ended.
		t.io.closeInput()
	}
	k.loop.mu.Unlock()
	e := &Exit{ID: t.id, Code: code, Lost: lost, At: time.Now()}
	// With a limit of its own a kill among its children counts too.
	if (limited || code == 137) && k.cgroups.OOMKills(t.cgroup) > 0 {
		e.OOM = true
	}
	k.mu.Lock()
	t.exit = e
	kept := t.kept
	t.kept = nil
	k.mu.Unlock()
	closeAll(kept)
	forget := foreign{k}.leave(t)
	k.journal.write(entry{Op: opExit, ID: t.id, Exit: e})
	k.broadcast("exit", e)
	_ = unix.Close(t.pidFD)
	t.pidFD = -1
	k.later(func() {
		// Without a pid namespace of its own the rest of the container is ended here.
		if t.nsFlags&unix.CLONE_NEWPID == 0 {
			k.cgroups.KillAll(t.cgroup)
		}
		k.mu.Lock()
		ns := t.mountNS
		t.mountNS = -1
		k.mu.Unlock()
		if ns >= 0 {
			_ = unix.Close(ns)
		}
		forget()
	})
}

func (k *Keeper) execExited(s *source) {
	ex := s.ex
	code, lost := reapPid(ex.pidFD, false, 0, 0)
	k.loop.mu.Lock()
	k.loop.remove(s) // closes ex.pidFD
	ex.io.drain(k.loop.buf)
	if !ex.io.drained() && !ex.io.lagging() {
		ex.io.abandon() // what it left behind in the background keeps its pipe to itself
	}
	k.loop.mu.Unlock()
	k.mu.Lock()
	delete(ex.task.exec, ex.id)
	k.mu.Unlock()
	k.broadcast("exit", &Exit{ID: ex.task.id, ExecID: ex.id, Code: code, Lost: lost, At: time.Now()})
}

// lagging reports whether a client has not taken all output yet.
func (s *stdio) lagging() bool {
	for _, a := range s.attached {
		if len(a.pending) > 0 {
			return true
		}
	}
	return false
}

// reapPid takes the exit status of a process. One that is not a child still
// shows it in /proc until its parent has reaped it, and through its pidfd
// afterwards, if the kernel can (6.15).
func reapPid(pidFD int, adopted bool, pid int, start uint64) (code int, lost bool) {
	if !adopted {
		var si siginfo
		for {
			err := waitid(pidFD, &si)
			if err == unix.EINTR { //nolint:errorlint // a bare errno
				continue
			}
			if err == nil {
				return si.exitCode(), false
			}
			break
		}
	}
	for wait := 100 * time.Microsecond; wait < time.Second; wait *= 2 {
		if status, ok := runtime.ExitStatus(pidFD); ok {
			return status, false
		}
		if ws, ok := zombieStatus(pid, start); ok {
			if ws.Signaled() {
				return 128 + int(ws.Signal()), false
			}
			return ws.ExitStatus(), false
		}
		time.Sleep(wait)
	}
	return 255, true
}

// later queues work that need not be done before the reply.
func (k *Keeper) later(f func()) {
	select {
	case k.reaping <- f:
	default:
		go f()
	}
}

func (k *Keeper) reap() {
	for f := range k.reaping {
		f()
	}
}

// flushReaping waits for the queue to run dry.
func (k *Keeper) flushReaping() {
	done := make(chan struct{})
	k.reaping <- func() { close(done) }
	<-done
}

func (k *Keeper) removeCgroup(g *runtime.Cgroup) {
	if err := k.cgroups.Remove(g); err != nil {
		k.cfg.Log.Warn("cannot remove a cgroup", "cgroup", g.Rel, "error", err)
	}
}
