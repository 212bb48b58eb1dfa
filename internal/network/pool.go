package network

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/dns"
	"berth.dev/berth/internal/network/ipam"
)

// Namespaces are made ahead: bare ones for all, and for each bridge network
// such with an interface and an address. A network's pool grows with its use, so
// that one that is hardly used holds next to nothing.
const (
	// quiet is how long after a hand-out the pools are filled again, unless they run
	// low: making a namespace takes locks that a start under way needs.
	quiet     = 3 * time.Millisecond
	bareSize  = 64
	readyMax  = 64
	readyMin  = 2
	readyRoom = 32               // addresses that a pool leaves free
	readyRest = 30 * time.Second // without a hand-out, after which a pool shrinks
)

// ready is a namespace with its endpoint.
type ready struct {
	fd       int
	ep       *Endpoint
	resolver *dns.Sockets // nil on the default bridge
}

func (r *ready) drop(n *Network) {
	_ = unix.Close(r.fd)
	n.release(r.ep)
	if r.resolver != nil {
		r.resolver.Close()
	}
}

// pool is the ready namespaces of one network.
type pool struct {
	ch     chan *ready
	target atomic.Int32
	last   atomic.Int64 // of a hand-out, in ns
	closed atomic.Bool
}

func newPool() *pool {
	p := &pool{ch: make(chan *ready, readyMax)}
	p.target.Store(readyMin)
	return p
}

func (p *pool) drain(n *Network) {
	p.closed.Store(true)
	p.empty(n)
}

// empty drops what is there.
func (p *pool) empty(n *Network) {
	for {
		select {
		case r := <-p.ch:
			r.drop(n)
		default:
			return
		}
	}
}

// held reports whether an address could not be had because somebody has it: perhaps a
// namespace that only waits.
func held(err error) bool {
	return errors.Is(err, ipam.ErrInUse) || errors.Is(err, ipam.ErrNoAddress)
}

// yield gives back the addresses that ready namespaces hold, and reports whether there were any.
func (p *pool) yield(n *Network) (any bool) {
	for p != nil {
		select {
		case r := <-p.ch:
			_ = bridge.Remove(r.ep.Host) // now: the kernel takes the namespace down when it has time
			r.drop(n)
			any = true
		default:
			return any
		}
	}
	return false
}

// roomy reports whether a network has addresses to spare.
func (n *Network) roomy() bool {
	for _, s := range n.subnets {
		if s.Room() <= readyRoom {
			return false
		}
	}
	return true
}

// takeReady hands a ready namespace out, nil when there is none.
func (n *Network) takeReady(s *Service) *ready {
	if n.pool == nil {
		return nil
	}
	n.pool.last.Store(time.Now().UnixNano())
	n.pool.target.Store(min(readyMax, 2*n.pool.target.Load()))
	defer s.makes.nudge()
	select {
	case r := <-n.pool.ch:
		return r
	default:
		return nil
	}
}

// maker fills the pools.
type maker struct {
	s          *Service
	bare       chan int
	wake       chan struct{}
	stop       chan struct{}
	done       chan struct{}
	bareTarget atomic.Int32
	handedOut  atomic.Int64 // when a namespace was handed out last, in ns
}

func newMaker(s *Service) *maker {
	m := &maker{s: s, bare: make(chan int, bareSize), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	m.bareTarget.Store(readyMin)
	go m.run()
	return m
}

func (m *maker) close() {
	close(m.stop)
	<-m.done
	for _, n := range m.s.all() {
		if n.pool != nil {
			n.pool.drain(n)
		}
	}
	for {
		select {
		case fd := <-m.bare:
			_ = unix.Close(fd)
		default:
			return
		}
	}
}

func (m *maker) nudge() {
	m.handedOut.Store(time.Now().UnixNano())
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run makes what the pools want, one at a time, then waits to be told.
func (m *maker) run() {
	defer close(m.done)
	first := true
	for {
		made, failed := m.round()
		if first && made {
			first = false
			if !m.pause(100 * time.Millisecond) { // the rest when the engine has had time to get going
				return
			}
			continue
		}
		switch {
		case failed:
			if !m.pause(time.Second) { // a start will meet the same error and report it
				return
			}
		case !made:
			t := time.NewTimer(readyRest)
			select {
			case <-m.wake:
			case <-t.C:
				m.shrink()
			case <-m.stop:
				t.Stop()
				return
			}
			t.Stop()
		}
		select {
		case <-m.stop:
			return
		default:
		}
	}
}

func (m *maker) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-m.stop:
		return false
	}
}

// calm waits for a pause between starts, unless a pool with few left wants filling.
func (m *maker) calm(low bool) {
	for !low {
		rest := quiet - time.Since(time.Unix(0, m.handedOut.Load()))
		if rest <= 0 || !m.pause(rest) {
			return
		}
	}
}

// round makes at most one namespace of each kind that is missing.
func (m *maker) round() (made, failed bool) {
	for _, n := range m.s.all() {
		p := n.pool
		if p == nil || p.closed.Load() || len(p.ch) >= int(p.target.Load()) || !n.roomy() {
			continue
		}
		m.calm(len(p.ch) < int(p.target.Load())/4)
		r, err := m.prepare(n)
		if err != nil {
			m.s.o.Log.Debug("cannot prepare a network namespace", "network", n.Name, "error", err)
			failed = true
			continue
		}
		made = true
		select {
		case p.ch <- r:
		default:
			r.drop(n)
		}
		if p.closed.Load() {
			p.drain(n)
		}
	}
	if want := int(m.bareTarget.Load()); len(m.bare) < want/4 || !made && len(m.bare) < want {
		m.calm(len(m.bare) < want/4)
		fd, err := linux.NewNetNS()
		if err != nil {
			m.s.o.Log.Warn("cannot prepare a network namespace", "error", err)
			return made, true
		}
		made = true
		select {
		case m.bare <- fd:
		default:
			_ = unix.Close(fd)
		}
	}
	return made, failed
}

// shrink drops what a network that rests does not need.
func (m *maker) shrink() {
	for _, n := range m.s.all() {
		p := n.pool
		if p == nil || time.Since(time.Unix(0, p.last.Load())) < readyRest {
			continue
		}
		p.target.Store(readyMin)
		for len(p.ch) > readyMin {
			select {
			case r := <-p.ch:
				r.drop(n)
			default:
			}
		}
	}
}

// prepare makes a namespace with an interface on n.
func (m *maker) prepare(n *Network) (*ready, error) {
	s := m.s
	fd, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	ep, err := s.join(n, fd, ifnames([]asked{{net: n}})[0], nil, both, joins{})
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	r := &ready{fd: fd, ep: ep}
	if n.named() {
		if r.resolver, err = dns.Open(fd, 0); err != nil {
			r.drop(n)
			return nil, err
		}
	}
	return r, nil
}

// Isolated returns a network namespace with only a loopback interface. The
// descriptor is the caller's.
func (s *Service) Isolated() (int, error) {
	defer s.makes.nudge()
	s.makes.bareTarget.Store(min(bareSize, 2*s.makes.bareTarget.Load()))
	select {
	case fd := <-s.makes.bare:
		return fd, nil
	default:
		return linux.NewNetNS()
	}
}
