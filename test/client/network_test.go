package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// fetch gets a page from the host's side: the engine's network namespace.
func fetch(e *enginetest.Engine, addr string) (body string, err error) {
	err = e.Inside(func() error {
		d := net.Dialer{Timeout: 2 * time.Second}
		c, err := d.Dial("tcp", addr) // by address: on this thread
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		raw, err := io.ReadAll(c)
		_, body, _ = strings.Cut(string(raw), "\r\n\r\n")
		return err
	})
	return strings.TrimSpace(body), err
}

// web runs a server that says what it is told.
func web(c *enginetest.Client, name, text string, args ...string) {
	args = append([]string{"run", "-d", "--name", name}, args...)
	c.Must(append(args, img, "sh", "-c", "mkdir /w; echo "+text+" > /w/index.html; exec httpd -f -p 80 -h /w")...)
}

func addressOf(c *enginetest.Client, name, network string) string {
	return c.Inspect(name, fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network))
}

// The walk that people learn with: the default bridge, published ports from everywhere,
// two networks, names within one and none across, connect and disconnect.
func TestNetworks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		web(c, "web", "hello", "-p", "8080:80", "-p", "127.0.0.1:8081:80")
		ip := addressOf(c, "web", "bridge")
		gw := c.Inspect("web", `{{(index .NetworkSettings.Networks "bridge").Gateway}}`)
		for _, at := range []string{ip + ":80", "127.0.0.1:8080", "127.0.0.1:8081", gw + ":8080"} {
			enginetest.Eventually(t, "an answer at "+at, func() bool { body, _ := fetch(e, at); return body == "hello" })
		}
		if body, err := fetch(e, gw+":8081"); err == nil {
			t.Errorf("a port on loopback answers elsewhere: %q", body)
		}
		get := func(at string) string {
			return c.Must("run", "--rm", img, "sh", "-c", "wget -q -O - http://"+at+"/")
		}
		if got := get(ip); got != "hello" {
			t.Errorf("from a neighbour: %q", got)
		}
		if got := get(gw + ":8080"); got != "hello" {
			t.Errorf("by the published port: %q", got)
		}
		if got := c.Must("exec", "web", "wget", "-q", "-O", "-", "http://"+gw+":8080/"); got != "hello" {
			t.Errorf("a container by its own published port: %q", got)
		}
		if got := c.Must("port", "web"); got != "80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n80/tcp -> [::]:8080" {
			t.Errorf("port: %q", got)
		}
		if got := c.Must("ps", "--format", "{{.Ports}}"); got != "0.0.0.0:8080->80/tcp, 127.0.0.1:8081->80/tcp, [::]:8080->80/tcp" {
			t.Errorf("ps: %q", got)
		}
		if r := c.Run("run", "--rm", "-p", "8080:80", img, "true"); r.Code != 125 || !strings.Contains(r.Err, "Bind for 0.0.0.0:8080 failed: port is already allocated") {
			t.Errorf("a port twice: %+v", r)
		}
		c.Must("rm", "-f", "web")
		if _, err := fetch(e, "127.0.0.1:8080"); err == nil {
			t.Error("a removed container's port answers")
		}

		one, two := "one-"+c.Name, "two-"+c.Name
		c.Must("network", "create", one)
		c.Must("network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254", "--label", "a=b", two)
		if r := c.Run("network", "create", "--subnet", "10.77.0.0/25", "over"); r.Code == 0 || !strings.Contains(r.Err, "Pool overlaps with other one on this address space") {
			t.Errorf("an overlap: %+v", r)
		}
		web(c, "db", "data", "--network", one, "--network-alias", "store")
		c.Must("run", "-d", "--name", "app", "--network", one, img, "sleep", "100")
		c.Must("run", "-d", "--name", "far", "--network", two, "--ip", "10.77.0.7", "--mac-address", "02:42:00:00:00:07", img, "sleep", "100")
		for _, name := range []string{"db", "store", "db." + one} {
			if got := c.Must("exec", "app", "sh", "-c", "wget -q -O - http://"+name+"/"); got != "data" {
				t.Errorf("by the name %s: %q", name, got)
			}
		}
		if r := c.Run("exec", "far", "sh", "-c", "wget -q -O - http://db/"); r.Code == 0 {
			t.Errorf("by name across networks: %+v", r)
		}
		if r := c.Run("exec", "far", "ping", "-c", "1", "-W", "1", addressOf(c, "db", one)); r.Code == 0 {
			t.Errorf("by address across networks: %+v", r)
		}
		if got := c.Must("exec", "far", "cat", "/sys/class/net/eth0/address"); got != "02:42:00:00:00:07" {
			t.Errorf("hardware address: %s", got)
		}
		c.Must("network", "connect", "--alias", "guest", one, "far")
		if got := c.Must("exec", "far", "sh", "-c", "wget -q -O - http://db/"); got != "data" {
			t.Errorf("after connect: %q", got)
		}
		c.Must("exec", "app", "ping", "-c", "1", "-W", "2", "guest")
		if r := c.Run("network", "rm", one); r.Code == 0 || !strings.Contains(r.Err, "has active endpoints") {
			t.Errorf("rm of a network in use: %+v", r)
		}
		c.Must("rename", "db", "database")
		c.Must("exec", "app", "ping", "-c", "1", "-W", "2", "database")
		// The engine is killed: names and ports are there again with it, connections were never away.
		e.Restart()
		c.Must("exec", "app", "ping", "-c", "1", "-W", "2", "database")
		c.Must("network", "disconnect", one, "far")
		if r := c.Run("exec", "far", "sh", "-c", "wget -q -O - http://database/"); r.Code == 0 {
			t.Errorf("after disconnect: %+v", r)
		}
		if got := c.Must("network", "ls", "--filter", "label=a=b", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"); got != two+" bridge local" {
			t.Errorf("network ls: %q", got)
		}
		c.Must("rm", "-f", "database", "app", "far")
		if got := c.Must("network", "prune", "-f"); !strings.Contains(got, one) || !strings.Contains(got, two) {
			t.Errorf("network prune: %q", got)
		}
	})
}

