package network

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/dns"
	"berth.dev/berth/internal/network/firewall"
	"berth.dev/berth/internal/network/ipam"
	"berth.dev/berth/internal/state"
	"berth.dev/berth/internal/undo"
)

// Attachment is what a container asks of its network.
type Attachment struct {
	Container  string // id
	Name       string
	Networks   map[string]*network.EndpointSettings // by name or id; nil settings ask for nothing
	Main       string                               // the network of the container's mode
	Into       int                                  // a namespace that it has already, -1 for none
	Names      []string                             // by which neighbours find it, besides the aliases on each network
	DNS        []string                             // resolvers to ask about the world; the host\'s when empty
	Ports      network.PortMap
	Exposed    network.PortSet
	PublishAll bool
	Links      []Link
	NoIPv6     bool // its sysctls turn IPv6 off
}

// Link is a neighbour on the default network that a container may speak to, also where
// containers may not speak with each other.
type Link struct {
	To    []netip.Addr
	Ports []network.Port
}

// Endpoint is a container's place on a network.
type Endpoint struct {
	ID        string
	Network   string // id
	Container string // its name
	Interface string // in the sandbox
	Host      string // the other end
	MAC       net.HardwareAddr
	Addr4     netip.Prefix
	Addr6     netip.Prefix
	Gateway4  netip.Addr
	Gateway6  netip.Addr
	Names     []string // by which its neighbours find it
	Published bool     `json:",omitempty"` // its plugin publishes the container's ports
	Asked     *network.EndpointSettings
}

// Sandbox is what one run of a container has of the network. It persists in the
// bucket "sandbox".
type Sandbox struct {
	Container string
	Endpoints []*Endpoint
	Bindings  []Binding
	Links     []firewall.Link // what the firewall lets through for it
	Through   int             // index of the endpoint that ports are published by
	Through6  int             `json:",omitempty"` // the same for IPv6
	DNS       []string        // resolvers of its own
	NoIPv6    bool            `json:",omitempty"`
	Resolver  uint16          // port of its resolver, 0 for none

	resolver *dns.Sockets

	fd   int // of the namespace; the caller's from Attach
	held int // one more, kept to give interfaces of plugins back, 0 for none
}

// Ports are the ports that a container asks to have published.
type Ports struct {
	Asked   network.PortMap
	Exposed network.PortSet
	All     bool // what is exposed, too
}

// attachment is as much of a container's request as its ports depend on.
func (p *Ports) attachment(container string) *Attachment {
	return &Attachment{Container: container, Ports: p.Asked, Exposed: p.Exposed, PublishAll: p.All}
}

// FD is the descriptor of the sandbox's namespace, once: the caller closes it.
func (b *Sandbox) FD() int { return b.fd }

// Attach makes the sandbox of a container: namespace, interfaces, addresses,
// ports. Everything is undone when one of them cannot be had.
func (s *Service) Attach(ctx context.Context, a *Attachment) (_ *Sandbox, err error) {
	var u undo.Stack
	defer u.Run()
	order, err := s.order(a)
	if err != nil {
		return nil, err
	}
	b := &Sandbox{Container: a.Container, fd: a.Into, DNS: a.DNS, NoIPv6: a.NoIPv6}
	if b.fd < 0 && len(order) == 1 && order[0].plain() && !(a.NoIPv6 && order[0].net.EnableIPv6) {
		if ready := order[0].net.takeReady(s); ready != nil {
			b.fd, b.resolver = ready.fd, ready.resolver
			e := ready.ep
			e.Container, e.Asked = a.Name, order[0].settings
			b.Endpoints = []*Endpoint{e}
			u.Add(func() { _ = unix.Close(b.fd); order[0].net.release(e); b.closeResolver() })
		}
	}
	if len(b.Endpoints) == 0 {
		if b.fd < 0 {
			if b.fd, err = s.Isolated(); err != nil {
				return nil, err
			}
			u.Add(func() { _ = unix.Close(b.fd) })
		}
		names := ifnames(order)
		for i, o := range order {
			led := publisher{s}.led(b.Endpoints) // each family's default route is by the first that has one
			e, err := s.join(o.net, b.fd, names[i], o.settings, families{!led.v4, !led.v6}, joins{a.Name, a.publishes(), a.NoIPv6})
			if err != nil {
				return nil, err
			}
			u.Add(func() {
				s.plugins.leave(s, o.net, b.fd, e)
				o.net.release(e)
			})
			b.Endpoints = append(b.Endpoints, e)
		}
		if err := s.plugins.hold(s, b, b.fd); err != nil {
			return nil, err
		}
		u.Add(b.letGo)
		if slices.ContainsFunc(order, func(o asked) bool { return o.net.named() }) {
			if b.resolver, err = dns.Open(b.fd, 0); err != nil {
				return nil, errs.Wrap(errs.Internal, err, "failed to set up container networking")
			}
			u.Add(b.closeResolver)
		}
	}
	for i, e := range b.Endpoints {
		e.Names = slices.Clone(a.Names)
		if o := order[i].settings; o != nil {
			e.Names = append(e.Names, o.Aliases...)
		}
	}
	if err := (publisher{s}).expose(b, a, 0); err != nil {
		return nil, err
	}
	u.Add(func() { (publisher{s}).withdraw(b) })
	if b.Links = (publisher{s}).opened(b, a.Links); len(b.Links) > 0 {
		if err := (publisher{s}).open(b.Links); err != nil {
			return nil, errs.Wrap(errs.Internal, err, "failed to set up container networking")
		}
		u.Add(func() { _ = s.fw.Shut(b.Links) })
	}
	(namer{s}).serveNames(b)
	if err := s.keep(b); err != nil {
		return nil, err
	}
	u.Release()
	publisher{s}.announce(a.Container, b.Endpoints, b.fd)
	for _, o := range order {
		s.o.Event(events.ActionConnect, o.net.ID, map[string]string{"container": a.Container, "name": o.net.Name, "type": o.net.Driver})
	}
	return b, nil
}

