package keeper

import (
	"context"
	"time"
)

// keptTimeout bounds the wait for kept descriptors: those of a task that ends meanwhile
// cannot be sent.
const keptTimeout = 5 * time.Second

// Keep has the keeper hold copies of descriptors for as long as a task runs, in place of those
// that it held. An engine that comes back asks for them with Kept: what waits in a socket
// while no engine reads from it is not lost.
func (c *Client) Keep(ctx context.Context, id string, fds []int) error {
	return c.do(ctx, "keep", &Target{ID: id}, fds...)
}

// Kept returns the descriptors that are kept with a task, none where there are none. They are the
// caller's.
func (c *Client) Kept(ctx context.Context, id string) ([]int, error) {
	ctx, cancel := context.WithTimeout(ctx, keptTimeout)
	defer cancel()
	_, fds, err := c.call(ctx, "kept", &Target{ID: id}, nil)
	return fds, err
}

func keep(k *Keeper, id string, fds []int) error {
	k.mu.Lock()
	t := k.tasks[id]
	if t == nil || t.exit != nil || t.pidFD < 0 {
		k.mu.Unlock()
		closeAll(fds)
		return notFound(id)
	}
	old := t.kept
	t.kept = fds
	k.mu.Unlock()
	closeAll(old)
	return nil
}

func (k *Keeper) keptOf(id string) (any, []int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tasks[id]
	if t == nil || t.exit != nil {
		return nil, nil, notFound(id)
	}
	return &struct{}{}, append([]int(nil), t.kept...), nil
}
