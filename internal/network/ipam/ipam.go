// Package ipam hands out subnets to networks and addresses to endpoints.
//
// A Space knows which subnets are taken: by networks, and by the routes of the
// host, which the caller names. A Subnet knows which of its addresses are taken.
// Nothing here is written anywhere: after a restart the caller takes again what its
// records name.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// Pool is where subnets of Bits bits are cut from.
type Pool struct {
	Base netip.Prefix
	Bits int
}

// DefaultPools are the private ranges that Docker takes, in smaller pieces, so that they
// serve hundreds of networks: each subnet has room for 1,022 endpoints.
func DefaultPools() []Pool {
	var out []Pool
	for i := 18; i < 32; i++ {
		out = append(out, Pool{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i)}), 16), 22})
	}
	return append(out, Pool{netip.MustParsePrefix("192.168.0.0/16"), 22})
}

// Space is the subnets of one engine. It is safe for use by several goroutines.
type Space struct {
	mu    sync.Mutex
	pools []Pool
	taken []netip.Prefix
}

// NewSpace returns a space that cuts subnets from pools.
func NewSpace(pools []Pool) *Space { return &Space{pools: pools} }

// ErrOverlap is why a subnet that was asked for cannot be had.
var ErrOverlap = errors.New("Pool overlaps with other one on this address space") //nolint:staticcheck // Docker's words

// ErrExhausted says that every pool is used up.
var ErrExhausted = errors.New("all predefined address pools have been fully subnetted")

// Take takes a subnet that somebody asked for.
func (s *Space) Take(p netip.Prefix) error {
	p = p.Masked()
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.taken, p.Overlaps) {
		return ErrOverlap
	}
	s.taken = append(s.taken, p)
	return nil
}

// Choose takes the first free subnet of the pools, of IPv6 where asked, that
// does not overlap with avoid.
func (s *Space) Choose(v6 bool, avoid []netip.Prefix) (netip.Prefix, error) {
	return s.ChooseSize(v6, 0, avoid)
}

// ChooseSize is Choose for a subnet of the given length, 0 for that of the pools.
func (s *Space) ChooseSize(v6 bool, bits int, avoid []netip.Prefix) (netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pool := range s.pools {
		if pool.Base.Addr().Is6() != v6 || bits != 0 && bits < pool.Base.Bits() {
			continue
		}
		size := pool.Bits
		if bits != 0 {
			size = bits
		}
		for p := netip.PrefixFrom(pool.Base.Masked().Addr(), size); pool.Base.Contains(p.Addr()); {
			blocked := false
			for _, list := range [][]netip.Prefix{s.taken, avoid} {
				blocked = blocked || slices.ContainsFunc(list, p.Overlaps)
			}
			if !blocked {
				s.taken = append(s.taken, p)
				return p, nil
			}
			next, ok := after(p)
			if !ok {
				break
			}
			p = next
		}
	}
	return netip.Prefix{}, ErrExhausted
}

// Pooled reports whether a subnet is one that Choose could have taken.
func (s *Space) Pooled(p netip.Prefix) bool {
	return slices.ContainsFunc(s.pools, func(o Pool) bool { return o.Base.Overlaps(p) && p.Bits() == o.Bits })
}

// Release gives a subnet back.
func (s *Space) Release(p netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.taken, p.Masked()); i >= 0 {
		s.taken = slices.Delete(s.taken, i, i+1)
	}
}

// after is the prefix of the same length that follows p.
func after(p netip.Prefix) (netip.Prefix, bool) {
	b := p.Addr().AsSlice()
	bits := p.Bits()
	for i := (bits - 1) / 8; i >= 0; i-- {
		add := byte(1)
		if i == (bits-1)/8 {
			add = 1 << (7 - (bits-1)%8)
		}
		b[i] += add
		if b[i] >= add { // no carry
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, bits), true
		}
	}
	return netip.Prefix{}, false
}

// Subnet is the addresses of one subnet. It is safe for use by several
// goroutines.
type Subnet struct {
	Prefix netip.Prefix
	within netip.Prefix // what is handed out when nobody asks for an address
	mu     sync.Mutex
	taken  map[netip.Addr]bool
	next   netip.Addr // where the search goes on
}

// NewSubnet returns the addresses of p; those that are not asked for come
// from within, when it is valid.
func NewSubnet(p, within netip.Prefix) *Subnet {
	if !within.IsValid() {
		within = p
	}
	s := &Subnet{Prefix: p.Masked(), within: within.Masked(), taken: map[netip.Addr]bool{}}
	if p.Bits() < p.Addr().BitLen()-1 { // a network of two has neither its own address nor one of all (RFC 3021, 6164)
		s.taken[s.Prefix.Addr()] = true
		if p.Addr().Is4() {
			s.taken[last(s.Prefix)] = true
		}
	}
	s.next = s.within.Addr()
	return s
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ErrInUse says that an address is taken.
var ErrInUse = errors.New("Address already in use") //nolint:staticcheck // Docker's words

// ErrNoAddress says that a subnet has no free address left.
var ErrNoAddress = errors.New("no available IPv4 addresses on this network's address pools")

// Take takes an address that somebody asked for.
func (s *Subnet) Take(a netip.Addr) error {
	if !s.Prefix.Contains(a) {
		return fmt.Errorf("Invalid address %s: It does not belong to any of this network's subnets", a) //nolint:staticcheck // Docker's words
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[a] {
		return ErrInUse
	}
	s.taken[a] = true
	return nil
}

// Choose takes the lowest free address from the last one on, so that one
// that was just given back rests for a while.
func (s *Subnet) Choose() (netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := s.next
	for a := start; ; {
		if !s.within.Contains(a) {
			a = s.within.Addr()
		}
		if !s.taken[a] {
			s.taken[a] = true
			s.next = a.Next()
			return a, nil
		}
		if a = a.Next(); a == start || !s.within.Contains(a) && start == s.within.Addr() {
			return netip.Addr{}, ErrNoAddress
		}
	}
}

// Release gives an address back.
func (s *Subnet) Release(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.taken, a)
	if a.Less(s.next) && len(s.taken) <= 4 {
		s.next = a // hardly used: people expect the first address again
	}
}

// Room is how many addresses are left of those that are handed out unasked; what is
// more than a million counts as a million.
func (s *Subnet) Room() int {
	bits := s.within.Addr().BitLen() - s.within.Bits()
	return 1<<min(bits, 20) - s.Used()
}

// Used is how many addresses are taken, with those of the network itself.
func (s *Subnet) Used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taken)
}
