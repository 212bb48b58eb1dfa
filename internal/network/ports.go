package network

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// The range of ports that are handed out when none is asked for: the kernel's
// default one for clients, as in Docker.
const (
	firstPort = 32768
	lastPort  = 60999
)

// longRun is how many ports in a row are held one by one. More of them would cost the
// kernel some kilobytes each: they are only looked for once, and kept in one piece.
const longRun = 1024

// portKey is a port of the host, on any of its addresses.
type portKey struct {
	proto uint8
	v6    bool
	port  uint16
}

// holder is a container that has a port on an address, or on all.
type holder struct {
	host      netip.Addr
	container string
}

// run is a long run of ports that a container has.
type run struct {
	portKey // its first
	last    uint16
	holder
}

// ports are the published ports. Each is held by a bound socket as well, so
// that no program of the host takes what the firewall leads elsewhere.
type ports struct {
	mu    sync.Mutex
	taken map[portKey][]holder
	runs  []run
	next  uint16
}

// Binding is a published port of a sandbox, or a run of them that keep their order.
type Binding struct {
	Proto uint8
	Port  uint16 // in the container
	Host  netip.AddrPort
	Count int `json:",omitempty"` // 0 is 1
	// Routed: there is no port on the host, the container's is open at its own address.
	Routed bool `json:",omitempty"`

	sockets []int // that hold it; they may be fewer than the ports, or none
}

func (b *Binding) count() int { return max(1, b.Count) }

func (b *Binding) key() portKey { return portKey{b.Proto, b.Host.Addr().Is6(), b.Host.Port()} }

// follows reports whether b continues the run a.
func (b *Binding) follows(a *Binding) bool {
	n := a.count()
	return a.Proto == b.Proto && !a.Routed && !b.Routed && a.Host.Addr() == b.Host.Addr() && int(a.Host.Port())+n == int(b.Host.Port()) && int(a.Port)+n == int(b.Port)
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

// clash reports whether two holders cannot have the same port.
func clash(a, b netip.Addr) bool { return a == b || a.IsUnspecified() || b.IsUnspecified() }

// conflicts reports whether somebody has a port on host or on all addresses.
func (p *ports) conflicts(k portKey, host netip.Addr) bool {
	for _, h := range p.taken[k] {
		if clash(h.host, host) {
			return true
		}
	}
	for i := range p.runs {
		if r := &p.runs[i]; r.proto == k.proto && r.v6 == k.v6 && r.port <= k.port && k.port <= r.last && clash(r.host, host) {
			return true
		}
	}
	return false
}

// errAllocated is Docker's message for a port that another container has.
func errAllocated(host netip.Addr, port uint16) error {
	return errs.New(errs.Internal, "Bind for %s:%d failed: port is already allocated", host, port)
}

// errBind is Docker's message for a port that cannot be had for another reason.
func errBind(proto uint8, at netip.AddrPort, err error) error {
	why := err.Error()
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		why = "address already in use"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		why = "cannot assign requested address"
	}
	return errs.New(errs.Internal, "failed to bind host port %s/%s: %s", at, protoName(proto), why)
}

// backlog is how many connections wait for one that is passed on by a program.
const backlog = 128

// bindBoth holds a port on all addresses of both families by one socket.
func bindBoth(proto uint8, port uint16) (int, error) {
	return hold(proto, netip.AddrPortFrom(netip.IPv6Unspecified(), port), false)
}

// bind holds a port on the host, so that a program that has it is found, and
// none takes it later.
func bind(proto uint8, at netip.AddrPort) (int, error) { return hold(proto, at, true) }

