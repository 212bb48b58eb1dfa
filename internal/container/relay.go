package container

import (
	"context"

	"berth.dev/berth/internal/keeper"
	netsvc "berth.dev/berth/internal/network"
)

// outside is the keeper as the networks know it: what outlives the engine.
type outside struct{ keeper *keeper.Client }

// Relay has it pass on what comes in by ports.
func (s outside) Relay(id string, list []netsvc.Relay) error {
	req, fds := &keeper.RelayRequest{ID: id}, make([]int, 0, len(list))
	for i, r := range list {
		req.Ports = append(req.Ports, keeper.Relay{FD: i, Proto: r.Proto, To: r.To})
		fds = append(fds, r.FD)
	}
	return s.keeper.Relay(context.Background(), req, fds)
}

// Keep has it hold descriptors.
func (s outside) Keep(id string, fds []int) error {
	return s.keeper.Keep(context.Background(), id, fds)
}

// Kept asks for them.
func (s outside) Kept(id string) ([]int, error) { return s.keeper.Kept(context.Background(), id) }
