package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/moby/moby/api/types"

	"berth.dev/berth/internal/errs"
)

// conn is a connection taken over from the HTTP server. What the server had
// read ahead comes first.
type conn struct {
	net.Conn
	ahead *bufio.Reader // nil when empty
}

func (c *conn) Read(p []byte) (int, error) {
	if c.ahead != nil {
		if n := c.ahead.Buffered(); n > 0 {
			return c.ahead.Read(p[:min(len(p), n)])
		}
		c.ahead = nil
	}
	return c.Conn.Read(p)
}

// CloseWrite tells the client that no more output comes; it may go on sending.
func (c *conn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return c.Conn.Close()
}

// ReadFrom lets the kernel move data when the connection can.
func (c *conn) ReadFrom(src io.Reader) (int64, error) { return io.Copy(c.Conn, src) }

// hijack takes the connection over for a raw stream and tells the client so:
// with 101 when it asked for an upgrade, else with 200. From 1.42 on an upgraded
// client learns from the content type whether the output is multiplexed.
func (r *request) hijack(tty bool) (Conn, error) {
	if r.begun {
		return nil, errs.New(errs.Internal, "the connection was taken over twice")
	}
	nc, rw, err := http.NewResponseController(r.w).Hijack()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "error attaching to container, hijack connection missing")
	}
	r.begun = true
	c := &conn{Conn: nc}
	if rw.Reader.Buffered() > 0 {
		c.ahead = rw.Reader
	}
	_ = nc.SetDeadline(time.Time{})
	kind := types.MediaTypeRawStream
	if !tty && r.version >= 42 {
		kind = types.MediaTypeMultiplexedStream
	}
	if r.Header.Get("Upgrade") != "" {
		_, err = fmt.Fprintf(nc, "HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nApi-Version: %s\r\nServer: %s\r\n\r\n",
			kind, MaxVersion, r.w.Header().Get("Server"))
	} else {
		_, err = fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n", types.MediaTypeRawStream)
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

// hijackOnce gives a service the means to take the connection over and closes
// it when the service is done.
func (r *request) hijackOnce() (take func(tty bool) (Conn, error), release func()) {
	var c Conn
	take = func(tty bool) (Conn, error) {
		got, err := r.hijack(tty)
		if err != nil {
			return nil, err
		}
		c = got
		return got, nil
	}
	return take, func() {
		if c != nil {
			_ = c.Close()
		}
	}
}
