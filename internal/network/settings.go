package network

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
)

// CheckSettings tells, in Docker's words, what a container asks of a network that cannot
// be. While a container is made its networks are known by name alone, they may come later:
// then whole is false.
func (s *Service) CheckSettings(ref string, e *network.EndpointSettings, whole bool) error {
	if e == nil {
		return nil
	}
	name := ref
	n, err := s.find(ref)
	if err == nil {
		name = n.Name
	}
	var list []string
	bad := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	c := network.EndpointIPAMConfig{}
	if e.IPAMConfig != nil {
		c = *e.IPAMConfig
	}
	if !container.NetworkMode(name).IsUserDefined() {
		if c.IPv4Address.IsValid() || c.IPv6Address.IsValid() {
			bad("user-specified IP address is supported on user-defined networks only")
		}
		if len(e.Aliases) > 0 {
			bad("network-scoped aliases are only supported for user-defined networks")
		}
	}
	if a := c.IPv4Address; a.IsValid() && (!a.Unmap().Is4() || a.IsUnspecified()) {
		bad("invalid IPv4 address: %s", a)
	}
	if a := c.IPv6Address; a.IsValid() && (!a.Is6() || a.Is4In6() || a.IsUnspecified() || a.Zone() != "") {
		bad("invalid IPv6 address: %s", a)
	}
	for _, a := range c.LinkLocalIPs {
		if !a.Unmap().IsLinkLocalUnicast() {
			bad("invalid link-local IP address: %s", a)
		}
	}
	if list := e.DriverOpts[optSysctls]; list != "" {
		checkSysctls(list, bad)
	}
	if whole && n != nil && n.Driver != "host" && n.Driver != "null" {
		for _, a := range []netip.Addr{c.IPv4Address, c.IPv6Address} {
			if a.IsValid() && !n.contains(a.Unmap()) {
				bad("no configured subnet contains IP address %s", a)
			}
		}
		if n.Driver == "ipvlan" && len(e.MacAddress) > 0 {
			bad("an ipvlan interface has the hardware address of its parent")
		}
	}
	switch len(list) {
	case 0:
		return nil
	case 1:
		return errs.New(errs.Invalid, "invalid endpoint settings:\n%s", list[0])
	}
	return errs.New(errs.Invalid, "invalid endpoint settings:\n* %s", strings.Join(list, "\n* "))
}

// contains reports whether an address is of one of the network's subnets.
func (n *Network) contains(a netip.Addr) bool {
	for _, c := range n.IPAM.Config {
		if c.Subnet.Contains(a) {
			return true
		}
	}
	return false
}