// open lets links through: by the firewall, and for IPv6 by the host in the neighbours' place.
func (s publisher) open(list []firewall.Link) error {
	s.mu.RLock()
	n := s.byName["bridge"]
	s.mu.RUnlock()
	for _, l := range list {
		for _, a := range []netip.Addr{l.From, l.To} {
			if a.Is6() && n != nil {
				if err := bridge.Answer(n.Bridge, int(n.index.Load()), a); err != nil {
					return err
				}
			}
		}
	}
	return s.fw.Open(list)
}

// opened is what the firewall must let through for a sandbox's links: nothing where
// neighbours may speak with each other anyway.
func (s publisher) opened(b *Sandbox, list []Link) []firewall.Link {
	var out []firewall.Link
	if s.fw == nil || len(list) == 0 {
		return nil
	}
	for _, e := range b.Endpoints {
		if n, err := s.find(e.Network); err != nil || n.Name != "bridge" || n.ICC {
			continue
		}
		for _, l := range list {
			for _, to := range l.To {
				from := e.Addr4
				if to.Is6() {
					from = e.Addr6
				}
				for _, p := range l.Ports {
					if proto := protocols[p.Proto()]; from.IsValid() && proto != 0 {
						out = append(out, firewall.Link{From: from.Addr(), To: to, Proto: proto, Port: p.Num()})
					}
				}
			}
		}
	}
	return out
}

// Relink lets a running container speak to where its links lead now.
func (s *Service) Relink(container string, list []Link) error {
	s.mu.RLock()
	b := s.sandboxes[container]
	s.mu.RUnlock()
	if b == nil || s.fw == nil {
		return nil
	}
	now := *b
	now.Links = publisher{s}.opened(b, list)
	if len(now.Links) == 0 && len(b.Links) == 0 {
		return nil
	}
	var gone []firewall.Link
	for _, l := range b.Links {
		if !slices.Contains(now.Links, l) {
			gone = append(gone, l)
		}
	}
	if err := s.fw.Shut(gone); err != nil {
		return err
	}
	if err := (publisher{s}).open(now.Links); err != nil {
		return err
	}
	return s.keep(&now)
}

// keep records a sandbox.
func (s *Service) keep(b *Sandbox) error {
	s.mu.Lock()
	nets := append(networksOf(s.sandboxes[b.Container]), networksOf(b)...)
	s.sandboxes[b.Container] = b
	s.reindex(nets...)
	s.mu.Unlock()
	return s.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put(sandboxBucket, b.Container, b) })
}

