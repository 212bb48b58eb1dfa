package client

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"berth.dev/berth/internal/enginetest"
)

// upstream is a resolver on port 53 of an address of a namespace: the engine's, or that of a process. It
// knows one name, and tells the questions.
func upstream(t *testing.T, inside func(func() error) error, listen, name, addr string) (asked chan string) {
	t.Helper()
	asked = make(chan string, 100)
	var pc net.PacketConn
	if err := inside(func() (err error) { pc, err = net.ListenPacket("udp", listen+":53"); return err }); err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		asked <- q.Question[0].Name
		switch {
		case q.Question[0].Name != name:
			a.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)}}
		}
		_ = w.WriteMsg(a)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
	return asked
}

// Resolvers on the host's loopback are asked from the host, a container's own from the
// container: one on an internal network answers there, and the host's are not asked for it.
func TestResolvers(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\nnameserver fd00::1\nsearch lan.example\noptions edns0\n"), 0o644); err != nil { //nolint:gosec // any may read it
		t.Fatal(err)
	}
	e := enginetest.Start(t, enginetest.WithEnv("DOCKER_TEST_RESOLV_CONF_PATH="+conf))
	asked := upstream(t, e.Inside, "127.0.0.1", "far.example.", "192.0.2.7")
	c := e.Client("docker")
	if got := c.Must("run", "--rm", img, "cat", "/etc/resolv.conf"); got != "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch lan.example\noptions edns0" {
		t.Errorf("on the default bridge: %s", got)
	}
	c.Must("network", "create", "out")
	c.Must("network", "create", "--internal", "in")
	c.Must("run", "-d", "--name", "who", "--network", "out", img, "sleep", "1000")
	if got := c.Must("exec", "who", "cat", "/etc/resolv.conf"); got != "nameserver 127.0.0.11\nsearch lan.example\noptions edns0 ndots:0" {
		t.Errorf("on a network of users: %s", got)
	}
	ask := func(want string) {
		t.Helper()
		r := c.Run("exec", "who", "nslookup", "-type=a", "far.example")
		if !strings.Contains(r.Out+r.Err, want) {
			t.Errorf("far.example: %s%s, want %s", r.Out, r.Err, want)
		}
	}
	ask("192.0.2.7")
	c.Must("network", "connect", "in", "who")
	ask("192.0.2.7")
	c.Must("network", "disconnect", "out", "who")
	for len(asked) > 0 {
		<-asked
	}
	ask("SERVFAIL")
	c.Must("run", "-d", "--name", "server", "--network", "in", img, "sleep", "1000")
	upstream(t, c.Inside("server"), "0.0.0.0", "near.example.", "192.0.2.42")
	ip := addressOf(c, "server", "in")
	r := c.Run("run", "--rm", "--network", "in", "--dns", "127.0.0.11", "--dns", ip, img, "nslookup", "-type=a", "near.example")
	if !strings.Contains(r.Out, "192.0.2.42") {
		t.Errorf("a resolver on the internal network: %s%s", r.Out, r.Err)
	}
	if r := c.Run("run", "--rm", "--network", "in", "--dns", "127.0.0.11", img, "nslookup", "far.example"); !strings.Contains(r.Out+r.Err, "SERVFAIL") {
		t.Errorf("asking itself: %s%s", r.Out, r.Err)
	}
	if len(asked) > 0 {
		t.Errorf("an internal network asked the host's resolver for %s", <-asked)
	}
	// What somebody has edited stays, and is made anew at the next start.
	c.Must("exec", "who", "sh", "-c", "echo '# mine' >> /etc/resolv.conf")
	c.Must("network", "connect", "out", "who")
	if got := c.Must("exec", "who", "tail", "-n1", "/etc/resolv.conf"); got != "# mine" {
		t.Errorf("an edited resolv.conf ends with %s", got)
	}
	c.Must("restart", "-t0", "who")
	defer func() { c.Must("rm", "-f", "who", "server"); c.Must("network", "rm", "in", "out") }()
	if got := c.Must("exec", "who", "tail", "-n1", "/etc/resolv.conf"); got == "# mine" {
		t.Error("an edited resolv.conf outlives a restart")
	}
}

// Where the host does not forward, clients are told with each container that needs it.
func TestForwardingIsOff(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--ip-forward=false"))
	if err := e.Inside(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		const warning = "WARNING: IPv4 forwarding is disabled. Networking will not work."
		if r := c.Run("run", "--rm", img, "true"); r.Code != 0 || !strings.Contains(r.Err, warning) {
			t.Errorf("%+v", r)
		}
		if r := c.Run("run", "--rm", "--network", "none", img, "true"); r.Code != 0 || r.Err != "" {
			t.Errorf("without a network: %+v", r)
		}
		if r := c.Run("info"); !strings.Contains(r.Out+r.Err, "WARNING: IPv4 forwarding is disabled") {
			t.Errorf("info: %+v", r)
		}
	})
}
