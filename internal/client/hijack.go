package client

import (
	"bufio"
	"context"
	"io"
	"net"
)

// Hijacked is a raw connection to a container's streams.
type Hijacked struct {
	conn net.Conn
	r    *bufio.Reader
	// MediaType is the answer's Content-Type: raw or multiplexed.
	MediaType string
}

// Read reads the container's output.
func (h *Hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }

// WriteTo copies the container's output to w until the connection ends.
func (h *Hijacked) WriteTo(w io.Writer) (int64, error) { return h.r.WriteTo(w) }

// Write writes to the container's standard input.
func (h *Hijacked) Write(p []byte) (int, error) { return h.conn.Write(p) }

// CloseWrite ends the container's standard input.
func (h *Hijacked) CloseWrite() error {
	if cw, ok := h.conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Close ends the connection.
func (h *Hijacked) Close() error { return h.conn.Close() }

// Hijack sends the request with "Upgrade: tcp" and returns the connection.
func (c *Client) Hijack(ctx context.Context, r Request) (*Hijacked, error) {
	body, err := encode(r.Body)
	if err != nil {
		return nil, err
	}
	if err := c.negotiate(ctx, false); err != nil {
		return nil, err
	}
	h, err := c.hijack(ctx, &r, body)
	if c.tooNew(err) {
		h, err = c.hijack(ctx, &r, body)
	}
	return h, err
}

func (c *Client) hijack(ctx context.Context, r *Request, body []byte) (*Hijacked, error) {
	req, err := c.newRequest(ctx, r, body, c.CurrentVersion())
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	l, err := c.link(ctx)
	if err != nil {
		return nil, err
	}
	res, stop, err := exchange(l, req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &ConnectError{Host: c.opts.Host, Err: err}
	}
	if res.StatusCode >= 400 {
		err = readError(res)
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return &Hijacked{conn: l.Conn, r: l.r, MediaType: res.Header.Get("Content-Type")}, nil
}
