package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/firewall"
)

// The range of ports that are handed out when none is asked for: the kernel's
// default one for clients, as in Docker.
const (
	firstPort = 32768
	lastPort  = 60999
)

// portKey is one port of the host. Host is unspecified for all addresses.
type portKey struct {
	proto uint8
	host  netip.Addr
	port  uint16
}

// ports are the published ports. Each is held by a bound socket as well, so
// that no program of the host takes what the firewall leads elsewhere.
type ports struct {
	mu    sync.Mutex
	taken map[portKey]string // → container
	next  uint16
}

// Binding is one published port of a sandbox.
type Binding struct {
	Proto uint8
	Port  uint16 // in the container
	Host  netip.AddrPort

	socket int // -1 for none
}

var protocols = map[network.IPProtocol]uint8{network.TCP: unix.IPPROTO_TCP, network.UDP: unix.IPPROTO_UDP, network.SCTP: unix.IPPROTO_SCTP}

func protoName(p uint8) string {
	for name, n := range protocols {
		if n == p {
			return string(name)
		}
	}
	return strconv.Itoa(int(p))
}

// conflicts reports whether a port is taken on host or on all addresses.
func (p *ports) conflicts(k portKey) bool {
	if _, ok := p.taken[k]; ok {
		return true
	}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if any.Is4() == k.host.Is4() && k.host != any {
			if _, ok := p.taken[portKey{k.proto, any, k.port}]; ok {
				return true
			}
		}
	}
	if k.host.IsUnspecified() {
		for o := range p.taken {
			if o.proto == k.proto && o.port == k.port && o.host.Is4() == k.host.Is4() {
				return true
			}
		}
	}
	return false
}

// errAllocated is Docker's message for a port that another container has.
func errAllocated(k portKey) error {
	return errs.New(errs.Internal, "Bind for %s:%d failed: port is already allocated", k.host, k.port)
}

