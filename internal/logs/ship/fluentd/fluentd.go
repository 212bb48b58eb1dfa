// Package fluentd is the log driver fluentd: the forward protocol, one event for
// each entry.
//
//	--log-opt fluentd-address=10.0.0.1:24224 --log-opt fluentd-async=true --log-opt tag=web
//
// fluentd-buffer-limit is accepted and has no meaning here: what is not sent
// yet is in the spool. fluentd-async makes a start not wait for the server.
package fluentd

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
)

// Name is the driver's.
const Name = "fluentd"

const (
	defaultHost      = "127.0.0.1"
	defaultPort      = "24224"
	defaultRetryWait = time.Second
	maxRetries       = math.MaxInt32
	ackTimeout       = 30 * time.Second
)

type config struct {
	network, address  string
	async, ack        bool
	subSecond         bool
	retryWait         time.Duration
	retries           int
	writeTimeout      time.Duration
	reconnectInterval time.Duration
}

// Validate checks options as create does.
func Validate(own map[string]string) error {
	err := logs.Known(Name, own, "fluentd-address", "fluentd-async", "fluentd-async-reconnect-interval", "fluentd-buffer-limit",
		"fluentd-max-retries", "fluentd-request-ack", "fluentd-retry-wait", "fluentd-sub-second-precision", "fluentd-write-timeout")
	if err != nil {
		return err
	}
	_, err = parse(own)
	return err
}

func parse(own map[string]string) (c config, err error) {
	if c.network, c.address, err = parseAddress(own["fluentd-address"]); err != nil {
		return c, fmt.Errorf("invalid fluentd-address (%s): %w", own["fluentd-address"], err)
	}
	if _, err = logs.ParseRAM(own["fluentd-buffer-limit"]); err != nil {
		return c, err
	}
	c.retryWait, c.retries = defaultRetryWait, maxRetries
	for _, d := range []struct {
		key string
		to  *time.Duration
	}{{"fluentd-retry-wait", &c.retryWait}, {"fluentd-write-timeout", &c.writeTimeout}, {"fluentd-async-reconnect-interval", &c.reconnectInterval}} {
		v := own[d.key]
		if v == "" {
			continue
		}
		if *d.to, err = time.ParseDuration(v); err != nil {
			if d.key == "fluentd-async-reconnect-interval" {
				err = fmt.Errorf("invalid value for %s: %w", d.key, err)
			}
			return c, err
		}
	}
	if i := c.reconnectInterval; i != 0 && (i < 100*time.Millisecond || i > 10*time.Second) {
		return c, fmt.Errorf("invalid value for fluentd-async-reconnect-interval: value (%q) must be between %s and %s", i, 100*time.Millisecond, 10*time.Second)
	}
	if c.writeTimeout < 0 {
		return c, fmt.Errorf("invalid value for fluentd-write-timeout: value (%q) must be positive", c.writeTimeout)
	}
	if v := own["fluentd-max-retries"]; v != "" {
		n, err := strconv.ParseUint(v, 10, strconv.IntSize)
		if err != nil {
			return c, err
		}
		c.retries = int(min(n, maxRetries))
	}
	for _, b := range []struct {
		key string
		to  *bool
	}{{"fluentd-async", &c.async}, {"fluentd-request-ack", &c.ack}, {"fluentd-sub-second-precision", &c.subSecond}} {
		if v := own[b.key]; v != "" {
			if *b.to, err = strconv.ParseBool(v); err != nil {
				return c, err
			}
		}
	}
	return c, nil
}

func parseAddress(address string) (network, where string, err error) {
	if address == "" {
		return "tcp", net.JoinHostPort(defaultHost, defaultPort), nil
	}
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", "", err
	}
	switch u.Scheme {
	case "unix":
		if strings.TrimLeft(u.Path, "/") == "" {
			return "", "", errors.New("path is empty")
		}
		return u.Scheme, u.Path, nil
	case "tcp", "tls":
	default:
		return "", "", fmt.Errorf("unsupported scheme: '%s'", u.Scheme)
	}
	if u.Path != "" {
		return "", "", errors.New("should not contain a path element")
	}
	host, port := defaultHost, defaultPort
	if h := u.Hostname(); h != "" {
		host = h
	}
	if p := u.Port(); p != "" {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return "", "", fmt.Errorf("invalid port: %w", err)
		}
		port = p
	}
	return u.Scheme, net.JoinHostPort(host, port), nil
}

// Wait is the time before the first new attempt, and how many there are for an entry.
func Wait(own map[string]string) (time.Duration, int) {
	c, err := parse(own)
	if err != nil {
		return 0, 0
	}
	return c.retryWait, c.retries
}

// Async reports whether a start does not wait for the server.
func Async(own map[string]string) bool {
	c, err := parse(own)
	return err == nil && c.async
}

