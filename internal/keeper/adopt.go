package keeper

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// sweep removes the cgroups that no task of the journal owns: what an earlier
// keeper prepared or did not get to remove.
func (k *Keeper) sweep() {
	owned := map[string]bool{}
	for _, e := range k.orphans {
		if e.Exit == nil {
			owned[e.Cgroup] = true
		}
	}
	for _, parent := range []string{k.cfg.Parent, k.cfg.Parent + devicesSuffix} {
		for _, h := range k.rt.Host.Hierarchies {
			entries, err := os.ReadDir(h.Path + parent)
			if err != nil {
				continue
			}
			for _, e := range entries {
				rel := path.Join(parent, e.Name())
				if e.IsDir() && !owned[rel] {
					k.removeCgroup(&runtime.Cgroup{Rel: rel, V1: []string{h.Path + rel}, V2FD: -1, View: -1})
				}
			}
		}
	}
}

// adopt takes over a task that the journal names. fds become the keeper's.
func (k *Keeper) adopt(r *AdoptRequest, fds []int) error {
	k.mu.Lock()
	e, ok := k.orphans[r.ID]
	delete(k.orphans, r.ID)
	k.mu.Unlock()
	if !ok {
		closeAll(fds)
		return notFound(r.ID)
	}
	t := &task{
		id: e.ID, pid: e.Pid, start: e.Start, at: e.At, term: e.Term, nsFlags: e.NS, exit: e.Exit,
		cgroup: k.cgroups.Find(e.Cgroup), mountNS: -1, pidFD: -1, adopted: true, oci: e.OCI,
	}
	t.io = &stdio{loop: k.loop, term: e.Term, logSpec: e.Log}
	if t.exit == nil {
		var rest []int
		if len(fds) > 0 {
			t.pidFD, rest = fds[0], fds[1:]
		} else if fd, err := unix.PidfdOpen(e.Pid, 0); err == nil {
			t.pidFD = fd
			if startTime(e.Pid) != e.Start { // another process has the number now
				_ = unix.Close(fd)
				t.pidFD = -1
			}
		}
		k.reopen(t, rest)
	} else {
		closeAll(fds)
	}
	k.mu.Lock()
	k.tasks[t.id] = t
	k.mu.Unlock()
	if t.exit != nil {
		return nil
	}
	if t.pidFD < 0 {
		k.lost(t)
		return nil
	}
	k.loop.mu.Lock()
	t.io.interest()
	t.watch(k.loop)
	k.loop.mu.Unlock()
	if k.cgroups.MemoryLimited(t.cgroup) {
		t.watchOOM(k, false)
	}
	return nil
}

// lost records the end of a task that nobody saw end.
func (k *Keeper) lost(t *task) {
	e := &Exit{ID: t.id, Code: 255, Lost: true, At: time.Now()}
	k.mu.Lock()
	t.exit = e
	k.mu.Unlock()
	k.loop.mu.Lock()
	t.io.abandon()
	k.loop.mu.Unlock()
	forget := foreign{k}.leave(t)
	k.journal.write(entry{Op: opExit, ID: t.id, Exit: e})
	k.broadcast("exit", e)
	k.later(forget)
}

// reopen gets the stdio of an adopted task back: the terminal from the engine,
// pipes through the process's own descriptors.
func (k *Keeper) reopen(t *task, rest []int) {
	s := t.io
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	if s.term {
		if len(rest) == 0 {
			return
		}
		_ = unix.SetNonblock(rest[0], true)
		src := &source{fd: rest[0], stream: streamStdout, io: s}
		s.out[1], s.in = src, src
		k.loop.add(src)
		return
	}
	closeAll(rest)
	for i := 0; i < 3; i++ {
		p := fmt.Sprintf("/proc/%d/fd/%d", t.pid, i)
		if link, err := os.Readlink(p); err != nil || !strings.HasPrefix(link, "pipe:") {
			continue // redirected since, or no stdin
		}
		mode := unix.O_RDONLY
		if i == 0 {
			mode = unix.O_WRONLY
		}
		fd, err := unix.Open(p, mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		src := &source{fd: fd, stream: byte(i), io: s}
		if i == 0 {
			s.in = src
		} else {
			s.out[i] = src
		}
		k.loop.add(src)
	}
}
