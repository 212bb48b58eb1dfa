package client

import (
	"bufio"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// collector is a server for lines over tcp, in the engine's network.
type collector struct {
	addr  string
	close func()
	mu    sync.Mutex
	got   []string
}

func collect(t *testing.T, e *enginetest.Engine, addr string) *collector {
	t.Helper()
	c := &collector{}
	var l net.Listener
	if err := e.Inside(func() (err error) { l, err = net.Listen("tcp", addr); return err }); err != nil {
		t.Fatal(err)
	}
	c.close = func() { _ = l.Close() }
	t.Cleanup(c.close)
	c.addr = l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for in := bufio.NewScanner(conn); in.Scan(); {
					c.mu.Lock()
					c.got = append(c.got, in.Text())
					c.mu.Unlock()
				}
			}()
		}
	}()
	return c
}

func (c *collector) lines() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

func TestLogDrivers(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, driver := range []string{"json-file", "local"} {
			c.Must("run", "--name", "wr", "--log-driver", driver, "--label", "color=blue, <not> é", "-e", "A=1", "-e", "B=2",
				"--log-opt", "labels=color", "--log-opt", "env-regex=^A", "--log-opt", "tag={{.Name}}/{{.ImageName}}",
				img, "sh", "-c", "echo one; echo two >&2; printf rest")
			if r := c.Run("logs", "wr"); r.Out != "one\nrest" || r.Err != "two\n" {
				t.Errorf("%s: logs: %q and %q", driver, r.Out, r.Err)
			}
			if out := c.Run("logs", "--details", "-n", "1", "wr").Out; out != "A=1,color=blue%2C+%3Cnot%3E+%C3%A9,tag=wr%2F"+img+" rest" {
				t.Errorf("%s: --details: %q", driver, out)
			}
			path := c.Inspect("wr", "{{.LogPath}}")
			if want := driver == "json-file"; strings.HasSuffix(path, "-json.log") != want || (path != "") != want {
				t.Errorf("%s: LogPath %q", driver, path)
			}
			c.Must("rm", "wr")

			c.Must("run", "-d", "--name", "fo", "--log-driver", driver, "--log-opt", "max-size=20k", "--log-opt", "max-file=10", "--log-opt", "mode=non-blocking",
				img, "sh", "-c", "for i in $(seq 1000); do echo line $i; done; sleep 0.2; echo end")
			lines := strings.Split(c.Must("logs", "-f", "fo"), "\n")
			if len(lines) != 1001 || lines[0] != "line 1" || lines[999] != "line 1000" || lines[1000] != "end" {
				t.Errorf("%s: -f over rotation: %d lines, the last %q", driver, len(lines), lines[len(lines)-1])
			}
			stamps := strings.Split(c.Must("logs", "-t", "fo"), "\n")
			since, _, _ := strings.Cut(stamps[500], " ")
			until, _, _ := strings.Cut(stamps[509], " ")
			var want []string // what one write printed bears one time
			for _, l := range stamps {
				if stamp, text, _ := strings.Cut(l, " "); stamp >= since && stamp <= until {
					want = append(want, text)
				}
			}
			if part := c.Must("logs", "--since", since, "--until", until, "fo"); part != strings.Join(want, "\n") {
				t.Errorf("%s: between %s and %s: %d lines, want %d", driver, since, until, strings.Count(part, "\n")+1, len(want))
			}
			if out := c.Must("logs", "--tail", "3", "fo"); out != "line 999\nline 1000\nend" {
				t.Errorf("%s: tail: %q", driver, out)
			}
			c.Must("rm", "fo")
		}

		c.Must("run", "--name", "none", "--log-driver", "none", img, "echo", "x")
		if r := c.Run("logs", "none"); r.Code == 0 || !strings.Contains(r.Err, "configured logging driver does not support reading") {
			t.Errorf("none: %+v", r)
		}
		c.Must("rm", "none")
		c.Must("run", "--name", "plain", img, "echo", "x")
		if out := c.Run("logs", "--details", "plain").Out; out != " x\n" {
			t.Errorf("--details without any: %q", out)
		}
		if r := c.Run("logs", "--since", "nonsense", "plain"); r.Code != 1 || !strings.Contains(r.Err, `invalid value for "since": failed to parse value as time or duration: "nonsense"`) {
			t.Errorf("--since nonsense: %+v", r)
		}
		if out := c.Run("logs", "-n", "abc", "plain").Out; out != "x\n" {
			t.Errorf("-n abc: %q", out)
		}
		c.Must("rm", "plain")
		c.Must("run", "-t", "--name", "tty", "--log-driver", "local", img, "echo", "x")
		if out := c.Run("logs", "tty").Out; out != "x\r\n" {
			t.Errorf("a terminal: %q", out)
		}
		c.Must("rm", "tty")
		begin := time.Now()
		c.Must("run", "-d", "--name", "long", "--log-driver", "local", img, "sh", "-c", "echo x; sleep 60")
		if out := c.Must("logs", "-f", "--until", "1s", "long"); out != "x" && out != "" {
			t.Errorf("-f --until: %q", out)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("-f --until ended after %v", d)
		}
		c.Must("rm", "-f", "long")
		if out := c.Must("info", "--format", "{{json .Plugins.Log}}"); out != `["fluentd","gelf","journald","json-file","local","syslog"]` {
			t.Errorf("info: %s", out)
		}
	})
}

