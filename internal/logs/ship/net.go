package ship

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialTimeout bounds a connect, which a start may wait for.
const DialTimeout = 10 * time.Second

// Conn is a connection with a write buffer. A stream is written to when the
// buffer is full or at Flush, a datagram socket at each Write.
type Conn struct {
	net.Conn
	Timeout  time.Duration // of a write; 0 is DialTimeout
	datagram bool
	buf      []byte
}

const bufferSize = 32 << 10

// Dial connects. cfg is for the network "tcp+tls" or "tls".
func Dial(network, address string, cfg *tls.Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), DialTimeout)
	defer cancel()
	var c net.Conn
	var err error
	var d net.Dialer
	if network == "tcp+tls" || network == "tls" {
		c, err = (&tls.Dialer{NetDialer: &d, Config: cfg}).DialContext(ctx, "tcp", address)
	} else {
		c, err = d.DialContext(ctx, network, address)
	}
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c, datagram: strings.HasPrefix(network, "udp") || network == "unixgram"}, nil
}

// Write takes one message.
func (c *Conn) Write(b []byte) (int, error) {
	if c.datagram {
		_, err := c.Conn.Write(b)
		if errors.Is(err, syscall.ECONNREFUSED) && c.RemoteAddr().Network() == "udp" {
			// The answer to an earlier one, and this one was not sent.
			_, err = c.Conn.Write(b)
			if errors.Is(err, syscall.ECONNREFUSED) {
				err = nil
			}
		}
		return len(b), err
	}
	if len(c.buf)+len(b) > bufferSize {
		if err := c.Flush(); err != nil {
			return 0, err
		}
	}
	c.buf = append(c.buf, b...)
	return len(b), nil
}

// Flush writes what is kept.
func (c *Conn) Flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = DialTimeout
	}
	if c.closedByPeer() {
		return io.ErrUnexpectedEOF
	}
	_ = c.SetWriteDeadline(time.Now().Add(timeout))
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// closedByPeer reports whether the other side has ended the connection: what is
// written would be taken by the kernel, and lost.
func (c *Conn) closedByPeer() bool {
	inner := c.Conn
	if t, ok := inner.(*tls.Conn); ok {
		inner = t.NetConn()
	}
	sc, ok := inner.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return gone || err != nil
}

// TLSConfig reads the files of a client's TLS options; empty names are left out.
func TLSConfig(ca, cert, key string, skipVerify bool) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: skipVerify} //nolint:gosec // asked for by an option
	if ca != "" && !skipVerify {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("could not read CA certificate %q: %w", ca, err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("failed to append certificates from PEM file: %q", ca)
		}
		cfg.RootCAs = pool
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("could not load X509 key pair: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// IsTransportURL reports whether an address has a scheme that is a network.
func IsTransportURL(s string) bool {
	for _, p := range []string{"tcp://", "tcp+tls://", "udp://", "unix://", "unixgram://", "tls://"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
