package fluentd

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
	"berth.dev/berth/internal/logs/ship"
)

// value reads one value of MessagePack: what the driver writes.
func value(in *bufio.Reader) (any, error) {
	c, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	num := func(n int) uint64 {
		var b [8]byte
		if _, rerr := io.ReadFull(in, b[8-n:]); rerr != nil {
			err = rerr
		}
		return binary.BigEndian.Uint64(b[:])
	}
	text := func(n int) (any, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(in, b)
		return string(b), err
	}
	table := func(n int) (any, error) {
		m := map[string]string{}
		for range n {
			k, kerr := value(in)
			v, verr := value(in)
			if err := errors.Join(kerr, verr); err != nil {
				return nil, err
			}
			m[k.(string)] = v.(string)
		}
		return m, nil
	}
	switch {
	case c&0xf0 == 0x90:
		list := make([]any, c&15)
		for i := range list {
			if list[i], err = value(in); err != nil {
				return nil, err
			}
		}
		return list, nil
	case c&0xf0 == 0x80:
		return table(int(c & 15))
	case c == 0xde:
		return table(int(num(2)))
	case c&0xe0 == 0xa0:
		return text(int(c & 31))
	case c == 0xd9:
		return text(int(num(1)))
	case c == 0xda:
		return text(int(num(2)))
	case c == 0xdb:
		return text(int(num(4)))
	case c == 0xd3:
		return time.Unix(int64(num(8)), 0), err
	case c == 0xd7:
		if num(1) != 0 {
			return nil, errors.New("another extension")
		}
		return time.Unix(int64(num(4)), int64(num(4))), err
	}
	return nil, fmt.Errorf("byte %x", c)
}

// serve takes events; refuse tells after how many a connection is broken.
func serve(t *testing.T, network string, inbox *logstest.Inbox, refuse int) string {
	where := "127.0.0.1:0"
	if network == "unix" {
		where = filepath.Join(t.TempDir(), "f")
	}
	l, err := net.Listen(network, where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	accept(t, l, inbox, refuse)
	return network + "://" + l.Addr().String()
}

func accept(t *testing.T, l net.Listener, inbox *logstest.Inbox, refuse int) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for n := 1; ; n++ {
					v, err := value(in)
					if err != nil || n == refuse {
						return
					}
					take(t, c, inbox, v.([]any))
				}
			}()
		}
	}()
}

// identity is a certificate that signs itself: one, since a process reads its
// roots once.
var identity = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

// Over tls the certificate is checked.
func TestTLS(t *testing.T) {
	cert, err := identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, trusted := range []bool{true, false} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		inbox := &logstest.Inbox{}
		accept(t, l, inbox, 0)
		if trusted {
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("SSL_CERT_FILE", ca)
		}
		host := map[bool]string{true: "127.0.0.1", false: "localhost"}[trusted] // not in the certificate
		_, port, _ := net.SplitHostPort(l.Addr().String())
		r, err := Open(logstest.Info(map[string]string{"fluentd-address": "tls://" + host + ":" + port, "tag": "app.web"}, nil))
		if !trusted {
			if err == nil {
				t.Error("a certificate for another name is taken")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := errors.Join(r.Send(&ship.Entry{Stream: logs.Stdout, Time: time.Now(), Line: []byte("x")}), r.Flush()); err != nil {
			t.Fatal(err)
		}
		if got := inbox.Wait(t, 1); len(got) != 1 || got[0].Text != "x" {
			t.Fatalf("arrived: %v", got)
		}
	}
}

func take(t *testing.T, c net.Conn, inbox *logstest.Inbox, ev []any) {
	m := ev[2].(map[string]string)
	if ev[0] != "app.web" || len(m["container_id"]) != 64 || m["container_name"] != "/web" {
		t.Errorf("event %v", ev)
	}
	l := logstest.Line{Text: m["log"], Stream: logs.Stdout, Time: ev[1].(time.Time), Attrs: m}
	if m["source"] == "stderr" {
		l.Stream = logs.Stderr
	}
	if m["partial_message"] == "true" {
		n, _ := strconv.Atoi(m["partial_ordinal"])
		l.Part = logs.Partial{ID: m["partial_id"], Ordinal: n, Last: m["partial_last"] == "true"}
	}
	inbox.Add(l)
	if len(ev) == 4 {
		id := ev[3].(map[string]string)["chunk"]
		_, _ = c.Write(appendString(appendString([]byte{0x81}, "ack"), id))
	}
}

func TestConformance(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, ack := range []string{"true", "false"} {
			t.Run(network+" ack "+ack, func(t *testing.T) {
				logstest.Run(t, logstest.Driver{Parts: true, Precision: time.Second, New: func(t *testing.T, labels map[string]string) logstest.Log {
					inbox := &logstest.Inbox{}
					opts := map[string]string{
						"fluentd-address": serve(t, network, inbox, 0), "fluentd-request-ack": ack, "tag": "app.{{.Name}}",
						"fluentd-sub-second-precision": ack,
					}
					if err := Validate(map[string]string{"fluentd-address": opts["fluentd-address"], "fluentd-request-ack": ack}); err != nil {
						t.Fatal(err)
					}
					info := logstest.Info(opts, labels)
					return logstest.NewRemoteLog(t, inbox, func() (ship.Remote, error) { return Open(info) })
				}})
			})
		}
	}
}

