package client

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// What a daemon's options make of networks: a subnet of its own for the default bridge,
// options for all new networks, links also by IPv6 where neighbours may not speak.
func TestNetworkDefaults(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--fixed-cidr=192.168.50.0/24", "--ipv6", "--fixed-cidr-v6=fd99::/64", "--icc=false",
		"--default-network-opt=bridge=com.docker.network.driver.mtu=1400", "--default-network-opt=bridge=com.docker.network.enable_ipv6=true"))
	c := e.Client("docker")
	if got := c.Must("run", "--rm", img, "ip", "route"); !strings.Contains(got, "default via 192.168.50.1 ") {
		t.Errorf("routes: %s", got)
	}
	c.Must("network", "create", "plain")
	c.Must("network", "create", "--ipv6=false", "-o", "com.docker.network.driver.mtu=1300", "own")
	for name, want := range map[string]string{"plain": "1400 true", "own": "1300 false"} {
		if got := c.Must("network", "inspect", name, "-f", `{{index .Options "com.docker.network.driver.mtu"}} {{.EnableIPv6}}`); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := c.Must("network", "inspect", "plain", "-f", `{{range .IPAM.Config}}{{.Subnet}} {{end}}`); !strings.Contains(got, " fd") {
		t.Errorf("a subnet of IPv6 that nobody asked for by name: %s", got)
	}
	c.Must("run", "-d", "--name", "db", "--expose", "80", img, "sh", "-c", "httpd -p 81; exec httpd -f -p 80")
	c.Must("run", "-d", "--name", "app", "--link", "db", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "other", img, "sleep", "1000")
	app, other := namespaceOf(t, c, "app"), namespaceOf(t, c, "other")
	for _, a := range []string{addressOf(c, "db", "bridge"), "[" + address6(c, "db", "bridge") + "]"} {
		call := func(ns int, port string) bool {
			return within(ns, func() error { return page(a+":"+port, 300*time.Millisecond) }) == nil
		}
		enginetest.Eventually(t, "an answer to who is linked at "+a, func() bool { return call(app, "80") })
		if call(app, "81") || call(other, "80") {
			t.Errorf("%s answers to one without a link, or by another port", a)
		}
	}
	c.Must("rm", "-f", "db", "app", "other")
	c.Must("network", "rm", "plain", "own")
}

