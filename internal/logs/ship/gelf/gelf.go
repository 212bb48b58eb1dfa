// Package gelf is the log driver gelf: Graylog's extended log format, in chunked
// and compressed datagrams or over tcp.
//
//	--log-opt gelf-address=udp://10.0.0.1:12201 --log-opt gelf-compression-type=zlib
package gelf

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
)

// Name is the driver's.
const Name = "gelf"

// Validate checks options as create does.
func Validate(own map[string]string) error {
	err := logs.Known(Name, own, "gelf-address", "gelf-compression-level", "gelf-compression-type", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay")
	if err != nil {
		return err
	}
	u, err := parseAddress(own["gelf-address"])
	if err != nil {
		return err
	}
	for _, key := range []string{"gelf-compression-level", "gelf-compression-type", "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay"} {
		val, ok := own[key]
		if !ok {
			continue
		}
		overTCP := key == "gelf-tcp-max-reconnect" || key == "gelf-tcp-reconnect-delay"
		switch {
		case overTCP && u.Scheme != "tcp":
			return fmt.Errorf("%s is only valid for TCP", key)
		case !overTCP && u.Scheme == "tcp":
			return fmt.Errorf("compression is only supported on UDP")
		}
		n, nerr := strconv.Atoi(val)
		bad := false
		switch key {
		case "gelf-compression-level":
			bad = nerr != nil || n < flate.DefaultCompression || n > flate.BestCompression
		case "gelf-compression-type":
			bad = val != "gzip" && val != "zlib" && val != "none"
		default:
			bad = nerr != nil || n < 0
		}
		if bad {
			return fmt.Errorf("unknown value %q for log opt %q for gelf log driver", val, key)
		}
	}
	return nil
}

func parseAddress(address string) (*url.URL, error) {
	if address == "" {
		return nil, errors.New("gelf-address is a required parameter")
	}
	if !ship.IsTransportURL(address) {
		return nil, fmt.Errorf("gelf-address should be in form proto://address, got %v", address)
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" {
		return nil, fmt.Errorf("gelf: endpoint needs to be TCP or UDP")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return nil, fmt.Errorf("gelf: please provide gelf-address as proto://host:port")
	}
	return u, nil
}

// Wait is the time between two attempts to connect, and how many there are for
// an entry; 0 is no bound.
func Wait(own map[string]string) (time.Duration, int) {
	seconds, _ := strconv.Atoi(own["gelf-tcp-reconnect-delay"])
	n, _ := strconv.Atoi(own["gelf-tcp-max-reconnect"])
	return time.Duration(seconds) * time.Second, n
}

type remote struct {
	conn  *ship.Conn
	host  string
	extra []byte // the members that all messages have, each after a comma
	tcp   bool
	kind  string // of compression
	level int
	zbuf  bytes.Buffer
	zw    compressor
	buf   []byte
}

type compressor interface {
	io.WriteCloser
	Reset(io.Writer)
}

// Open connects.
func Open(info *ship.Info) (ship.Remote, error) {
	u, err := parseAddress(info.Config["gelf-address"])
	if err != nil {
		return nil, err
	}
	r := &remote{tcp: u.Scheme == "tcp", kind: "gzip", level: flate.BestSpeed}
	if r.host, err = info.Hostname(); err != nil {
		return nil, errors.New("gelf: cannot access hostname to set source field")
	}
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	extra := map[string]any{
		"_container_id": info.ContainerID, "_container_name": info.Name(), "_image_id": info.ContainerImageID,
		"_image_name": info.ContainerImageName, "_command": info.Command(), "_tag": tag, "_created": info.ContainerCreated,
	}
	attrs, err := info.Attributes(func(k string) string {
		if len(k) > 0 && k[0] == '_' {
			return k
		}
		return "_" + k
	})
	if err != nil {
		return nil, err
	}
	for k, v := range attrs {
		extra[k] = v
	}
	raw, err := json.Marshal(extra)
	if err != nil {
		return nil, err
	}
	r.extra = append([]byte{','}, raw[1:len(raw)-1]...)
	if v := info.Config["gelf-compression-type"]; v != "" {
		r.kind = v
	}
	if v := info.Config["gelf-compression-level"]; v != "" {
		if r.level, err = strconv.Atoi(v); err != nil {
			return nil, fmt.Errorf("gelf: invalid compression level %s, err %w", v, err)
		}
	}
	if r.conn, err = ship.Dial(u.Scheme, u.Host, nil); err != nil {
		return nil, fmt.Errorf("gelf: cannot connect to GELF endpoint: %s %w", u.Host, err)
	}
	return r, nil
}

func (r *remote) Send(e *ship.Entry) error {
	level := 6
	if e.Stream == logs.Stderr {
		level = 3
	}
	host, err := json.Marshal(r.host)
	if err != nil {
		return err
	}
	line, err := json.Marshal(string(e.Line))
	if err != nil {
		return err
	}
	b := append(append(r.buf[:0], `{"version":"1.1","host":`...), host...)
	b = append(append(b, `,"short_message":`...), line...)
	ms := e.Time.UnixMilli()
	b = fmt.Appendf(b, `,"timestamp":%d.%03d,"level":%d`, ms/1000, ms%1000, level)
	b = append(b, r.extra...)
	if p := e.Partial; p.Ordinal > 0 {
		b = fmt.Appendf(b, `,"_partial_message":"true","_partial_id":%q,"_partial_ordinal":"%d","_partial_last":"%t"`, p.ID, p.Ordinal, p.Last)
	}
	b = append(b, '}')
	r.buf = b
	if r.tcp {
		b = append(b, 0) // ends a message
		_, err := r.conn.Write(b)
		return err
	}
	return r.datagrams(b)
}

// The datagrams of a message that is too large for one.
const (
	chunkSize = 1420
	chunkHead = 12
	maxChunks = 128
)

func (r *remote) datagrams(b []byte) error {
	b, err := r.compress(b)
	if err != nil {
		return err
	}
	if len(b) <= chunkSize {
		_, err := r.conn.Write(b)
		return err
	}
	const data = chunkSize - chunkHead
	n := (len(b) + data - 1) / data
	if n > maxChunks {
		return nil // no server would take it; a line is at most 16 KiB
	}
	head := [chunkHead]byte{0x1e, 0x0f}
	_, _ = rand.Read(head[2:10])
	head[11] = byte(n)
	for i := range n {
		head[10] = byte(i)
		part := b[i*data : min(len(b), (i+1)*data)]
		if _, err := r.conn.Write(append(head[:len(head):len(head)], part...)); err != nil {
			return err
		}
	}
	return nil
}

func (r *remote) compress(b []byte) ([]byte, error) {
	if r.kind == "none" {
		return b, nil
	}
	r.zbuf.Reset()
	if r.zw == nil {
		var err error
		if r.kind == "zlib" {
			r.zw, err = zlib.NewWriterLevel(&r.zbuf, r.level)
		} else {
			r.zw, err = gzip.NewWriterLevel(&r.zbuf, r.level)
		}
		if err != nil {
			return nil, err
		}
	} else {
		r.zw.Reset(&r.zbuf)
	}
	_, err := r.zw.Write(b)
	err = errors.Join(err, r.zw.Close())
	return r.zbuf.Bytes(), err
}

func (r *remote) Flush() error { return r.conn.Flush() }
func (r *remote) Close() error { return r.conn.Close() }