// Release gives back what a container's run had. Its namespace ends with its
// processes.
func (s *Service) Release(container string) {
	s.mu.Lock()
	b := s.sandboxes[container]
	delete(s.sandboxes, container)
	s.reindex(networksOf(b)...)
	s.mu.Unlock()
	if b == nil {
		return
	}
	b.closeResolver()
	s.announcer.end(container)
	(publisher{s}).withdraw(b)
	if s.fw != nil {
		if err := s.fw.Shut(b.Links); err != nil {
			s.o.Log.Warn("cannot close what links had opened", "container", container, "error", err)
		}
	}
	for _, e := range b.Endpoints {
		n, err := s.find(e.Network)
		if err != nil {
			continue
		}
		s.plugins.leave(s, n, b.held, e)
		n.release(e)
		s.o.Event(events.ActionDisconnect, n.ID, map[string]string{"container": container, "name": n.Name, "type": n.Driver})
	}
	b.letGo()
	_ = s.o.DB.Update(state.Async, func(tx *state.Tx) error { tx.Delete(sandboxBucket, container); return nil })
}

// loadSandboxes takes again what the records say that running containers have.
// Those that run no more are given back by Keep.
func (s *Service) loadSandboxes() {
	for _, id := range s.o.DB.Keys(sandboxBucket, "") {
		b := &Sandbox{}
		if ok, err := s.o.DB.Get(sandboxBucket, id, b); err != nil || !ok {
			continue
		}
		b.fd = -1
		for _, e := range b.Endpoints {
			if n := s.nets[e.Network]; n != nil {
				n.retake(e)
			}
		}
		s.ports.retake(id, b.Bindings)
		s.sandboxes[id] = b
		s.reindex(networksOf(b)...)
	}
}

// Keep releases the sandboxes of all containers but those that run: pid tells the
// process of one, 0 for none. The names of the rest are answered again.
func (s *Service) Keep(pid func(container string) int) {
	s.mu.RLock()
	all := slices.Collect(maps.Values(s.sandboxes))
	s.mu.RUnlock()
	for _, b := range all {
		n := pid(b.Container)
		if n == 0 {
			s.Release(b.Container)
			continue
		}
		(publisher{s}).keepRelays(b)
		s.plugins.holdBy(s, b, n)
		if b.Resolver == 0 || b.resolver != nil {
			continue
		}
		(namer{s}).reopenNames(b, n)
	}
}

func (b *Sandbox) closeResolver() {
	if b.resolver != nil {
		b.resolver.Close()
	}
}

// asked is one network that a container is to be on.
type asked struct {
	net      *Network
	settings *network.EndpointSettings
}

// plain reports whether a prepared interface will do.
func (a asked) plain() bool {
	e := a.settings
	return a.net.Driver == "bridge" && (e == nil || e.IPAMConfig == nil && len(e.MacAddress) == 0 && len(e.DriverOpts) == 0)
}

// ifnames are the names of interfaces: those that are asked for, and for the others the
// numbers that are left.
func ifnames(list []asked) []string {
	used, out := map[string]bool{}, make([]string, len(list))
	for i, a := range list {
		if a.settings != nil {
			out[i] = a.settings.DriverOpts[optIfName]
			used[out[i]] = true
		}
	}
	next := 0
	for i, a := range list {
		prefix := "eth"
		if p := a.net.Options[optPrefix]; p != "" {
			prefix = p
		}
		for out[i] == "" {
			if name := prefix + strconv.Itoa(next); !used[name] {
				out[i] = name
			}
			next++
		}
	}
	return out
}

// priority is how much a network wants to be that of the default route.
func priority(e *network.EndpointSettings) int {
	if e == nil {
		return 0
	}
	return e.GwPriority
}

// order resolves and sorts the networks of a container: the one of the default
// route first.
func (s *Service) order(a *Attachment) ([]asked, error) {
	var out []asked
	for ref, e := range a.Networks {
		n, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		if n.Driver == "host" || n.Driver == "null" {
			if len(a.Networks) > 1 {
				return nil, errs.New(errs.Invalid, "container cannot be connected to network endpoints: %s and others", n.Name)
			}
			return nil, nil
		}
		if err := s.CheckSettings(n.Name, e, true); err != nil {
			return nil, errs.New(errs.Invalid, "invalid config for network %s: %w", n.Name, err)
		}
		out = append(out, asked{n, e})
	}
	slices.SortFunc(out, func(x, y asked) int {
		if c := priority(y.settings) - priority(x.settings); c != 0 {
			return c
		}
		if x.net.Internal != y.net.Internal { // no way out by an internal one
			if x.net.Internal {
				return 1
			}
			return -1
		}
		return strings.Compare(x.net.Name, y.net.Name)
	})
	return out, nil
}

