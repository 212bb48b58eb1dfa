package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/internal/enginetest"
)

// weaver is a plugin that makes networks of bridges of its own, and hands out addresses.
type weaver struct {
	name   string
	e      *enginetest.Engine // whose namespace its interfaces are in
	t      *testing.T
	forget bool // what it handed out must be asked for again by a new engine

	mu    sync.Mutex
	srv   *http.Server
	calls []string // methods, in order
	nets  map[string]map[string]bool
	opts  map[string]any // of the last network
	ports any            // of the last endpoint that is the way out
	pools map[string]map[string]bool
	lent  map[string]bool // interfaces, by endpoint
	next  int
	fail  map[string]string // what a method answers instead
}

func newWeaver(t *testing.T) *weaver {
	t.Helper()
	enginetest.RequireRoot(t)
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	w := &weaver{
		name: fmt.Sprintf("w%d-%s", os.Getpid(), name), t: t, nets: map[string]map[string]bool{}, pools: map[string]map[string]bool{}, fail: map[string]string{}, lent: map[string]bool{},
	}
	w.listen()
	t.Cleanup(w.close)
	return w
}

func (w *weaver) socket() string { return filepath.Join("/run/docker/plugins", w.name+".sock") }

func (w *weaver) listen() {
	if err := os.MkdirAll(filepath.Dir(w.socket()), 0o755); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("unix", w.socket())
	if err != nil {
		w.t.Fatal(err)
	}
	w.srv = &http.Server{Handler: w}
	go func(s *http.Server) { _ = s.Serve(l) }(w.srv)
}

func (w *weaver) close() { _ = w.srv.Close(); _ = os.Remove(w.socket()) }

// heard counts the calls of a method.
func (w *weaver) heard(method string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c == method {
			n++
		}
	}
	return n
}

type weaverRequest struct {
	NetworkID, EndpointID, SandboxKey string
	PoolID, Pool, SubPool, Address    string
	AddressSpace                      string
	Options                           map[string]any
	Interface                         struct{ Address, AddressIPv6, MacAddress string }
	IPv4Data                          []struct{ AddressSpace, Pool, Gateway string }
	DiscoveryType                     int
	V6                                bool
}

func (w *weaver) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	method := strings.TrimPrefix(r.URL.Path, "/")
	w.calls = append(w.calls, method)
	var q weaverRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil && err != io.EOF {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if why := w.fail[method]; why != "" {
		_ = json.NewEncoder(rw).Encode(map[string]string{"Err": why, "Error": why})
		return
	}
	answer, err := w.answer(method, &q)
	switch {
	case err != nil:
		http.Error(rw, fmt.Sprintf(`{"Err":%q}`, err.Error()), http.StatusInternalServerError)
	case answer == nil:
		http.NotFound(rw, r)
	default:
		_ = json.NewEncoder(rw).Encode(answer)
	}
}

// short is the part of an id that names interfaces.
func short(id string) string { return id[:8] }

