package network

import (
	"errors"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/network/bridge"
)

// mender makes a bridge again that somebody has removed from under the engine.
type mender struct{ mu sync.Mutex }

// lostBridge reports whether an interface could not be made for want of the bridge.
func lostBridge(n *Network, err error) bool {
	return n.Driver == "bridge" && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO))
}

// mend makes the bridge of n again, puts the interfaces of running containers on it, and drops the
// namespaces that wait, whose interfaces were on the old one. It reports whether something has
// changed: else the failure has another reason.
func (m *mender) mend(s *Service, n *Network, seen int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.index.Load() != seen {
		return true // another one has been here
	}
	if l, err := netlink.LinkByIndex(int(seen)); err == nil && l.Attrs().Name == n.Bridge {
		return false
	}
	own := n.Name != "bridge" || s.o.Config.Bridge == "" || s.o.Config.Bridge == s.o.Config.OwnBridge
	index, err := bridge.Ensure(bridge.Config{Name: n.Bridge, MTU: n.MTU, Addrs: n.gateways(), Own: own, Apart: !n.ICC})
	if err != nil {
		s.o.Log.Error("a network's bridge is gone and cannot be made again", "network", n.Name, "bridge", n.Bridge, "error", err)
		return false
	}
	s.o.Log.Warn("a network's bridge was gone; it is made again", "network", n.Name, "bridge", n.Bridge)
	n.index.Store(int64(index))
	if n.pool != nil {
		n.pool.empty(n)
	}
	s.mu.RLock()
	var hosts []string
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.Network == n.ID && e.Host != "" {
				hosts = append(hosts, e.Host)
			}
		}
	}
	s.mu.RUnlock()
	for _, h := range hosts {
		l, err := netlink.LinkByName(h)
		if err == nil {
			err = netlink.LinkSetMasterByIndex(l, index)
		}
		if err != nil {
			s.o.Log.Warn("an interface cannot be put on its bridge again", "interface", h, "bridge", n.Bridge, "error", err)
		}
	}
	return true
}