// driverOpt is an option of an endpoint, "" for none.
func driverOpt(e *network.EndpointSettings, key string) string {
	if e == nil {
		return ""
	}
	return e.DriverOpts[key]
}

// join gives a namespace an interface on a network.
func (s *Service) join(n *Network, ns int, name string, e *network.EndpointSettings, gw families, who joins) (_ *Endpoint, err error) {
	if n.fault != nil {
		return nil, errs.Wrap(errs.Internal, n.fault, "failed to set up container networking")
	}
	ep := &Endpoint{ID: newID(), Network: n.ID, Container: who.name, Interface: name, Asked: e}
	if e != nil {
		if v := e.DriverOpts[optIfName]; v != "" {
			if !bridge.ValidName(v) {
				return nil, errs.New(errs.Invalid, "invalid interface name: %s", v)
			}
			ep.Interface = v
		}
		ep.MAC = net.HardwareAddr(e.MacAddress)
	}
	sys, off6, err := sysctls(e, ep.Interface)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%v", err)
	}
	for {
		if err = n.address(ep, e, who.no6 || off6); err == nil {
			break
		}
		if !held(err) || !n.pool.yield(n) {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			n.release(ep)
		}
	}()
	driver, how, seen := s.plugins.of(n.Driver), &joining{ns: ns, ep: ep, gw: gw, ports: who.ports, sysctls: sys}, n.index.Load()
	err = driver.join(n, how)
	if err != nil && lostBridge(n, err) && s.mender.mend(s, n, seen) {
		err = driver.join(n, how)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Internal, advised(err), "failed to set up container networking")
	}
	return ep, nil
}

// families are IPv4 and IPv6.
type families struct{ v4, v6 bool }

var both = families{true, true}

// gatewaysOf tells for which families an endpoint leads to the world.
func (n *Network) gatewaysOf(ep *Endpoint) families {
	return families{!n.Internal && ep.Gateway4.IsValid(), !n.Internal && ep.Gateway6.IsValid()}
}

// led tells for which families one of a list of endpoints leads to the world.
func (s publisher) led(list []*Endpoint) (f families) {
	for _, e := range list {
		if n, err := s.find(e.Network); err == nil {
			has := n.gatewaysOf(e)
			f.v4, f.v6 = f.v4 || has.v4, f.v6 || has.v6
		}
	}
	return f
}

// iface is an endpoint as the bridge package knows it.
func (n *Network) iface(ep *Endpoint, gw families) *bridge.Interface {
	in := &bridge.Interface{Name: ep.Interface, MAC: ep.MAC, MTU: n.MTU, Isolated: !n.ICC}
	for _, p := range []netip.Prefix{ep.Addr4, ep.Addr6} {
		if p.IsValid() {
			in.Addrs = append(in.Addrs, p)
		}
	}
	if ep.Asked != nil && ep.Asked.IPAMConfig != nil {
		for _, a := range ep.Asked.IPAMConfig.LinkLocalIPs {
			bits := 64
			if a = a.Unmap(); a.Is4() {
				bits = 16
			}
			in.Addrs = append(in.Addrs, netip.PrefixFrom(a, bits))
		}
	}
	has := n.gatewaysOf(ep)
	if gw.v4 && has.v4 {
		in.Gateways = append(in.Gateways, ep.Gateway4)
	}
	if gw.v6 && has.v6 {
		in.Gateways = append(in.Gateways, ep.Gateway6)
	}
	return in
}

// address takes the addresses of an endpoint: those that are asked for, or free ones.
func (n *Network) address(ep *Endpoint, e *network.EndpointSettings, no6 bool) (err error) {
	if n.other != nil {
		return n.other.address(n, ep, e, no6)
	}
	defer func() {
		if err != nil {
			n.release(ep)
		}
	}()
	var want4, want6 netip.Addr
	if e != nil && e.IPAMConfig != nil {
		want4, want6 = e.IPAMConfig.IPv4Address, e.IPAMConfig.IPv6Address
	}
	for i, c := range n.IPAM.Config {
		sub := n.subnets[i]
		want, have, gw := want4, &ep.Addr4, &ep.Gateway4
		if c.Subnet.Addr().Is6() {
			want, have, gw = want6, &ep.Addr6, &ep.Gateway6
		}
		if have.IsValid() || want.IsValid() && !c.Subnet.Contains(want) || no6 && c.Subnet.Addr().Is6() {
			continue
		}
		a := want
		if want.IsValid() {
			if err := sub.Take(want); err != nil {
				return errs.New(errs.Forbidden, "failed to set up container networking: %w", err)
			}
		} else if a, err = sub.Choose(); err != nil {
			if errors.Is(err, ipam.ErrNoAddress) && i+1 < len(n.IPAM.Config) {
				err = nil
				continue // the next subnet may have room
			}
			return errs.New(errs.Internal, "failed to set up container networking: %w: network %s", err, n.Name)
		}
		*have, *gw = netip.PrefixFrom(a, c.Subnet.Bits()), c.Gateway
		if aux, ok := c.AuxAddress["DefaultGatewayIPv4"]; ok && a.Is4() {
			*gw = aux
		} else if aux, ok := c.AuxAddress["DefaultGatewayIPv6"]; ok && a.Is6() {
			*gw = aux
		}
	}
	if !ep.Addr4.IsValid() && n.EnableIPv4 || !ep.Addr6.IsValid() && n.EnableIPv6 && !no6 {
		return errs.New(errs.Internal, "failed to set up container networking: %w: network %s", ipam.ErrNoAddress, n.Name)
	}
	n.hardware(ep)
	return nil
}