func hold(proto uint8, at netip.AddrPort, alone bool) (int, error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	switch proto {
	case unix.IPPROTO_UDP:
		typ = unix.SOCK_DGRAM
	case unix.IPPROTO_SCTP:
		return -1, nil // not every kernel has it; the firewall needs none
	}
	var sa unix.Sockaddr
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if at.Addr().Is6() {
		only := 0
		if alone {
			only = 1
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	if proto == unix.IPPROTO_TCP {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // connections of the last holder may linger
	}
	if err := unix.Bind(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if proto == unix.IPPROTO_TCP { // only a listener keeps others from listening
		if err := unix.Listen(fd, backlog); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// listenable reports whether the host has IPv6. It is asked once, with the first port.
var listenable = sync.OnceValue(func() bool {
	fd, err := bind(unix.IPPROTO_TCP, netip.AddrPortFrom(netip.IPv6Loopback(), 0))
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
})

// want is one port that a container publishes.
type want struct {
	proto       uint8
	port        uint16
	host        netip.Addr
	first, last uint16 // 0: any
	of          int    // which binding it comes from: one for both families gets one port
	routed      bool   // it is open at the container's own address, and not the host's
}

// takeBoth finds a port that is free in both families for the same want in each, and holds it by one
// socket. Where that is not to be had it takes nothing: take tells why. mu is held.
func (p *ports) takeBoth(container string, four, six want) (b4, b6 Binding, ok bool) {
	first, last := int(four.first), int(four.last)
	if first == 0 {
		p.next = max(p.next, firstPort)
		first, last = int(p.next), lastPort
	}
	for n := first; n <= last; n++ {
		port := uint16(n)
		k4, k6 := portKey{four.proto, false, port}, portKey{six.proto, true, port}
		if p.conflicts(k4, four.host) || p.conflicts(k6, six.host) {
			continue
		}
		fd, err := bindBoth(four.proto, port)
		if err != nil {
			continue
		}
		if four.first == 0 {
			if p.next = port + 1; p.next > lastPort {
				p.next = firstPort
			}
		}
		p.taken[k4] = append(p.taken[k4], holder{four.host, container})
		p.taken[k6] = append(p.taken[k6], holder{six.host, container})
		b4 = Binding{Proto: four.proto, Port: four.port, Host: netip.AddrPortFrom(four.host, port)}
		b6 = Binding{Proto: six.proto, Port: six.port, Host: netip.AddrPortFrom(six.host, port)}
		if fd >= 0 {
			b6.sockets = []int{fd}
		}
		return b4, b6, true
	}
	return b4, b6, false
}

// take finds a free port for w and holds it. mu is held.
func (p *ports) take(container string, w want) (Binding, error) {
	b := Binding{Proto: w.proto, Port: w.port}
	try := func(port uint16) error {
		k := portKey{w.proto, w.host.Is6(), port}
		if p.conflicts(k, w.host) {
			return errAllocated(w.host, port)
		}
		b.Host = netip.AddrPortFrom(w.host, port)
		fd, err := bind(w.proto, b.Host)
		if err != nil {
			return errBind(w.proto, b.Host, err)
		}
		p.taken[k] = append(p.taken[k], holder{w.host, container})
		if fd >= 0 {
			b.sockets = []int{fd}
		}
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

// takeRun takes n ports from w's on. Programs that have one of them are found, those that
// come later are not kept away. mu is held.
func (p *ports) takeRun(container string, w want, n int) (Binding, error) {
	b := Binding{Proto: w.proto, Port: w.port, Host: netip.AddrPortFrom(w.host, w.first), Count: n}
	r := run{portKey: b.key(), last: w.first + uint16(n-1), holder: holder{w.host, container}}
	for i := range p.runs {
		if o := &p.runs[i]; o.proto == r.proto && o.v6 == r.v6 && o.port <= r.last && r.port <= o.last && clash(o.host, r.host) {
			return b, errAllocated(w.host, max(o.port, r.port))
		}
	}
	for k, list := range p.taken {
		if k.proto == r.proto && k.v6 == r.v6 && k.port >= r.port && k.port <= r.last && slices.ContainsFunc(list, func(h holder) bool { return clash(h.host, w.host) }) {
			return b, errAllocated(w.host, k.port)
		}
	}
	if w.proto != unix.IPPROTO_SCTP {
		used, err := inUse(w.proto, w.host, r.port, r.last)
		if err != nil {
			return b, err
		}
		if used != 0 {
			return b, errBind(w.proto, netip.AddrPortFrom(w.host, used), unix.EADDRINUSE)
		}
	}
	p.runs = append(p.runs, r)
	return b, nil
}

// reserve keeps TCP ports of the engine itself from containers.
func (p *ports) reserve(list []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range list {
		host := a.Addr().Unmap()
		for _, v6 := range []bool{false, true} {
			if v6 == host.Is6() || host.IsUnspecified() {
				k := portKey{unix.IPPROTO_TCP, v6, a.Port()}
				p.taken[k] = append(p.taken[k], holder{host: host})
			}
		}
	}
}

// retake takes the ports that a running container had before the engine came back.
func (p *ports) retake(container string, list []Binding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range list {
		b := &list[i]
		if b.Routed {
			continue
		}
		k, h := b.key(), holder{b.Host.Addr(), container}
		if b.count() > longRun {
			p.runs = append(p.runs, run{k, k.port + uint16(b.count()-1), h})
			continue
		}
		for j := range b.count() {
			k.port = b.Host.Port() + uint16(j)
			p.taken[k] = append(p.taken[k], h)
		}
		b.rebind()
	}
}

// rebind holds the ports of a binding again, where nobody does.
func (b *Binding) rebind() {
	for j := range b.count() {
		if fd, err := bind(b.Proto, netip.AddrPortFrom(b.Host.Addr(), b.Host.Port()+uint16(j))); err == nil && fd >= 0 {
			b.sockets = append(b.sockets, fd)
		}
	}
}

// giveBack is the opposite of take.
func (p *ports) giveBack(container string, list []Binding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range list {
		b := &list[i]
		for _, fd := range b.sockets {
			_ = unix.Close(fd)
		}
		if b.Routed {
			continue
		}
		k, h := b.key(), holder{b.Host.Addr(), container}
		if b.count() > longRun {
			p.runs = slices.DeleteFunc(p.runs, func(r run) bool { return r.portKey == k && r.holder == h })
			continue
		}
		for j := range b.count() {
			k.port = b.Host.Port() + uint16(j)
			if left := slices.DeleteFunc(p.taken[k], func(o holder) bool { return o == h }); len(left) > 0 {
				p.taken[k] = left
			} else {
				delete(p.taken, k)
			}
		}
	}
}
