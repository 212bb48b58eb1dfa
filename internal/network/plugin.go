package network

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/remote"
	"berth.dev/berth/internal/plugin"
	"berth.dev/berth/internal/undo"
)

// plugins are the drivers that are not built in. Each is made when it is named for the
// first time, and reached when it is needed.
type plugins struct {
	dirs plugin.Dirs
	log  *slog.Logger

	mu      sync.Mutex
	drivers map[string]*remote.Driver
	ipams   map[string]addressing
}

func (p *plugins) driver(name string) pluginDriver {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.drivers[name]
	if d == nil {
		if p.drivers == nil {
			p.drivers = map[string]*remote.Driver{}
		}
		d = remote.NewDriver(name, p.dirs)
		p.drivers[name] = d
	}
	return pluginDriver{d, p.log}
}

// foreign reports whether a network is made by a plugin.
func (n *Network) foreign() bool {
	return drivers[n.Driver] == nil && n.Driver != "host" && n.Driver != "null"
}

// kept reports whether a network's interfaces are taken out of the namespace of a container
// that has ended, rather than left to the kernel, which destroys them with it: what a plugin
// has lent it gets back, and a hardware address on an interface of the host is free
// for the next run.
func (n *Network) kept() bool {
	return n.Driver != "bridge" && n.Driver != "host" && n.Driver != "null"
}

// on reports whether a sandbox has such interfaces.
func (p *plugins) on(s *Service, b *Sandbox) bool {
	return slices.ContainsFunc(b.Endpoints, func(e *Endpoint) bool {
		n, err := s.find(e.Network)
		return err == nil && n.kept()
	})
}

// hold keeps a namespace with such interfaces.
func (p *plugins) hold(s *Service, b *Sandbox, ns int) (err error) {
	if b.held != 0 || !p.on(s, b) {
		return nil
	}
	b.held, err = unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		b.held = 0
		return fmt.Errorf("cannot hold the network namespace: %w", err)
	}
	return nil
}

// holdBy is hold for a container that ran on while the engine was away.
func (p *plugins) holdBy(s *Service, b *Sandbox, pid int) {
	if b.held != 0 || !p.on(s, b) {
		return
	}
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.log.Warn("cannot hold a container's network namespace", "container", b.Container, "error", err)
		return
	}
	b.held = ns
}

// letGo is the opposite of hold.
func (b *Sandbox) letGo() {
	if b.held != 0 {
		_ = unix.Close(b.held)
		b.held = 0
	}
}

// leave takes back the interface of a container that has ended. ns is 0 where the engine was
// away meanwhile: then only a plugin has something to be told.
func (p *plugins) leave(s *Service, n *Network, ns int, ep *Endpoint) {
	if !n.kept() || ns == 0 && !n.foreign() {
		return
	}
	if err := s.plugins.of(n.Driver).leave(n, ns, ep); err != nil {
		p.log.Warn("an interface cannot be taken back", "network", n.Name, "endpoint", ep.ID, "error", err)
	}
}

// way tells a plugin that the default route is by its network from now on.
func (p *plugins) way(n *Network, ep *Endpoint, ports *Ports) {
	if !n.foreign() || ep.Published {
		return
	}
	if err := p.driver(n.Driver).d.Publish(n.ID, ep.ID, sandboxOptions(ports)); err != nil {
		p.log.Warn("a network's plugin does not publish ports", "network", n.Name, "endpoint", ep.ID, "error", err)
		return
	}
	ep.Published = true
}

// pluginDriver makes networks by a plugin.
type pluginDriver struct {
	d   *remote.Driver
	log *slog.Logger
}

// options are a network's, as the protocol has them.
func (pluginDriver) options(n *Network) map[string]any {
	out := map[string]any{remote.EnableIPv4: n.EnableIPv4, remote.EnableIPv6: n.EnableIPv6, remote.Generic: n.Options}
	if n.Internal {
		out[remote.Internal] = true
	}
	return out
}

