package syslog

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
	"berth.dev/berth/internal/logs/ship"
)

var (
	unixForm = regexp.MustCompile(`(?s)^<(\d+)>(\w{3} [ \d]\d \d\d:\d\d:\d\d) (\S+)\[\d+\]: (.*)\n$`)
	form3164 = regexp.MustCompile(`(?s)^<(\d+)>(\w{3} [ \d]\d \d\d:\d\d:\d\d) \S+ (\S+)\[\d+\]: (.*)\n$`)
	form5424 = regexp.MustCompile(`(?s)^<(\d+)>1 (\S+) \S+ (\S+) \d+ \S+ - (.*)\n$`)
)

// listen is a server: framed reads messages with their length before them.
func listen(t *testing.T, network string, cfg *tls.Config, framed bool, take func(string)) string {
	t.Helper()
	where := "127.0.0.1:0"
	if strings.HasPrefix(network, "unix") {
		where = filepath.Join(t.TempDir(), "log")
	}
	if network == "udp" || network == "unixgram" {
		c, err := net.ListenPacket(network, where)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				take(string(buf[:n]))
			}
		}()
		return c.LocalAddr().String()
	}
	l, err := net.Listen(network, where)
	if err != nil {
		t.Fatal(err)
	}
	if cfg != nil {
		l = tls.NewListener(l, cfg)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c, framed, take)
		}
	}()
	return l.Addr().String()
}

func serve(c net.Conn, framed bool, take func(string)) {
	in := bufio.NewReader(c)
	for {
		if !framed {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			take(line)
			continue
		}
		size, err := in.ReadString(' ')
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimSpace(size))
		msg := make([]byte, n)
		if _, err := io.ReadFull(in, msg); err != nil {
			return
		}
		take(string(msg))
	}
}

func TestConformance(t *testing.T) {
	ca, cfg := certificate(t)
	for _, tc := range []struct {
		network, format string
		form            *regexp.Regexp
		precision       time.Duration
	}{
		{"udp", "", unixForm, time.Second},
		{"tcp", "rfc3164", form3164, time.Second},
		{"unix", "rfc5424", form5424, time.Second},
		{"unixgram", "rfc5424micro", form5424, time.Microsecond},
		{"tcp+tls", "rfc5424micro", form5424, time.Microsecond},
		{"tcp+tls", "rfc3164", form3164, time.Second},
	} {
		t.Run(tc.network+" "+tc.format, func(t *testing.T) {
			dial := func(t *testing.T, _ map[string]string) logstest.Log {
				inbox := &logstest.Inbox{}
				network, server := tc.network, (*tls.Config)(nil)
				if network == secure {
					network, server = "tcp", cfg
				}
				framed := server != nil && tc.form == form5424
				addr := listen(t, network, server, framed, func(msg string) {
					m := tc.form.FindStringSubmatch(msg)
					if m == nil {
						t.Errorf("%q is not in the form", msg)
						return
					}
					line := logstest.Line{Text: m[4], Stream: logs.Stdout}
					switch m[1] {
					case "131": // local0, err
						line.Stream = logs.Stderr
					case "134": // local0, info
					default:
						t.Errorf("priority %s", m[1])
					}
					if m[3] != "web/0123456789ab" {
						t.Errorf("tag %q", m[3])
					}
					if tc.form == form5424 {
						line.Time, _ = time.Parse(time.RFC3339Nano, m[2])
					}
					inbox.Add(line)
				})
				info := logstest.Info(map[string]string{
					"syslog-address": tc.network + "://" + addr, "syslog-format": tc.format, "syslog-facility": "local0",
					"syslog-tls-ca-cert": ca, "tag": "{{.Name}}/{{.ID}}",
				}, nil)
				return logstest.NewRemoteLog(t, inbox, func() (ship.Remote, error) { return Open(info) })
			}
			logstest.Run(t, logstest.Driver{New: dial, NoAttrs: true, Precision: tc.precision, NoTimes: tc.form != form5424})
		})
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ key, value, want string }{
		{"x", "y", "unknown log opt 'x' for syslog log driver"},
		{"syslog-address", "127.0.0.1:514", "syslog-address should be in form proto://address, got 127.0.0.1:514"},
		{"syslog-address", "unix://" + dir + "/none", "stat " + dir + "/none: no such file or directory"},
		{"syslog-facility", "24", "invalid syslog facility"},
		{"syslog-facility", "-", "invalid syslog facility"},
		{"syslog-facility", "23", ""},
		{"syslog-facility", "authpriv", ""},
		{"syslog-format", "rfc1", "Invalid syslog format"},
		{"syslog-address", "udp://example.org", ""},
		{"env-regex", "^A", ""},
	} {
		err := Validate(map[string]string{tc.key: tc.value})
		if got := fmt.Sprint(err); tc.want != "" && got != tc.want || tc.want == "" && err != nil {
			t.Errorf("%s=%s: %v, want %q", tc.key, tc.value, err, tc.want)
		}
	}
	if _, where, _ := parseAddress("tcp+tls://h"); where != "h:514" {
		t.Errorf("the port: %s", where)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, err = Open(logstest.Info(map[string]string{"syslog-address": "tcp://" + addr}, nil))
	if want := "dial tcp " + addr + ": connect: connection refused"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := Open(logstest.Info(map[string]string{"syslog-address": "tcp+tls://" + addr, "syslog-tls-ca-cert": "/none"}, nil)); err == nil || !os.IsNotExist(unwrap(err)) {
		t.Errorf("a CA that is not there: %v", err)
	}
}

func unwrap(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if os.IsNotExist(err) {
			return err
		}
		err = u.Unwrap()
	}
}
