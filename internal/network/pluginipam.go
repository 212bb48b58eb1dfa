package network

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/remote"
	"berth.dev/berth/internal/undo"
)

// pluginAddressing has subnets and addresses from a plugin.
type pluginAddressing struct {
	i *remote.IPAM
	s *Service

	mu   sync.Mutex
	told map[string]bool // networks that a plugin which forgets knows of, by id
}

func (p *pluginAddressing) allocate(n *Network) error {
	var u undo.Stack
	defer u.Run()
	local, global, err := p.i.Spaces()
	if err != nil {
		return err
	}
	if n.Space = local; n.Scope == "global" {
		n.Space = global
	}
	list := n.IPAM.Config
	for v, on := range []bool{n.EnableIPv4, n.EnableIPv6} {
		has := slices.ContainsFunc(list, func(c network.IPAMConfig) bool { return c.Subnet.IsValid() && family(c.Subnet) == v })
		open := slices.ContainsFunc(list, func(c network.IPAMConfig) bool { return !c.Subnet.IsValid() })
		if on && !has && (v == 1 || !open) {
			list = append(list, network.IPAMConfig{})
		}
	}
	n.IPAM.Config = nil
	for _, c := range list {
		v := 0
		switch {
		case c.Subnet.IsValid():
			v = family(c.Subnet)
		case n.EnableIPv6 && (!n.EnableIPv4 || slices.ContainsFunc(n.IPAM.Config, func(o network.IPAMConfig) bool { return family(o.Subnet) == 0 })):
			v = 1
		}
		id, err := p.pool(&u, n, &c, v)
		if err != nil {
			return err
		}
		n.IPAM.Config, n.PoolIDs = append(n.IPAM.Config, c), append(n.PoolIDs, id)
	}
	p.mu.Lock()
	p.told[n.ID] = true
	p.mu.Unlock()
	u.Release()
	return nil
}

// pool takes the subnet of one configuration, its gateway and the addresses that are kept out.
func (p *pluginAddressing) pool(u *undo.Stack, n *Network, c *network.IPAMConfig, v int) (string, error) {
	taken, err := bridge.HostRoutes()
	if err != nil {
		return "", err
	}
	req := remote.PoolRequest{AddressSpace: n.Space, Options: n.IPAM.Options, V6: v == 1, Pool: cidr(c.Subnet), SubPool: cidr(c.IPRange)}
	var unfit []string // held until another is found, or they would come again
	defer func() {
		for _, id := range unfit {
			_ = p.i.ReleasePool(id)
		}
	}()
	var id string
	var data map[string]string
	for {
		var pool netip.Prefix
		if id, pool, data, err = p.i.RequestPool(req); err != nil {
			return "", err
		}
		if req.Pool == "" && pool.Bits() > 0 && n.Scope != "global" && slices.ContainsFunc(taken, pool.Overlaps) && !slices.Contains(unfit, id) {
			unfit = append(unfit, id)
			continue
		}
		if slices.Contains(unfit, id) {
			return "", errs.New(errs.Forbidden, "the IPAM driver %s has no subnet that the host does not use", n.IPAM.Driver)
		}
		c.Subnet = pool.Masked()
		break
	}
	u.Add(func() { _ = p.i.ReleasePool(id) })
	if g, err := netip.ParsePrefix(data[remote.Gateway]); data[remote.Gateway] != "" && !c.Gateway.IsValid() {
		if err != nil {
			return "", errs.New(errs.Invalid, "failed to parse gateway address (%s) returned by ipam driver: %v", data[remote.Gateway], err)
		}
		c.Gateway = g.Addr()
	} else if c.Gateway.IsValid() || !n.bare[v] {
		got, err := p.i.RequestAddress(id, c.Gateway, map[string]string{remote.AddressType: remote.Gateway})
		if err != nil {
			return "", fmt.Errorf("failed to allocate gateway (%s): %w", show(c.Gateway), err)
		}
		c.Gateway = got.Addr()
		u.Add(func() { _ = p.i.ReleaseAddress(id, c.Gateway) })
	}
	for name, a := range c.AuxAddress {
		if a == c.Gateway {
			continue
		}
		if _, err := p.i.RequestAddress(id, a, nil); err != nil {
			return "", fmt.Errorf("failed to allocate secondary ip address (%s:%s): %w", name, a, err)
		}
		u.Add(func() { _ = p.i.ReleaseAddress(id, a) })
	}
	return id, nil
}

