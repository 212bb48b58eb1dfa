package keeper

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Relay is one published port whose packets the kernel cannot send on: those to an IPv6
// address of the host where the container has only IPv4, and those to ::1 and to
// link-local addresses. The descriptor is a bound socket, listening where it is of a stream.
type Relay struct {
	FD    int            `json:"fd"`
	Proto uint8          `json:"proto"` // IPPROTO_TCP or IPPROTO_UDP
	To    netip.AddrPort `json:"to"`    // of the container
}

// RelayRequest gives a task the ports that are relayed to it, besides those that it has;
// without any, it has none any more. The task may start later. They end with it.
type RelayRequest struct {
	ID    string  `json:"id"`
	Ports []Relay `json:"ports,omitempty"`
}

// Relay has the keeper pass on what comes in by ports of a task.
func (c *Client) Relay(ctx context.Context, r *RelayRequest, fds []int) error {
	_, got, err := c.call(ctx, "relay", r, fds)
	closeAll(got)
	return err
}

// relays are the ports that the keeper passes on, by task. Idle ones cost a place in the
// loop's epoll set; a connection costs two goroutines, its bytes stay in the kernel (splice).
type relays struct {
	mu   sync.Mutex
	list map[string][]*relay
}

type relay struct {
	Relay
	src *source

	mu       sync.Mutex
	sessions map[netip.AddrPort]*net.UDPConn // by client
	ended    bool
}

const (
	relayDial    = 10 * time.Second // until a container has taken a connection
	relayIdle    = 90 * time.Second // after which a client of UDP is forgotten
	relayClients = 4096             // of UDP, for each port
	relayPause   = 50 * time.Millisecond
)

func (rs *relays) serve(l *loop, r *RelayRequest, fds []int) error {
	if len(r.Ports) == 0 {
		closeAll(fds)
		rs.end(l, r.ID)
		return nil
	}
	for _, p := range r.Ports {
		if p.FD < 0 || p.FD >= len(fds) || !p.To.IsValid() {
			closeAll(fds)
			return errors.New("a relay needs a socket and an address")
		}
	}
	for _, p := range r.Ports {
		p.FD = fds[p.FD]
		rs.add(l, r.ID, p)
	}
	return nil
}

func (rs *relays) add(l *loop, id string, p Relay) {
	_ = unix.SetNonblock(p.FD, true)
	x := &relay{Relay: p}
	x.src = &source{fd: p.FD, relay: x}
	rs.mu.Lock()
	if rs.list == nil {
		rs.list = map[string][]*relay{}
	}
	for _, o := range rs.list[id] { // an engine that comes back may tell again what it has told
		if o.Proto == p.Proto && o.To == p.To && local(o.FD) == local(p.FD) {
			rs.mu.Unlock()
			_ = unix.Close(p.FD)
			return
		}
	}
	rs.list[id] = append(rs.list[id], x)
	l.mu.Lock()
	l.add(x.src)
	l.want(x.src, unix.EPOLLIN)
	l.mu.Unlock()
	rs.mu.Unlock() // who finds it in the list finds it in the loop
}

// local is where a socket is bound.
func local(fd int) netip.AddrPort {
	sa, _ := unix.Getsockname(fd)
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// end closes the ports of a task. Connections under way end with the container.
func (rs *relays) end(l *loop, id string) {
	rs.mu.Lock()
	list := rs.list[id]
	delete(rs.list, id)
	rs.mu.Unlock()
	if len(list) == 0 {
		return
	}
	for _, x := range list {
		x.mu.Lock()
		x.ended = true // from here on nobody uses the socket's number
		for _, c := range x.sessions {
			_ = c.Close()
		}
		x.mu.Unlock()
	}
	l.mu.Lock()
	for _, x := range list {
		l.remove(x.src)
	}
	l.mu.Unlock()
}

// ready is called by the loop when a port has something. It does not wait.
func (x *relay) ready(l *loop) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.ended:
		return
	case x.Proto == unix.IPPROTO_UDP:
		x.datagrams()
		return
	}
	for range 64 { // the loop has others to serve
		fd, _, err := unix.Accept4(x.src.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			go x.pass(fd)
			continue
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			l.rest(x.src, relayPause) // else it would be ready again at once
		}
		return
	}
}

// rest does not watch a source for a while.
func (l *loop) rest(s *source, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want(s, 0)
	time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.sources[int32(s.fd)] == s {
			l.want(s, unix.EPOLLIN)
		}
	})
}

// pass joins a client with the container.
func (x *relay) pass(fd int) {
	f := os.NewFile(uintptr(fd), "relay")
	nc, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return
	}
	defer nc.Close()
	d := net.Dialer{Timeout: relayDial}
	oc, err := d.Dial("tcp", x.To.String())
	if err != nil {
		return
	}
	defer oc.Close()
	client, ok := nc.(*net.TCPConn)
	other, ok2 := oc.(*net.TCPConn)
	if !ok || !ok2 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		halve(other, client)
	}()
	halve(client, other)
	<-done
}

// halve copies one direction and ends it.
func halve(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil && errors.Is(err, syscall.ECONNRESET) {
		_ = to.SetLinger(0) // a reset is passed on as one
		_ = to.Close()
		return
	}
	_ = to.CloseWrite()
	_ = from.CloseRead()
}

// datagrams sends on what clients of UDP have sent. x.mu is held.
func (x *relay) datagrams() {
	buf := make([]byte, 64<<10)
	for range 64 {
		n, from, err := unix.Recvfrom(x.src.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		var client netip.AddrPort
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			client = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			client = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
		}
		if c := x.session(client, from); c != nil {
			_ = c.SetReadDeadline(time.Now().Add(relayIdle))
			_, _ = c.Write(buf[:n])
		}
	}
}

// session is the socket by which a client's datagrams go to the container, and answers
// come back. nil: there are too many. x.mu is held.
func (x *relay) session(client netip.AddrPort, sa unix.Sockaddr) *net.UDPConn {
	if c := x.sessions[client]; c != nil {
		return c
	}
	if len(x.sessions) >= relayClients {
		return nil
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(x.To))
	if err != nil {
		return nil
	}
	if x.sessions == nil {
		x.sessions = map[netip.AddrPort]*net.UDPConn{}
	}
	x.sessions[client] = c
	go func() {
		defer func() {
			x.mu.Lock()
			delete(x.sessions, client)
			x.mu.Unlock()
			_ = c.Close()
		}()
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue // the container's program may be on its way
			}
			if err != nil {
				return
			}
			_ = c.SetReadDeadline(time.Now().Add(relayIdle))
			x.mu.Lock()
			if !x.ended {
				_ = unix.Sendto(x.src.fd, buf[:n], unix.MSG_DONTWAIT, sa)
			}
			x.mu.Unlock()
		}
	}()
	return c
}

// savedRelay is a port across an upgrade: connections under way end, the port stays.
type savedRelay struct {
	ID string `json:"id"`
	Relay
}

func (rs *relays) save() (list []savedRelay, keep []int) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for id, l := range rs.list {
		for _, x := range l {
			list = append(list, savedRelay{id, x.Relay})
			keep = append(keep, x.FD)
		}
	}
	return list, keep
}

func (rs *relays) resume(l *loop, list []savedRelay) {
	for _, x := range list {
		unix.CloseOnExec(x.FD)
		rs.add(l, x.ID, x.Relay)
	}
}
