package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/snapshot"
)

// reconcile brings the records to agreement with what the keeper has: at boot,
// and when a keeper was lost and is there again.
//
//	record says   keeper says    then
//	running       running        taken over
//	running       ended          the exit is recorded
//	running       nothing        it ended unseen: reboot, or keeper and engine both killed
//	not running   running        a start whose record was lost: taken over
//	none          running        a container removed by a crash in the middle: killed
func (s recovery) reconcile(h *keeper.Hello) {
	ctx := context.Background()
	seen := map[ID]bool{}
	for _, t := range h.Tasks {
		s.mu.RLock()
		c := s.byID[ID(t.ID)]
		s.mu.RUnlock()
		if c == nil {
			if t.Exit == nil {
				_ = s.keeper.Signal(ctx, t.ID, "", 9)
			} else {
				_ = s.keeper.Forget(ctx, t.ID)
			}
			continue
		}
		seen[ID(t.ID)] = true
		c.mu.Lock()
		st := *c.Status()
		if !st.Phase.Running() && t.Exit == nil {
			if running, _ := s.ask(ID(t.ID)); !running { // its exit was told meanwhile
				c.mu.Unlock()
				continue
			}
		}
		if !st.Phase.Running() && t.Exit == nil || st.Phase.Running() && st.ProcStart != t.StartTime {
			st.Phase, st.StartedAt, st.Error = Running, t.At.UTC(), ""
		}
		if st.Phase.Running() && t.Exit == nil {
			st.Pid, st.ProcStart, st.Cgroup = t.Pid, t.StartTime, t.Cgroup
			st.Phase = Running
			if t.Frozen {
				st.Phase = Paused
			}
			if st != *c.Status() {
				_ = s.save(c, st)
			}
			if st.Phase == Running {
				Execs(s).watchHealth(c)
			}
		}
		c.mu.Unlock()
		if t.Exit != nil {
			if st.Phase.Running() {
				s.exited(c, *t.Exit)
			} else {
				_ = s.keeper.Forget(ctx, t.ID)
			}
		}
	}
	s.o.Networks.Keep(func(id string) int {
		s.mu.RLock()
		c := s.byID[ID(id)]
		s.mu.RUnlock()
		if c == nil || !c.Status().Phase.Running() {
			return 0
		}
		return c.Status().Pid
	})
	var restart []*Container
	for _, c := range s.all() {
		c.mu.Lock()
		st := *c.Status()
		id := c.Record().ID
		lost := st.Phase.Running() && !seen[id]
		if st.Phase == Removing {
			c.mu.Unlock()
			continue
		}
		c.mu.Unlock()
		if lost {
			_, known := s.ask(id)
			lost = !known // else it was started meanwhile
		}
		if lost {
			s.exited(c, keeper.Exit{ID: string(id), Code: 255, Lost: true, At: time.Now()})
		} else if !st.Phase.Running() && s.wantsStart(c, &st) {
			restart = append(restart, c)
		}
	}
	go func() {
		for id := range seen {
			if c, err := s.Get(string(id)); err == nil && c.Status().Phase.Running() {
				_ = s.keeper.Hold(ctx, string(id), c.Record().Config.Tty)
			}
		}
		for _, c := range restart {
			c.mu.Lock()
			if !c.Status().Phase.Running() {
				if err := s.start(ctx, c); err != nil {
					s.o.Log.Warn("cannot start a container at boot", "id", c.Record().ID, "error", err)
				}
			}
			c.mu.Unlock()
		}
	}()
}

// ask asks the keeper for a task, where a hello differs from what the engine
// believes: with a keeper that was lost and is back, requests go on while the
// hello is looked at. A connection that is lost again brings another hello.
func (s recovery) ask(id ID) (running, known bool) {
	_, err := s.keeper.Pids(context.Background(), string(id))
	var f *keeper.Failure
	return err == nil, !errors.As(err, &f) || f.Kind != keeper.KindNotFound
}

// wantsStart tells whether a container that does not run is started at boot.
func (s recovery) wantsStart(c *Container, st *Status) bool {
	if st.Phase == Created && st.StartedAt.IsZero() {
		return false
	}
	switch c.Record().HostConfig.RestartPolicy.Name {
	case container.RestartPolicyAlways:
		return true
	case container.RestartPolicyUnlessStopped:
		return !st.Stopped
	default:
		return st.Phase == Restarting
	}
}

// sweep removes what crashes left: snapshots and directories of containers
// that are no more.
func (s recovery) sweep(ctx context.Context) {
	known := func(id string) bool {
		s.mu.RLock()
		defer s.mu.RUnlock()
		_, going := s.going[ID(id)] // its log may not be sent yet
		return going || s.byID[ID(id)] != nil
	}
	var orphans []string
	err := s.o.Snapshots.Walk(ctx, func(i snapshot.Info) error {
		if !i.Committed && len(i.Key) == 64 && !known(i.Key) {
			orphans = append(orphans, i.Key)
		}
		return nil
	})
	if err != nil {
		s.o.Log.Warn("cannot look for orphans", "error", err)
	}
	dirs, _ := os.ReadDir(filepath.Join(s.o.DataRoot, "containers"))
	for _, d := range dirs {
		if len(d.Name()) == 64 && !known(d.Name()) {
			orphans = append(orphans, d.Name())
		}
	}
	for _, id := range orphans {
		if s.young(id) {
			continue // being created now: the snapshot comes before the record
		}
		if !known(id) {
			s.removeFiles(ID(id), false)
		}
	}
	// Auto-remove containers that ended while no engine ran.
	for _, c := range s.all() {
		c.mu.Lock()
		if st := c.Status(); c.Record().HostConfig.AutoRemove && (st.Phase == Exited) && !c.isGone() {
			_ = s.remove(c, RemoveOptions{Volumes: true})
		}
		c.mu.Unlock()
	}
}

// young reports whether id was reserved by this process: its record is on its way.
func (s recovery) young(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, n := range s.names {
		if n == ID(id) {
			return true
		}
	}
	return false
}