type remote struct {
	config
	conn *ship.Conn
	in   *bufio.Reader
	tag  string
	base map[string]string
	buf  []byte
	acks []string // of what was sent and not acknowledged yet
}

// Open connects.
func Open(info *ship.Info) (ship.Remote, error) {
	r := &remote{}
	var err error
	if r.config, err = parse(info.Config); err != nil {
		return nil, err
	}
	if r.tag, err = info.Tag(ship.DefaultTag); err != nil {
		return nil, err
	}
	attrs, err := info.Attributes(nil)
	if err != nil {
		return nil, err
	}
	r.base = map[string]string{"container_id": info.ContainerID, "container_name": info.ContainerName}
	maps.Copy(r.base, attrs)
	network := r.network
	cfg, err := ship.TLSConfig("", "", "", false)
	if err != nil {
		return nil, err
	}
	if r.conn, err = ship.Dial(network, r.address, cfg); err != nil {
		return nil, err
	}
	r.conn.Timeout = r.writeTimeout
	r.in = bufio.NewReader(r.conn)
	return r, nil
}

func (r *remote) Send(e *ship.Entry) error {
	n := byte(3)
	if r.ack {
		n = 4
	}
	b := appendString(append(r.buf[:0], 0x90|n), r.tag)
	if r.subSecond {
		b = append(b, 0xd7, 0) // an extension of 8 bytes: EventTime
		b = appendUint32(appendUint32(b, uint32(e.Time.Unix())), uint32(e.Time.Nanosecond()))
	} else {
		b = append(b, 0xd3)
		b = appendUint32(appendUint32(b, uint32(e.Time.Unix()>>32)), uint32(e.Time.Unix()))
	}
	fields := [][2]string{{"source", e.Source()}, {"log", string(e.Line)}}
	if p := e.Partial; p.Ordinal > 0 {
		fields = append(fields, [][2]string{
			{"partial_message", "true"}, {"partial_id", p.ID}, {"partial_ordinal", strconv.Itoa(p.Ordinal)}, {"partial_last", strconv.FormatBool(p.Last)},
		}...)
	}
	count := len(fields)
	for k := range r.base {
		if !has(fields, k) {
			count++
		}
	}
	b = append(b, 0xde, byte(count>>8), byte(count))
	for k, v := range r.base {
		if !has(fields, k) {
			b = appendString(appendString(b, k), v)
		}
	}
	for _, f := range fields {
		v := f[1]
		if own, ok := r.base[f[0]]; ok && (f[0] == "source" || f[0] == "log") { // an attribute of that name wins
			v = own
		}
		b = appendString(appendString(b, f[0]), v)
	}
	if r.ack {
		var id [16]byte
		_, _ = rand.Read(id[:])
		chunk := base64.StdEncoding.EncodeToString(id[:])
		b = appendString(appendString(append(b, 0x81), "chunk"), chunk)
		r.acks = append(r.acks, chunk)
	}
	r.buf = b
	_, err := r.conn.Write(b)
	return err
}

func has(fields [][2]string, k string) bool {
	for _, f := range fields {
		if f[0] == k {
			return true
		}
	}
	return false
}

func (r *remote) Flush() error {
	if err := r.conn.Flush(); err != nil {
		return err
	}
	for _, want := range r.acks {
		_ = r.conn.SetReadDeadline(time.Now().Add(ackTimeout))
		got, err := readAck(r.in)
		if err != nil {
			return fmt.Errorf("fluentd: no acknowledgement: %w", err)
		}
		if got != want {
			return fmt.Errorf("fluentd: wrong acknowledgement %q", got)
		}
	}
	r.acks = r.acks[:0]
	return nil
}

func (r *remote) Close() error { return r.conn.Close() }

func appendUint32(b []byte, v uint32) []byte {
	return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// appendString appends s in MessagePack.
func appendString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n < 1<<8:
		b = append(b, 0xd9, byte(n))
	case n < 1<<16:
		b = append(b, 0xda, byte(n>>8), byte(n))
	default:
		b = appendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

// readAck reads {"ack": id}.
func readAck(in *bufio.Reader) (string, error) {
	c, err := in.ReadByte()
	if err != nil {
		return "", err
	}
	if c != 0x81 {
		return "", errors.New("the answer is no map")
	}
	if k, err := readString(in); err != nil || k != "ack" {
		return "", errors.Join(err, errors.New("the answer has no ack"))
	}
	return readString(in)
}

func readString(in *bufio.Reader) (string, error) {
	c, err := in.ReadByte()
	if err != nil {
		return "", err
	}
	n, size := 0, 0
	switch {
	case c&0xe0 == 0xa0:
		n = int(c & 0x1f)
	case c == 0xd9 || c == 0xc4:
		size = 1
	case c == 0xda || c == 0xc5:
		size = 2
	default:
		return "", errors.New("the answer is no text")
	}
	for range size {
		c, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		n = n<<8 | int(c)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return string(b), err
}