func (r pluginDriver) read(n *Network) error {
	c, err := r.d.Capabilities()
	if err != nil {
		return err
	}
	n.Scope = c.Data
	v4, v6, err := r.d.NeedsGateway(r.options(n))
	n.bare = [2]bool{!v4, !v6}
	return err
}

// family is 0 for IPv4 and 1 for IPv6.
func family(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1
	}
	return 0
}

// data are a network's subnets of one family, as the protocol has them.
func (n *Network) data(v int) []remote.IPAMData {
	out := []remote.IPAMData{}
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() || family(c.Subnet) != v {
			continue
		}
		with := func(a netip.Addr) string { return netip.PrefixFrom(a, c.Subnet.Bits()).String() }
		d := remote.IPAMData{AddressSpace: cmp.Or(n.Space, "LocalDefault"), Pool: c.Subnet.String()}
		if c.Gateway.IsValid() {
			d.Gateway = with(c.Gateway)
		}
		for name, a := range c.AuxAddress {
			if d.AuxAddresses == nil {
				d.AuxAddresses = map[string]string{}
			}
			d.AuxAddresses[name] = with(a)
		}
		out = append(out, d)
	}
	return out
}

// up makes a new network. At boot the plugin is left alone: it may come later than the engine.
func (r pluginDriver) up(_ *Service, n *Network) error {
	if !n.fresh {
		return nil
	}
	err := r.d.CreateNetwork(remote.NetworkRequest{NetworkID: n.ID, Options: r.options(n), IPv4Data: n.data(0), IPv6Data: n.data(1)})
	n.fresh = err != nil
	return err
}

func (r pluginDriver) down(_ *Service, n *Network) {
	if n.fresh {
		return // it was never made
	}
	if err := r.d.DeleteNetwork(n.ID); err != nil {
		r.log.Warn("a network's plugin does not delete it", "network", n.Name, "error", err)
	}
}

// sandboxOptions are what a plugin is told of a container.
func sandboxOptions(p *Ports) map[string]any {
	type port struct {
		Proto uint8
		Port  uint16
	}
	type binding struct {
		Proto       uint8
		IP          string
		Port        uint16
		HostIP      string
		HostPort    uint16
		HostPortEnd uint16
	}
	exposed, mapped := []port{}, []binding{}
	if p != nil {
		for e := range p.Exposed {
			exposed = append(exposed, port{protocols[e.Proto()], e.Num()})
		}
		for key, list := range p.Asked {
			if len(list) == 0 {
				list = []network.PortBinding{{}}
			}
			for _, a := range list {
				b := binding{Proto: protocols[key.Proto()], Port: key.Num()}
				first, last, isRun := strings.Cut(a.HostPort, "-")
				if n, err := strconv.ParseUint(first, 10, 16); err == nil {
					b.HostPort, b.HostPortEnd = uint16(n), uint16(n)
				}
				if n, err := strconv.ParseUint(last, 10, 16); err == nil && isRun {
					b.HostPortEnd = uint16(n)
				}
				if a.HostIP.IsValid() && !a.HostIP.IsUnspecified() {
					b.HostIP = a.HostIP.String()
				}
				mapped = append(mapped, b)
			}
		}
		for key := range p.Exposed {
			if _, own := p.Asked[key]; p.All && !own {
				mapped = append(mapped, binding{Proto: protocols[key.Proto()], Port: key.Num()})
			}
		}
	}
	return map[string]any{remote.ExposedPorts: exposed, remote.PortMap: mapped}
}