// What a container asks of a network: names and settings of interfaces, no IPv6, a route
// that it has set itself.
func TestEndpointOptions(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	for i, name := range []string{"n0", "n1", "n2"} {
		c.Must("network", "create", "--ipv6", "--subnet", fmt.Sprintf("10.90.%d.0/24", i), name)
	}
	c.Must("run", "-d", "--name", "named", "--network", "name=n0,driver-opt=com.docker.network.endpoint.ifname=eth1", "--network", "n1", img, "sleep", "1000")
	c.Must("network", "connect", "n2", "named")
	for dev, want := range map[string]string{"eth1": "10.90.0.", "eth0": "10.90.1.", "eth2": "10.90.2."} {
		if got := c.Must("exec", "named", "ip", "-4", "addr", "show", dev); !strings.Contains(got, want) {
			t.Errorf("%s: %s", dev, got)
		}
	}
	step{"network connect --driver-opt com.docker.network.endpoint.ifname=eth0 bridge named", "", "error renaming interface", 1}.run(t, c)
	const set = "com.docker.network.endpoint.sysctls"
	if got := c.Must("run", "--rm", "--network", "name=n0,driver-opt="+set+"=net.ipv4.conf.IFNAME.log_martians=1", img, "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians"); got != "1" {
		t.Errorf("a setting of the interface: %s", got)
	}
	step{"run --rm --network name=n0,driver-opt=" + set + "=net.ipv4.conf.eth0.log_martians=1 IMG true", "", "unrecognised network interface sysctl", 125}.run(t, c)
	for name, args := range map[string][]string{
		"off":  {"--network", "n0", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1"},
		"off2": {"--network", "name=n0,driver-opt=" + set + "=net.ipv6.conf.IFNAME.disable_ipv6=1"},
	} {
		c.Must(append(append([]string{"run", "-d", "--name", name}, args...), img, "sleep", "1000")...)
		if got := address6(c, name, "n0"); got != "" && got != "invalid IP" {
			t.Errorf("%s has %s", name, got)
		}
		if got := c.Must("exec", name, "ip", "-6", "addr", "show", "eth0"); got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := c.Must("exec", "off", "cat", "/etc/hosts"); strings.Contains(got, "::") {
		t.Errorf("hosts without IPv6: %s", got)
	}
	// A default route of its own is not replaced, and nothing is left of the attempt.
	c.Must("network", "create", "--internal", "--subnet", "10.91.0.0/24", "in")
	c.Must("run", "-d", "--name", "routed", "--network", "in", "--cap-add", "NET_ADMIN", img, "sleep", "1000")
	c.Must("exec", "routed", "ip", "route", "add", "default", "via", "10.91.0.1")
	step{"network connect n1 routed", "", "failed to set gateway: file exists", 1}.run(t, c)
	if got := c.Inspect("routed", "{{len .NetworkSettings.Networks}}") + c.Must("exec", "routed", "ls", "/sys/class/net"); strings.Contains(got, "eth1") || !strings.HasPrefix(got, "1") {
		t.Errorf("left: %s", got)
	}
	c.Must("exec", "routed", "ip", "route", "del", "default")
	c.Must("network", "connect", "n1", "routed")
	// Each family by the network that has it.
	c.Must("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd91::/64", "only6")
	c.Must("network", "create", "--subnet", "10.92.0.0/24", "only4")
	c.Must("run", "-d", "--name", "split", "--network", "only4", "--network", "only6", "-p", "8088:80", img, "httpd", "-f", "-p", "80")
	if got := c.Must("exec", "split", "ip", "-6", "route"); !strings.Contains(got, "default via fd91::1") {
		t.Errorf("routes of IPv6: %s", got)
	}
	for _, at := range []string{"127.0.0.1:8088", "[::1]:8088", "[fd91::1]:8088"} {
		enginetest.Eventually(t, "an answer at "+at, func() bool { return e.Inside(func() error { return page(at, time.Second) }) == nil })
	}
	// A network that goes while a stopped container is on it.
	c.Must("create", "--name", "stays", "--network", "only4", img, "true")
	c.Must("rm", "-f", "split")
	c.Must("network", "rm", "only4")
	step{"network disconnect only4 stays", "", "network only4 not found", 1}.run(t, c)
	c.Must("network", "disconnect", "-f", "only4", "stays")
	if got := c.Inspect("stays", "{{json .NetworkSettings.Networks}}"); strings.Contains(got, "only4") {
		t.Errorf("networks: %s", got)
	}
	c.Must("rm", "-f", "stays", "routed", "off", "off2", "named")
	c.Must("network", "rm", "n0", "n1", "n2", "in", "only6")
}

// Kinds of networks that few make: for others' configuration, of a size only, and how full
// they are.
func TestNetworkForms(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--config-only", "--subnet", "10.95.0.0/24", "--label", "a=b", "-o", "com.docker.network.driver.mtu=1280", "cfg")
	c.Must("network", "create", "--config-from", "cfg", "from")
	if got := c.Must("network", "inspect", "from", "-f", `{{(index .IPAM.Config 0).Subnet}} {{.ConfigFrom.Network}} {{index .Options "com.docker.network.driver.mtu"}} {{.Labels.a}}`); got != "10.95.0.0/24 cfg 1280 b" {
		t.Errorf("made from a configuration: %s", got)
	}
	for _, s := range []step{
		{"network rm cfg", "", `configuration network "cfg" is in use`, 1},
		{"network create --config-from none x", "", `configuration network "none" does not exist`, 1},
		{"network create --config-from cfg --subnet 10.96.0.0/24 x", "", "user-specified configurations are not supported if the network depends on a configuration network", 1},
		{"network create --config-only --internal x", "", "configuration network can only contain network specific fields", 1},
		{"network create --scope swarm x", "", "This node is not a swarm manager", 1},
		{"network create -o com.docker.network.advertise_addr_nmsgs=4 x", "", "com.docker.network.advertise_addr_nmsgs must be in the range 0 to 3", 1},
		{"network create -o com.docker.network.advertise_addr_ms=nonsense x", "", `"nonsense" must be integer milliseconds`, 1},
	} {
		s.run(t, c)
	}
	e.Restart()
	c.Must("run", "--rm", "--network", "from", img, "true")
	c.Must("network", "rm", "from", "cfg")
	c.Must("network", "create", "--subnet", "0.0.0.0/24", "--ipv6", "--subnet", "::/120", "sized")
	if got := c.Must("network", "inspect", "sized", "-f", `{{range .IPAM.Config}}{{.Subnet}} {{end}}`); strings.HasPrefix(got, "0.0.0.0") || !strings.Contains(got, "/24 fd") || !strings.Contains(got, "/120") {
		t.Errorf("subnets by size: %s", got)
	}
	c.Must("network", "create", "--subnet", "10.97.0.0/24", "--ip-range", "10.97.0.64/31", "--aux-address", "x=10.97.0.65", "full")
	c.Must("run", "-d", "--name", "one", "--network", "full", img, "sleep", "1000")
	var n network.Inspect
	if status, text := e.Call(http.MethodGet, "/v1.52/networks/full", nil, &n); status != http.StatusOK || n.Status == nil {
		t.Fatalf("inspect: %d %s", status, text)
	}
	for p, s := range n.Status.IPAM.Subnets { // subnet, broadcast, gateway, the auxiliary one and the container
		if s.IPsInUse != 5 || s.DynamicIPsAvailable != 0 {
			t.Errorf("%s: %+v", p, s)
		}
	}
	var made struct {
		Id       string
		Warnings []string
	}
	body := map[string]any{"Image": img, "HostConfig": map[string]any{"PortBindings": map[string]any{"80/tcp": []any{}}}}
	if status, text := e.Call(http.MethodPost, "/v1.52/containers/create?name=empty", body, &made); status != http.StatusCreated || len(made.Warnings) != 1 || !strings.Contains(made.Warnings[0], "empty list of port-bindings: 80/tcp.") {
		t.Errorf("an empty list of bindings: %d %s %v", status, text, made)
	}
	c.Must("rm", "-f", "empty", "one")
	c.Must("network", "rm", "full", "sized")
}

// Where the neighbours may know an address by another hardware address, they are told.
func TestAnnounced(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("network", "create", "--ipv6", "--subnet", "10.98.0.0/24", "--subnet", "fd98::/64", "-o", "com.docker.network.bridge.name=told0", "-o", "com.docker.network.advertise_addr_ms=100", "told")
	var sock *os.File
	if err := e.Inside(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0x0608) // ARP, in the wire's order
		if err == nil {
			sock = os.NewFile(uintptr(fd), "arp")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	c.Must("run", "-d", "--name", "one", "--network", "told", "--ip", "10.98.0.9", "--mac-address", "02:00:00:00:00:09", img, "sleep", "1000")
	b := make([]byte, 200)
	_ = sock.SetReadDeadline(time.Now().Add(enginetest.Patience()))
	for heard := 0; heard < 2; { // of three: the first may be sent before the bridge forwards
		n, err := sock.Read(b)
		if err != nil {
			t.Fatalf("heard %d times: %v", heard, err)
		}
		// The bridge and its port both hear it: one of them counts.
		if n >= 28 && string(b[8:18]) == "\x02\x00\x00\x00\x00\x09\x0a\x62\x00\x09" && string(b[24:28]) == "\x0a\x62\x00\x09" {
			heard++
		}
	}
	c.Must("rm", "-f", "one")
	c.Must("network", "rm", "told")
}
