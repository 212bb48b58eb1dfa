package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/network/dns"
	"berth.dev/berth/internal/network/resolvconf"
)

// ResolverAddress is where a container on a network of users finds names.
const ResolverAddress = dns.Address

// named reports whether containers find each other by name on a network: on
// all but the default bridge, as in Docker.
func (n *Network) named() bool {
	return drivers[n.Driver] != nil && container.NetworkMode(n.Name).IsUserDefined()
}

// index is the names of each network's containers, by network and name. mu is held.
func (s *Service) reindex(nets ...string) {
	for _, id := range nets {
		if n := s.nets[id]; n == nil || !n.named() {
			continue // nobody asks there, and most containers may be on it
		}
		names := map[string][]*Endpoint{}
		for _, b := range s.sandboxes {
			for _, e := range b.Endpoints {
				if e.Network != id {
					continue
				}
				for _, name := range e.Names {
					name = strings.ToLower(name)
					if !slices.Contains(names[name], e) {
						names[name] = append(names[name], e)
					}
				}
			}
		}
		s.names[id] = names
	}
}

// networksOf are the ids of a sandbox's networks.
func networksOf(b *Sandbox) []string {
	var out []string
	if b != nil {
		for _, e := range b.Endpoints {
			out = append(out, e.Network)
		}
	}
	return out
}

// namer runs the containers' resolvers.
type namer struct{ *Service }

// view is the names that one container knows.
type view struct {
	s         *Service
	container string
}

func (v view) Lookup(name string) (addrs []netip.Addr, known bool) {
	s := v.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	b := s.sandboxes[v.container]
	if b == nil {
		return nil, false
	}
	find := func(n *Network, name string) {
		for _, e := range s.names[n.ID][name] {
			known = true
			for _, p := range []netip.Prefix{e.Addr4, e.Addr6} {
				if p.IsValid() && !slices.Contains(addrs, p.Addr()) {
					addrs = append(addrs, p.Addr())
				}
			}
		}
	}
	for _, own := range b.Endpoints {
		n := s.nets[own.Network]
		if n == nil || !n.named() {
			continue
		}
		if own.Asked != nil { // links are names that only this container knows
			for _, l := range own.Asked.Links {
				target, alias, ok := strings.Cut(l, ":")
				if !ok {
					alias = target
				}
				if strings.EqualFold(alias, name) {
					find(n, strings.ToLower(target))
				}
			}
		}
		find(n, name)
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.Name)); ok {
			find(n, short)
		}
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs, known
}

func (v view) Reverse(a netip.Addr) string {
	s := v.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	b := s.sandboxes[v.container]
	if b == nil {
		return ""
	}
	for _, own := range b.Endpoints {
		n := s.nets[own.Network]
		if n == nil || !n.named() {
			continue
		}
		for _, list := range s.names[n.ID] {
			for _, e := range list {
				if e.Addr4.Addr() == a || e.Addr6.Addr() == a {
					return e.Container + "." + n.Name + "."
				}
			}
		}
	}
	return ""
}

// Outside are the container's own resolvers, which are asked from where it is, or the host's,
// which are asked from the host, unless the container has no way out.
func (v view) Outside() []dns.Upstream {
	v.s.mu.RLock()
	b := v.s.sandboxes[v.container]
	var own []string
	out := false
	if b != nil {
		own = b.DNS
		for _, e := range b.Endpoints {
			if n := v.s.nets[e.Network]; n != nil && !n.Internal {
				out = true
			}
		}
	}
	v.s.mu.RUnlock()
	var list []dns.Upstream
	for _, a := range own {
		if addr, err := netip.ParseAddr(a); err == nil {
			list = append(list, dns.Upstream{Addr: addr, Inside: true})
		}
	}
	if len(list) == 0 && out {
		for _, a := range resolvconf.Host().Servers {
			list = append(list, dns.Upstream{Addr: a})
		}
	}
	return list
}

// serveNames lets a container's resolver answer.
func (s namer) serveNames(b *Sandbox) {
	if b.resolver != nil {
		b.Resolver = b.resolver.Port()
		s.dns.Serve(b.resolver, view{s.Service, b.Container})
	}
}

// KeepNames hands the resolver's sockets of a container that runs over, without waiting: what is asked
// while no engine answers waits for the next one.
func (s *Service) KeepNames(container string) {
	s.mu.RLock()
	b := s.sandboxes[container]
	s.mu.RUnlock()
	if b != nil {
		(namer{s}).keepNames(b)
	}
}

func (s namer) keepNames(b *Sandbox) {
	r := s.outlives.Load()
	if r == nil || b.resolver == nil {
		return
	}
	fds, err := b.resolver.Copies()
	if err != nil {
		return // it has ended
	}
	r.ch <- func() {
		if err := r.Keep(b.Container, fds); err != nil {
			s.o.Log.Debug("cannot keep the sockets of a resolver", "container", b.Container, "error", err)
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// reopenNames takes the resolver's sockets up again of a container that ran on while no
// engine answered, or makes others in its namespace.
func (s namer) reopenNames(b *Sandbox, pid int) {
	if r := s.outlives.Load(); r != nil {
		if fds, err := r.Kept(b.Container); err == nil && len(fds) > 0 {
			if sockets, err := dns.Adopt(fds); err == nil {
				b.resolver = sockets
				s.dns.Serve(sockets, view{s.Service, b.Container})
				return
			}
		}
	}
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(ns)
	sockets, err := dns.Open(ns, b.Resolver)
	if err != nil {
		s.o.Log.Warn("cannot answer names for a container", "container", b.Container, "error", err)
		return
	}
	b.resolver = sockets
	s.dns.Serve(sockets, view{s.Service, b.Container})
	s.keepNames(b)
}