func cidr(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func (r pluginDriver) join(n *Network, j *joining) error {
	var u undo.Stack
	defer u.Run()
	ep := j.ep
	options := map[string]any{}
	if ep.Asked != nil {
		for k, v := range ep.Asked.DriverOpts {
			options[k] = v
		}
	}
	mac := ""
	if len(ep.MAC) > 0 {
		mac = ep.MAC.String()
		options[remote.MacAddress] = mac
	}
	got, err := r.d.CreateEndpoint(n.ID, ep.ID, remote.Interface{Address: cidr(ep.Addr4), AddressIPv6: cidr(ep.Addr6), MacAddress: mac}, options)
	if err != nil {
		return err
	}
	u.Add(func() { _ = r.d.DeleteEndpoint(n.ID, ep.ID) })
	if err := ep.accept(got); err != nil {
		return err
	}
	joined, err := r.d.Join(n.ID, ep.ID, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), j.ns), sandboxOptions(j.ports))
	if err != nil {
		return err
	}
	u.Add(func() { _ = r.d.Leave(n.ID, ep.ID) })
	hops, err := ep.routes(joined)
	if err != nil {
		return err
	}
	if name := joined.InterfaceName; name != nil && name.SrcName != "" {
		in := n.iface(ep, j.gw)
		in.Sysctls = j.sysctls
		in.Host, in.Name = name.SrcName, name.DstName
		if in.Name == "" && ep.Asked != nil {
			in.Name = ep.Asked.DriverOpts[optIfName]
		}
		if in.Name != "" && !bridge.ValidName(in.Name) {
			return errs.New(errs.Invalid, "invalid interface name: %s", in.Name)
		}
		if err := bridge.Take(j.ns, in, cmp.Or(name.DstPrefix, "eth"), hops); err != nil {
			return err
		}
		ep.Interface, ep.Host, ep.MAC = in.Name, in.Host, in.MAC
		u.Add(func() { _ = bridge.Return(j.ns, ep.Interface, ep.Host) })
	} else {
		ep.Interface = ""
	}
	if _, err := r.d.Info(n.ID, ep.ID); err != nil {
		r.log.Debug("a network's plugin tells nothing of an endpoint", "network", n.Name, "endpoint", ep.ID, "error", err)
	}
	if has := n.gatewaysOf(ep); j.gw.v4 && has.v4 || j.gw.v6 && has.v6 {
		if err := r.d.Publish(n.ID, ep.ID, sandboxOptions(j.ports)); err != nil {
			return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", ep.Container, ep.ID, err)
		}
		ep.Published = true
	}
	u.Release()
	return nil
}

// accept takes what a plugin chose itself; it may not change what it was told.
func (e *Endpoint) accept(got remote.Interface) error {
	for _, a := range []struct {
		text string
		to   *netip.Prefix
	}{{got.Address, &e.Addr4}, {got.AddressIPv6, &e.Addr6}} {
		if a.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(a.text)
		if err != nil {
			return fmt.Errorf("invalid CIDR address: %s", a.text)
		}
		if a.to.IsValid() {
			return errs.New(errs.Forbidden, "driver modified interface address: endpoint interface IP present (%s). Cannot be modified with %s.", a.to, p)
		}
		*a.to = p
	}
	if got.MacAddress == "" {
		return nil
	}
	mac, err := net.ParseMAC(got.MacAddress)
	if err != nil {
		return err
	}
	if len(e.MAC) > 0 {
		return errs.New(errs.Forbidden, "driver modified interface MAC address: endpoint interface MAC address present (%s). Cannot be modified with %s.", e.MAC, mac)
	}
	e.MAC = mac
	return nil
}

