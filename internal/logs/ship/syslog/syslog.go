// Package syslog is the log driver syslog: one message for each entry, over
// udp, tcp, tcp with TLS or a unix socket, in the forms of RFC 3164 or 5424.
//
//	--log-opt syslog-address=tcp://10.0.0.1:514 --log-opt syslog-format=rfc5424
package syslog

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
)

// Name is the driver's.
const Name = "syslog"

const secure = "tcp+tls"

// facilities are numbered by their place.
var facilities = strings.Fields("kern user mail daemon auth syslog lpr news uucp cron authpriv ftp - - - - local0 local1 local2 local3 local4 local5 local6 local7")

const (
	severityErr  = 3
	severityInfo = 6
)

// Validate checks options as create does.
func Validate(own map[string]string) error {
	err := logs.Known(Name, own, "syslog-address", "syslog-facility", "syslog-format",
		"syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify")
	if err != nil {
		return err
	}
	if _, _, err := parseAddress(own["syslog-address"]); err != nil {
		return err
	}
	if _, err := parseFacility(own["syslog-facility"]); err != nil {
		return err
	}
	_, err = parseFormat(own["syslog-format"])
	return err
}

func parseAddress(address string) (network, where string, err error) {
	if address == "" {
		return "", "", nil
	}
	if !ship.IsTransportURL(address) {
		return "", "", fmt.Errorf("syslog-address should be in form proto://address, got %v", address)
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", "", err
	}
	if u.Scheme == "unix" || u.Scheme == "unixgram" {
		if _, err := os.Stat(u.Path); err != nil {
			return "", "", err
		}
		return u.Scheme, u.Path, nil
	}
	host := u.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		if !strings.Contains(err.Error(), "missing port in address") {
			return "", "", err
		}
		host += ":514"
	}
	return u.Scheme, host, nil
}

func parseFacility(s string) (int, error) {
	if s == "" {
		return 3, nil
	}
	for i, name := range facilities {
		if s == name && s != "-" {
			return i, nil
		}
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 23 {
		return n, nil
	}
	return 0, errors.New("invalid syslog facility")
}

type format byte

const (
	formatUnix format = iota // RFC 3164 without a host, as local daemons take it
	format3164
	format5424
	format5424micro
)

func parseFormat(s string) (format, error) {
	switch s {
	case "":
		return formatUnix, nil
	case "rfc3164":
		return format3164, nil
	case "rfc5424":
		return format5424, nil
	case "rfc5424micro":
		return format5424micro, nil
	}
	return 0, errors.New("Invalid syslog format") //nolint:staticcheck // Docker's words
}

type remote struct {
	conn   *ship.Conn
	host   string
	tag    string
	pid    string
	prio   int // facility
	format format
	length bool // a message is preceded by its length (RFC 5425)
	buf    []byte
}

// Open connects.
func Open(info *ship.Info) (ship.Remote, error) {
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	network, address, err := parseAddress(info.Config["syslog-address"])
	if err != nil {
		return nil, err
	}
	r := &remote{tag: tag, pid: strconv.Itoa(os.Getpid())}
	facility, err := parseFacility(info.Config["syslog-facility"])
	if err != nil {
		return nil, err
	}
	r.prio = facility << 3
	if r.format, err = parseFormat(info.Config["syslog-format"]); err != nil {
		return nil, err
	}
	if r.host, err = info.Hostname(); err != nil {
		return nil, err
	}
	var cfg *tls.Config
	if network == secure {
		_, skip := info.Config["syslog-tls-skip-verify"]
		if cfg, err = ship.TLSConfig(info.Config["syslog-tls-ca-cert"], info.Config["syslog-tls-cert"], info.Config["syslog-tls-key"], skip); err != nil {
			return nil, err
		}
		r.length = r.format == format5424 || r.format == format5424micro
	}
	if network == "" {
		r.conn, err = dialLocal()
	} else {
		r.conn, err = ship.Dial(network, address, cfg)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// dialLocal finds the daemon of this host.
func dialLocal() (*ship.Conn, error) {
	for _, network := range []string{"unixgram", "unix"} {
		for _, path := range []string{"/dev/log", "/var/run/syslog", "/var/run/log"} {
			if c, err := ship.Dial(network, path, nil); err == nil {
				return c, nil
			}
		}
	}
	return nil, errors.New("Unix syslog delivery error") //nolint:staticcheck // Docker's words
}

func (r *remote) Send(e *ship.Entry) error {
	prio := r.prio | severityInfo
	if e.Stream == logs.Stderr {
		prio = r.prio | severityErr
	}
	b := strconv.AppendInt(append(r.buf[:0], '<'), int64(prio), 10)
	b = append(b, '>')
	switch r.format {
	case formatUnix, format3164:
		b = e.Time.Local().AppendFormat(b, time.Stamp)
		if r.format == format3164 {
			b = append(append(b, ' '), r.host...)
		}
		b = append(append(b, ' '), r.tag...)
		b = append(append(append(b, '['), r.pid...), "]: "...)
	default:
		layout := time.RFC3339
		if r.format == format5424micro {
			layout = "2006-01-02T15:04:05.999999Z07:00"
		}
		b = e.Time.Local().AppendFormat(append(b, "1 "...), layout)
		b = fmt.Appendf(b, " %s %s %s %s - ", r.host, r.tag, r.pid, r.tag)
	}
	b = append(append(b, e.Line...), '\n')
	r.buf = b
	if r.length {
		framed := strconv.AppendInt(nil, int64(len(b)), 10)
		b = append(append(framed, ' '), b...)
	}
	_, err := r.conn.Write(b)
	return err
}

func (r *remote) Flush() error { return r.conn.Flush() }
func (r *remote) Close() error { return r.conn.Close() }
