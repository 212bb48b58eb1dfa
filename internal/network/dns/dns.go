// Package dns is the resolver that a container on a network of users finds at
// 127.0.0.11: it knows the names of the containers on the same networks, and asks the host's
// resolvers about the rest.
//
// Its sockets are in the container's network namespace, on ports of their own: a rule
// there leads port 53 of 127.0.0.11 to them, so that the container may have a server
// of its own on port 53. The host's resolvers are asked from the engine's own namespace,
// where those on its loopback can be reached; a container's own from the container's.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Address is where a container finds the resolver.
const Address = "127.0.0.11"

// Names tells the names that one container knows.
type Names interface {
	// Lookup returns the addresses of a name, without a trailing dot; known reports whether
	// there is such a name at all.
	Lookup(name string) (addrs []netip.Addr, known bool)
	// Reverse returns the name of an address, with a trailing dot; "" for none.
	Reverse(a netip.Addr) string
	// Outside are the resolvers to ask about other names; none on an internal network.
	Outside() []Upstream
}

// Upstream is a resolver that is asked about what is not known here.
type Upstream struct {
	Addr   netip.Addr
	Inside bool // it is asked from the container's namespace, not from the host's
}

// localTTL is how many seconds an answer about a container may be kept.
const localTTL = 600

// Sockets are the resolver's in one namespace. They can be made ahead of the
// container, and answer when they are served.
type Sockets struct {
	udp  *net.UDPConn
	tcp  *net.TCPListener
	stop sync.Once

	place place
}

// places numbers the sockets.
var places atomic.Uint64

// Port is where they are, for the rules and for the record.
func (s *Sockets) Port() uint16 { return uint16(s.udp.LocalAddr().(*net.UDPAddr).Port) }

// Close ends the serving.
func (s *Sockets) Close() {
	s.stop.Do(func() { _, _ = s.udp.Close(), s.tcp.Close() })
}

// Open makes the sockets in the namespace ns, on port, or a free one for 0, and
// leads port 53 to them.
func Open(ns int, port uint16) (*Sockets, error) {
	type result struct {
		s   *Sockets
		err error
	}
	ch := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		s, err := open(ns, port)
		ch <- result{s, err}
	}()
	r := <-ch
	if r.err != nil {
		return nil, fmt.Errorf("cannot open the resolver's sockets: %w", r.err)
	}
	if port == 0 { // else the rules are there from before
		if err := redirect(ns, r.s.Port()); err != nil {
			r.s.Close()
			return nil, fmt.Errorf("cannot write the resolver's rules: %w", err)
		}
	}
	return r.s, nil
}

func open(ns int, port uint16) (*Sockets, error) {
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		s, err := listen(port)
		if err == nil || port != 0 || !errors.Is(err, unix.EADDRINUSE) || try > 10 {
			return s, err
		}
	}
}

// listen makes both sockets on one port. The calls are direct: net.Listen might do
// them on another thread, in another namespace.
func listen(port uint16) (*Sockets, error) {
	sa := &unix.SockaddrInet4{Port: int(port), Addr: netip.MustParseAddr(Address).As4()}
	u, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	uf := os.NewFile(uintptr(u), "resolver")
	defer uf.Close()
	if err := unix.Bind(u, sa); err != nil {
		return nil, err
	}
	bound, err := unix.Getsockname(u)
	if err != nil {
		return nil, err
	}
	sa.Port = bound.(*unix.SockaddrInet4).Port
	t, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	tf := os.NewFile(uintptr(t), "resolver")
	defer tf.Close()
	_ = unix.SetsockoptInt(t, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(t, sa); err != nil {
		return nil, err
	}
	if err := unix.Listen(t, 128); err != nil {
		return nil, err
	}
	return sockets(uf, tf)
}

// Copies are descriptors of the sockets, for another process. They are the caller's.
func (s *Sockets) Copies() (fds []int, err error) {
	for _, c := range []syscall.Conn{s.udp, s.tcp} {
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		cerr := raw.Control(func(fd uintptr) {
			var n int
			if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
				fds = append(fds, n)
			}
		})
		if err = errors.Join(cerr, err); err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			return nil, err
		}
	}
	return fds, nil
}

// Adopt makes sockets of what Copies gave, in another process. The descriptors are
// closed in any case.
func Adopt(fds []int) (*Sockets, error) {
	var files []*os.File
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "resolver")
		defer f.Close()
		files = append(files, f)
	}
	if len(files) != 2 {
		return nil, errors.New("a resolver has two sockets")
	}
	return sockets(files[0], files[1])
}

func sockets(uf, tf *os.File) (*Sockets, error) {
	pc, err := net.FilePacketConn(uf)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(tf)
	if err != nil {
		_ = pc.Close()
		return nil, err
	}
	return &Sockets{udp: pc.(*net.UDPConn), tcp: l.(*net.TCPListener), place: place(places.Add(1))}, nil
}