// release gives an endpoint's addresses back.
func (n *Network) release(ep *Endpoint) {
	if n.other != nil {
		n.other.release(n, ep)
		return
	}
	for i, c := range n.IPAM.Config {
		for _, p := range []netip.Prefix{ep.Addr4, ep.Addr6} {
			if p.IsValid() && c.Subnet.Contains(p.Addr()) && i < len(n.subnets) {
				n.subnets[i].Release(p.Addr())
			}
		}
	}
}

// retake takes the addresses of an endpoint again.
func (n *Network) retake(ep *Endpoint) {
	if n.other != nil {
		return // a plugin that forgets is told when it is needed
	}
	for i, c := range n.IPAM.Config {
		for _, p := range []netip.Prefix{ep.Addr4, ep.Addr6} {
			if p.IsValid() && c.Subnet.Contains(p.Addr()) && i < len(n.subnets) {
				_ = n.subnets[i].Take(p.Addr())
			}
		}
	}
}

// Endpoints returns what a running container has: its endpoints and its
// ports; nil for one that has no sandbox.
func (s *Service) Endpoints(container string) ([]*Endpoint, network.PortMap) {
	s.mu.RLock()
	b := s.sandboxes[container]
	s.mu.RUnlock()
	if b == nil {
		return nil, nil
	}
	return b.Endpoints, portMap(b.Bindings)
}

