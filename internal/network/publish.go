package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/firewall"
)

// publisher opens and closes the ports of containers.
type publisher struct{ *Service }

// gate is by which endpoint a family of addresses reaches a container: one without an
// address of that family, where there is none.
type gate struct {
	at int
	ep *Endpoint
	n  *Network
}

// gates are those of IPv4 and IPv6 among the endpoints from at on; ok tells whether there is one.
func (s publisher) gates(b *Sandbox, at int) (g4, g6 gate, ok bool) {
	for i := at; i < len(b.Endpoints); i++ {
		ep := b.Endpoints[i]
		n, err := s.find(ep.Network)
		if err != nil || n.Driver != "bridge" || n.Internal {
			continue
		}
		g := gate{i, ep, n}
		if g4.ep == nil || !g4.ep.Addr4.IsValid() && ep.Addr4.IsValid() {
			g4 = g
		}
		if g6.ep == nil || !g6.ep.Addr6.IsValid() && ep.Addr6.IsValid() {
			g6 = g
		}
	}
	return g4, g6, g4.ep != nil
}

// wanted reads the bindings of a container, in a stable order.
func (s publisher) wanted(a *Attachment, g4, g6 gate) ([]want, error) {
	var out []want
	number := 0
	have4, have6 := g4.ep.Addr4.IsValid(), g6.ep.Addr6.IsValid()
	routed4, routed6 := have4 && g4.n.Mode4 == modeRouted, have6 && g6.n.Mode6 == modeRouted
	n := g4.n
	// What comes by IPv6 is passed on to a container that has only IPv4.
	have6 = have6 || have4 && s.o.Config.Relay
	add := func(p network.Port, b *network.PortBinding) error {
		number++
		w := want{proto: protocols[p.Proto()], port: p.Num(), of: number}
		if b.HostPort != "" {
			lo, hi, isRange := strings.Cut(b.HostPort, "-")
			first, err := strconv.ParseUint(lo, 10, 16)
			if err != nil {
				return errs.New(errs.Invalid, "invalid port specification: %q", b.HostPort)
			}
			last := first
			if isRange {
				if last, err = strconv.ParseUint(hi, 10, 16); err != nil || last < first {
					return errs.New(errs.Invalid, "invalid port specification: %q", b.HostPort)
				}
			}
			w.first, w.last = uint16(first), uint16(last)
		}
		on := func(host netip.Addr) {
			v6 := host.Is6()
			if w.host, w.routed = host, routed4; v6 {
				w.routed = routed6
			}
			if v6 && have6 || !v6 && have4 { // else of a family that the network has not
				out = append(out, w)
			}
		}
		switch {
		case b.HostIP.IsValid():
			on(b.HostIP.Unmap())
		case n.HostIP.IsValid() && !n.HostIP.IsUnspecified():
			on(n.HostIP)
		default:
			on(netip.IPv4Unspecified())
			if have6 && (routed6 || listenable()) {
				on(netip.IPv6Unspecified())
			}
		}
		return nil
	}
	// There may be tens of thousands: they are sorted by number.
	type asked struct {
		key  uint32 // protocol and port
		port network.Port
		list []network.PortBinding
	}
	keys := make([]asked, 0, len(a.Ports))
	put := func(p network.Port, list []network.PortBinding) {
		if len(list) == 0 {
			list = []network.PortBinding{{}}
		}
		keys = append(keys, asked{uint32(protocols[p.Proto()])<<16 | uint32(p.Num()), p, list})
	}
	for p, list := range a.Ports {
		put(p, list)
	}
	if a.PublishAll {
		for p := range a.Exposed {
			if _, own := a.Ports[p]; !own {
				put(p, nil)
			}
		}
	}
	slices.SortFunc(keys, func(x, y asked) int { return int(x.key) - int(y.key) })
	out = make([]want, 0, 2*len(keys))
	for i := range keys {
		for j := range keys[i].list {
			if err := add(keys[i].port, &keys[i].list[j]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// publish takes the ports of a container: all of them or none.
func (s publisher) publish(a *Attachment, g4, g6 gate) (done []Binding, err error) {
	list, err := s.wanted(a, g4, g6)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	s.ports.mu.Lock()
	defer func() {
		s.ports.mu.Unlock()
		if err != nil {
			s.ports.giveBack(a.Container, done)
			done = nil
			err = errs.New(errs.KindOf(err), "failed to set up container networking: driver failed programming external connectivity on endpoint %s (%s): %v", g4.ep.Container, g4.ep.ID, err)
		}
	}()
	// Those that name a host port first: else one of the others may be given it. The
	// ports of one address side by side make one binding.
	slices.SortStableFunc(list, func(x, y want) int {
		rank := func(w want) int {
			switch {
			case w.routed:
				return 2
			case w.first == 0:
				return 1
			}
			return 0
		}
		return rank(x) - rank(y)
	})
	type family struct {
		proto uint8
		host  netip.Addr
	}
	at := map[family]int{} // the binding that a run goes on with
	add := func(b Binding) {
		f := family{b.Proto, b.Host.Addr()}
		if i, ok := at[f]; ok && b.follows(&done[i]) && done[i].count() < longRun {
			done[i].Count = done[i].count() + 1
			done[i].sockets = append(done[i].sockets, b.sockets...)
			return
		}
		at[f] = len(done)
		done = append(done, b)
	}
	chosen := map[int]uint16{}
	for len(list) > 0 {
		w := list[0]
		if w.routed {
			done = append(done, Binding{Proto: w.proto, Port: w.port, Host: netip.AddrPortFrom(unspecified(w.host), 0), Routed: true})
			list = list[1:]
			continue
		}
		if err := s.relayable(list); err != nil {
			return done, err
		}
		if long, rest := longOf(list); long != nil {
			for _, r := range long {
				b, err := s.ports.takeRun(a.Container, r.want, r.n)
				if err != nil {
					return done, err
				}
				done = append(done, b)
			}
			list = rest
			continue
		}
		if len(list) > 1 && s.oneSocket(&w, &list[1]) {
			if b4, b6, ok := s.ports.takeBoth(a.Container, w, list[1]); ok {
				add(b4)
				add(b6)
				list = list[2:]
				continue
			}
		}
		list = list[1:]
		port := chosen[w.of]
		if port != 0 {
			w.first, w.last = port, port
		}
		b, err := s.ports.take(a.Container, w)
		if err != nil {
			return done, err
		}
		if port == 0 {
			chosen[w.of] = b.Host.Port()
		}
		add(b)
	}
	return done, nil
}

// oneSocket reports whether two wants are one port on all addresses of both families, which one socket
// holds. Where a program passes everything on there are two.
func (s publisher) oneSocket(four, six *want) bool {
	return s.fw != nil && !s.o.Config.HostRules && four.of == six.of && !four.routed && !six.routed &&
		four.host == netip.IPv4Unspecified() && six.host == netip.IPv6Unspecified()
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// longWant is a run of ports.
type longWant struct {
	want
	n int
}

// longOf returns the runs that list begins with, one for each address, if they are long:
// ports that are asked for by number, each the next of the one before, on the same
// addresses; and what follows them.
func longOf(list []want) (runs []longWant, rest []want) {
	step := 1 // addresses of one port
	for step < len(list) && list[step].of == list[0].of {
		step++
	}
	n := 0
	for ; (n+1)*step <= len(list); n++ {
		for j := range step {
			w, o := list[n*step+j], list[j]
			if w.routed || w.first == 0 || w.first != w.last || w.proto != o.proto || w.host != o.host || int(w.first) != int(o.first)+n || int(w.port) != int(o.port)+n || w.of != list[n*step].of {
				goto end
			}
		}
	}
end:
	if n <= longRun {
		return nil, list
	}
	for j := range step {
		runs = append(runs, longWant{list[j], n})
	}
	return runs, list[n*step:]
}

// expose publishes the ports of a sandbox by the first of its endpoints, from at on, that can:
// each family by its own.
func (s publisher) expose(b *Sandbox, a *Attachment, at int) error {
	if len(a.Ports) == 0 && !a.PublishAll {
		return nil
	}
	g4, g6, ok := s.gates(b, at)
	if !ok {
		return nil
	}
	list, err := s.publish(a, g4, g6)
	if err != nil {
		return err
	}
	b.Bindings, b.Through, b.Through6 = list, g4.at, g6.at
	if s.fw != nil && len(list) > 0 {
		if err := s.fw.Publish(s.mappings(b)); err != nil {
			s.ports.giveBack(b.Container, list)
			b.Bindings = nil
			return errs.Wrap(errs.Internal, err, "failed to set up container networking")
		}
	}
	s.forgetFlows(list)
	s.startRelays(b)
	return nil
}

// withdraw is the opposite of expose.
func (s publisher) withdraw(b *Sandbox) {
	if len(b.Bindings) == 0 {
		return
	}
	if s.fw != nil {
		if err := s.fw.Withdraw(s.mappings(b)); err != nil {
			s.o.Log.Warn("cannot withdraw published ports", "container", b.Container, "error", err)
		}
	}
	s.forgetFlows(b.Bindings)
	s.endRelays(b)
	s.ports.giveBack(b.Container, b.Bindings)
}

// mappings are the ports of a sandbox as the firewall knows them.
func (s publisher) mappings(b *Sandbox) []firewall.Mapping {
	if len(b.Bindings) == 0 || max(b.Through, b.Through6) >= len(b.Endpoints) {
		return nil
	}
	var out []firewall.Mapping
	if s.translates() {
		out = translations(b.Bindings, b.Endpoints[b.Through].Addr4.Addr(), b.Endpoints[b.Through6].Addr6.Addr())
	}
	// What is open at the containers' own addresses: on each network that routes.
	for i, e := range b.Endpoints {
		n, err := s.find(e.Network)
		if err != nil || n.Driver != "bridge" || n.Internal {
			continue
		}
		for _, p := range []netip.Prefix{e.Addr4, e.Addr6} {
			if p.IsValid() && s.direct(n, p.Addr()) && (i == b.Through || i == b.Through6 || n.mode(p.Addr()) == modeRouted) {
				out = append(out, directs(b.Bindings, p.Addr())...)
			}
		}
	}
	return out
}

// translations are those that lead ports of the host to the container's addresses.
func translations(list []Binding, to4, to6 netip.Addr) []firewall.Mapping {
	var out []firewall.Mapping
	for i := range list {
		b := &list[i]
		to := to4
		if b.Host.Addr().Is6() {
			to = to6
		}
		if !to.IsValid() || b.Routed {
			continue
		}
		out = append(out, firewall.Mapping{Proto: b.Proto, Host: b.Host.Addr(), Port: b.Host.Port(), Count: b.count(), To: netip.AddrPortFrom(to, b.Port)})
	}
	return out
}

// directs open the ports of bindings, each once, at an address of the container.
func directs(list []Binding, to netip.Addr) []firewall.Mapping {
	var out []firewall.Mapping
	for i := range list {
		b := &list[i]
		m := firewall.Direct(b.Proto, netip.AddrPortFrom(to, b.Port), b.count())
		if !slices.ContainsFunc(out, func(o firewall.Mapping) bool {
			return o.Proto == m.Proto && o.To.Port() <= m.To.Port() && int(m.To.Port())+m.Count <= int(o.To.Port())+o.Count
		}) {
			out = append(out, m)
		}
	}
	return out
}

// rearrange brings the firewall from what a sandbox had open to what it has, after it
// has come to a network or left one.
func (s publisher) rearrange(was, now []firewall.Mapping) error {
	if s.fw == nil || len(was) == 0 && len(now) == 0 {
		return nil
	}
	minus := func(a, b []firewall.Mapping) []firewall.Mapping {
		return slices.DeleteFunc(slices.Clone(a), func(m firewall.Mapping) bool { return slices.Contains(b, m) })
	}
	if err := s.fw.Withdraw(minus(was, now)); err != nil {
		return err
	}
	return s.fw.Publish(minus(now, was))
}

// forgetFlows has the kernel forget what it knows of UDP clients of the ports: a flow that
// began before goes on to where it went then, or nowhere.
func (s publisher) forgetFlows(list []Binding) {
	var filters [2][]netlink.CustomConntrackFilter
	for i := range list {
		b := &list[i]
		if b.Proto != unix.IPPROTO_UDP || b.Routed || s.fw == nil {
			continue
		}
		v := 0
		if b.Host.Addr().Is6() {
			v = 1
		}
		filters[v] = append(filters[v], udpFlows{b.Host.Addr(), b.Host.Port(), b.Host.Port() + uint16(b.count()-1)})
	}
	for v, f := range filters {
		if len(f) == 0 {
			continue
		}
		var err error = netlink.ErrDumpInterrupted
		for try := 0; try < 5 && errors.Is(err, netlink.ErrDumpInterrupted); try++ { // the table changes all the time
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, []netlink.InetFamily{unix.AF_INET, unix.AF_INET6}[v], f...)
		}
		if err != nil {
			s.o.Log.Debug("cannot forget flows of UDP", "error", err)
		}
	}
}

// udpFlows are the flows to a range of ports.
type udpFlows struct {
	host        netip.Addr
	first, last uint16
}

func (u udpFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP || f.Forward.DstPort < u.first || f.Forward.DstPort > u.last {
		return false
	}
	a, _ := netip.AddrFromSlice(f.Forward.DstIP)
	return u.host.IsUnspecified() || a.Unmap() == u.host
}

// portMap is bindings as inspect shows them: those on the host before those that are routed.
func portMap(list []Binding) network.PortMap {
	out := network.PortMap{}
	for i := range list {
		b := &list[i]
		for j := range b.count() {
			p, ok := network.PortFrom(b.Port+uint16(j), network.IPProtocol(protoName(b.Proto)))
			if !ok {
				continue
			}
			show := network.PortBinding{HostIP: b.Host.Addr()}
			if !b.Routed {
				show.HostPort = fmt.Sprint(int(b.Host.Port()) + j)
			}
			out[p] = append(out[p], show)
		}
	}
	return out
}