// redirect leads 127.0.0.11:53 to port, in the namespace ns.
func redirect(ns int, port uint16) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "berth-resolver"})
	ch := c.AddChain(&nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	be := binary.BigEndian.AppendUint16(nil, port)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: netip.MustParseAddr(Address).AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
			&expr.Immediate{Register: 1, Data: netip.MustParseAddr(Address).AsSlice()},
			&expr.Immediate{Register: 2, Data: be},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	return c.Flush()
}

// Server answers for all containers: they share its cache.
type Server struct {
	cache  cache
	client dns.Client
	stream dns.Client
}

// NewServer returns a server with an empty cache.
func NewServer() *Server {
	return &Server{
		client: dns.Client{Net: "udp", Timeout: 3 * time.Second, UDPSize: 4096}, stream: dns.Client{Net: "tcp", Timeout: 5 * time.Second},
		cache: cache{m: map[question]entry{}},
	}
}

// Serve answers on s with the names of n until s is closed.
func (v *Server) Serve(s *Sockets, n Names) {
	go v.serveUDP(s, n)
	go v.serveTCP(s, n)
}

func (v *Server) serveUDP(s *Sockets, n Names) {
	c := s.udp
	buf := make([]byte, 4096)
	for {
		size, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:size]) != nil || q.Response {
			continue
		}
		if a := v.local(q, n); a != nil {
			send(c, from, q, a)
			continue
		}
		go func() { send(c, from, q, v.outside(q, n, s, false)) }()
	}
}

func send(c *net.UDPConn, to netip.AddrPort, q, a *dns.Msg) {
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		size = max(size, int(o.UDPSize()))
	}
	a.Truncate(size)
	if raw, err := a.Pack(); err == nil {
		_, _ = c.WriteToUDPAddrPort(raw, to) // gone: it asks again
	}
}

func (v *Server) serveTCP(s *Sockets, n Names) {
	slots := make(chan struct{}, 64)
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { _ = c.Close(); <-slots }()
			dc := &dns.Conn{Conn: c}
			for {
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				q, err := dc.ReadMsg()
				if err != nil || q.Response {
					return
				}
				a := v.local(q, n)
				if a == nil {
					a = v.outside(q, n, s, true)
				}
				if dc.WriteMsg(a) != nil {
					return
				}
			}
		}()
	}
}

// local answers what the container's networks know; nil for the rest.
func (v *Server) local(q *dns.Msg, n Names) *dns.Msg {
	a := new(dns.Msg)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return a.SetRcode(q, dns.RcodeFormatError)
	}
	a.SetReply(q)
	a.RecursionAvailable, a.Authoritative = true, true
	qu := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(qu.Name, "."))
	hdr := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: qu.Name, Rrtype: t, Class: dns.ClassINET, Ttl: localTTL}
	}
	switch qu.Qtype {
	case dns.TypePTR:
		if ip, ok := reverseAddr(name); ok {
			if who := n.Reverse(ip); who != "" {
				a.Answer = []dns.RR{&dns.PTR{Hdr: hdr(dns.TypePTR), Ptr: who}}
				return a
			}
		}
		return nil
	case dns.TypeA, dns.TypeAAAA:
		addrs, known := n.Lookup(name)
		if !known {
			return nil
		}
		for _, ip := range addrs {
			switch {
			case ip.Is4() && qu.Qtype == dns.TypeA:
				a.Answer = append(a.Answer, &dns.A{Hdr: hdr(dns.TypeA), A: ip.AsSlice()})
			case ip.Is6() && qu.Qtype == dns.TypeAAAA:
				a.Answer = append(a.Answer, &dns.AAAA{Hdr: hdr(dns.TypeAAAA), AAAA: ip.AsSlice()})
			}
		}
		return a
	default:
		if _, known := n.Lookup(name); known {
			return a // there is such a name, with nothing of that type
		}
		return nil
	}
}