func (w *weaver) answer(method string, q *weaverRequest) (any, error) {
	type m = map[string]any
	inside := func(f func() error) (any, error) { return m{}, w.e.Inside(f) }
	switch method {
	case "Plugin.Activate":
		return m{"Implements": []string{"NetworkDriver", "IpamDriver"}}, nil
	case "NetworkDriver.GetCapabilities":
		return m{"Scope": "local", "ConnectivityScope": "global"}, nil
	case "NetworkDriver.CreateNetwork":
		w.nets[q.NetworkID], w.opts = map[string]bool{}, q.Options
		return inside(func() error {
			la := netlink.NewLinkAttrs()
			la.Name, la.HardwareAddr = "pb"+short(q.NetworkID), net.HardwareAddr{2, 0xfe, 0, 0, 1, 1}
			br := &netlink.Bridge{LinkAttrs: la}
			if err := netlink.LinkAdd(br); err != nil {
				return err
			}
			for _, d := range q.IPv4Data {
				if a, err := netlink.ParseAddr(d.Gateway); err == nil {
					if err := netlink.AddrAdd(br, a); err != nil {
						return err
					}
				}
			}
			return netlink.LinkSetUp(br)
		})
	case "NetworkDriver.DeleteNetwork":
		delete(w.nets, q.NetworkID)
		return inside(func() error { return unlink("pb" + short(q.NetworkID)) })
	case "NetworkDriver.CreateEndpoint":
		w.nets[q.NetworkID][q.EndpointID] = true
		if q.Interface.MacAddress == "" {
			w.next++
			return m{"Interface": m{"MacAddress": fmt.Sprintf("02:fe:00:00:00:%02x", w.next)}}, nil
		}
		return m{}, nil
	case "NetworkDriver.EndpointOperInfo":
		return m{"Value": m{}}, nil
	case "NetworkDriver.Join":
		if _, err := os.Stat(q.SandboxKey); err != nil {
			return nil, err
		}
		gw := ""
		_, err := inside(func() error {
			br, err := netlink.LinkByName("pb" + short(q.NetworkID))
			if err != nil {
				return err
			}
			if list, err := netlink.AddrList(br, netlink.FAMILY_V4); err == nil && len(list) > 0 {
				gw = list[0].IP.String()
			}
			w.lent[q.EndpointID] = true
			la := netlink.NewLinkAttrs()
			la.Name, la.MasterIndex, la.Flags = "ph"+short(q.EndpointID), br.Attrs().Index, net.FlagUp
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "pc" + short(q.EndpointID)})
		})
		return m{
			"InterfaceName": m{"SrcName": "pc" + short(q.EndpointID), "DstPrefix": "woven"}, "Gateway": gw,
			"StaticRoutes": []m{{"Destination": "198.51.100.0/24", "RouteType": 0, "NextHop": gw}, {"Destination": "203.0.113.0/24", "RouteType": 1}},
		}, err
	case "NetworkDriver.ProgramExternalConnectivity":
		w.ports = q.Options["com.docker.network.portmap"]
		return m{}, nil
	case "NetworkDriver.Leave":
		return m{}, nil
	case "NetworkDriver.DeleteEndpoint":
		delete(w.nets[q.NetworkID], q.EndpointID)
		return inside(func() error { // what was lent is back
			if err := unlink("pc" + short(q.EndpointID)); err != nil && w.lent[q.EndpointID] {
				w.t.Errorf("an interface is not given back: %v", err)
			}
			return nil
		})
	case "IpamDriver.GetCapabilities":
		return m{"RequiresMACAddress": true, "RequiresRequestReplay": w.forget}, nil
	case "IpamDriver.GetDefaultAddressSpaces":
		return m{"LocalDefaultAddressSpace": "mine", "GlobalDefaultAddressSpace": "ours"}, nil
	case "IpamDriver.RequestPool":
		if q.Pool == "" {
			w.next++
			q.Pool = fmt.Sprintf("10.199.%d.0/24", w.next)
		}
		if q.AddressSpace != "mine" || w.pools[q.Pool] != nil {
			return m{"Error": "no such pool: " + q.AddressSpace + " " + q.Pool}, nil
		}
		w.pools[q.Pool], w.opts = map[string]bool{}, q.Options
		return m{"PoolID": "mine/" + q.Pool, "Pool": q.Pool}, nil
	case "IpamDriver.ReleasePool":
		delete(w.pools, strings.TrimPrefix(q.PoolID, "mine/"))
		return m{}, nil
	case "IpamDriver.RequestAddress":
		pool := netip.MustParsePrefix(strings.TrimPrefix(q.PoolID, "mine/"))
		taken := w.pools[pool.String()]
		if q.Options["RequestAddressType"] == nil && q.Options["com.docker.network.endpoint.macaddress"] == nil && !w.forget {
			return m{"Error": "no hardware address"}, nil
		}
		if q.Address == "" {
			a := pool.Addr().Next()
			for taken[a.String()] {
				a = a.Next()
			}
			q.Address = a.String()
		} else if taken[q.Address] {
			return m{"Error": "Address already in use"}, nil
		}
		taken[q.Address] = true
		return m{"Address": fmt.Sprintf("%s/%d", q.Address, pool.Bits())}, nil
	case "IpamDriver.ReleaseAddress":
		delete(w.pools[strings.TrimPrefix(q.PoolID, "mine/")], q.Address)
		return m{}, nil
	}
	return nil, nil
}

