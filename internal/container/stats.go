package container

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

// StatsOptions say how often usage is told.
type StatsOptions struct {
	Stream  bool // once a second until the client goes; else once
	OneShot bool // at once, without the sample before that a rate needs
}

// StatsNow tells what every running container uses, as one-shot does for one.
func (s Views) StatsNow(ctx context.Context, emit func(container.StatsResponse) error) error {
	for _, c := range s.all() {
		if ctx.Err() != nil || !c.Status().Phase.Running() {
			continue
		}
		r := c.Record()
		x := s.sample(c)
		x.ID, x.Name, x.OSType = string(r.ID), "/"+r.Name, "linux"
		if err := emit(x); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Stats tells what a container uses.
func (s Views) Stats(ctx context.Context, ref string, o StatsOptions, emit func(container.StatsResponse) error) error {
	if o.Stream && o.OneShot {
		return errs.New(errs.Invalid, "cannot have stream=true and one-shot=true")
	}
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	r := c.Record()
	name := func(x *container.StatsResponse) *container.StatsResponse {
		x.ID, x.Name, x.OSType = string(r.ID), "/"+r.Name, "linux"
		return x
	}
	if !c.Status().Phase.Running() && !o.Stream {
		return emit(*name(&container.StatsResponse{}))
	}
	prev := s.sample(c)
	if o.OneShot {
		return emit(*name(&prev))
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	first := true
	for {
		if o.Stream && first {
			if err := emit(*name(&prev)); err != nil {
				return err
			}
			first = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.isGone() {
			return nil
		}
		cur := s.sample(c)
		cur.PreCPUStats, cur.PreRead = prev.CPUStats, prev.Read
		if err := emit(*name(&cur)); err != nil {
			return err
		}
		if !o.Stream {
			return nil
		}
		prev = cur
	}
}
