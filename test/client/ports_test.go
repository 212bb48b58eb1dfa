package client

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// within runs f on a thread in a network namespace.
func within(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// page tells whether a web server answers at an address.
func page(addr string, patience time.Duration) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if n == 0 {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// remote is another host: a namespace at the other end of a wire to the engine's, with
// the host's end called wire and 10.54.0.1, fd54::1.
func remote(t *testing.T, e *enginetest.Engine) int {
	t.Helper()
	type made struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked
		ns, err := netns.New()
		ch <- made{ns, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	up := func(name string, addrs ...string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	err := e.Inside(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "wire"
		return errors.Join(netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "far", PeerNamespace: netlink.NsFd(m.ns)}), up("wire", "10.54.0.1/24", "fd54::1/64"))
	})
	if err == nil {
		err = within(int(m.ns), func() error {
			if err := up("far", "10.54.0.2/24", "fd54::2/64"); err != nil {
				return err
			}
			return errors.Join(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.54.0.1")}), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("fd54::1")}))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(m.ns)
}

// namespaceOf is the network namespace of a container.
func namespaceOf(t *testing.T, c *enginetest.Client, name string) int {
	t.Helper()
	f, err := os.Open("/proc/" + c.Inspect(name, "{{.State.Pid}}") + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return int(f.Fd())
}

func address6(c *enginetest.Client, name, network string) string {
	return c.Inspect(name, fmt.Sprintf("{{(index .NetworkSettings.Networks %q).GlobalIPv6Address}}", network))
}

// Ports answer on both families: where the kernel cannot send a packet on, a program does,
// also while no engine runs, and after its own end.
func TestPortsOfBothFamilies(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	far := remote(t, e)
	c.Must("network", "create", "--ipv6", "--subnet", "fd66::/64", "six")
	web(c, "four", "hello", "-p", "8080:80", "-p", "[::1]:8081:80")
	web(c, "both", "hello", "-p", "8082:80", "--network", "six")
	if got := c.Must("port", "both"); got != "80/tcp -> 0.0.0.0:8082\n80/tcp -> [::]:8082" {
		t.Errorf("port: %q", got)
	}
	every := func(when string) {
		t.Helper()
		for _, at := range []string{"127.0.0.1:8080", "[::1]:8080", "[::1]:8081", "127.0.0.1:8082", "[::1]:8082", "[fd54::1]:8080", "[fd54::1]:8082", "[fd66::1]:8082"} {
			enginetest.Eventually(t, when+": an answer at "+at, func() bool { return e.Inside(func() error { return page(at, time.Second) }) == nil })
		}
		for _, at := range []string{"10.54.0.1:8080", "[fd54::1]:8080", "[fd54::1]:8082"} {
			enginetest.Eventually(t, when+": an answer from afar at "+at, func() bool { return within(far, func() error { return page(at, time.Second) }) == nil })
		}
	}
	every("at first")
	if r := c.Run("exec", "both", "wget", "-q", "-O", "-", "http://[fd66::1]:8082/"); strings.TrimSpace(r.Out) != "hello" {
		t.Errorf("a container by its own port: %+v", r)
	}
	if err := within(far, func() error { return page("10.54.0.1:8081", 200*time.Millisecond) }); err == nil {
		t.Error("a port on ::1 answers elsewhere")
	}
	e.Kill9Daemon()
	for _, at := range []string{"[::1]:8080", "[::1]:8082", "127.0.0.1:8080"} {
		if err := e.Inside(func() error { return page(at, time.Second) }); err != nil {
			t.Errorf("%s without an engine: %v", at, err)
		}
	}
	e.StartDaemon()
	every("with the next engine")
	e.KillKeeper()
	enginetest.Eventually(t, "a keeper", func() bool { return len(e.KeeperPIDs()) == 1 })
	every("with the next keeper")
	// The ports are free as soon as the container has gone.
	for range 3 {
		c.Must("rm", "-f", "four")
		web(c, "four", "hello", "-p", "8080:80", "-p", "[::1]:8081:80")
	}
	every("again")
	c.Must("rm", "-f", "four", "both")
	c.Must("network", "rm", "six")
	for _, at := range []string{"[::1]:8080", "[::1]:8082"} {
		if err := e.Inside(func() error { return page(at, time.Second) }); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s after the container: %v", at, err)
		}
	}
}

// UDP: both families, and a client that speaks on to the next container of a port.
func TestPortsUDP(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	// serve answers with name what comes to the port of a container.
	serve := func(name string) {
		c.Must("run", "-d", "--name", name, "-p", "5300:53/udp", img, "sleep", "1000")
		ns := namespaceOf(t, c, name)
		var s net.PacketConn
		if err := within(ns, func() (err error) { s, err = net.ListenPacket("udp", "0.0.0.0:53"); return err }); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer s.Close()
			b := make([]byte, 100)
			for {
				_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
				_, from, err := s.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = s.WriteTo([]byte(name), from)
			}
		}()
	}
	var socks []net.Conn
	for _, at := range []string{"127.0.0.1:5300", "[::1]:5300"} {
		if err := e.Inside(func() error {
			s, err := net.Dial("udp", at)
			socks = append(socks, s)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer socks[len(socks)-1].Close()
	}
	ask := func(s net.Conn) string {
		_, _ = s.Write([]byte("?"))
		_ = s.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		b := make([]byte, 100)
		n, _ := s.Read(b)
		return string(b[:n])
	}
	for _, name := range []string{"first", "second"} { // from one socket: one flow for the kernel
		serve(name)
		for _, s := range socks {
			enginetest.Eventually(t, name+" answers at "+s.RemoteAddr().String(), func() bool { return ask(s) == name })
		}
		c.Must("rm", "-f", name)
		_ = ask(socks[0]) // meanwhile the kernel learns that it leads nowhere
	}
}

// Who reaches a container at its own address: by the mode of its network's gateway, by
// interfaces that are trusted, by the daemon's options.
func TestGatewayModes(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--bridge-accept-fwmark=2/3"))
	c := e.Client("docker")
	far := remote(t, e)
	const opt = "com.docker.network.bridge."
	for i, mode := range []string{"nat", "nat-unprotected", "routed"} {
		c.Must("network", "create", "--ipv6", "--subnet", fmt.Sprintf("10.80.%d.0/24", i), "--subnet", fmt.Sprintf("fd80:0:0:%d::/64", i), "-o", opt+"gateway_mode_ipv4="+mode, "-o", opt+"gateway_mode_ipv6="+mode, mode)
		c.Must("run", "-d", "--name", "in-"+mode, "--network", mode, "-p", fmt.Sprintf("%d:80", 9000+i), img, "sh", "-c", "echo 404 >/index.html; httpd -h / -p 81; exec httpd -f -h / -p 80")
	}
	c.Must("network", "create", "-o", opt+"trusted_host_interfaces=wire", "--subnet", "10.80.9.0/24", "trusting")
	c.Must("run", "-d", "--name", "in-trusting", "--network", "trusting", "-p", "80", img, "sh", "-c", "echo 404 >/index.html; httpd -h / -p 81; exec httpd -f -h / -p 80")
	if got := c.Inspect("in-routed", `{{json (index .NetworkSettings.Ports "80/tcp")}}`); got != `[{"HostIp":"0.0.0.0","HostPort":""},{"HostIp":"::","HostPort":""}]` {
		t.Errorf("ports of a routed container: %s", got)
	}
	enginetest.Eventually(t, "an answer", func() bool {
		return e.Inside(func() error { return page(addressOf(c, "in-trusting", "trusting")+":81", time.Second) }) == nil
	})
	beside := namespaceOf(t, c, "in-trusting")
	reach := map[string][2]bool{"nat": {false, false}, "nat-unprotected": {true, true}, "routed": {true, false}, "trusting": {true, false}}
	for mode, want := range reach {
		for i, port := range []string{"80", "81"} {
			for _, a := range []string{addressOf(c, "in-"+mode, mode), address6(c, "in-"+mode, mode)} {
				if a == "" || a == "invalid IP" {
					continue
				}
				at := net.JoinHostPort(a, port)
				call := func() bool { return within(far, func() error { return page(at, 300*time.Millisecond) }) == nil }
				if want[i] {
					enginetest.Eventually(t, mode+": an answer from another host at "+at, call)
				} else if call() {
					t.Errorf("%s from another host at %s: it answers", mode, at)
				}
				if mode == "trusting" || strings.Contains(a, ":") {
					continue // it has only IPv4
				}
				call = func() bool { return within(beside, func() error { return page(at, 300*time.Millisecond) }) == nil }
				if want[i] {
					enginetest.Eventually(t, mode+": an answer from another network at "+at, call)
				} else if call() {
					t.Errorf("%s from another network at %s: it answers", mode, at)
				}
			}
		}
	}
	// A mark lets packets through.
	at := addressOf(c, "in-nat", "nat") + ":81"
	mark := func() error {
		d := net.Dialer{Timeout: 300 * time.Millisecond}
		return within(far, func() error {
			conn, err := d.Dial("tcp", at)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
	if err := mark(); err == nil {
		t.Error("without a mark it is let through")
	}
	if err := e.Inside(markAll); err != nil {
		t.Fatal(err)
	}
	if err := mark(); err != nil {
		t.Errorf("with the mark: %v", err)
	}
	// Isolated: no address of the host.
	step{"network create -o " + opt + "gateway_mode_ipv4=isolated cut", "", "gateway mode 'isolated' can only be used for an internal network", 1}.run(t, c)
	step{"network create -o " + opt + "gateway_mode_ipv4=odd cut", "", "unknown gateway mode odd", 1}.run(t, c)
	c.Must("network", "create", "--internal", "--subnet", "10.81.0.0/31", "-o", opt+"gateway_mode_ipv4=isolated", "-o", opt+"name=cut0", "cut")
	c.Must("run", "-d", "--name", "c1", "--network", "cut", img, "sleep", "1000")
	c.Must("run", "--rm", "--network", "cut", img, "ping", "-c", "1", "-W", "2", "c1")
	if err := e.Inside(func() error {
		link, err := netlink.LinkByName("cut0")
		if err != nil {
			return err
		}
		if list, err := netlink.AddrList(link, netlink.FAMILY_ALL); err != nil || len(list) > 0 {
			return fmt.Errorf("addresses %v %w", list, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	c.Must("rm", "-f", "c1", "in-nat", "in-nat-unprotected", "in-routed", "in-trusting")
	c.Must("network", "rm", "cut", "nat", "nat-unprotected", "routed", "trusting")
}

// markAll has every packet that comes in by the wire marked.
func markAll() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "marks"})
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "pre", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "wire")
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(0xe)}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	return c.Flush()
}
