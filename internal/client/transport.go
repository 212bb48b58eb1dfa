package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// How many connections wait for their next request, and for how long: a
// connection over ssh is dear, one to a local socket is not.
const (
	maxIdle      = 6
	idleLimit    = 30 * time.Second
	idleLimitNow = time.Second
)

// link is one connection to the engine between requests.
type link struct {
	net.Conn
	r      *bufio.Reader
	parked time.Time // when it became idle
	reused bool
}

// link returns an idle connection, or a new one.
func (c *Client) link(ctx context.Context) (*link, error) {
	limit := idleLimit
	if c.urlHost == "unix" {
		limit = idleLimitNow
	}
	for {
		c.mu.Lock()
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			return c.newLink(ctx)
		}
		l := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		if time.Since(l.parked) < limit {
			l.reused = true
			return l, nil
		}
		l.Close()
	}
}

func (c *Client) newLink(ctx context.Context) (*link, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &link{Conn: conn, r: bufio.NewReaderSize(conn, 32<<10)}, nil
}

// park keeps a connection for the next request.
func (c *Client) park(l *link) {
	l.parked = time.Now()
	c.mu.Lock()
	keep := len(c.idle) < maxIdle && !c.closed
	if keep {
		c.idle = append(c.idle, l)
	}
	c.mu.Unlock()
	if !keep {
		l.Close()
	}
}

// roundTrip sends a request whose body is in memory and reads the head of the
// answer. Unlike http.Transport it needs no goroutines: the caller writes and
// reads. A reused connection that the engine has closed meanwhile is replaced
// when the request may be repeated.
func (c *Client) roundTrip(req *http.Request) (*http.Response, error) {
	for {
		l, err := c.link(req.Context())
		if err != nil {
			return nil, err
		}
		res, stop, err := exchange(l, req)
		switch {
		case err == nil:
		case l.reused && req.Context().Err() == nil && (req.Method == http.MethodGet || req.Method == http.MethodHead):
			continue
		default:
			return nil, err
		}
		b := &linkBody{c: c, l: l, rest: res.Body, stop: stop, keep: !res.Close, ctx: req.Context()}
		if res.Body == http.NoBody {
			b.finish(b.keep)
		} else {
			res.Body = b
		}
		if req.Method != http.MethodGet && isRedirect(res) {
			res.Body.Close()
			return nil, errors.New("unexpected redirect in response")
		}
		return res, nil
	}
}

func isRedirect(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return res.Header.Get("Location") != ""
	}
	return false
}

// exchange writes the request and reads the head of the answer. While the
// answer is read, the end of the request's context closes the connection, until
// stop is called. On error the connection is closed.
func exchange(l *link, req *http.Request) (res *http.Response, stop func() bool, err error) {
	stop = context.AfterFunc(req.Context(), func() { l.Close() })
	if err := writeRequest(l, req); err != nil {
		stop()
		l.Close()
		return nil, nil, err
	}
	for {
		if _, err = l.r.Peek(1); err == nil {
			res, err = http.ReadResponse(l.r, req)
		}
		if err != nil {
			stop()
			l.Close()
			return nil, nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, stop, nil
		}
	}
}

// writeRequest sends the request in one piece.
func writeRequest(w io.Writer, req *http.Request) error {
	var b bytes.Buffer
	if err := req.Write(&b); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// linkBody is the body of an answer. Read to its end it gives the connection
// back; closed before that it ends the connection.
type linkBody struct {
	c    *Client
	l    *link
	rest io.Reader
	stop func() bool
	keep bool
	ctx  context.Context // the request's, as in http.Request
	err  error           // what further reads answer
	once sync.Once       // guards the end: a body may be closed while it is read
}

func (b *linkBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.rest.Read(p)
	if err != nil {
		if !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
			err = b.ctx.Err()
		}
		b.err = err
		b.finish(errors.Is(err, io.EOF) && b.keep)
	}
	return n, err
}

func (b *linkBody) Close() error {
	b.finish(false)
	return nil
}

// finish lets go of the connection once.
func (b *linkBody) finish(keep bool) {
	b.once.Do(func() {
		if b.stop() && keep {
			b.c.park(b.l)
			return
		}
		b.l.Close()
	})
}
