package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
)

// Whose address was somebody else's before tells the neighbours, who may remember that
// one's hardware address: by gratuitous ARP and unsolicited neighbour advertisements,
// some of them, for they may get lost. Most need not: a hardware address follows from the
// IPv4 address, so where there is no other the neighbours know the right one already.

const (
	optAnnounce  = "com.docker.network.advertise_addr_nmsgs"
	optAnnounces = "com.docker.network.advertise_addr_ms"
)

const (
	announceTimes = 3
	announcePause = time.Second
)

// readAnnounce takes the options that say how often, and with what pause.
func (n *Network) readAnnounce() error {
	for key, x := range map[string]struct {
		lo, hi int
		what   string
	}{optAnnounce: {0, 3, "an integer"}, optAnnounces: {100, 2000, "integer milliseconds"}} {
		s, ok := n.Options[key]
		if !ok {
			continue
		}
		v, err := strconv.Atoi(s)
		if err != nil {
			return errs.New(errs.Invalid, "value for option %s %q must be %s", key, s, x.what)
		}
		if v < x.lo || v > x.hi {
			return errs.New(errs.Invalid, "%s must be in the range %d to %d", key, x.lo, x.hi)
		}
	}
	return nil
}

// announcements is how often an endpoint is told of, and with what pause.
func (n *Network) announcements(e *Endpoint) (times int, pause time.Duration) {
	v, asked := n.Options[optAnnounce]
	if !asked && e.Addr4.IsValid() && !e.Addr6.IsValid() && slices.Equal(e.MAC, bridge.MAC(e.Addr4.Addr())) {
		return 0, 0
	}
	times, pause = announceTimes, announcePause
	if asked {
		times, _ = strconv.Atoi(v)
	}
	if ms, err := strconv.Atoi(n.Options[optAnnounces]); err == nil {
		pause = time.Duration(ms) * time.Millisecond
	}
	return times, pause
}

// announcer tells the neighbours of endpoints, behind the starts of their containers.
type announcer struct {
	mu   sync.Mutex
	live map[string]map[chan struct{}]bool // by container; closed to end
}

// announce begins to tell of the endpoints of a container in the namespace ns, which stays the caller's.
func (s publisher) announce(container string, list []*Endpoint, ns int) {
	for _, e := range list {
		n, err := s.find(e.Network)
		if err != nil {
			continue
		}
		times, pause := n.announcements(e)
		if times == 0 {
			continue
		}
		if fd, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			go s.announcer.tell(container, *e, fd, times, pause)
		}
	}
}

func (a *announcer) tell(container string, e Endpoint, ns, times int, pause time.Duration) {
	end := make(chan struct{})
	a.mu.Lock()
	if a.live == nil {
		a.live = map[string]map[chan struct{}]bool{}
	}
	if a.live[container] == nil {
		a.live[container] = map[chan struct{}]bool{}
	}
	a.live[container][end] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.live[container], end)
		if len(a.live[container]) == 0 {
			delete(a.live, container)
		}
		a.mu.Unlock()
	}()
	// The socket belongs to the namespace that it was made in.
	type made struct{ fd, index int }
	ch := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		m := made{fd: -1}
		if unix.Setns(ns, unix.CLONE_NEWNET) == nil {
			if i, err := net.InterfaceByName(e.Interface); err == nil {
				m.index = i.Index
				m.fd, _ = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			}
		}
		ch <- m
	}()
	m := <-ch
	_ = unix.Close(ns)
	if m.fd < 0 {
		return
	}
	defer unix.Close(m.fd)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for i := range times {
		if i > 0 {
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
		for _, frame := range e.frames() {
			_ = unix.Sendto(m.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: m.index})
		}
	}
}

// end stops what is told of a container.
func (a *announcer) end(container string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.live[container] {
		close(c)
		delete(a.live[container], c)
	}
}

// frames are the messages that tell of an endpoint.
func (e *Endpoint) frames() (out [][]byte) {
	if len(e.MAC) != 6 {
		return nil
	}
	if a := e.Addr4.Addr(); a.IsValid() {
		ip := a.As4()
		b := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, e.MAC, []byte{0x08, 0x06},
			[]byte{0, 1, 0x08, 0, 6, 4, 0, 1}, e.MAC, ip[:], []byte{0, 0, 0, 0, 0, 0}, ip[:]) // ARP (RFC 826), a request for oneself (RFC 5227)
		out = append(out, b)
	}
	if a := e.Addr6.Addr(); a.IsValid() {
		ip, all := a.As16(), netip.IPv6LinkLocalAllNodes().As16()
		// Neighbour advertisement (RFC 4861, 4.4): override, with the hardware address.
		icmp := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, ip[:], []byte{2, 1}, e.MAC)
		binary.BigEndian.PutUint16(icmp[2:], checksum(slices.Concat(ip[:], all[:], []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6}, icmp)))
		b := slices.Concat([]byte{0x33, 0x33, 0, 0, 0, 1}, e.MAC, []byte{0x86, 0xdd},
			[]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}, ip[:], all[:], icmp)
		out = append(out, b)
	}
	return out
}

// checksum is that of the Internet (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
