package firewall

import (
	"net/netip"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// alone puts the test's thread into a network namespace of its own.
func alone(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs root")
	}
}

func TestWrite(t *testing.T) {
	alone(t)
	f := Open("berth-test")
	n := Network{Bridge: "br9", Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}, ICC: true, Masquerade: true}
	m := Mapping{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("10.9.0.2:80")}
	if err := f.Restore([]Network{n}, []Mapping{m}); err != nil {
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
	if err := f.Reassert(); err != nil {
		t.Fatal(err)
	}
}