// HostAddresses are the host's addresses on the default bridge.
func (s *Service) HostAddresses() []netip.Addr {
	s.mu.RLock()
	n := s.byName["bridge"]
	s.mu.RUnlock()
	var out []netip.Addr
	if n != nil {
		for _, p := range n.gateways() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// Connect gives a running container one more interface. ns is its namespace.
func (s *Service) Connect(_ context.Context, container, name string, names []string, ref string, e *network.EndpointSettings, p *Ports, ns int) error {
	n, err := s.find(ref)
	if err != nil {
		return err
	}
	s.mu.RLock()
	old := s.sandboxes[container]
	s.mu.RUnlock()
	b := &Sandbox{Container: container}
	if old != nil {
		*b = *old
		b.Endpoints = slices.Clone(old.Endpoints)
	}
	b.fd = -1
	used := map[string]bool{}
	for _, o := range b.Endpoints {
		used[o.Interface] = true
	}
	prefix := n.Options[optPrefix]
	if prefix == "" {
		prefix = "eth"
	}
	ifname := prefix + "0"
	for i := 0; used[ifname]; i++ {
		ifname = prefix + strconv.Itoa(i)
	}
	// The default route is by the network with the highest priority, the oldest of equals.
	first := !slices.ContainsFunc(b.Endpoints, func(o *Endpoint) bool {
		on, err := s.find(o.Network)
		return err == nil && !on.Internal && priority(o.Asked) >= priority(e)
	})
	// Our own default route by another network is replaced below.
	led := publisher{s}.led(b.Endpoints)
	if v := driverOpt(e, optIfName); used[v] {
		return errs.New(errs.Conflict, "failed to set up container networking: error renaming interface %q: file exists", v)
	}
	ep, err := s.join(n, ns, ifname, e, families{!led.v4, !led.v6}, joins{name, p, old != nil && old.NoIPv6})
	if err != nil {
		return err
	}
	ep.Names = slices.Clone(names)
	if e != nil {
		ep.Names = append(ep.Names, e.Aliases...)
	}
	b.Endpoints = append(b.Endpoints, ep)
	if has := n.gatewaysOf(ep); first && (led.v4 && has.v4 || led.v6 && has.v6) {
		_ = bridge.Gateways(ns, n.iface(ep, led))
	}
	if len(b.Bindings) == 0 {
		if err := (publisher{s}).expose(b, p.attachment(container), len(b.Endpoints)-1); err != nil {
			_ = s.plugins.of(n.Driver).leave(n, ns, ep)
			n.release(ep)
			return err
		}
	} else if old != nil {
		if err := (publisher{s}).rearrange((publisher{s}).mappings(old), (publisher{s}).mappings(b)); err != nil {
			return err
		}
	}
	if err := s.plugins.hold(s, b, ns); err != nil {
		_ = s.plugins.of(n.Driver).leave(n, ns, ep)
		n.release(ep)
		return err
	}
	if n.named() && b.resolver == nil {
		if b.resolver, err = dns.Open(ns, 0); err != nil {
			return errs.Wrap(errs.Internal, err, "failed to set up container networking")
		}
		(namer{s}).serveNames(b)
		(namer{s}).keepNames(b)
	}
	if err := s.keep(b); err != nil {
		return err
	}
	publisher{s}.announce(container, []*Endpoint{ep}, ns)
	s.o.Event(events.ActionConnect, n.ID, map[string]string{"container": container, "name": n.Name, "type": n.Driver})
	return nil
}

// Disconnect takes an interface from a running container. When it was the one
// of the default route, another takes its place.
func (s *Service) Disconnect(_ context.Context, container, ref string, p *Ports, ns int) error {
	n, err := s.find(ref)
	if err != nil {
		return err
	}
	s.mu.RLock()
	old := s.sandboxes[container]
	s.mu.RUnlock()
	if old == nil {
		return nil
	}
	i := slices.IndexFunc(old.Endpoints, func(e *Endpoint) bool { return e.Network == n.ID })
	if i < 0 {
		return nil
	}
	ep := old.Endpoints[i]
	was := (publisher{s}).mappings(old)
	b := &Sandbox{}
	*b = *old
	b.fd = -1
	b.Endpoints = slices.Delete(slices.Clone(old.Endpoints), i, i+1)
	switch i {
	case old.Through, old.Through6:
		(publisher{s}).withdraw(old)
		b.Bindings, b.Through, b.Through6, was = nil, 0, 0, nil
	default:
		if i < old.Through {
			b.Through--
		}
		if i < old.Through6 {
			b.Through6--
		}
	}
	if err := s.plugins.of(n.Driver).leave(n, ns, ep); err != nil {
		return errs.Wrap(errs.Internal, err, "cannot take the interface from the container")
	}
	n.release(ep)
	byPriority := slices.Clone(b.Endpoints)
	slices.SortStableFunc(byPriority, func(x, y *Endpoint) int { return priority(y.Asked) - priority(x.Asked) })
	var led families
	for _, e := range byPriority {
		on, err := s.find(e.Network)
		if err != nil {
			continue
		}
		has := on.gatewaysOf(e)
		now := families{has.v4 && !led.v4, has.v6 && !led.v6}
		if now.v4 || now.v6 {
			_ = bridge.Gateways(ns, on.iface(e, now))
			s.plugins.way(on, e, p)
		}
		led.v4, led.v6 = led.v4 || has.v4, led.v6 || has.v6
	}
	if len(b.Bindings) == 0 {
		if err := (publisher{s}).expose(b, p.attachment(container), 0); err != nil {
			s.o.Log.Warn("published ports are not taken over by another network", "container", container, "error", err)
		}
	} else if err := (publisher{s}).rearrange(was, (publisher{s}).mappings(b)); err != nil {
		s.o.Log.Warn("cannot close published ports on a network that was left", "container", container, "error", err)
	}
	if err := s.keep(b); err != nil {
		return err
	}
	s.o.Event(events.ActionDisconnect, n.ID, map[string]string{"container": container, "name": n.Name, "type": n.Driver})
	return nil
}

// Rename changes what a container is called on its networks.
func (s *Service) Rename(container, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.sandboxes[container]; b != nil {
		for _, e := range b.Endpoints {
			for i, n := range e.Names {
				if n == e.Container {
					e.Names[i] = name
				}
			}
			e.Container = name
		}
		s.reindex(networksOf(b)...)
		_ = s.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put(sandboxBucket, container, b) })
	}
}
