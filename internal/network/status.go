package network

import (
	"math"
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// status is how full the network's subnets are. Addresses of namespaces that only wait
// do not count: they are given up for whoever needs them.
func (s publisher) status(n *Network, members map[string]*Endpoint) *network.Status {
	if drivers[n.Driver] == nil || len(n.IPAM.Config) == 0 {
		return nil
	}
	out := network.SubnetStatuses{}
	for _, c := range n.IPAM.Config {
		if !c.Subnet.IsValid() {
			continue
		}
		used := map[netip.Addr]bool{}
		first, last := c.Subnet.Masked().Addr(), lastOf(c.Subnet)
		if c.Subnet.Bits() < first.BitLen()-1 {
			used[first] = true
			if first.Is4() {
				used[last] = true
			}
		}
		if c.Gateway.IsValid() {
			used[c.Gateway] = true
		}
		for _, a := range c.AuxAddress {
			used[a] = true
		}
		for _, e := range members {
			for _, p := range []netip.Prefix{e.Addr4, e.Addr6} {
				if p.IsValid() && c.Subnet.Contains(p.Addr()) {
					used[p.Addr()] = true
				}
			}
		}
		within := c.IPRange
		if !within.IsValid() {
			within = c.Subnet
		}
		var taken uint64
		for a := range used {
			if within.Contains(a) {
				taken++
			}
		}
		st := network.SubnetStatus{IPsInUse: uint64(len(used)), DynamicIPsAvailable: math.MaxUint64}
		if bits := within.Addr().BitLen() - within.Bits(); bits < 64 {
			st.DynamicIPsAvailable = uint64(1)<<bits - min(taken, uint64(1)<<bits)
		}
		out[c.Subnet] = st
	}
	return &network.Status{IPAM: network.IPAMStatus{Subnets: out}}
}

// lastOf is the highest address of a subnet.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
