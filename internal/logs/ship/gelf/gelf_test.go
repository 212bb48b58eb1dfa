package gelf

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
	"berth.dev/berth/internal/logs/ship"
)

type message struct {
	Version   string  `json:"version"`
	Host      string  `json:"host"`
	Short     string  `json:"short_message"`
	Timestamp float64 `json:"timestamp"`
	Level     int     `json:"level"`
	ID        string  `json:"_container_id"`
	Name      string  `json:"_container_name"`
	ImageID   string  `json:"_image_id"`
	Image     string  `json:"_image_name"`
	Command   string  `json:"_command"`
	Tag       string  `json:"_tag"`
	Created   string  `json:"_created"`
	Color     string  `json:"_color"`
	Shape     string  `json:"_shape"`
	Partial   string  `json:"_partial_message"`
	PartID    string  `json:"_partial_id"`
	Ordinal   int     `json:"_partial_ordinal,string"`
	Last      string  `json:"_partial_last"`
}

func take(t *testing.T, inbox *logstest.Inbox, raw []byte) {
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Errorf("%q: %v", raw, err)
		return
	}
	if m.Version != "1.1" || m.Host == "" || len(m.ID) != 64 || m.Name != "web" || !strings.HasPrefix(m.ImageID, "sha256:") || m.Image != "busybox" ||
		m.Command != "sh -c true" || m.Tag != "0123456789ab" || m.Created != "2026-03-04T05:06:07.123456789Z" {
		t.Errorf("message %s", raw)
	}
	sec, frac := math.Modf(m.Timestamp)
	l := logstest.Line{
		Text: m.Short, Stream: logs.Stdout, Time: time.Unix(int64(sec), int64(math.Round(frac*1000))*1e6),
		Attrs: map[string]string{"color": m.Color, "shape": m.Shape},
	}
	if m.Level == 3 {
		l.Stream = logs.Stderr
	} else if m.Level != 6 {
		t.Errorf("level %d", m.Level)
	}
	if m.Partial == "true" {
		l.Part = logs.Partial{ID: m.PartID, Ordinal: m.Ordinal, Last: m.Last == "true"}
	}
	inbox.Add(l)
}

func udp(t *testing.T, inbox *logstest.Inbox) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		parts := map[string][][]byte{}
		buf := make([]byte, 64<<10)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			b := bytes.Clone(buf[:n])
			if n > chunkSize {
				t.Errorf("a datagram of %d bytes", n)
			}
			if b[0] == 0x1e && b[1] == 0x0f {
				id := string(b[2:10])
				parts[id] = append(parts[id], b[chunkHead:])
				if int(b[10]) != len(parts[id])-1 {
					t.Errorf("chunk %d came as number %d", b[10], len(parts[id])-1)
				}
				if len(parts[id]) < int(b[11]) {
					continue
				}
				b = bytes.Join(parts[id], nil)
			}
			take(t, inbox, unpack(t, b))
		}
	}()
	return "udp://" + c.LocalAddr().String()
}

func unpack(t *testing.T, b []byte) []byte {
	var r io.Reader = bytes.NewReader(b)
	var err error
	switch b[0] {
	case 0x1f:
		r, err = gzip.NewReader(r)
	case 0x78:
		r, err = zlib.NewReader(r)
	}
	if err == nil {
		b, err = io.ReadAll(r)
	}
	if err != nil {
		t.Error(err)
	}
	return b
}

func tcp(t *testing.T, inbox *logstest.Inbox) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for in := bufio.NewReader(c); ; {
					b, err := in.ReadBytes(0)
					if err != nil {
						return
					}
					take(t, inbox, b[:len(b)-1])
				}
			}()
		}
	}()
	return "tcp://" + l.Addr().String()
}

func TestConformance(t *testing.T) {
	for _, kind := range []string{"", "gzip", "zlib", "none", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			logstest.Run(t, logstest.Driver{Parts: true, Text: true, Precision: time.Millisecond, New: func(t *testing.T, labels map[string]string) logstest.Log {
				inbox := &logstest.Inbox{}
				opts := map[string]string{}
				if kind == "tcp" {
					opts["gelf-address"] = tcp(t, inbox)
				} else if opts["gelf-address"] = udp(t, inbox); kind != "" {
					opts["gelf-compression-type"] = kind
				}
				if err := Validate(opts); err != nil {
					t.Fatal(err)
				}
				info := logstest.Info(opts, labels)
				return logstest.NewRemoteLog(t, inbox, func() (ship.Remote, error) { return Open(info) })
			}})
		})
	}
}

func TestOptions(t *testing.T) {
	const at = "udp://127.0.0.1:1"
	for _, tc := range []struct {
		address, key, value, want string
	}{
		{"", "", "", "gelf-address is a required parameter"},
		{"127.0.0.1:1", "", "", "gelf-address should be in form proto://address, got 127.0.0.1:1"},
		{"unix://x", "", "", "gelf: endpoint needs to be TCP or UDP"},
		{"udp://h", "", "", "gelf: please provide gelf-address as proto://host:port"},
		{at, "x", "y", `unknown log opt "x" for gelf log driver`},
		{at, "gelf-compression-type", "lz4", `unknown value "lz4" for log opt "gelf-compression-type" for gelf log driver`},
		{at, "gelf-compression-level", "10", `unknown value "10" for log opt "gelf-compression-level" for gelf log driver`},
		{at, "gelf-compression-level", "-1", ""},
		{at, "gelf-tcp-max-reconnect", "3", "gelf-tcp-max-reconnect is only valid for TCP"},
		{"tcp://h:1", "gelf-compression-level", "1", "compression is only supported on UDP"},
		{"tcp://h:1", "gelf-tcp-reconnect-delay", "3", ""},
		{"tcp://h:1", "gelf-tcp-reconnect-delay", "z", `unknown value "z" for log opt "gelf-tcp-reconnect-delay" for gelf log driver`},
	} {
		own := map[string]string{}
		if tc.address != "" {
			own["gelf-address"] = tc.address
		}
		if tc.key != "" {
			own[tc.key] = tc.value
		}
		got := ""
		if err := Validate(own); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%v: %q, want %q", own, got, tc.want)
		}
	}
}