// routes reads the gateways and the routes that a plugin wants.
func (e *Endpoint) routes(j *remote.Joined) (out []bridge.Hop, err error) {
	e.Gateway4, e.Gateway6 = netip.Addr{}, netip.Addr{}
	if j.Gateway != "" {
		if e.Gateway4, err = netip.ParseAddr(j.Gateway); err != nil || !e.Gateway4.Is4() {
			return nil, fmt.Errorf("unable to parse Gateway %q", j.Gateway)
		}
	}
	if j.GatewayIPv6 != "" {
		if e.Gateway6, err = netip.ParseAddr(j.GatewayIPv6); err != nil || !e.Gateway6.Is6() {
			return nil, fmt.Errorf("unable to parse GatewayIPv6 %q", j.GatewayIPv6)
		}
	}
	for _, r := range j.StaticRoutes {
		hop := bridge.Hop{}
		if hop.To, err = netip.ParsePrefix(r.Destination); err != nil {
			return nil, fmt.Errorf("invalid CIDR address: %s", r.Destination)
		}
		hop.To = hop.To.Masked()
		if r.NextHop != "" {
			if hop.Via, err = netip.ParseAddr(r.NextHop); err != nil {
				return nil, fmt.Errorf("failed to parse nexthop IP %s", r.NextHop)
			}
		}
		if r.RouteType == 1 {
			hop.Via = netip.Addr{}
		}
		out = append(out, hop)
	}
	// Those on the interface's own network first: the others may need them.
	slices.SortStableFunc(out, func(x, y bridge.Hop) int {
		switch {
		case x.Via.IsValid() == y.Via.IsValid():
			return 0
		case x.Via.IsValid():
			return 1
		}
		return -1
	})
	return out, nil
}

// leave goes through all of it even where the plugin does not answer: the container is gone.
func (r pluginDriver) leave(n *Network, ns int, ep *Endpoint) error {
	var failed []string
	note := func(err error) {
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
	if ep.Published {
		note(r.d.Withdraw(n.ID, ep.ID))
	}
	note(r.d.Leave(n.ID, ep.ID))
	if ns > 0 && ep.Interface != "" {
		note(bridge.Return(ns, ep.Interface, ep.Host))
	}
	note(r.d.DeleteEndpoint(n.ID, ep.ID))
	if len(failed) > 0 {
		r.log.Warn("a network's plugin does not take an endpoint back", "network", n.Name, "endpoint", ep.ID, "error", strings.Join(failed, "; "))
	}
	return nil
}

// addressing is an IPAM driver other than the engine's own, which is ipam.
type addressing interface {
	// allocate completes the address configuration of a new network.
	allocate(n *Network) error
	// free gives a network's subnets back.
	free(n *Network)
	// address gives an endpoint its addresses: those that are asked for, or others.
	address(n *Network, ep *Endpoint, e *network.EndpointSettings, no6 bool) error
	// release gives them back.
	release(n *Network, ep *Endpoint)
}

// addressing is the IPAM driver of that name, nil for the engine's own.
func (p *plugins) addressing(s *Service, name string) addressing {
	switch name {
	case "", "default":
		return nil
	case "null":
		return nullAddressing{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.ipams[name]
	if a == nil {
		if p.ipams == nil {
			p.ipams = map[string]addressing{}
		}
		a = &pluginAddressing{i: remote.NewIPAM(name, p.dirs), s: s, told: map[string]bool{}}
		p.ipams[name] = a
	}
	return a
}

// nullAddressing hands out no addresses: the plugin of the network does, or nobody.
type nullAddressing struct{}

func (nullAddressing) allocate(n *Network) error {
	for _, c := range n.IPAM.Config {
		if c.Subnet.IsValid() {
			return errs.New(errs.Invalid, "null ipam driver does not handle specific address pool requests")
		}
		if c.IPRange.IsValid() {
			return errs.New(errs.Invalid, "null ipam driver does not handle specific address subpool requests")
		}
	}
	if !n.foreign() {
		return errs.New(errs.Invalid, "ipv4 pool is empty")
	}
	n.Space, n.IPAM.Config = "null", nil
	if n.EnableIPv4 {
		n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: netip.PrefixFrom(netip.IPv4Unspecified(), 0)})
	}
	if n.EnableIPv6 {
		n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: netip.PrefixFrom(netip.IPv6Unspecified(), 0)})
	}
	return nil
}

func (nullAddressing) free(*Network) {}

func (nullAddressing) address(*Network, *Endpoint, *network.EndpointSettings, bool) error { return nil }

func (nullAddressing) release(*Network, *Endpoint) {}