// A server that ends a connection after each five events loses none: what it
// did not acknowledge comes again.
func TestAcknowledged(t *testing.T) {
	inbox := &logstest.Inbox{}
	info := logstest.Info(map[string]string{"fluentd-address": serve(t, "tcp", inbox, 6), "fluentd-request-ack": "true", "tag": "app.web"}, nil)
	l := logstest.NewRemoteLog(t, inbox, func() (ship.Remote, error) { return Open(info) })
	s := l.Open(t)
	for i := range 4 {
		if err := s.Write(logs.Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	l.Lines(t, 4)
	for i := range 4 {
		_ = s.Write(logs.Stdout, time.Now(), fmt.Appendf(nil, "%d\n", 4+i))
	}
	_ = s.Close()
	seen := map[string]int{}
	for _, g := range l.Lines(t, 8) {
		seen[g.Text]++
	}
	if len(seen) != 8 {
		t.Fatalf("arrived: %v", seen)
	}
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct{ key, value, want string }{
		{"x", "y", "unknown log opt 'x' for fluentd log driver"},
		{"fluentd-address", "udp://h", "invalid fluentd-address (udp://h): unsupported scheme: 'udp'"},
		{"fluentd-address", "unix://", "invalid fluentd-address (unix://): path is empty"},
		{"fluentd-address", "tcp://h/x", "invalid fluentd-address (tcp://h/x): should not contain a path element"},
		{"fluentd-address", "h:99999", `invalid fluentd-address (h:99999): invalid port: strconv.ParseUint: parsing "99999": value out of range`},
		{"fluentd-async-reconnect-interval", "1ms", `invalid value for fluentd-async-reconnect-interval: value ("1ms") must be between 100ms and 10s`},
		{"fluentd-async", "maybe", `strconv.ParseBool: parsing "maybe": invalid syntax`},
		{"fluentd-buffer-limit", "8MB", ""},
		{"fluentd-retry-wait", "2", `time: missing unit in duration "2"`},
		{"fluentd-max-retries", "-1", `strconv.ParseUint: parsing "-1": invalid syntax`},
		{"fluentd-write-timeout", "3s", ""},
	} {
		got := ""
		if err := Validate(map[string]string{tc.key: tc.value}); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s=%s: %q, want %q", tc.key, tc.value, got, tc.want)
		}
	}
	for in, want := range map[string]string{"": "127.0.0.1:24224", "h": "h:24224", "h:1": "h:1", "tls://h": "h:24224", "tcp://[::1]:2": "[::1]:2"} {
		if _, got, err := parseAddress(in); err != nil || got != want {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}