// A log that goes to a remote can be read back, and the remote has it too.
func TestLogRemote(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	srv := collect(t, e, "127.0.0.1:0")
	form := regexp.MustCompile(`^<(30|27)>\w+ +\d+ \S+ \S+ web/[0-9a-f]{12}\[\d+\]: (.*)$`)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		before := len(srv.lines())
		c.Must("run", "--rm", "--name", "web", "--log-driver", "syslog", "--log-opt", "syslog-address=tcp://"+srv.addr, "--log-opt", "syslog-format=rfc3164",
			"--log-opt", "tag={{.Name}}/{{.ID}}", img, "sh", "-c", "echo out; echo err >&2")
		enginetest.Eventually(t, "both lines are sent", func() bool { return len(srv.lines()) == before+2 })
		for _, l := range srv.lines()[before:] {
			m := form.FindStringSubmatch(l)
			if m == nil || (m[1] == "27") != (m[2] == "err") {
				t.Errorf("sent: %q", l)
			}
		}
		remote := []string{"--log-driver", "syslog", "--log-opt", "syslog-address=tcp://" + srv.addr}
		c.Must(append(append([]string{"run", "--name", "kept"}, remote...), img, "echo", "kept")...)
		if out := c.Must("logs", "kept"); out != "kept" || c.Inspect("kept", "{{.LogPath}}") != "" {
			t.Errorf("logs: %q", out)
		}
		c.Must("rm", "kept")
		c.Must(append(append([]string{"run", "--name", "blind", "--log-opt", "cache-disabled=true"}, remote...), img, "echo", "x")...)
		if r := c.Run("logs", "blind"); r.Code == 0 || !strings.Contains(r.Err, "configured logging driver does not support reading") {
			t.Errorf("cache-disabled: %+v", r)
		}
		c.Must("rm", "blind")
		c.Must("run", "--rm", "--log-driver", "gelf", "--log-opt", "gelf-address=udp://127.0.0.1:9", img, "echo", "to nobody")
		c.Must("run", "--rm", "--log-driver", "fluentd", "--log-opt", "fluentd-async=true", "--log-opt", "fluentd-retry-wait=10s", img, "echo", "to nobody")
	})
}

func TestLogErrors(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	const initError = "failed to create task for container: failed to initialize logging driver: "
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, tc := range []struct {
			opts []string
			want string
		}{
			{[]string{"--log-driver", "papyrus"}, "logger: no log driver named 'papyrus' is registered"},
			{[]string{"--log-opt", "x=y"}, "unknown log opt 'x' for json-file log driver"},
			{[]string{"--log-driver", "local", "--log-opt", "x=y"}, "unknown log opt 'x' for log driver local"},
			{[]string{"--log-driver", "syslog", "--log-opt", "x=y"}, "unknown log opt 'x' for syslog log driver"},
			{[]string{"--log-driver", "gelf", "--log-opt", "x=y"}, `unknown log opt "x" for gelf log driver`},
			{[]string{"--log-driver", "fluentd", "--log-opt", "x=y"}, "unknown log opt 'x' for fluentd log driver"},
			{[]string{"--log-driver", "journald", "--log-opt", "x=y"}, "unknown log opt 'x' for journald log driver"},
			{[]string{"--log-opt", "max-size=abc"}, initError + "invalid size: 'abc'"},
			{[]string{"--log-opt", "max-file=0"}, initError + "max-file cannot be less than 1"},
			{[]string{"--log-driver", "local", "--log-opt", "max-file=1"}, initError + "compression cannot be enabled when max file count is 1"},
			{[]string{"--log-opt", "mode=x"}, "logger: logging mode not supported: x"},
			{[]string{"--log-opt", "max-buffer-size=1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
			{[]string{"--log-driver", "gelf"}, "gelf-address is a required parameter"},
			{[]string{"--log-driver", "journald"}, initError + "journald is not enabled on this host"},
			{[]string{"--log-driver", "syslog", "--log-opt", "syslog-address=tcp://127.0.0.1:9"}, initError + "dial tcp 127.0.0.1:9: connect: connection refused"},
			{[]string{"--log-driver", "gelf", "--log-opt", "gelf-address=tcp://127.0.0.1:9"}, initError + "gelf: cannot connect to GELF endpoint: 127.0.0.1:9 dial tcp 127.0.0.1:9: connect: connection refused"},
			{[]string{"--log-driver", "fluentd"}, initError + "dial tcp 127.0.0.1:24224: connect: connection refused"},
		} {
			r := c.Run(append(append([]string{"run", "--rm"}, tc.opts...), img, "true")...)
			if r.Code != 125 || !strings.Contains(r.Err, tc.want+"\n") {
				t.Errorf("%v: exit %d, %s\nwant %s", tc.opts, r.Code, r.Err, tc.want)
			}
		}
		if out := c.Must("ps", "-aq"); out != "" {
			t.Errorf("left behind: %s", out)
		}
	})
}