// Internal networks lead nowhere, IPv6 is there where it was asked for and only there.
func TestNetworkKinds(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--internal", "inside")
	c.Must("network", "create", "--ipv6", "--subnet", "fd77::/64", "six")
	c.Must("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "alone")
	c.Must("run", "-d", "--name", "in1", "--network", "inside", img, "sleep", "100")
	c.Must("run", "-d", "--name", "in2", "--network", "inside", img, "sleep", "100")
	c.Must("exec", "in1", "ping", "-c", "1", "-W", "2", "in2")
	if got := c.Must("exec", "in1", "ip", "route"); strings.Contains(got, "default") {
		t.Errorf("an internal network has a way out: %s", got)
	}
	if r := c.Run("exec", "in1", "nslookup", "outside.example", "127.0.0.11"); r.Code == 0 || !strings.Contains(r.Out+r.Err, "SERVFAIL") {
		t.Errorf("names of the world on an internal network: %+v", r)
	}
	c.Must("run", "-d", "--name", "s1", "--network", "six", img, "sleep", "100")
	c.Must("run", "-d", "--name", "s2", "--network", "six", img, "sleep", "100")
	if got := c.Inspect("s1", `{{(index .NetworkSettings.Networks "six").GlobalIPv6Address}}`); got != "fd77::2" {
		t.Errorf("IPv6 address: %s", got)
	}
	enginetest.Eventually(t, "IPv6", func() bool { return c.Run("exec", "s1", "ping", "-6", "-c", "1", "-W", "1", "s2").Code == 0 })
	if got := c.Must("exec", "in1", "sh", "-c", "ip -6 addr show eth0"); got != "" {
		t.Errorf("IPv6 where nobody asked for it: %s", got)
	}
	c.Must("run", "-d", "--name", "a1", "--network", "alone", img, "sleep", "100")
	c.Must("run", "-d", "--name", "a2", "--network", "alone", img, "sleep", "100")
	if r := c.Run("exec", "a1", "ping", "-c", "1", "-W", "1", "a2"); r.Code == 0 {
		t.Errorf("icc=false lets neighbours speak: %+v", r)
	}
	for _, bad := range [][]string{
		{"run", "--rm", "--network", "six", "--ip6", "fd99::9", img, "true"},
		{"run", "--rm", "--network", "nosuch", img, "true"},
		{"run", "--rm", "--ip", "172.17.0.9", img, "true"},
		{"network", "create", "bridge"},
		{"network", "create", "--driver", "nosuch", "x"},
		{"network", "create", "--subnet", "10.1.0.0/33", "x"},
		{"network", "create", "--subnet", "10.1.0.0/24", "--gateway", "10.2.0.1", "x"},
		{"network", "rm", "host"},
		{"network", "connect", "host", "a1"},
	} {
		if r := c.Run(bad...); r.Code == 0 || r.Err == "" {
			t.Errorf("%q is accepted: %+v", bad, r)
		}
	}
	c.Must("rm", "-f", "in1", "in2", "s1", "s2", "a1", "a2")
	c.Must("network", "rm", "inside", "six", "alone")
	var list []struct{ Name string }
	if status, _ := e.Call(http.MethodGet, "/networks", nil, &list); status != http.StatusOK || len(list) != 3 {
		t.Errorf("networks left: %v", list)
	}
}

func TestLinks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("run", "-d", "--name", "db", "--expose", "5432", "-e", "DBUSER=me", img, "sleep", "100")
	ip := addressOf(c, "db", "bridge")
	got := c.Must("run", "--rm", "--name", "app", "--link", "db:store", img, "sh", "-c", "env | grep ^STORE | sort; grep -c store /etc/hosts; ping -c 1 -W 2 store >/dev/null && echo reached")
	want := strings.Join([]string{
		"STORE_ENV_DBUSER=me", "STORE_NAME=/app/store", "STORE_PORT=tcp://" + ip + ":5432", "STORE_PORT_5432_TCP=tcp://" + ip + ":5432",
		"STORE_PORT_5432_TCP_ADDR=" + ip, "STORE_PORT_5432_TCP_PORT=5432", "STORE_PORT_5432_TCP_PROTO=tcp", "1", "reached",
	}, "\n")
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	// One that shares the network of another is reached where that one is.
	c.Must("run", "-d", "--name", "beside", "--net", "container:db", img, "sleep", "100")
	if got := c.Must("run", "--rm", "--name", "app", "--link", "beside:near", img, "sh", "-c", "echo $NEAR_PORT_5432_TCP_ADDR"); got != ip {
		t.Errorf("a link to one beside %s: %s", ip, got)
	}
	c.Must("rm", "-f", "beside")
	c.Must("stop", "-t", "0", "db")
	if r := c.Run("run", "--rm", "--name", "app", "--link", "db:store", img, "true"); r.Code != 125 || !strings.Contains(r.Err, "Cannot link to a non running container: /db AS /app/store") {
		t.Errorf("a link to one that is stopped: %+v", r)
	}
	c.Must("rm", "db")
}

