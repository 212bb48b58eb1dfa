package container

import (
	"context"

	"berth.dev/berth/internal/keeper"
	netsvc "berth.dev/berth/internal/network"
)

// relay has the keeper pass on what the kernel cannot: it outlives the engine, as the
// containers do.
func (s Nets) relay(id string, list []netsvc.Relay) error {
	req, fds := &keeper.RelayRequest{ID: id}, make([]int, 0, len(list))
	for i, r := range list {
		req.Ports = append(req.Ports, keeper.Relay{FD: i, Proto: r.Proto, To: r.To})
		fds = append(fds, r.FD)
	}
	return s.keeper.Relay(context.Background(), req, fds)
}