// reverseAddr reads a name below in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		f := strings.Split(rest, ".")
		if len(f) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(f[3] + "." + f[2] + "." + f[1] + "." + f[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	f := strings.Split(rest, ".")
	if !ok || len(f) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(f[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// hedge is how long one resolver may take before the next is asked as well.
const hedge = 250 * time.Millisecond

// outside asks the resolvers of n, by a stream if the question came by one.
func (v *Server) outside(q *dns.Msg, n Names, s *Sockets, stream bool) *dns.Msg {
	fail := func(rcode int) *dns.Msg {
		a := new(dns.Msg).SetRcode(q, rcode)
		a.RecursionAvailable = true
		return a
	}
	servers := slices.DeleteFunc(n.Outside(), func(u Upstream) bool {
		return u.Inside && u.Addr.String() == Address // itself
	})
	if len(servers) == 0 {
		return fail(dns.RcodeServerFailure)
	}
	where := place(0)
	if servers[0].Inside {
		where = s.place
	}
	if a := v.cache.get(q, where); a != nil {
		return a
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answers := make(chan *dns.Msg, len(servers))
	ask := func(u Upstream) {
		m := q.Copy()
		m.Id = dns.Id()
		a := v.exchange(ctx, m, u, s, stream)
		if a != nil {
			a.Id = q.Id
		}
		answers <- a
	}
	next, left := 0, len(servers)
	go ask(servers[0])
	next++
	timer := time.NewTimer(hedge)
	defer timer.Stop()
	var worst *dns.Msg
	for left > 0 {
		select {
		case a := <-answers:
			left--
			if a != nil && a.Rcode != dns.RcodeServerFailure && a.Rcode != dns.RcodeRefused {
				v.cache.put(q, where, a)
				return a
			}
			if a != nil {
				worst = a
			}
			if next < len(servers) {
				go ask(servers[next])
				next++
			}
		case <-timer.C:
			if next < len(servers) {
				go ask(servers[next])
				next++
				timer.Reset(hedge)
			}
		case <-ctx.Done():
			left = 0
		}
	}
	if worst != nil {
		return worst
	}
	return fail(dns.RcodeServerFailure)
}

// exchange asks one resolver; nil when it does not answer.
func (v *Server) exchange(ctx context.Context, m *dns.Msg, u Upstream, s *Sockets, stream bool) *dns.Msg {
	c, network := &v.client, "udp"
	if stream {
		c, network = &v.stream, "tcp"
	}
	to := netip.AddrPortFrom(u.Addr, 53).String()
	if !u.Inside {
		a, _, err := c.ExchangeContext(ctx, m, to)
		if err != nil {
			return nil
		}
		return a
	}
	var conn net.Conn
	err := s.inside(func() (err error) {
		conn, err = (&net.Dialer{Timeout: c.Timeout}).DialContext(ctx, network, to)
		return err
	})
	if err != nil {
		return nil
	}
	defer conn.Close()
	a, _, err := c.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn, UDPSize: c.UDPSize})
	if err != nil {
		return nil
	}
	return a
}

// siocgskns asks for the network namespace of a socket: SIOCGSKNS of linux/sockios.h.
const siocgskns = 0x894c

// inside runs f on a thread in the sockets' namespace. A dial of one address makes its
// socket on the thread that asks.
func (s *Sockets) inside(f func() error) error {
	raw, err := s.udp.SyscallConn()
	if err != nil {
		return err
	}
	ns := -1
	cerr := raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), siocgskns) })
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	defer unix.Close(ns)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// place is where answers come from: 0 is the host. Resolvers of different containers may
// give different answers.
type place uint64

// question is one in one place.
type question struct {
	dns.Question
	place place
}

// cache keeps answers for as long as they say.
type cache struct {
	mu sync.Mutex
	m  map[question]entry
}

type entry struct {
	msg *dns.Msg
	at  time.Time
	ttl time.Duration
}

const cacheSize = 2048

func (c *cache) get(q *dns.Msg, at place) *dns.Msg {
	if q.IsEdns0() != nil && q.IsEdns0().Do() || q.CheckingDisabled {
		return nil // DNSSEC wants the whole answer
	}
	c.mu.Lock()
	e, ok := c.m[question{q.Question[0], at}]
	c.mu.Unlock()
	age := time.Since(e.at)
	if !ok || age >= e.ttl {
		return nil
	}
	a := e.msg.Copy()
	a.Id, a.Question = q.Id, q.Question
	for _, list := range [][]dns.RR{a.Answer, a.Ns} {
		for _, rr := range list {
			rr.Header().Ttl -= min(rr.Header().Ttl, uint32(age.Seconds()))
		}
	}
	return a
}

func (c *cache) put(q *dns.Msg, at place, a *dns.Msg) {
	if a.Truncated || a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError || len(a.Answer)+len(a.Ns) == 0 || q.IsEdns0() != nil && q.IsEdns0().Do() {
		return
	}
	ttl := uint32(3600)
	for _, list := range [][]dns.RR{a.Answer, a.Ns} {
		for _, rr := range list {
			ttl = min(ttl, rr.Header().Ttl)
		}
	}
	if ttl == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.m) >= cacheSize {
		for k := range c.m { // any of them
			delete(c.m, k)
			if len(c.m) < cacheSize*3/4 {
				break
			}
		}
	}
	c.m[question{q.Question[0], at}] = entry{a.Copy(), time.Now(), time.Duration(ttl) * time.Second}
}
