package network

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Relay is a port of the host whose packets the kernel cannot send on to the container:
// those to IPv6 addresses for one that has only IPv4, and those to ::1. What comes in by
// the socket is passed on by a program that outlives the engine.
type Relay struct {
	Proto uint8
	To    netip.AddrPort
	FD    int // bound, and listening; it stays the engine's
}

// maxRelays is how many are handed over at once.
const maxRelays = 128

// Program outlives the engine. Its methods are called behind the starts of containers, in order.
type Program interface {
	// Relay hands ports over, besides those that it has; without any, it takes all back.
	Relay(container string, ports []Relay) error
	// Keep hands copies of descriptors over, until the container ends, and Kept asks for them.
	Keep(container string, fds []int) error
	Kept(container string) ([]int, error)
}

// outliver is the queue of a program.
type outliver struct {
	Program
	ch chan func()
}

// Outlive names the program that outlives the engine.
func Outlive(s *Service, p Program) {
	r := &outliver{p, make(chan func(), 64)}
	go func() {
		for f := range r.ch {
			f()
		}
	}()
	s.outlives.Store(r)
}

// relayed are the ports of a sandbox that are passed on.
func (s publisher) relayed(b *Sandbox) []Relay {
	if !s.o.Config.Relay || max(b.Through, b.Through6) >= len(b.Endpoints) {
		return nil
	}
	var out []Relay
	for i := range b.Bindings {
		x := &b.Bindings[i]
		if x.Host.Addr().Is4() && s.fw != nil || len(x.sockets) != x.count() {
			continue
		}
		to := b.Endpoints[b.Through6].Addr6.Addr()
		if x.Host.Addr().Is4() || !to.IsValid() {
			to = b.Endpoints[b.Through].Addr4.Addr()
		}
		if !to.IsValid() {
			continue
		}
		for j, fd := range x.sockets {
			out = append(out, Relay{x.Proto, netip.AddrPortFrom(to, x.Port+uint16(j)), fd})
		}
	}
	return out
}

// startRelays hands the ports of a sandbox over, without waiting.
func (s publisher) startRelays(b *Sandbox) {
	r, list := s.outlives.Load(), s.relayed(b)
	if r == nil || len(list) == 0 {
		return
	}
	// Copies: the sandbox may have ended when its turn comes.
	for i := range list {
		fd, err := unix.FcntlInt(uintptr(list[i].FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			list = list[:i]
			break
		}
		list[i].FD = fd
	}
	id := b.Container
	r.ch <- func() {
		for part := list; len(part) > 0; part = part[min(maxRelays, len(part)):] {
			if err := r.Relay(id, part[:min(maxRelays, len(part))]); err != nil {
				s.o.Log.Warn("some published ports will not answer on IPv6", "container", id, "error", err)
				break
			}
		}
		for _, x := range list {
			_ = unix.Close(x.FD)
		}
	}
}

// keepRelays hands the ports of a sandbox over that its program may have lost: ports that
// can be bound, or that the engine holds itself, are in nobody else's hands.
func (s publisher) keepRelays(b *Sandbox) {
	if !s.o.Config.Relay {
		return
	}
	for i := range b.Bindings {
		if x := &b.Bindings[i]; !x.Routed && len(x.sockets) == 0 && x.count() <= longRun && x.Proto != unix.IPPROTO_SCTP {
			x.rebind()
		}
	}
	s.startRelays(b)
}

// endRelays takes them back, and waits for it: the ports are free then.
func (s publisher) endRelays(b *Sandbox) {
	r := s.outlives.Load()
	if r == nil || !s.o.Config.Relay {
		return
	}
	for i := range b.Bindings {
		if x := &b.Bindings[i]; !x.Routed && x.count() <= longRun && (x.Host.Addr().Is6() || s.fw == nil) {
			done := make(chan struct{})
			r.ch <- func() {
				defer close(done)
				if err := r.Relay(b.Container, nil); err != nil {
					s.o.Log.Debug("cannot take ports back", "container", b.Container, "error", err)
				}
			}
			<-done
			return
		}
	}
}
