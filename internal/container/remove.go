package container

import (
	"context"
	"os"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/state"
)

// RemoveOptions say what goes with a container.
type RemoveOptions struct {
	Force   bool // kill it if it runs
	Volumes bool // remove its anonymous volumes
	Link    bool // remove the link of that name instead
}

// Remove removes a container.
func (s *Service) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	if o.Link {
		return Nets{s}.removeLink(ref)
	}
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	id := c.Record().ID
	switch st := c.Status(); {
	case st.Phase == Paused && !o.Force:
		return errs.New(errs.Conflict, "cannot remove container %q: container is paused and must be unpaused first", "/"+c.Record().Name)
	case st.Phase.Running() && !o.Force:
		return errs.New(errs.Conflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+c.Record().Name)
	case st.Phase == Restarting && !o.Force:
		return errs.New(errs.Conflict, "cannot remove container %q: container is restarting: stop the container before removing or force remove", "/"+c.Record().Name)
	}
	for {
		if ended := c.exitChan(); ended != nil {
			s.markStopped(c)
			if err := s.signal(context.WithoutCancel(ctx), c, unix.SIGKILL); err != nil {
				return err
			}
			select {
			case <-ended:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c.mu.Lock()
		if !o.Force || !c.Status().Phase.Running() {
			break
		}
		c.mu.Unlock() // its restart was under way
	}
	defer c.mu.Unlock()
	if c.isGone() {
		return nil // --rm was faster
	}
	if c.Status().Phase == Removing {
		return errBusyRemoving(c)
	}
	if c.Status().Phase.Running() {
		return errs.New(errs.Conflict, "cannot remove container %s: it was started again", id)
	}
	return s.remove(c, o)
}

func (c *Container) isGone() bool {
	c.io.Lock()
	defer c.io.Unlock()
	return c.gone
}

// remove ends the container's record and, behind the reply, its directories.
// c.mu is held and the container does not run.
func (s *Service) remove(c *Container, o RemoveOptions) error {
	if c.retry != nil {
		c.retry.Stop()
	}
	r := c.Record()
	st := *c.Status()
	st.Phase = Removing
	c.st.Store(&st)
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		tx.Delete("container", string(r.ID))
		tx.Delete("status", string(r.ID))
		tx.Delete("name", r.Name)
		tx.Delete("ref", image.RefKey(r.Image, string(r.ID)))
		return volumes{s}.uncommit(tx, r, o.Volumes)
	})
	if err != nil {
		st.Phase = Dead
		c.st.Store(&st)
		return err
	}
	c.dropWarm()
	volumes{s}.release(r, o.Volumes)
	s.mu.Lock()
	delete(s.byID, r.ID)
	s.going[r.ID] = struct{}{}
	if s.names[r.Name] == r.ID {
		delete(s.names, r.Name)
	}
	for id := range c.execs {
		delete(s.execs, id)
	}
	s.mu.Unlock()
	s.event(c, events.ActionDestroy)
	c.wake(true, container.WaitResponse{StatusCode: int64(st.ExitCode)})
	shipping{s}.behind(r, func() {
		s.removeFiles(r.ID, !c.shared.Load())
		s.mu.Lock()
		delete(s.going, r.ID)
		s.mu.Unlock()
		if err := s.o.Images.Release(context.Background(), r.Image); err != nil {
			s.o.Log.Warn("cannot release an image", "image", r.Image, "error", err)
		}
	})
	return nil
}

// removeFiles removes what a container had on disk. What a crash leaves of it
// is found by the sweep of the next start.
func (s *Service) removeFiles(id ID, reuse bool) {
	if err := s.o.Snapshots.Remove(context.Background(), string(id)); err != nil {
		s.o.Log.Warn("cannot remove a snapshot", "id", id, "error", err)
	}
	if reuse && s.spares.keepDir(s.dir(id)) {
		return
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		s.o.Log.Warn("cannot remove a directory", "id", id, "error", err)
	}
}
