package client

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/internal/enginetest"
)

// cable joins the hosts of two engines by a veth pair, called name at both ends, with an address
// at each, or none.
func cable(t *testing.T, a, b *enginetest.Engine, name, addrA, addrB string) {
	t.Helper()
	var far *os.File
	if err := b.Inside(func() (err error) { far, err = os.Open("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	end := func(addr string) func() error {
		return func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if addr != "" {
				x, err := netlink.ParseAddr(addr)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(link, x); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		}
	}
	if err := a.Inside(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: name, PeerNamespace: netlink.NsFd(int(far.Fd()))}); err != nil {
			return err
		}
		return end(addrA)()
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Inside(end(addrB)); err != nil {
		t.Fatal(err)
	}
}

// route leads a subnet to a neighbour, on the host of an engine.
func route(t *testing.T, e *enginetest.Engine, subnet, via string) {
	t.Helper()
	if err := e.Inside(func() error {
		dst, err := netlink.ParseIPNet(subnet)
		if err != nil {
			return err
		}
		gw, err := netlink.ParseAddr(via + "/32")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: gw.IP})
	}); err != nil {
		t.Fatal(err)
	}
}

// who runs a server that tells its clients their addresses.
func who(c *enginetest.Client, name string, args ...string) {
	args = append([]string{"run", "-d", "--name", name}, args...)
	c.Must(append(args, img, "sh", "-c", `mkdir -p /w/cgi-bin; printf '#!/bin/sh\necho; echo $REMOTE_ADDR\n' > /w/cgi-bin/who; chmod +x /w/cgi-bin/who; exec httpd -f -p 0.0.0.0:80 -h /w`)...)
}

// Two machines: published ports from one's containers to the other's, networks with routes
// between them, and containers that are neighbours on the wire.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	ea, eb := enginetest.Start(t), enginetest.Start(t)
	a, b := ea.Client("docker"), eb.Client("docker")
	cable(t, ea, eb, "wire", "10.99.0.1/24", "10.99.0.2/24")
	cable(t, ea, eb, "lan", "", "")
	ask := func(c *enginetest.Client, from, addr, want string) {
		t.Helper()
		r := c.Run("exec", from, "sh", "-c", "printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | timeout 3 nc "+strings.ReplaceAll(addr, ":", " ")+" | tail -n1")
		if got := strings.TrimSpace(r.Out); got != want {
			t.Errorf("%s asks %s: seen as %q, want %q (%s)", from, addr, got, want, r.Err)
		}
	}
	who(a, "web", "-p", "8080:80")
	b.Must("run", "-d", "--name", "peer", img, "sleep", "1000")
	ask(b, "peer", "10.99.0.1:8080", "10.99.0.2") // behind its host's address, as the other host sees it

	const routed = "com.docker.network.bridge.gateway_mode_ipv4=routed"
	a.Must("network", "create", "--subnet", "10.71.0.0/24", "-o", routed, "r")
	b.Must("network", "create", "--subnet", "10.72.0.0/24", "-o", routed, "r")
	route(t, ea, "10.72.0.0/24", "10.99.0.2")
	route(t, eb, "10.71.0.0/24", "10.99.0.1")
	who(a, "rweb", "--network", "r", "--ip", "10.71.0.9", "-p", "80")
	who(a, "shut", "--network", "r", "--ip", "10.71.0.10")
	b.Must("run", "-d", "--name", "rpeer", "--network", "r", "--ip", "10.72.0.9", img, "sleep", "1000")
	ask(b, "rpeer", "10.71.0.9:80", "10.72.0.9")
	ask(b, "rpeer", "10.71.0.10:80", "") // not published

	a.Must("network", "create", "-d", "macvlan", "-o", "parent=lan", "--subnet", "10.73.0.0/24", "--ip-range", "10.73.0.0/26", "m")
	b.Must("network", "create", "-d", "macvlan", "-o", "parent=lan", "--subnet", "10.73.0.0/24", "--ip-range", "10.73.0.128/26", "m")
	who(a, "mweb", "--network", "m")
	b.Must("run", "-d", "--name", "mpeer", "--network", "m", img, "sleep", "1000")
	ask(b, "mpeer", addressOf(a, "mweb", "m")+":80", addressOf(b, "mpeer", "m"))
	for _, c := range []*enginetest.Client{a, b} {
		c.Must(append([]string{"rm", "-f"}, strings.Fields(c.Must("ps", "-aq"))...)...)
		c.Must("network", "rm", "r", "m")
	}
}

// A bridge that somebody removes is made again for the next container, and those that run are
// put on it.
func TestBridgeIsMadeAgain(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "-o", "com.docker.network.bridge.name=own0", "own")
	for _, network := range []string{"bridge", "own"} {
		web(c, "old-"+network, "hello", "--network", network)
	}
	for _, name := range []string{"berth0", "own0"} {
		if err := e.Inside(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, network := range []string{"bridge", "own"} {
		addr := addressOf(c, "old-"+network, network)
		// Namespaces that waited on the old bridge may be handed out before anybody can know.
		enginetest.Eventually(t, "containers on "+network+" reach each other", func() bool {
			r := c.Run("run", "--rm", "--network", network, img, "ping", "-c", "1", "-W", "1", addr)
			return r.Code == 0
		})
		if _, err := fetch(e, addr+":80"); err != nil {
			t.Errorf("from the host: %v", err)
		}
	}
	c.Must("rm", "-f", "old-bridge", "old-own")
	c.Must("network", "rm", "own")
}
