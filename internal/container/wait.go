package container

import (
	"context"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

// Waiter is a client that waits for a container to end.
type Waiter struct {
	result func(context.Context) (container.WaitResponse, error)
}

// NewWaiter returns a waiter whose answer comes from result.
func NewWaiter(result func(context.Context) (container.WaitResponse, error)) *Waiter {
	return &Waiter{result}
}

type waiter struct {
	cond container.WaitCondition
	ch   chan container.WaitResponse // one answer, buffered
}

// Wait begins to wait. From its return on no exit is missed.
func (s *Service) Wait(_ context.Context, ref string, cond container.WaitCondition) (*Waiter, error) {
	switch cond {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, errs.New(errs.Invalid, "invalid condition: %q", string(cond))
	}
	c, err := s.Get(ref)
	if err != nil {
		return nil, err
	}
	w := &waiter{cond: cond, ch: make(chan container.WaitResponse, 1)}
	c.io.Lock()
	defer c.io.Unlock()
	st := c.Status()
	switch {
	case c.gone:
		w.ch <- container.WaitResponse{StatusCode: int64(st.ExitCode)}
	case (cond == "" || cond == container.WaitConditionNotRunning) && !st.Phase.Running() && st.Phase != Restarting:
		w.ch <- container.WaitResponse{StatusCode: int64(st.ExitCode)}
	default:
		c.waiters = append(c.waiters, w)
	}
	return NewWaiter(func(ctx context.Context) (container.WaitResponse, error) { return c.await(ctx, w) }), nil
}

// Result blocks until the condition holds.
func (w *Waiter) Result(ctx context.Context) (container.WaitResponse, error) { return w.result(ctx) }

func (c *Container) await(ctx context.Context, w *waiter) (container.WaitResponse, error) {
	select {
	case r := <-w.ch:
		return r, nil
	case <-ctx.Done():
		c.io.Lock()
		for i, o := range c.waiters {
			if o == w {
				c.waiters = append(c.waiters[:i], c.waiters[i+1:]...)
				break
			}
		}
		c.io.Unlock()
		return container.WaitResponse{}, ctx.Err()
	}
}

// wake answers the waiters whose condition holds: an exit ends all but those
// who wait for the removal, which ends them all.
func (c *Container) wake(removed bool, r container.WaitResponse) {
	c.io.Lock()
	defer c.io.Unlock()
	left := c.waiters[:0]
	for _, w := range c.waiters {
		if removed || w.cond != container.WaitConditionRemoved {
			w.ch <- r
		} else {
			left = append(left, w)
		}
	}
	c.waiters = left
	if removed {
		c.gone = true
	}
}