// A container without a network stays without, until it leaves "none".
func TestNoneAndOthers(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("network", "create", "later")
		c.Must("run", "-d", "--name", "alone", "--net", "none", img, "sleep", "100")
		step{"network connect later alone", "", "container cannot be connected to multiple networks with one of the networks in private (none) mode", 1}.run(t, c)
		c.Must("network", "disconnect", "none", "alone")
		step{"network disconnect none alone", "", "is not connected to network none", 1}.run(t, c)
		c.Must("network", "connect", "later", "alone")
		ip := addressOf(c, "alone", "later")
		if got := c.Must("exec", "alone", "ip", "-4", "addr"); ip == "" || !strings.Contains(got, ip) {
			t.Errorf("address %q: %s", ip, got)
		}
		c.Must("rm", "-f", "alone")
		c.Must("network", "rm", "later")
	})
}

// Namespaces that wait hold addresses, but not against somebody who wants them.
func TestReadyAddressesYield(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--subnet", "10.66.0.0/24", "wide")
	c.Must("network", "create", "--subnet", "10.67.0.0/29", "narrow")
	c.Must("run", "--rm", "--network", "wide", img, "true")
	for i := 2; i < 8; i++ { // some of them wait ready by now
		ip := fmt.Sprintf("10.66.0.%d", i)
		c.Must("run", "-d", "--name", fmt.Sprintf("w%d", i), "--network", "wide", "--ip", ip, img, "sleep", "1000")
		if got := addressOf(c, fmt.Sprintf("w%d", i), "wide"); got != ip {
			t.Errorf("%s, asked for %s", got, ip)
		}
	}
	step{"run --rm --network wide --ip 10.66.0.3 IMG true", "", "Address already in use", 125}.run(t, c)
	for i := range 5 { // all there are
		c.Must("run", "-d", "--name", fmt.Sprintf("n%d", i), "--network", "narrow", img, "sleep", "1000")
	}
	step{"run --rm --network narrow IMG true", "", "no available IPv4 addresses on this network's address pools", 125}.run(t, c)
	c.Must("rm", "-f", "n3")
	c.Must("network", "connect", "narrow", "w2")
	c.Must("rm", "-f", "w2", "w3", "w4", "w5", "w6", "w7", "n0", "n1", "n2", "n4")
	c.Must("network", "rm", "wide", "narrow")
}