// The engine's log options are those of containers with its driver, each one
// unless the container has its own; options of the local copy go to all.
func TestLogDefaults(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--log-driver", "local", "--log-opt", "max-size=7m", "--log-opt", "max-file=3", "--log-opt", "cache-max-size=1m"))
	c := e.Client("berth")
	for _, tc := range []struct{ opts, want string }{
		{"", "local map[cache-max-size:1m max-file:3 max-size:7m]"},
		{"--log-opt max-size=9m", "local map[cache-max-size:1m max-file:3 max-size:9m]"},
		{"--log-driver json-file", "json-file map[cache-max-size:1m]"},
		{"--log-driver json-file --log-opt max-file=2", "json-file map[cache-max-size:1m max-file:2]"},
	} {
		c.Must(append(append([]string{"create", "--name", "xx"}, strings.Fields(tc.opts)...), img, "true")...)
		if got := c.Inspect("xx", "{{.HostConfig.LogConfig.Type}} {{.HostConfig.LogConfig.Config}}"); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.opts, got, tc.want)
		}
		c.Must("rm", "xx")
	}
	if got := c.Must("info", "--format", "{{.LoggingDriver}}"); got != "local" {
		t.Errorf("info: %s", got)
	}
}

// The remote goes and comes, berthd is killed, the container neither waits nor
// loses a line.
func TestLogRemoteSurvives(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	srv := collect(t, e, "127.0.0.1:0")
	c.Must("run", "-d", "--name", "wr", "--log-driver", "syslog", "--log-opt", "syslog-address=tcp://"+srv.addr, "--log-opt", "cache-max-size=20k", "--log-opt", "cache-max-file=20",
		img, "sh", "-c", "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo line $i; usleep 500; done")
	for range 2 {
		n := len(srv.lines())
		enginetest.Eventually(t, "lines are sent", func() bool { return len(srv.lines()) > n })
		e.Kill9Daemon()
		e.StartDaemon()
	}
	// One that ends, to be removed, while no engine runs, and the remote is away until
	// the next engine has cleaned up.
	away := collect(t, e, "127.0.0.1:0")
	c.Must("run", "-d", "--rm", "--log-driver", "syslog", "--log-opt", "syslog-address=tcp://"+away.addr, img, "sh", "-c", "usleep 300000; echo last words")
	e.Kill9Daemon()
	away.close()
	time.Sleep(400 * time.Millisecond)
	e.StartDaemon()
	time.Sleep(200 * time.Millisecond)
	back := collect(t, e, away.addr)
	enginetest.Eventually(t, "the last words are sent", func() bool {
		return strings.Contains(strings.Join(back.lines(), "\n"), "]: last words")
	})
	if got := c.Must("wait", "wr"); got != "0" {
		t.Fatalf("exit %s", got)
	}
	seen := map[string]bool{}
	enginetest.Eventually(t, "all is sent", func() bool {
		for _, l := range srv.lines() {
			if _, text, ok := strings.Cut(l, "]: line "); ok {
				seen["line "+text] = true
			}
		}
		return len(seen) == 1500
	})
	if n := len(srv.lines()); n > 1500+2*256 {
		t.Errorf("%d lines for 1500", n)
	}
	for i := range 1500 {
		if !seen[fmt.Sprint("line ", i+1)] {
			t.Fatalf("line %d is missing", i+1)
		}
	}
}
