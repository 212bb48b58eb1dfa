package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

func manyPorts(n, host, port int) network.PortMap {
	out := network.PortMap{}
	for i := range n {
		p, _ := network.PortFrom(uint16(port+i), network.TCP)
		out[p] = []network.PortBinding{{HostPort: fmt.Sprint(host + i)}}
	}
	return out
}

// Ports in a row are one binding, and nobody else's while they are held; long runs are kept
// in one piece. The time bound is ten times what it takes.
func TestManyPorts(t *testing.T) {
	s := publisher{&Service{ports: ports{taken: map[portKey][]holder{}}}}
	g := gate{0, &Endpoint{Addr4: netip.MustParsePrefix("10.0.0.2/24")}, &Network{HostIP: netip.MustParseAddr("127.9.8.7")}}
	for _, x := range []struct{ n, port int }{{1000, 21000}, {3000, 21000}} {
		a := &Attachment{Container: "x", Ports: manyPorts(x.n, x.port, 1001)}
		start := time.Now()
		list, err := s.publish(a, g, g)
		if err != nil || len(list) != 1 || list[0].count() != x.n {
			t.Fatalf("%d ports: %v, %+v", x.n, err, list)
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("%d ports took %v", x.n, d)
		}
		if got := len(portMap(list)); got != x.n {
			t.Errorf("%d of %d ports are shown", got, x.n)
		}
		other := &Attachment{Container: "y", Ports: manyPorts(1, x.port+x.n-1, 80)}
		want := fmt.Sprintf("Bind for 127.9.8.7:%d failed: port is already allocated", x.port+x.n-1)
		if _, err := s.publish(other, g, g); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a port twice: %v, want %s", err, want)
		}
		s.ports.giveBack("x", list)
		// A program of the host that has one of them is found.
		at := netip.AddrPortFrom(g.n.HostIP, uint16(x.port+x.n-2))
		fd, err := bind(unix.IPPROTO_TCP, at)
		if err != nil {
			t.Fatal(err)
		}
		want = fmt.Sprintf("failed to bind host port %s/tcp: address already in use", at)
		if _, err := s.publish(a, g, g); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a port of a program: %v, want %s", err, want)
		}
		_ = unix.Close(fd)
		if len(s.ports.taken)+len(s.ports.runs) != 0 {
			t.Errorf("left: %d ports, %d runs", len(s.ports.taken), len(s.ports.runs))
		}
	}
}

func TestFrames(t *testing.T) {
	e := &Endpoint{MAC: []byte{2, 0x42, 10, 0, 0, 2}, Addr4: netip.MustParsePrefix("10.0.0.2/24"), Addr6: netip.MustParsePrefix("fd00::2/64")}
	f := e.frames()
	if len(f) != 2 || len(f[0]) != 42 || len(f[1]) != 86 {
		t.Fatalf("%x", f)
	}
	// The sum over the pseudo header and the message, with its checksum, is all ones.
	ip := f[1][14:]
	pseudo := append(append([]byte{}, ip[8:40]...), 0, 0, 0, 32, 0, 0, 0, 58)
	if sum := checksum(append(pseudo, ip[40:]...)); sum != 0 {
		t.Errorf("checksum: %x", sum)
	}
}

// A port of the engine itself is told as one that is allocated, on its address only.
func TestReserve(t *testing.T) {
	var p ports
	p.taken = map[portKey][]holder{}
	p.reserve([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:21999"), netip.MustParseAddrPort("[::]:21998")})
	for _, x := range []struct {
		host string
		port uint16
		want bool
	}{{"127.0.0.1", 21999, true}, {"0.0.0.0", 21999, true}, {"127.0.0.2", 21999, false}, {"::1", 21999, false}, {"127.0.0.1", 21998, true}, {"::1", 21998, true}} {
		host := netip.MustParseAddr(x.host)
		if got := p.conflicts(portKey{unix.IPPROTO_TCP, host.Is6(), x.port}, host); got != x.want {
			t.Errorf("%s:%d: %v", x.host, x.port, got)
		}
	}
}
