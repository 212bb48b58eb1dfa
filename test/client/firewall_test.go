package client

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"berth.dev/berth/internal/enginetest"
)

// outside is another host, at the other end of a wire: the engine is 10.44.0.1 and
// fd44::1, the other 10.44.0.2 and fd44::2.
type outside struct {
	t  *testing.T
	ns netns.NsHandle
}

func newOutside(t *testing.T, e *enginetest.Engine) *outside {
	t.Helper()
	ready := make(chan netns.NsHandle)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		if err != nil {
			t.Error(err)
		}
		ready <- ns
	}()
	ns := <-ready
	o := &outside{t: t, ns: ns}
	t.Cleanup(func() { _ = ns.Close() })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	up := func(name string, addrs ...string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addrs {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			a.Flags = 2 // IFA_F_NODAD
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	must(e.Inside(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "wan"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "wan", PeerNamespace: netlink.NsFd(ns)}); err != nil {
			return err
		}
		return up("wan", "10.44.0.1/24", "fd44::1/64")
	}))
	must(o.in(func() error { return up("wan", "10.44.0.2/24", "fd44::2/64") }))
	return o
}

func (o *outside) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(o.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// get fetches a page from there.
func (o *outside) get(addr string) (body string, err error) {
	err = o.in(func() error {
		d := net.Dialer{Timeout: 700 * time.Millisecond}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		raw, err := io.ReadAll(c)
		_, body, _ = strings.Cut(string(raw), "\r\n\r\n")
		return err
	})
	return strings.TrimSpace(body), err
}

// host runs a program of the host where the engine is.
func host(t *testing.T, e *enginetest.Engine, args ...string) string {
	t.Helper()
	var out []byte
	err := e.Inside(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

var counters = regexp.MustCompile(`\[\d+:\d+\]|(?m)^#.*$|counter packets \d+ bytes \d+`)

// rules are all rules of a host that are kept in one way, without what changes by itself.
func rules(t *testing.T, e *enginetest.Engine, kind string) string {
	t.Helper()
	list := "iptables-save; ip6tables-save"
	if kind == "nftables" {
		list = "nft list tables inet | while read _ _ name; do nft list table inet $name; done"
	}
	return counters.ReplaceAllString(host(t, e, "sh", "-c", list), "")
}

// Both kinds of firewall let the same through, and nothing else.
func TestFirewalls(t *testing.T) {
	t.Parallel()
	enginetest.RequireIPTables(t)
	for _, kind := range []string{"nftables", "iptables"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			e := enginetest.Start(t, enginetest.WithArgs("--firewall-backend", kind, "--icc=false"))
			firewallSuite(t, e, kind)
		})
	}
}

func firewallSuite(t *testing.T, e *enginetest.Engine, kind string) {
	c, far := e.Client("docker"), newOutside(t, e)
	if got := c.Must("info", "-f", "{{json .FirewallBackend}}"); !strings.Contains(got, `"Driver":"`+kind+`"`) {
		t.Errorf("info: %s", got)
	}
	c.Must("network", "create", "--ipv6", "first") // forwarding of IPv6 stays on, with what that brings
	c.Must("network", "rm", "first")
	before := rules(t, e, kind)
	c.Must("network", "create", "--ipv6", "--subnet", "10.41.0.0/24", "--subnet", "fd41::/64", "one")
	c.Must("network", "create", "two")
	c.Must("network", "create", "--internal", "inside")
	c.Must("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "--subnet", "10.43.0.0/24", "alone")
	c.Must("network", "create", "-o", "com.docker.network.bridge.gateway_mode_ipv4=routed", "--subnet", "10.42.0.0/24", "routed")
	web(c, "web", "hello", "--network", "one", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "9000-9003:80-83")
	web(c, "straight", "routed", "--network", "routed", "-p", "80")
	web(c, "apart", "apart", "--network", "alone", "-p", "8082:80")
	web(c, "db", "data", "--expose", "80")
	for name, network := range map[string]string{"near": "one", "other": "two", "in": "inside", "shy": "alone", "linked": "bridge", "stranger": "bridge"} {
		args := []string{"run", "-d", "--name", name, "--network", network}
		if name == "linked" {
			args = append(args, "--link", "db:db")
		}
		c.Must(append(args, img, "sleep", "1000")...)
	}
	web1 := addressOf(c, "web", "one")
	if err := far.in(func() error { // it knows the way to containers, and must not get there all the same
		_, dst, _ := net.ParseCIDR("10.40.0.0/14")
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.IPv4(10, 44, 0, 1)})
	}); err != nil {
		t.Fatal(err)
	}
	from := func(name, addr string) string {
		r := c.Run("exec", name, "timeout", "1", "wget", "-q", "-O", "-", "http://"+addr+"/")
		return strings.TrimSpace(r.Out)
	}
	ping := func(name, addr string) string {
		if c.Run("exec", name, "ping", "-c", "1", "-W", "1", addr).Code == 0 {
			return "pong"
		}
		return ""
	}
	engine := func(addr string) string { body, _ := fetch(e, addr); return body }
	distant := func(addr string) string { body, _ := far.get(addr); return body }
	// Where bridged packets pass the firewall, those to an isolated port end at the bridge.
	neighbour := "apart"
	if strings.TrimSpace(host(t, e, "sh", "-c", "cat /proc/sys/net/bridge/bridge-nf-call-iptables || true")) == "1" {
		neighbour = ""
	}
	all := func() {
		t.Helper()
		var wg sync.WaitGroup
		for _, x := range []struct {
			what string
			got  func() string
			want string
		}{
			{"a published port from outside", func() string { return distant("10.44.0.1:8080") }, "hello"},
			{"one by IPv6", func() string { return distant("[fd44::1]:8080") }, "hello"},
			{"a port of a range", func() string { return distant("10.44.0.1:9000") }, "hello"},
			{"a port on loopback from outside", func() string { return distant("10.44.0.1:8081") }, ""},
			{"a container's own address from outside", func() string { return distant(web1 + ":80") }, ""},
			{"a container's own address on a routed network", func() string { return distant(addressOf(c, "straight", "routed") + ":80") }, "routed"},
			{"a published port on loopback", func() string { return engine("127.0.0.1:8080") }, "hello"},
			{"a port of loopback only", func() string { return engine("127.0.0.1:8081") }, "hello"},
			{"a container by its own published port", func() string { return from("web", "10.44.0.1:8080") }, "hello"},
			{"a neighbour by a published port", func() string { return from("near", "10.41.0.1:8080") }, "hello"},
			{"a neighbour", func() string { return from("near", "web") }, "hello"},
			{"another network by a published port", func() string { return from("other", "10.44.0.1:8080") }, "hello"},
			{"another network", func() string { return from("other", web1) }, ""},
			{"out of a network", func() string { return ping("other", "10.44.0.2") }, "pong"}, // the other host knows no way back but by masquerading
			{"out of a network by IPv6", func() string { return ping("near", "fd44::2") }, "pong"},
			{"out of an internal network", func() string { return ping("in", "10.44.0.2") }, ""},
			{"neighbours that may not", func() string { return ping("shy", "apart") }, ""},
			{"neighbours that may not, by a published port", func() string { return from("shy", "10.44.0.1:8082") }, neighbour},
			{"a link", func() string { return from("linked", "db") }, "data"},
			{"without a link", func() string { return from("stranger", addressOf(c, "db", "bridge")) }, ""},
			{"loopback of the host from a container", func() string { return from("other", "127.0.0.1:8081") }, ""},
		} {
			wg.Go(func() {
				if got := x.got(); got != x.want {
					t.Errorf("%s: %q, want %q", x.what, got, x.want)
				}
			})
		}
		wg.Wait()
	}
	enginetest.Eventually(t, "servers", func() bool {
		return engine("127.0.0.1:8080") == "hello" && distant("[fd44::1]:8080") == "hello" && from("linked", "db") == "data" && distant("10.44.0.1:8082") == "apart"
	})
	if kind == "iptables" { // rules at the end of FORWARD come too late
		host(t, e, "sh", "-c", "iptables -A FORWARD -j DROP && ip6tables -A FORWARD -j DROP")
	}
	all()
	// The administrator's chain comes first, with either kind: a packet must pass both.
	if kind == "nftables" {
		host(t, e, "iptables", "-N", "DOCKER-USER")
		host(t, e, "iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
	} else {
		if got := strings.Fields(host(t, e, "iptables", "-S", "FORWARD")); strings.Join(got[3:11], " ") != "-A FORWARD -j DOCKER-USER -A FORWARD -j DOCKER-FORWARD" {
			t.Errorf("FORWARD: %q", got)
		}
		if got := host(t, e, "iptables", "-t", "nat", "-L", "DOCKER", "-n"); !strings.Contains(got, "tcp dpt:8080 to:"+web1+":80") {
			t.Errorf("nat DOCKER: %s", got)
		}
		if got := host(t, e, "iptables", "-L", "DOCKER", "-n"); !strings.Contains(got, web1) || !strings.Contains(got, "tcp dpt:80") {
			t.Errorf("filter DOCKER: %s", got)
		}
	}
	host(t, e, "iptables", "-I", "DOCKER-USER", "-s", "10.44.0.2", "-j", "DROP")
	if got := distant("10.44.0.1:8080"); got != "" {
		t.Errorf("through the administrator's chain: %q", got)
	}
	// The engine is killed; what the administrator wrote is there when it is back.
	e.Kill9Daemon()
	e.StartDaemon()
	if got := distant("10.44.0.1:8080"); got != "" {
		t.Errorf("through the administrator's chain after a restart: %q", got)
	}
	host(t, e, "iptables", "-D", "DOCKER-USER", "-s", "10.44.0.2", "-j", "DROP")
	all()
	// Somebody removes all rules: they are written again.
	host(t, e, "nft", "flush", "ruleset")
	enginetest.Eventually(t, "rules", func() bool { return distant("10.44.0.1:8080") == "hello" && engine("127.0.0.1:8081") == "hello" })
	all()
	c.Must("rm", "-f", "web", "straight", "apart", "db", "near", "other", "in", "shy", "linked", "stranger")
	c.Must("network", "rm", "one", "two", "inside", "alone", "routed")
	if after := rules(t, e, kind); after != before {
		t.Errorf("rules:\n%s\nwere:\n%s", after, before)
	}
}

// An engine that may write no rules writes none; one that may write none for IPv6 none about it.
func TestFirewallOff(t *testing.T) {
	t.Parallel()
	enginetest.RequireIPTables(t)
	e := enginetest.Start(t, enginetest.WithArgs("--iptables=false"))
	c := e.Client("docker")
	both := func() string { return rules(t, e, "nftables") + rules(t, e, "iptables") }
	before := both()
	c.Must("network", "create", "--ipv6", "net")
	c.Must("run", "--rm", "--network", "net", "-p", "8080:80", img, "true")
	if after := both(); after != before || strings.Contains(after, "berth") {
		t.Errorf("rules:\n%s\nwere:\n%s", after, before)
	}
	c.Must("network", "rm", "net")
	for _, kind := range []string{"iptables", "nftables"} {
		e := enginetest.Start(t, enginetest.WithArgs("--ip6tables=false", "--firewall-backend", kind))
		c, far := e.Client("docker"), newOutside(t, e)
		c.Must("network", "create", "--ipv6", "--subnet", "fd41::/64", "net")
		web(c, "web", "hello", "--network", "net", "-p", "8080:80")
		if got := host(t, e, "ip6tables-save"); kind == "iptables" && strings.Contains(got, "DOCKER") {
			t.Errorf("rules: %s", got)
		}
		enginetest.Eventually(t, "an answer", func() bool { body, _ := far.get("10.44.0.1:8080"); return body == "hello" })
		// No rule keeps a packet of IPv6 away.
		if err := far.in(func() error {
			_, dst, _ := net.ParseCIDR("fd41::/64")
			return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP("fd44::1")})
		}); err != nil {
			t.Fatal(err)
		}
		addr := c.Inspect("web", `{{.NetworkSettings.Networks.net.GlobalIPv6Address}}`)
		enginetest.Eventually(t, kind+": an answer from "+addr, func() bool { body, _ := far.get("[" + addr + "]:80"); return body == "hello" })
		c.Must("rm", "-f", "web")
		c.Must("network", "rm", "net")
	}
}