func unlink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// links are the names of the host's interfaces, without those of namespaces that wait.
func links(t *testing.T, e *enginetest.Engine) (out []string) {
	t.Helper()
	if err := e.Inside(func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			if l.Type() != "veth" || !strings.HasPrefix(l.Attrs().Name, "veth") {
				out = append(out, l.Attrs().Name)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// kind is one driver, as the suite that all of them pass sees it.
type kind struct {
	create []string // arguments of network create
	driver string
	ipam   string
	subnet string
	ip     string // that can be asked for, "" where none can
	ifname string // in the container
	mac    bool   // a hardware address can be asked for
	gw     bool   // the host is the gateway
	kernel bool   // not every kernel has it
	away   func() // called while the engine is
}

// Every driver of networks gives containers what they ask for, and takes it back.
func TestDrivers(t *testing.T) {
	t.Parallel()
	w := newWeaver(t)
	w.forget = true
	e := enginetest.Start(t)
	w.e = e
	c := e.Client("docker")
	if err := e.Inside(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "wire"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "far"}); err != nil {
			return err
		}
		for _, name := range []string{"wire", "far"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	lose := func() { w.mu.Lock(); clear(w.pools); w.mu.Unlock() }
	lan := []string{"-o", "parent=wire", "--subnet", "10.55.0.0/24", "--gateway", "10.55.0.1"}
	for name, k := range map[string]kind{
		"bridge":      {create: []string{"--subnet", "10.54.0.0/24"}, driver: "bridge", ipam: "default", subnet: "10.54.0.0/24", ip: "10.54.0.77", ifname: "eth0", mac: true, gw: true},
		"macvlan":     {create: append([]string{"-d", "macvlan"}, lan...), driver: "macvlan", ipam: "default", subnet: "10.55.0.0/24", ip: "10.55.0.77", ifname: "eth0", mac: true, kernel: true},
		"ipvlan":      {create: append([]string{"-d", "ipvlan"}, lan...), driver: "ipvlan", ipam: "default", subnet: "10.55.0.0/24", ip: "10.55.0.77", ifname: "eth0", kernel: true},
		"plugin":      {create: []string{"-d", w.name, "--subnet", "10.56.0.0/24", "-o", "colour=red"}, driver: w.name, ipam: "default", subnet: "10.56.0.0/24", ip: "10.56.0.77", ifname: "woven0", mac: true, gw: true},
		"ipam":        {create: []string{"--ipam-driver", w.name, "--subnet", "10.57.0.0/24"}, driver: "bridge", ipam: w.name, subnet: "10.57.0.0/24", ip: "10.57.0.77", ifname: "eth0", mac: true, gw: true, away: lose},
		"plugin-ipam": {create: []string{"-d", w.name, "--ipam-driver", w.name, "--ipam-opt", "shape=round"}, driver: w.name, ipam: w.name, subnet: "10.199.0.0/16", ifname: "woven0", gw: true, away: lose},
	} {
		t.Run(name, func(t *testing.T) { k.pass(t, e, c, "net-"+name) })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.nets) > 0 || len(w.pools) > 0 {
		t.Errorf("left with the plugin: %v, %v", w.nets, w.pools)
	}
	for name, want := range map[string]string{"none": "lo", "host": "wire"} { // those that there is one of
		if got := c.Must("run", "--rm", "--network", name, img, "ls", "/sys/class/net"); !slices.Contains(strings.Fields(got), want) || slices.Contains(strings.Fields(got), "eth0") {
			t.Errorf("--network %s: %s", name, got)
		}
	}
	step{"network create -d host x", "", `only one instance of "host" network is allowed`, 1}.run(t, c)
	step{"network create -d null x", "", `only one instance of "null" network is allowed`, 1}.run(t, c)
	step{"network create -d overlay x", "", `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`, 1}.run(t, c)
}

func (k kind) pass(t *testing.T, e *enginetest.Engine, c *enginetest.Client, name string) {
	before := links(t, e)
	if r := c.Run(append(append([]string{"network", "create"}, k.create...), name)...); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	step{"network create " + name, "", "network with name " + name + " already exists", 1}.run(t, c)
	if got := c.Must("network", "inspect", "-f", "{{.Driver}} {{.Scope}} {{.IPAM.Driver}}", name); got != k.driver+" local "+k.ipam {
		t.Errorf("inspect: %s", got)
	}
	run := func(id string, args ...string) enginetest.Result {
		return c.Run(append(append([]string{"run", "-d", "--name", id, "--network", name}, args...), img, "sleep", "1000")...)
	}
	if r := run("one"); k.kernel && strings.Contains(r.Err, "this kernel does not have that kind of interface") {
		c.Must("rm", "one")
		c.Must("network", "rm", name)
		if after := links(t, e); !slices.Equal(before, after) {
			t.Errorf("interfaces %v, were %v", after, before)
		}
		return
	} else if r.Code != 0 {
		t.Fatalf("run: %+v", r)
	}
	var args []string
	if k.ip != "" {
		args = append(args, "--ip", k.ip)
	}
	if k.mac {
		args = append(args, "--mac-address", "02:42:00:00:77:77")
	}
	if r := run("two", args...); r.Code != 0 {
		t.Fatalf("run with %v: %+v", args, r)
	}
	one, two := addressOf(c, "one", name), addressOf(c, "two", name)
	subnet := netip.MustParsePrefix(k.subnet)
	for _, a := range []string{one, two} {
		if ip, err := netip.ParseAddr(a); err != nil || !subnet.Contains(ip) || one == two {
			t.Errorf("address %q", a)
		}
	}
	if k.ip != "" && two != k.ip {
		t.Errorf("address %s, asked for %s", two, k.ip)
	}
	for id, ip := range map[string]string{"one": one, "two": two} {
		if got := c.Must("exec", id, "ip", "-4", "-o", "addr", "show", k.ifname); !strings.Contains(got, ip+"/") {
			t.Errorf("%s has %s, not %s", id, got, ip)
		}
		shown := c.Inspect(id, fmt.Sprintf("{{(index .NetworkSettings.Networks %q).MacAddress}}", name))
		if got := c.Must("exec", id, "cat", "/sys/class/net/"+k.ifname+"/address"); got != shown || k.mac && id == "two" && got != "02:42:00:00:77:77" {
			t.Errorf("%s has hardware address %s, %s is shown", id, got, shown)
		}
	}
	gw := c.Inspect("one", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).Gateway}}", name))
	if got := c.Must("exec", "one", "ip", "route"); gw == "" || !strings.Contains(got, "default via "+gw+" dev "+k.ifname) {
		t.Errorf("gateway %s; routes: %s", gw, got)
	}
	reach := func() {
		t.Helper()
		for _, to := range []string{"two", two, "one." + name} {
			if r := c.Run("exec", "one", "ping", "-c", "1", "-W", "2", to); r.Code != 0 {
				t.Errorf("ping %s: %+v", to, r)
			}
		}
		if r := c.Run("exec", "one", "ping", "-c", "1", "-W", "2", gw); k.gw && r.Code != 0 {
			t.Errorf("ping the gateway: %+v", r)
		}
	}
	reach()
	if k.ip != "" {
		step{"run --rm --network " + name + " --ip " + k.ip + " IMG true", "", "Address already in use", 125}.run(t, c)
	}
	step{"network rm " + name, "", "has active endpoints", 1}.run(t, c)

	// Connected, and disconnected, while it runs.
	c.Must("run", "-d", "--name", "guest", img, "sleep", "1000")
	c.Must("network", "connect", name, "guest")
	ip := addressOf(c, "guest", name)
	if got := c.Must("exec", "guest", "ip", "-4", "-o", "addr"); !strings.Contains(got, ip+"/") {
		t.Errorf("%s after connect: %s", ip, got)
	}
	if got := c.Must("exec", "guest", "ip", "route"); strings.Count(got, "default") != 1 {
		t.Errorf("routes after connect: %s", got)
	}
	c.Must("exec", "guest", "ping", "-c", "1", "-W", "2", "two")
	c.Must("network", "disconnect", "bridge", "guest")
	if got := c.Must("exec", "guest", "ip", "route"); !strings.Contains(got, "default via "+gw) {
		t.Errorf("routes without the other network: %s", got)
	}
	c.Must("network", "disconnect", name, "guest")
	if got := c.Must("exec", "guest", "ls", "/sys/class/net"); got != "lo" && !strings.Contains(got, "tunl") {
		t.Errorf("interfaces after disconnect: %s", got)
	}
	// The engine is killed: nothing moves, and all is known again.
	e.Kill9Daemon()
	if k.away != nil {
		k.away()
	}
	e.StartDaemon()
	reach()
	c.Must("network", "connect", name, "guest")
	if got := addressOf(c, "guest", name); got == one || got == two {
		t.Errorf("%s twice", got)
	}
	c.Must("restart", "-t", "0", "two")
	two = addressOf(c, "two", name)
	if r := c.Run("exec", "two", "ping", "-c", "1", "-W", "2", "one"); r.Code != 0 { // its new hardware address is known now
		t.Errorf("ping back: %+v", r)
	}
	reach()
	c.Must("rm", "-f", "one", "two", "guest")
	c.Must("network", "rm", name)
	if after := links(t, e); !slices.Equal(before, after) {
		t.Errorf("interfaces %v, were %v", after, before)
	}
}

// Plugins fail in every way that they can; the engine says so, leaves nothing behind, and
// boots without them.
func TestPluginFailures(t *testing.T) {
	t.Parallel()
	w := newWeaver(t)
	e := enginetest.Start(t)
	w.e = e
	c := e.Client("docker")
	refuse := func(method, why string) { w.mu.Lock(); w.fail[method] = why; w.mu.Unlock() }
	for _, s := range []step{
		{"network create -d nosuch x", "", "could not find plugin nosuch in v1 plugin registry: plugin not found", 1},
		{"network create --ipam-driver nosuch x", "", "could not find plugin nosuch in v1 plugin registry: plugin not found", 1},
		{"network create --ipam-driver null x", "", "ipv4 pool is empty", 1},
		{"network create -d " + w.name + " --ipam-driver null --subnet 10.1.0.0/24 x", "", "null ipam driver does not handle specific address pool requests", 1},
		{"network create -d ../../tmp/x x", "", "invalid plugin name", 1},
	} {
		s.run(t, c)
	}
	for _, method := range []string{"NetworkDriver.CreateNetwork", "IpamDriver.RequestPool", "IpamDriver.RequestAddress", "IpamDriver.GetDefaultAddressSpaces"} {
		refuse(method, "not today")
		step{"network create -d " + w.name + " --ipam-driver " + w.name + " x", "", "remote: not today", 1}.run(t, c)
		refuse(method, "")
	}
	c.Must("network", "create", "-d", w.name, "--ipam-driver", w.name, "-o", "a=b", "net")
	w.mu.Lock()
	if got := fmt.Sprint(w.opts["com.docker.network.generic"]); got != "map[a:b]" {
		t.Errorf("options %v", w.opts)
	}
	w.mu.Unlock()
	for _, method := range []string{"IpamDriver.RequestAddress", "NetworkDriver.CreateEndpoint", "NetworkDriver.Join", "NetworkDriver.ProgramExternalConnectivity"} {
		refuse(method, "not today")
		step{"run --rm --network net IMG true", "", "remote: not today", 125}.run(t, c)
		refuse(method, "")
	}
	w.mu.Lock()
	for id, eps := range w.nets {
		if len(eps) > 0 {
			t.Errorf("endpoints are left: %s %v", id, eps)
		}
	}
	for id, taken := range w.pools {
		if len(taken) != 1 { // the gateway
			t.Errorf("addresses are left: %s %v", id, taken)
		}
	}
	w.mu.Unlock()
	// Ports are the plugin's to publish.
	c.Must("run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", img, "sleep", "1000")
	w.mu.Lock()
	if got, _ := json.Marshal(w.ports); !strings.Contains(string(got), `"HostPort":8080`) || !strings.Contains(string(got), `"Port":80,`) {
		t.Errorf("ports %s", got)
	}
	w.mu.Unlock()
	if got := c.Must("exec", "web", "ip", "route"); !strings.Contains(got, "198.51.100.0/24 via") || !strings.Contains(got, "203.0.113.0/24 dev woven0") {
		t.Errorf("routes %s", got)
	}

	// The plugin goes, then the engine: which comes back without it, at once.
	e.Kill9Daemon()
	w.close()
	heard := len(w.calls)
	e.StartDaemon()
	if got := c.Must("network", "ls", "--filter", "driver="+w.name, "--format", "{{.Name}}"); got != "net" {
		t.Errorf("network ls: %s", got)
	}
	c.Must("exec", "web", "true")
	step{"run --rm --network net IMG true", "", "could not find plugin " + w.name + " in v1 plugin registry: plugin not found", 125}.run(t, c)
	c.Must("rm", "-f", "web")
	step{"network rm net", "", "failed deleting Network: could not find plugin", 1}.run(t, c)
	if len(w.calls) != heard {
		t.Errorf("calls without a plugin: %v", w.calls[heard:])
	}
	w.listen() // it has missed the end of web, and says so to nobody
	if err := e.Inside(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	c.Must("run", "--rm", "--network", "net", img, "true")
	c.Must("network", "rm", "net")
	if w.heard("NetworkDriver.DeleteNetwork") != 1 {
		t.Error("the network is not deleted by the plugin")
	}
	// A plugin that comes a little late is waited for.
	c.Must("network", "create", "-d", w.name, "net")
	w.close()
	done := make(chan enginetest.Result)
	go func() { done <- c.Run("run", "--rm", "--network", "net", img, "echo", "late") }()
	enginetest.Eventually(t, "a start that waits", func() bool { return !strings.Contains(c.Must("ps", "-a", "--format", "{{.Status}}"), "Up") })
	w.listen()
	if r := <-done; r.Code != 0 || strings.TrimSpace(r.Out) != "late" {
		t.Errorf("with a plugin that is late: %+v", r)
	}
	c.Must("network", "rm", "net")
}
