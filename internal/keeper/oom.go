package keeper

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// oomWatch is the watch over a task whose memory is limited: one descriptor in
// the event loop. Tasks without a limit have none. loop.mu guards it.
type oomWatch struct {
	src     *source
	limited bool
	kills   int  // told already, where the kernel counts before it tells
	over    bool // the task has ended
}

func limitsMemory(r *specs.LinuxResources) bool {
	return r != nil && r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit > 0
}

// watchOOM has the loop tell when the task runs out of memory. For a task that
// is new what was before the watch is told too.
func (t *task) watchOOM(k *Keeper, isNew bool) {
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	t.oom.limited = true
	if t.oom.over || t.oom.src != nil {
		return
	}
	fd, events, err := k.cgroups.OOMEvents(t.cgroup)
	if err != nil {
		k.cfg.Log.Debug("cannot watch for OOM kills", "id", t.id, "error", err)
		return
	}
	t.oom.src = &source{fd: fd, oom: t}
	k.loop.add(t.oom.src)
	k.loop.want(t.oom.src, events)
	if t.oom.kills = k.cgroups.OOMKills(t.cgroup); t.oom.kills > 0 && isNew {
		go t.tellOOM(k)
	}
}

// end ends the watch, before the cgroup goes, which would be told as well. It
// reports whether the task's memory was limited. loop.mu is held.
func (o *oomWatch) end(l *loop) bool {
	o.over = true
	if o.src != nil {
		l.remove(o.src)
		o.src = nil
	}
	return o.limited
}

// outOfMemory is called by the loop when a watch is readable.
func (t *task) outOfMemory(k *Keeper, s *source) {
	k.loop.mu.Lock()
	if t.oom.src != s {
		k.loop.mu.Unlock()
		return
	}
	n := k.cgroups.DrainOOM(s.fd)
	tell := n < 0 || n > t.oom.kills
	t.oom.kills = max(t.oom.kills, n)
	k.loop.mu.Unlock()
	if tell {
		t.tellOOM(k)
	}
}

func (t *task) tellOOM(k *Keeper) {
	k.broadcast("oom", &Exit{ID: t.id, OOM: true, Running: true, At: time.Now()})
}