// Containers on an interface of the host: machines beside it on the wire. Another host is
// a namespace at the other end of a veth pair.
func TestMacvlan(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	runtime.LockOSThread()    // never unlocked: the thread ends with the test
	other, err := netns.New() // this thread is in it now
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	setup := func(name, addr string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if addr != "" {
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	if err := e.Inside(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "wire"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "far", PeerNamespace: netlink.NsFd(other)}); err != nil {
			return err
		}
		return setup("wire", "")
	}); err != nil {
		t.Fatal(err)
	}
	if err := setup("far", "10.55.0.1/24"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []step{
		{"network create -d macvlan -o parent=wire -o macvlan_mode=odd m", "", "requested macvlan mode 'odd' is not valid, 'bridge' mode is the macvlan driver default", 1},
		{"network create -d macvlan -o parent=none m", "", "invalid subinterface vlan name none, example formatting is eth0.10", 1},
		{"network create -d macvlan -o parent=wire.5000 m", "", "vlan id must be between 1-4094, received: 5000", 1},
		{"network create -d macvlan -o parent=gone.5 m", "", "-o parent interface was not found on the host: gone", 1},
		{"network create -d ipvlan -o parent=wire -o ipvlan_mode=l4 m", "", "requested ipvlan mode 'l4' is not valid, 'l2' mode is the ipvlan driver default", 1},
		{"network create -d nothing m", "", "could not find plugin nothing in v1 plugin registry: plugin not found", 1},
	} {
		s.run(t, c)
	}
	c.Must("network", "create", "-d", "macvlan", "-o", "parent=wire", "--subnet", "10.55.0.0/24", "--gateway", "10.55.0.1", "lan")
	c.Must("run", "-d", "--name", "one", "--network", "lan", "--ip", "10.55.0.9", "--mac-address", "02:42:00:00:55:09", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "two", "--network", "lan", img, "sleep", "1000")
	for _, target := range []string{"two", "10.55.0.1", "one.lan"} { // a neighbour by name, the other host, itself
		if r := c.Run("exec", "one", "ping", "-c", "1", "-W", "2", target); r.Code != 0 {
			t.Errorf("ping %s: %+v", target, r)
		}
	}
	if got := c.Must("exec", "one", "ip", "route"); !strings.Contains(got, "default via 10.55.0.1") {
		t.Errorf("routes: %s", got)
	}
	if got := c.Must("exec", "one", "cat", "/sys/class/net/eth0/address"); got != "02:42:00:00:55:09" {
		t.Errorf("hardware address: %s", got)
	}
	e.Kill9Daemon()
	e.StartDaemon()
	if r := c.Run("exec", "two", "ping", "-c", "1", "-W", "2", "one"); r.Code != 0 {
		t.Errorf("ping a after the engine was killed: %+v", r)
	}
	c.Must("rm", "-f", "one", "two")
	step{"network create -d macvlan -o parent=wire -o macvlan_mode=passthru p", "", "is already using parent interface wire", 1}.run(t, c)
	c.Must("network", "rm", "lan")

	// A VLAN of the interface is made, and goes with its last network: where the kernel has
	// VLANs. Where not, the words say so and nothing is left.
	create := []string{"network", "create", "-d", "macvlan", "-o", "parent=wire.7", "--subnet", "10.56.0.0/24", "tagged"}
	if err := e.Inside(func() error {
		wire, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		la := netlink.NewLinkAttrs()
		la.Name, la.ParentIndex = "probe", wire.Attrs().Index
		probe := &netlink.Vlan{LinkAttrs: la, VlanId: 8, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		if err := netlink.LinkAdd(probe); err != nil {
			return err
		}
		return netlink.LinkDel(probe)
	}); errors.Is(err, unix.EOPNOTSUPP) {
		step{strings.Join(create, " "), "", "operation not supported: this kernel does not have that kind of interface, or its module is not loaded", 1}.run(t, c)
		return
	}
	c.Must(create...)
	has := func(name string) bool {
		return e.Inside(func() error { _, err := netlink.LinkByName(name); return err }) == nil
	}
	if !has("wire.7") {
		t.Error("no VLAN interface")
	}
	c.Must("run", "--rm", "--network", "tagged", img, "ip", "addr", "show", "eth0")
	c.Must("network", "rm", "tagged")
	if has("wire.7") || !has("wire") {
		t.Error("the parent interfaces are wrong")
	}
}

// The engine's process stays in its own namespace, whatever its threads do in others.
func TestOwnNamespace(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--ipv6", "both")
	var own string
	if err := e.Inside(func() (err error) { own, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c.Must("run", "--rm", "--network", "both", img, "true")
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", e.DaemonPID())); err != nil || got != own {
			t.Fatalf("the engine is in %s, %v; its own is %s", got, err, own)
		}
	}
	c.Must("network", "rm", "both")
}

// What changes while a container runs: ports, routes and names go where they belong.
func TestNetworkChanges(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--subnet", "10.81.0.0/24", "one")
	c.Must("network", "create", "--ipv6", "--subnet", "10.82.0.0/24", "--subnet", "fd82::/64", "both")
	page := "while true; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\npage' | nc -l -p 80; done"
	c.Must("run", "-d", "--name", "web", "--network", "one", "-p", "8080:80", "--expose", "90", "-P", img, "sh", "-c", page)
	reach := func(addr string) func() bool {
		return func() bool { b, err := fetch(e, addr); return err == nil && b == "page" }
	}
	enginetest.Eventually(t, "the port by the first network", reach("127.0.0.1:8080"))
	c.Must("network", "connect", "--alias", "front", "both", "web")
	c.Must("network", "disconnect", "one", "web")
	enginetest.Eventually(t, "the port by the second network", reach("127.0.0.1:8080"))
	if got := c.Must("exec", "web", "ip", "route"); !strings.Contains(got, "default via 10.82.0.1") {
		t.Errorf("routes: %s", got)
	}
	c.Must("network", "disconnect", "both", "web")
	if got := c.Must("port", "web"); got != "" {
		t.Errorf("ports without a network: %s", got)
	}
	c.Must("network", "connect", "--alias", "front", "both", "web")
	enginetest.Eventually(t, "the port after coming back", reach("127.0.0.1:8080"))
	if r := c.Run("run", "--rm", "--network", "both", img, "ping", "-c", "1", "-W", "2", "front"); r.Code != 0 {
		t.Errorf("the alias: %+v", r)
	}
	c.Must("network", "connect", "--gw-priority", "5", "one", "web")
	if got := c.Must("exec", "web", "ip", "route"); !strings.Contains(got, "default via 10.81.0.1") {
		t.Errorf("routes: %s", got)
	}
	c.Must("rm", "-f", "web")

	// An address of each family; those that name a port come before those that take any.
	c.Must("run", "-d", "--name", "six", "--network", "both", "-p", "[::1]:8086:80", "-p", "80", "-p", "32768:90", img, "sleep", "100")
	if got := c.Must("port", "six"); !strings.Contains(got, "[::1]:8086") || !strings.Contains(got, "90/tcp -> 0.0.0.0:32768") {
		t.Errorf("ports: %s", got)
	}
	step{"run --rm --network both -p [::1]:8086:80 IMG true", "", "port is already allocated", 125}.run(t, c)
	c.Must("rm", "-f", "six")

	c.Must("run", "-d", "--name", "box", "--network", "one", "--link-local-ip", "169.254.7.7", "--link-local-ip", "fe80::254:77", img, "sleep", "100")
	for _, a := range []string{"169.254.7.7/16", "fe80::254:77/64"} {
		if got := c.Must("exec", "box", "ip", "addr"); !strings.Contains(got, a) {
			t.Errorf("no address %s: %s", a, got)
		}
	}
	c.Must("run", "-d", "--name", "onhost", "--network", "host", img, "sleep", "100")
	for _, s := range []step{
		{"network connect host box", "", "cannot connect container to host network - container must be created in host network mode", 1},
		{"network disconnect host onhost", "", "cannot disconnect container from host network - container was created in host network mode", 1},
		{"network connect none box", "", "container cannot be connected to multiple networks with one of the networks in private (none) mode", 1},
		{"network connect --ip 172.17.0.9 bridge box", "", "invalid endpoint settings:\nuser-specified IP address is supported on user-defined networks only", 1},
		{"network connect --alias x bridge box", "", "network-scoped aliases are only supported for user-defined networks", 1},
		{"network connect --ip 10.99.0.9 both box", "", "no configured subnet contains IP address 10.99.0.9", 1},
		{"network connect --ip6 10.82.0.9 both box", "", "invalid IPv6 address: 10.82.0.9", 1},
		{"network connect --link-local-ip 10.82.0.9 both box", "", "invalid link-local IP address: 10.82.0.9", 1},
		{"network connect one box", "", "endpoint with name box already exists in network one", 1},
		{"run --rm --network-alias x IMG true", "", "network-scoped aliases are only supported for user-defined networks", 125},
	} {
		s.run(t, c)
	}
	c.Must("rm", "-f", "box", "onhost")
	c.Must("network", "rm", "one", "both")
}

// Links by their names: what they open where containers may not speak with each other, what
// follows a target that is renamed or comes back elsewhere, and their end.
func TestLinkNames(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--icc=false"))
	c := e.Client("docker")
	serve := "(while true; do echo open | nc -l -p 5432; done) & while true; do echo closed | nc -l -p 5433; done"
	c.Must("run", "-d", "--name", "db", "--expose", "5432", img, "sh", "-c", serve)
	c.Must("run", "-d", "--name", "web", "--link", "db:store", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "other", img, "sleep", "1000")
	reach := func(from, to, port string) string {
		return c.Run("exec", from, "nc", "-w", "1", to, port).Out
	}
	enginetest.Eventually(t, "the link", func() bool { return reach("web", "store", "5432") == "open\n" })
	ip := addressOf(c, "db", "bridge")
	if got := reach("web", ip, "5433"); got != "" {
		t.Errorf("a link opens a port that is not exposed: %q", got)
	}
	if got := reach("other", ip, "5432"); got != "" {
		t.Errorf("icc=false lets a stranger through: %q", got)
	}
	if got := c.Must("ps", "--no-trunc", "--format", "{{.Names}}", "--filter", "name=db"); got != "db,web/store" {
		t.Errorf("names: %s", got)
	}
	if got := c.Must("ps", "--format", "{{.Names}}", "--filter", "id="+c.Inspect("db", "{{.Id}}")); got != "db" {
		t.Errorf("names: %s", got)
	}
	if a, b := c.Inspect("web/store", "{{.Id}}"), c.Inspect("db", "{{.Id}}"); a != b {
		t.Errorf("web/store is %s, db is %s", a, b)
	}
	if got := c.Must("exec", "web/store", "hostname"); !strings.HasPrefix(c.Inspect("db", "{{.Id}}"), got) {
		t.Errorf("exec by a link's name: %s", got)
	}
	c.Must("rename", "db", "base")
	if got := c.Inspect("web", "{{.HostConfig.Links}}"); got != "[/base:/web/store]" {
		t.Errorf("links: %s", got)
	}
	c.Must("stop", "-t", "0", "base")
	c.Must("run", "-d", "--name", "taker", img, "sleep", "1000") // takes the address, or another
	c.Must("start", "base")
	enginetest.Eventually(t, "the link to a target that came back", func() bool { return reach("web", "store", "5432") == "open\n" })
	e.Kill9Daemon()
	e.StartDaemon()
	if got := reach("web", "store", "5432"); got != "open\n" {
		t.Errorf("the link after the engine was killed: %q", got)
	}
	step{"rm --link web/nothing", "", "No such container: web/nothing", 1}.run(t, c)
	step{"rm --link web", "", "cannot remove the default link name of the container: /web", 1}.run(t, c)
	c.Must("rm", "--link", "web/store")
	if got := c.Inspect("web", "{{.HostConfig.Links}}"); got != "[]" {
		t.Errorf("links after rm --link: %s", got)
	}
	if got := reach("web", addressOf(c, "base", "bridge"), "5432"); got != "" {
		t.Errorf("a removed link lets packets through: %q", got)
	}
	c.Must("rm", "-f", "base", "web", "other", "taker")
}

// Rules that somebody has removed come back, and published ports with them.
func TestRulesComeBack(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("run", "-d", "--name", "web", "-p", "8080:80", img, "sh", "-c", "while true; do echo here | nc -l -p 80; done")
	ask := func() (got string) {
		_ = e.Inside(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond}
			conn, err := d.Dial("tcp", "127.0.0.1:8080")
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			b, err := io.ReadAll(conn)
			got = string(b)
			return err
		})
		return got
	}
	enginetest.Eventually(t, "the published port", func() bool { return ask() == "here\n" })
	if err := e.Inside(func() error {
		n, err := nftables.New()
		if err != nil {
			return err
		}
		n.FlushRuleset()
		return n.Flush()
	}); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "the published port after a flush", func() bool { return ask() == "here\n" })
	c.Must("rm", "-f", "web")
}

// Many ports are one change, and a range is one entry.
func TestManyPorts(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("run", "-d", "--name", "many", "-p", "20000-20999:20000-20999", img, "sh", "-c", "echo here | nc -l -p 20500; sleep 100")
	enginetest.Eventually(t, "the middle of the range", func() bool {
		var got string
		_ = e.Inside(func() error {
			d := net.Dialer{Timeout: time.Second}
			conn, err := d.Dial("tcp", "127.0.0.1:20500")
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			b, err := io.ReadAll(conn)
			got = string(b)
			return err
		})
		return got == "here\n"
	})
	if r := c.Run("run", "--rm", "-p", "20999:80", img, "true"); r.Code != 125 || !strings.Contains(r.Err, "port is already allocated") {
		t.Errorf("a port of the range again: %+v", r)
	}
	c.Must("rm", "-f", "many")
	c.Must("run", "--rm", "-p", "20999:80", img, "true")
}