// bind holds a port on the host, so that a program that has it is found, and
// none takes it later.
func bind(k portKey) (int, error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	switch k.proto {
	case unix.IPPROTO_UDP:
		typ = unix.SOCK_DGRAM
	case unix.IPPROTO_SCTP:
		return -1, nil // not every kernel has it; the firewall needs none
	}
	var sa unix.Sockaddr
	if k.host.Is4() {
		sa = &unix.SockaddrInet4{Port: int(k.port), Addr: k.host.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(k.port), Addr: k.host.As16()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if k.host.Is6() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if k.proto == unix.IPPROTO_TCP {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // connections of the last holder may linger
	}
	if err := unix.Bind(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if k.proto == unix.IPPROTO_TCP { // only a listener keeps others from listening
		if err := unix.Listen(fd, 1); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// publisher opens and closes the ports of containers.
type publisher struct{ *Service }

// want is one port that a container publishes.
type want struct {
	proto       uint8
	port        uint16
	host        netip.Addr
	first, last uint16 // 0: any
	of          int    // which binding it comes from: one for both families gets one port
}

// wanted reads the bindings of a container, in a stable order.
func (s publisher) wanted(a *Attachment, ep *Endpoint, hostIP netip.Addr) ([]want, error) {
	var out []want
	asked := 0
	add := func(p network.Port, b network.PortBinding) error {
		asked++
		w := want{proto: protocols[p.Proto()], port: p.Num(), host: b.HostIP, of: asked}
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
		if w.host.IsValid() {
			w.host = w.host.Unmap()
			if w.host.Is4() && !ep.Addr4.IsValid() || w.host.Is6() && !ep.Addr6.IsValid() {
				return nil // of a family that the network has not
			}
			out = append(out, w)
			return nil
		}
		if hostIP.IsValid() && !hostIP.IsUnspecified() {
			w.host = hostIP
			out = append(out, w)
			return nil
		}
		if ep.Addr4.IsValid() {
			w.host = netip.IPv4Unspecified()
			out = append(out, w)
		}
		if ep.Addr6.IsValid() {
			w.host = netip.IPv6Unspecified()
			out = append(out, w)
		}
		return nil
	}
	keys := make([]network.Port, 0, len(a.Ports))
	for p := range a.Ports {
		keys = append(keys, p)
	}
	if a.PublishAll {
		for p := range a.Exposed {
			if _, own := a.Ports[p]; !own {
				keys = append(keys, p)
			}
		}
	}
	slices.SortFunc(keys, func(x, y network.Port) int {
		if c := int(x.Num()) - int(y.Num()); c != 0 {
			return c
		}
		return strings.Compare(string(x.Proto()), string(y.Proto()))
	})
	for _, p := range keys {
		list := a.Ports[p]
		if len(list) == 0 {
			list = []network.PortBinding{{}}
		}
		for _, b := range list {
			if err := add(p, b); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// publish takes the ports of a container: all of them or none.
func (s publisher) publish(a *Attachment, ep *Endpoint, hostIP netip.Addr) (_ []Binding, err error) {
	list, err := s.wanted(a, ep, hostIP)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var done []Binding
	defer func() {
		if err != nil {
			s.unpublish(a.Container, done)
		}
	}()
	// Those that name a host port first: else one of the others may be given it.
	slices.SortStableFunc(list, func(x, y want) int {
		switch {
		case x.first != 0 && y.first == 0:
			return -1
		case x.first == 0 && y.first != 0:
			return 1
		}
		return 0
	})
	chosen := map[int]uint16{}
	for _, w := range list {
		if port := chosen[w.of]; port != 0 {
			w.first, w.last = port, port
		}
		b, err := s.ports.take(a.Container, w)
		if err != nil {
			return nil, errs.New(errs.KindOf(err), "failed to set up container networking: driver failed programming external connectivity on endpoint %s (%s): %v", ep.Container, ep.ID, err)
		}
		chosen[w.of] = b.Host.Port()
		done = append(done, b)
	}
	return done, nil
}

// expose publishes the ports of a sandbox by the first of its endpoints, from at on, that can.
func (s publisher) expose(b *Sandbox, a *Attachment, at int) error {
	for i := at; i < len(b.Endpoints); i++ {
		n, err := s.find(b.Endpoints[i].Network)
		if err != nil || n.Driver != "bridge" || n.Internal {
			continue
		}
		list, err := s.publish(a, b.Endpoints[i], n.HostIP)
		if err != nil {
			return err
		}
		b.Bindings, b.Through = list, i
		if s.fw != nil && len(list) > 0 {
			if err := s.fw.Publish(b.mappings()); err != nil {
				s.unpublish(b.Container, list)
				b.Bindings = nil
				return errs.Wrap(errs.Internal, err, "failed to set up container networking")
			}
		}
		return nil
	}
	return nil
}

// withdraw is the opposite of expose.
func (s publisher) withdraw(b *Sandbox) {
	if s.fw != nil && len(b.Bindings) > 0 {
		if err := s.fw.Withdraw(b.mappings()); err != nil {
			s.o.Log.Warn("cannot withdraw published ports", "container", b.Container, "error", err)
		}
	}
	s.unpublish(b.Container, b.Bindings)
}

// take finds a free port for w and holds it.
func (p *ports) take(container string, w want) (Binding, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := Binding{Proto: w.proto, Port: w.port, socket: -1}
	try := func(port uint16) error {
		k := portKey{w.proto, w.host, port}
		if p.conflicts(k) {
			return errAllocated(k)
		}
		fd, err := bind(k)
		if err != nil {
			switch {
			case errors.Is(err, unix.EADDRINUSE):
				return errs.New(errs.Internal, "failed to bind host port %s:%d/%s: address already in use", k.host, k.port, protoName(k.proto))
			case errors.Is(err, unix.EADDRNOTAVAIL):
				return errs.New(errs.Internal, "failed to bind host port %s:%d/%s: cannot assign requested address", k.host, k.port, protoName(k.proto))
			}
			return errs.New(errs.Internal, "failed to bind host port %s:%d/%s: %v", k.host, k.port, protoName(k.proto), err)
		}
		p.taken[k] = container
		b.Host, b.socket = netip.AddrPortFrom(w.host, port), fd
		return nil
	}
	if w.first != 0 {
		var err error
		for port := int(w.first); port <= int(w.last); port++ {
			if err = try(uint16(port)); err == nil {
				return b, nil
			}
		}
		if w.last > w.first {
			return b, errs.New(errs.Internal, "Bind for %s:%d failed: all ports are allocated", w.host, w.first)
		}
		return b, err
	}
	if p.next < firstPort {
		p.next = firstPort
	}
	for range lastPort - firstPort + 1 {
		port := p.next
		if p.next++; p.next > lastPort {
			p.next = firstPort
		}
		if try(port) == nil {
			return b, nil
		}
	}
	return b, errs.New(errs.Internal, "Bind for %s failed: all ports are allocated", w.host)
}

// retake takes the ports that a running container had before the engine came back.
func (p *ports) retake(container string, list []Binding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range list {
		b := &list[i]
		k := portKey{b.Proto, b.Host.Addr(), b.Host.Port()}
		p.taken[k] = container
		if b.socket, _ = bind(k); b.socket < 0 {
			b.socket = -1
		}
	}
}

// unpublish gives ports back.
func (s publisher) unpublish(container string, list []Binding) {
	s.ports.mu.Lock()
	defer s.ports.mu.Unlock()
	for _, b := range list {
		k := portKey{b.Proto, b.Host.Addr(), b.Host.Port()}
		if s.ports.taken[k] == container {
			delete(s.ports.taken, k)
		}
		if b.socket >= 0 {
			_ = unix.Close(b.socket)
		}
	}
}

// mappings are bindings as the firewall knows them; runs of ports that keep
// their order become one.
func mappings(list []Binding, ep *Endpoint) []firewall.Mapping {
	var out []firewall.Mapping
	for _, b := range list {
		to := ep.Addr4.Addr()
		if b.Host.Addr().Is6() {
			to = ep.Addr6.Addr()
		}
		if !to.IsValid() {
			continue
		}
		m := firewall.Mapping{Proto: b.Proto, Host: b.Host.Addr(), Port: b.Host.Port(), Count: 1, To: netip.AddrPortFrom(to, b.Port)}
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.Proto == m.Proto && l.Host == m.Host && int(l.Port)+l.Count == int(m.Port) && int(l.To.Port())+l.Count == int(m.To.Port()) && l.To.Addr() == to {
				l.Count++
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

// portMap is bindings as inspect shows them.
func portMap(list []Binding) network.PortMap {
	out := network.PortMap{}
	for _, b := range list {
		p, ok := network.PortFrom(b.Port, network.IPProtocol(protoName(b.Proto)))
		if !ok {
			continue
		}
		out[p] = append(out[p], network.PortBinding{HostIP: b.Host.Addr(), HostPort: fmt.Sprint(b.Host.Port())})
	}
	return out
}