// An engine that comes back with the other kind of firewall leaves nothing of the first.
func TestFirewallSwitch(t *testing.T) {
	t.Parallel()
	enginetest.RequireIPTables(t)
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--ipv6", "net")
	web(c, "web", "hello", "--network", "net", "-p", "8080:80")
	has := func(what string) bool { return strings.Contains(host(t, e, "sh", "-c", what), "8080") }
	const table, nat = "nft list ruleset | grep -A1000 'inet berth'; true", "iptables-save"
	for i, kind := range []string{"iptables", "nftables", "iptables", "nftables"} {
		e.Kill9Daemon()
		e.SetArgs("--firewall-backend", kind)
		e.StartDaemon()
		if has(table) != (kind == "nftables") || has(nat) != (kind == "iptables") {
			t.Errorf("%d, %s:\n%s", i, kind, rules(t, e, "nftables")+rules(t, e, "iptables"))
		}
		enginetest.Eventually(t, "an answer", func() bool { body, _ := fetch(e, "127.0.0.1:8080"); return body == "hello" })
	}
	if got := host(t, e, "iptables-save"); strings.Contains(strings.ReplaceAll(got, "DOCKER-USER", ""), "DOCKER") || strings.Contains(got, "MASQ") {
		t.Errorf("left: %s", got)
	}
	c.Must("rm", "-f", "web")
	c.Must("network", "rm", "net")
}

