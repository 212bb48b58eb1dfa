package network

import (
	"net"
	"net/netip"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/vlan"
)

// driver is how networks of one kind are made. The address management, names, and
// what a container asks for are the same for all.
type driver interface {
	// read takes the options of a new network.
	read(n *Network) error
	// up makes what the network needs on the host; at boot too.
	up(s *Service, n *Network) error
	// down removes it.
	down(s *Service, n *Network)
	// join makes an interface on the network in a namespace, and completes the endpoint.
	join(n *Network, j *joining) error
	// leave takes the interface out of a namespace that lives on.
	leave(n *Network, ns int, ep *Endpoint) error
}

// joining is one interface on its way into a namespace.
type joining struct {
	ns      int
	ep      *Endpoint
	gw      families    // the default route is by this one
	ports   *Ports      // what the container asks to have published, nil for nothing
	sysctls [][2]string // see bridge.Interface
}

// joins is the container that an interface is for.
type joins struct {
	name  string
	ports *Ports // what it asks to have published, nil for nothing
	no6   bool   // it has no IPv6
}

// publishes is what a container asks to have published, nil for nothing.
func (a *Attachment) publishes() *Ports {
	if len(a.Ports) == 0 && !a.PublishAll {
		return nil
	}
	return &Ports{Asked: a.Ports, Exposed: a.Exposed, All: a.PublishAll}
}

// hardware gives an endpoint a hardware address, where it is the engine that chooses it.
func (n *Network) hardware(ep *Endpoint) {
	if len(ep.MAC) == 0 && drivers[n.Driver] != nil {
		if ep.Addr4.IsValid() {
			ep.MAC = bridge.MAC(ep.Addr4.Addr())
		} else {
			ep.MAC = bridge.RandomMAC()
		}
	}
}

// of is the driver of that name, nil for networks of which there is only one. What
// is not built in may be a plugin, which is looked for when it is needed.
func (p *plugins) of(name string) driver {
	if d := drivers[name]; d != nil {
		return d
	}
	if name == "host" || name == "null" {
		return nil
	}
	return p.driver(name)
}

// drivers are those whose networks users can make.
var drivers = map[string]driver{"bridge": bridgeDriver{}, "macvlan": vlanDriver{}, "ipvlan": vlanDriver{ip: true}}

// bridgeDriver connects containers by a bridge, to each other and by address translation to the world.
type bridgeDriver struct{}

func (bridgeDriver) up(s *Service, n *Network) error {
	if n.MTU == 0 {
		n.MTU = bridge.DefaultMTU()
	}
	index, err := bridge.Ensure(bridge.Config{Name: n.Bridge, MTU: n.MTU, Addrs: n.gateways(), Own: true, Apart: !n.ICC})
	if err != nil {
		return err
	}
	n.index.Store(int64(index))
	if n.other == nil { // a plugin is not asked for addresses that nobody may want
		n.pool = newPool()
	}
	return nil
}

func (bridgeDriver) down(s *Service, n *Network) {
	if s.fw != nil {
		if err := s.fw.DropNetwork(n.Bridge); err != nil {
			s.o.Log.Warn("cannot remove a network's rules", "network", n.Name, "error", err)
		}
	}
	if err := bridge.Remove(n.Bridge); err != nil {
		s.o.Log.Warn("cannot remove a bridge", "bridge", n.Bridge, "error", err)
	}
}

func (bridgeDriver) join(n *Network, j *joining) error {
	in := n.iface(j.ep, j.gw)
	in.Sysctls = j.sysctls
	if err := bridge.Join(int(n.index.Load()), j.ns, in); err != nil {
		return err
	}
	j.ep.Host, j.ep.MAC = in.Host, in.MAC
	return nil
}

func (bridgeDriver) leave(_ *Network, ns int, ep *Endpoint) error {
	return bridge.Leave(ns, ep.Interface)
}

// vlanDriver puts containers onto an interface of the host.
type vlanDriver struct{ ip bool }

const (
	optParent  = "parent"
	optMacMode = "macvlan_mode"
	optIPMode  = "ipvlan_mode"
	optIPFlag  = "ipvlan_flag"
)

func (d vlanDriver) kind(n *Network) vlan.Kind {
	if d.ip {
		return vlan.Kind{IP: true, Mode: n.Options[optIPMode], Flag: n.Options[optIPFlag]}
	}
	return vlan.Kind{Mode: n.Options[optMacMode]}
}

func (d vlanDriver) read(n *Network) error {
	if err := d.kind(n).Check(); err != nil {
		return errs.New(errs.Invalid, "%v", err)
	}
	n.Parent = n.Options[optParent]
	if n.Parent == "" { // one that leads nowhere: the network is for its containers only
		n.Parent, n.Internal = "dm-"+n.ID[:12], true
		n.Options[optParent] = n.Parent
	}
	if n.Parent == "lo" {
		return errs.New(errs.Invalid, "loopback interface is not a valid %s parent link", n.Driver)
	}
	return n.readMTU()
}

// exclusive refuses a second network on a parent where the modes leave no room for it.
func (d vlanDriver) exclusive(n, other *Network) error {
	if other.Parent != n.Parent || other.Parent == "" {
		return nil
	}
	const pass = "passthru"
	if d.ip || other.Driver != n.Driver || n.Options[optMacMode] == pass || other.Options[optMacMode] == pass {
		return errs.New(errs.Forbidden, "network %s is already using parent interface %s", other.ID, n.Parent)
	}
	return nil
}

func (d vlanDriver) up(_ *Service, n *Network) error {
	index, made, err := vlan.Parent(n.Parent)
	if err != nil {
		return err
	}
	n.OwnParent = n.OwnParent || made
	n.index.Store(int64(index))
	return nil
}

func (d vlanDriver) down(s *Service, n *Network) {
	if !n.OwnParent {
		return
	}
	for _, o := range s.all() {
		if o != n && o.Parent == n.Parent {
			o.OwnParent = true // the last one removes it
			return
		}
	}
	if err := bridge.Remove(n.Parent); err != nil {
		s.o.Log.Warn("cannot remove a parent interface", "interface", n.Parent, "error", err)
	}
}

func (d vlanDriver) leave(_ *Network, ns int, ep *Endpoint) error {
	return bridge.Leave(ns, ep.Interface)
}

func (d vlanDriver) join(n *Network, j *joining) error {
	k, in := d.kind(n), n.iface(j.ep, j.gw)
	in.Sysctls = j.sysctls
	if k.Routed() {
		in.Gateways = nil
		for _, a := range in.Addrs {
			world := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if a.Addr().Is6() {
				world = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			in.Routes = append(in.Routes, world)
		}
	}
	if d.ip {
		in.MAC = net.HardwareAddr{}
	}
	if err := vlan.Join(int(n.index.Load()), j.ns, k, in); err != nil {
		return err
	}
	j.ep.Host, j.ep.MAC = in.Host, in.MAC
	return nil
}

// conflict refuses a network that another one leaves no room for on the host.
func (n *Network) conflict(o *Network) error {
	if n.Bridge != "" && o.Bridge == n.Bridge {
		return errs.New(errs.Forbidden, "cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name", n.ID, n.Bridge, o.ID, o.Bridge)
	}
	if d, ok := drivers[n.Driver].(vlanDriver); ok {
		return d.exclusive(n, o)
	}
	return nil
}
