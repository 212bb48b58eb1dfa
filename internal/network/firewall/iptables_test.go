package firewall

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput() // on this thread: in its namespace
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestIPTables(t *testing.T) {
	alone(t)
	enginetest.RequireIPTables(t)
	run(t, "iptables", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT")
	run(t, "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.0/24", "-o", "other", "-j", "MASQUERADE")
	before := run(t, "iptables", "-S")
	f := NewIPTables()
	f.SetPolicy(Policy{Mark: 1, Mask: 255})
	n := Network{Bridge: "br9", Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}, ICC: true, Masquerade: true}
	m := Mapping{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("10.9.0.2:80")}
	if err := f.Restore([]Network{n}, []Mapping{m}, nil); err != nil {
		t.Fatal(err)
	}
	run(t, "iptables", "-A", "DOCKER-USER", "-s", "192.0.2.9", "-j", "DROP")
	more := []Mapping{
		{Proto: unix.IPPROTO_UDP, Host: netip.MustParseAddr("127.0.0.1"), Port: 53, Count: 1, To: netip.MustParseAddrPort("10.9.0.2:53")},
		{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 20000, Count: 40000, To: netip.MustParseAddrPort("10.9.0.3:20000")},
		{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: 7000, Count: 3, To: netip.MustParseAddrPort("10.9.0.3:8000")},
		{Proto: unix.IPPROTO_TCP, Host: netip.IPv6Unspecified(), Port: 8080, Count: 1, To: netip.MustParseAddrPort("[fd09::2]:80")},
		Direct(unix.IPPROTO_TCP, netip.MustParseAddrPort("10.7.0.2:80"), 2),
	}
	if err := f.SetNetwork(Network{Bridge: "br7", Subnets: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}, Routed: [2]bool{true, false}, Trusted: []string{"wg0"}}); err != nil {
		t.Fatal(err)
	}
	if err := f.SetNetwork(Network{Bridge: "br8", Subnets: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}, Internal: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(more); err != nil {
		t.Fatal(err)
	}
	link := Link{From: netip.MustParseAddr("10.8.0.2"), To: netip.MustParseAddr("10.8.0.3"), Proto: unix.IPPROTO_TCP, Port: 5432}
	if err := f.Open([]Link{link, link}); err != nil {
		t.Fatal(err)
	}
	filter, nat := run(t, "iptables", "-S"), run(t, "iptables", "-t", "nat", "-S")
	for _, want := range []string{
		"-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT", "-A DOCKER-USER -s 192.0.2.9/32 -j DROP",
		"-A DOCKER -d 10.9.0.2/32 ! -i br9 -o br9 -p tcp -m tcp --dport 80 -m conntrack --ctstate DNAT -j ACCEPT", "-A DOCKER -o br9 -m mark --mark 0x1/0xff -j ACCEPT",
		"-A DOCKER -d 10.7.0.2/32 -o br7 -p tcp -m tcp --dport 80:81 -j ACCEPT", "-A DOCKER -s 10.8.0.2/32 -d 10.8.0.3/32 -i br8 -o br8 -p tcp -m tcp --dport 5432 -j ACCEPT",
		"-A DOCKER-INTERNAL -i br8 ! -o br8 -j DROP",
	} {
		if !strings.Contains(filter, want) {
			t.Errorf("no %s in\n%s", want, filter)
		}
	}
	for _, want := range []string{
		"-A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80", "-A DOCKER -d 127.0.0.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.9.0.2:53",
		"-A DOCKER -p tcp -m tcp --dport 20000:59999 -j DNAT --to-destination 10.9.0.3", "-A DOCKER -p tcp -m tcp --dport 7002 -j DNAT --to-destination 10.9.0.3:8002",
		"-A POSTROUTING -s 10.9.0.0/24 ! -o br9 -j MASQUERADE",
	} {
		if !strings.Contains(nat, want) {
			t.Errorf("no %s in\n%s", want, nat)
		}
	}
	if !strings.Contains(run(t, "ip6tables", "-t", "nat", "-S"), "--dport 8080 -j DNAT --to-destination [fd09::2]:80") {
		t.Error("no port for IPv6")
	}
	// What somebody else removes is noticed.
	whole := func(what string, repaired bool) {
		t.Helper()
		again, err := f.reassert()
		if err != nil || again != repaired {
			t.Errorf("%s: written again %v, %v", what, again, err)
		}
	}
	whole("untouched", false)
	for _, harm := range []string{"-D FORWARD -j DOCKER-FORWARD", "-F DOCKER", "-t nat -F", "-t nat -D POSTROUTING 2", "-F DOCKER-CT"} {
		run(t, append([]string{"iptables"}, strings.Fields(harm)...)...)
		whole(harm, true)
		whole(harm+", again", false)
	}
	run(t, "iptables", "-I", "FORWARD", "-s", "192.0.2.2", "-j", "DROP") // the administrator's: it stays where it is
	run(t, "iptables", "-t", "nat", "-F", "DOCKER")
	if err := f.Withdraw(more); err != nil { // they are not there
		t.Fatal(err)
	}
	if got := run(t, "iptables", "-S", "FORWARD"); !strings.HasPrefix(got, "-P FORWARD ACCEPT\n-A FORWARD -s 192.0.2.2/32 -j DROP\n-A FORWARD -j DOCKER-USER") {
		t.Errorf("FORWARD: %s", got)
	}
	run(t, "iptables", "-D", "FORWARD", "-s", "192.0.2.2", "-j", "DROP")
	if err := f.Shut([]Link{link}); err != nil {
		t.Fatal(err)
	}
	if err := f.DropNetwork("br7"); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "iptables-save"); strings.Contains(got, "br7") || strings.Contains(got, "10.8.0.3") || strings.Contains(got, "10.9.0.3") {
		t.Errorf("left: %s", got)
	}
	// A port that cannot be had leaves nothing.
	bad := []Mapping{more[3], {Proto: unix.IPPROTO_TCP, Host: netip.MustParseAddr("fe80::1%none"), Port: 1, Count: 1, To: netip.MustParseAddrPort("[fd09::2]:1")}, more[0]}
	if err := f.Publish(bad); err == nil {
		t.Error("nonsense is written")
	}
	whole("after nonsense", false)

	began := time.Now()
	var many []Mapping
	for i := range 1000 {
		many = append(many, Mapping{Proto: unix.IPPROTO_TCP, Host: netip.IPv4Unspecified(), Port: uint16(10000 + 2*i), Count: 1, To: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.4"), uint16(30000+i))})
	}
	if err := f.Publish(many); err != nil {
		t.Fatal(err)
	}
	t.Logf("a thousand ports: %v", time.Since(began))
	began = time.Now()
	if err := f.Publish(more[:1]); err != nil {
		t.Fatal(err)
	}
	t.Logf("one more: %v", time.Since(began))
	if err := f.Withdraw(append(many, more[0])); err != nil {
		t.Fatal(err)
	}
	whole("after a thousand", false)

	old := NewIPTables() // another engine's process, which knows the networks only
	if err := old.Clean([]Network{n, {Bridge: "br8", Subnets: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}}}); err != nil {
		t.Fatal(err)
	}
	rest := strings.NewReplacer("-N DOCKER-USER\n", "", "-A FORWARD -j DOCKER-USER\n", "", "-A DOCKER-USER -s 192.0.2.9/32 -j DROP\n", "").Replace(run(t, "iptables", "-S"))
	if rest != before {
		t.Errorf("left:\n%s\nwas:\n%s", rest, before)
	}
	if err := old.Clean(nil); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
}