// Ports are published where daemon.json says, unless a container says so itself.
func TestDefaultAddress(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(conf, []byte(`{"ip": "127.0.0.1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	e := enginetest.Start(t, enginetest.WithArgs("--config-file", conf))
	c, far := e.Client("docker"), newOutside(t, e)
	web(c, "web", "hello", "-p", "8080:80", "-p", "0.0.0.0:8081:80")
	if got := c.Must("port", "web"); got != "80/tcp -> 0.0.0.0:8081\n80/tcp -> 127.0.0.1:8080" {
		t.Errorf("port: %q", got)
	}
	enginetest.Eventually(t, "an answer", func() bool { body, _ := far.get("10.44.0.1:8081"); return body == "hello" })
	if body, err := fetch(e, "127.0.0.1:8080"); body != "hello" {
		t.Errorf("on loopback: %q %v", body, err)
	}
	if body, err := far.get("10.44.0.1:8080"); err == nil {
		t.Errorf("from outside: %q", body)
	}
	c.Must("rm", "-f", "web")
}

// Where the host's own rules are to decide about published ports, they do: a port that the
// host's firewall has not opened is closed, and one that it opens is open.
func TestRespectHostFirewall(t *testing.T) {
	t.Parallel()
	enginetest.RequireIPTables(t)
	if r := enginetest.Start(t).Client("docker").Run("run", "--rm", "-p", "3000-4100:3000-4100", "-p", "7/sctp", img, "true"); r.Code != 0 {
		t.Errorf("without it: %+v", r)
	}
	for _, kind := range []string{"nftables", "iptables"} {
		e := enginetest.Start(t, enginetest.WithArgs("--respect-host-firewall", "--firewall-backend", kind))
		c, far := e.Client("docker"), newOutside(t, e)
		host(t, e, "nft", "add table inet admin; add chain inet admin input { type filter hook input priority 0; policy drop; }; "+
			"add rule inet admin input ct state established,related accept; add rule inet admin input iif lo accept; "+
			"add rule inet admin input meta l4proto ipv6-icmp accept; add rule inet admin input tcp dport 8081 accept")
		c.Must("network", "create", "--ipv6", "net")
		web(c, "shut", "shut", "--network", "net", "-p", "8080:80")
		web(c, "open", "open", "--network", "net", "-p", "8081:80")
		enginetest.Eventually(t, "an open port", func() bool { body, _ := far.get("10.44.0.1:8081"); return body == "open" })
		enginetest.Eventually(t, "an open port by IPv6", func() bool { body, _ := far.get("[fd44::1]:8081"); return body == "open" })
		for _, at := range []string{"10.44.0.1:8080", "[fd44::1]:8080"} {
			if body, err := far.get(at); err == nil {
				t.Errorf("%s: %s answers, %q", kind, at, body)
			}
		}
		if body, err := fetch(e, "127.0.0.1:8080"); body != "shut" {
			t.Errorf("%s: on the host: %q %v", kind, body, err)
		}
		e.Kill9Daemon() // what relays goes on, and is known again
		if body, err := far.get("10.44.0.1:8081"); body != "open" {
			t.Errorf("%s: without the engine: %q %v", kind, body, err)
		}
		e.StartDaemon()
		host(t, e, "nft", "add rule inet admin input tcp dport 8080 accept")
		if body, err := far.get("10.44.0.1:8080"); body != "shut" {
			t.Errorf("%s: a port that was opened later: %q %v", kind, body, err)
		}
		step{"run --rm -p 3000-4100:3000-4100 IMG true", "", "with respect-host-firewall at most 1024 ports in a row can be published", 125}.run(t, c)
		step{"run --rm -p 7/sctp IMG true", "", "with respect-host-firewall ports of SCTP cannot be published", 125}.run(t, c)
		c.Must("rm", "-f", "shut", "open")
		if body, err := far.get("10.44.0.1:8081"); err == nil {
			t.Errorf("%s: a port of a container that is gone: %q", kind, body)
		}
		c.Must("network", "rm", "net")
		host(t, e, "nft", "delete", "table", "inet", "admin")
	}
}
