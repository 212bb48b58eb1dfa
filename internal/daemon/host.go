package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// parseHost brings a -H value into the form proto://address.
func parseHost(s string, tls bool) (string, error) {
	s = strings.TrimSpace(s)
	port := DefaultPort
	if tls {
		port = DefaultTLSPort
	}
	switch {
	case s == "" || s == "unix://":
		return "unix://" + DefaultSocket, nil
	case s == "fd://":
		return s, nil
	case strings.HasPrefix(s, "unix://"), strings.HasPrefix(s, "fd://"):
		return s, nil
	case strings.HasPrefix(s, "/"):
		return "unix://" + s, nil
	case strings.Contains(s, "://") && !strings.HasPrefix(s, "tcp://"):
		return "", fmt.Errorf("invalid bind address format: %s", s)
	}
	addr := strings.TrimPrefix(s, "tcp://")
	if strings.ContainsAny(addr, "/?#@") {
		return "", fmt.Errorf("invalid bind address (%s): should not contain a path, query or user", s)
	}
	host, p, err := net.SplitHostPort(addr)
	if err != nil { // no port
		host, p = strings.Trim(addr, "[]"), ""
		if _, err := netip.ParseAddr(host); err != nil && strings.Contains(host, ":") {
			return "", fmt.Errorf("invalid bind address format: %s", s)
		}
	}
	if host == "" {
		host = "localhost"
	}
	if p == "" {
		p = strconv.Itoa(port)
	}
	if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 && p != "0" {
		return "", fmt.Errorf("invalid bind address (%s): invalid port: %s", s, p)
	}
	return "tcp://" + net.JoinHostPort(host, p), nil
}
