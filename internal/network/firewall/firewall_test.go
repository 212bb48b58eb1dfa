package firewall

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// alone puts the test's thread into a network namespace of its own.
func alone(t *testing.T) {
	t.Helper()
	enginetest.RequireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func TestWrite(t *testing.T) {
	alone(t)
	f := New("berth-test")
	nf := f.b.(*nft)
	n := Network{Bridge: "br9", Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}, ICC: true, Masquerade: true}
	m := Mapping{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("10.9.0.2:80")}
	if err := f.Restore([]Network{n}, []Mapping{m}, nil); err != nil {
		t.Fatal(err)
	}
	more := []Mapping{
		{Proto: unix.IPPROTO_UDP, Host: netip.MustParseAddr("127.0.0.1"), Port: 53, Count: 1, To: netip.MustParseAddrPort("10.9.0.2:53")},
		{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 20000, Count: 40000, To: netip.MustParseAddrPort("10.9.0.3:20000")},
		{Proto: unix.IPPROTO_TCP, Host: netip.IPv6Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("[fd09::2]:80")},
	}
	if err := f.Publish(more); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish([]Mapping{{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("10.9.0.7:80")}}); err == nil {
		t.Error("a port is published twice")
	}
	if err := f.SetNetwork(Network{Bridge: "br8", Subnets: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}, Internal: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.Withdraw(more); err != nil {
		t.Fatal(err)
	}
	if err := f.DropNetwork("br9"); err != nil {
		t.Fatal(err)
	}
	// What somebody else removes is noticed: rules, and the whole table.
	whole := func(what string, repaired bool) {
		t.Helper()
		again, err := f.reassert()
		if err != nil || again != repaired {
			t.Errorf("%s: written again %v, %v", what, again, err)
		}
	}
	whole("untouched", false)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushTable(nf.table)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	whole("rules flushed", true)
	link := Link{From: netip.MustParseAddr("10.9.0.2"), To: netip.MustParseAddr("10.9.0.3"), Proto: unix.IPPROTO_TCP, Port: 5432}
	link6 := Link{From: netip.MustParseAddr("fd09::2"), To: netip.MustParseAddr("fd09::3"), Proto: unix.IPPROTO_UDP, Port: 53}
	if err := f.Open([]Link{link, link6, link}); err != nil {
		t.Fatal(err)
	}
	c.DelTable(nf.table)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	whole("table deleted", true)
	elems, err := c.GetSetElements(nf.sets["links4"])
	if err != nil || len(elems) != 1 {
		t.Errorf("links after the repair: %v %v", elems, err)
	}
	if err := f.Shut([]Link{link, link6}); err != nil {
		t.Error(err)
	}
	if elems, err = c.GetSetElements(nf.sets["links6"]); err != nil || len(elems) != 0 {
		t.Errorf("links that were closed: %v %v", elems, err)
	}
}

// A thousand networks, and then one more: what the kernel answers has room.
func TestManyNetworks(t *testing.T) {
	alone(t)
	f := New("berth-test")
	var nets []Network
	for i := range 1000 {
		nets = append(nets, Network{Bridge: fmt.Sprintf("br%d", i), Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 256), byte(i), 0}), 24)}, ICC: true, Masquerade: true})
	}
	if err := f.Restore(nets[1:], nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.SetNetwork(nets[0]); err != nil {
		t.Fatal(err)
	}
}