func show(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// each calls f with the configurations and the ids of their pools.
func (n *Network) each(f func(c network.IPAMConfig, pool string)) {
	for i, c := range n.IPAM.Config {
		if i < len(n.PoolIDs) {
			f(c, n.PoolIDs[i])
		}
	}
}

func (p *pluginAddressing) free(n *Network) {
	note := func(err error) {
		if err != nil {
			p.s.o.Log.Warn("an IPAM plugin does not take back what a network had", "network", n.Name, "error", err)
		}
	}
	n.each(func(c network.IPAMConfig, pool string) {
		for _, a := range c.AuxAddress {
			note(p.i.ReleaseAddress(pool, a))
		}
		if c.Gateway.IsValid() {
			note(p.i.ReleaseAddress(pool, c.Gateway))
		}
		note(p.i.ReleasePool(pool))
	})
	p.mu.Lock()
	delete(p.told, n.ID)
	p.mu.Unlock()
}

// remind requests again, after a restart of the engine, what the network has, where the plugin
// wants that.
func (p *pluginAddressing) remind(n *Network) (remote.Needs, error) {
	needs, err := p.i.Needs()
	if err != nil || !needs.Replay {
		return needs, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told[n.ID] {
		return needs, nil
	}
	for i, c := range n.IPAM.Config {
		id, _, _, err := p.i.RequestPool(remote.PoolRequest{
			AddressSpace: n.Space, Options: n.IPAM.Options, V6: family(c.Subnet) == 1, Pool: c.Subnet.String(), SubPool: cidr(c.IPRange),
		})
		if err != nil {
			return needs, err
		}
		n.PoolIDs[i] = id
		again := func(a netip.Addr, options map[string]string) {
			if _, err := p.i.RequestAddress(id, a, options); err != nil {
				p.s.o.Log.Warn("an IPAM plugin does not give an address again", "network", n.Name, "address", a, "error", err)
			}
		}
		if c.Gateway.IsValid() {
			again(c.Gateway, map[string]string{remote.AddressType: remote.Gateway})
		}
		for _, a := range c.AuxAddress {
			again(a, nil)
		}
		for _, ep := range p.s.members(n.ID) {
			for _, a := range []netip.Prefix{ep.Addr4, ep.Addr6} {
				if a.IsValid() && c.Subnet.Contains(a.Addr()) {
					again(a.Addr(), nil)
				}
			}
		}
	}
	p.told[n.ID] = true
	return needs, nil
}

func (p *pluginAddressing) address(n *Network, ep *Endpoint, e *network.EndpointSettings, no6 bool) (err error) {
	needs, err := p.remind(n)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "failed to set up container networking")
	}
	defer func() {
		if err != nil {
			p.release(n, ep)
		}
	}()
	var options map[string]string
	if needs.MAC {
		if len(ep.MAC) == 0 {
			ep.MAC = bridge.RandomMAC()
		}
		options = map[string]string{remote.MacAddress: ep.MAC.String()}
	}
	var want [2]netip.Addr
	if e != nil && e.IPAMConfig != nil {
		want = [2]netip.Addr{e.IPAMConfig.IPv4Address, e.IPAMConfig.IPv6Address}
	}
	var last error
	n.each(func(c network.IPAMConfig, pool string) {
		v := family(c.Subnet)
		have, gw := &ep.Addr4, &ep.Gateway4
		if v == 1 {
			have, gw = &ep.Addr6, &ep.Gateway6
		}
		if have.IsValid() || v == 1 && no6 || want[v].IsValid() && !c.Subnet.Contains(want[v]) {
			return
		}
		a, err := p.i.RequestAddress(pool, want[v], options)
		if err != nil {
			last = err
			return
		}
		*have, *gw = a, c.Gateway
	})
	for v, on := range []bool{n.EnableIPv4, n.EnableIPv6} {
		have := ep.Addr4
		if v == 1 {
			have = ep.Addr6
		}
		if !on || have.IsValid() || v == 1 && no6 {
			continue
		}
		if last == nil {
			last = errs.New(errs.Invalid, "no available IPv%d addresses on this network's address pools: %s (%s)", 4+2*v, n.Name, n.ID)
		}
		return errs.Wrap(errs.KindOf(last), last, "failed to set up container networking")
	}
	n.hardware(ep)
	return nil
}

func (p *pluginAddressing) release(n *Network, ep *Endpoint) {
	n.each(func(c network.IPAMConfig, pool string) {
		for _, a := range []netip.Prefix{ep.Addr4, ep.Addr6} {
			if !a.IsValid() || !c.Subnet.Contains(a.Addr()) {
				continue
			}
			if err := p.i.ReleaseAddress(pool, a.Addr()); err != nil {
				p.s.o.Log.Warn("an IPAM plugin does not take an address back", "network", n.Name, "address", a, "error", err)
			}
		}
	})
}
