package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"

	"berth.dev/berth/internal/errs"
)

// Authorizer is asked about each request before its handler runs, and about
// each answer before the client gets it.
type Authorizer interface {
	Active() bool
	Request(ctx context.Context, r *AuthRequest) error
	Response(ctx context.Context, r *AuthRequest, a *AuthResponse) error
}

// AuthRequest is a request as the API has read it. Body is nil for uploads and
// for credentials.
type AuthRequest struct {
	User, UserMethod string // the common name of a verified certificate, and "TLS"
	Method, URI      string
	Header           http.Header
	Body             []byte
}

// AuthResponse is an answer. Body is nil when it was streamed, or is too large
// to be kept: then it is under way already.
type AuthResponse struct {
	Status int
	Header http.Header
	Body   []byte
}

// maxCaptured is how much of an answer is held back for a look at it.
const maxCaptured = 64 << 10

// authorize runs handle between the two questions. The body is read whole
// before the first: what is judged is what the handler gets, however it came.
func (s *Server) authorize(r *request, rt *route) (response, error) {
	a := &AuthRequest{Method: r.Method, URI: r.RequestURI, Header: r.Header}
	if t := r.TLS; t != nil && len(t.VerifiedChains) > 0 && len(t.VerifiedChains[0]) > 0 {
		a.User, a.UserMethod = t.VerifiedChains[0][0].Subject.CommonName, "TLS"
	}
	if !rt.upload && r.Body != nil && r.Body != http.NoBody {
		body, err := io.ReadAll(&limited{r: r.Body, left: maxJSON})
		if errors.Is(err, errTooLarge) {
			return done(err)
		}
		if err != nil {
			return done(errs.New(errs.Invalid, "cannot read the request's body: %v", err))
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		if rt.pattern != "/auth" {
			a.Body = body
		}
	}
	if err := s.opts.Authorizer.Request(r.Context(), a); err != nil {
		return done(err)
	}
	out := &capture{ResponseWriter: r.w, header: http.Header{}}
	for k, v := range r.w.Header() {
		out.header[k] = v
	}
	r.w = out
	res, err := rt.handle(r)
	r.end()
	switch {
	case err != nil && !r.begun:
		writeError(r, err)
		err = nil
	case !r.begun:
		res.write(r)
	}
	if out.taken {
		return response{}, err
	}
	answer := &AuthResponse{Status: out.status, Header: out.header}
	if !out.through {
		answer.Body = out.buf.Bytes()
	}
	if answer.Status == 0 {
		answer.Status = http.StatusOK
	}
	denied := s.opts.Authorizer.Response(r.Context(), a, answer)
	r.w, r.begun = out.ResponseWriter, true
	if out.through {
		return response{}, err // it is with the client already
	}
	if denied != nil {
		writeError(r, denied)
		return response{}, err
	}
	out.passOn()
	return response{}, err
}

// capture holds an answer back until it is complete, flushed or large.
type capture struct {
	http.ResponseWriter
	header  http.Header
	status  int
	buf     bytes.Buffer
	through bool // what is written goes to the client
	taken   bool // the connection was
}

func (c *capture) Header() http.Header { return c.header }

func (c *capture) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

func (c *capture) Write(b []byte) (int, error) {
	if !c.through && c.buf.Len()+len(b) > maxCaptured {
		c.passOn()
	}
	if c.through {
		return c.ResponseWriter.Write(b)
	}
	return c.buf.Write(b)
}

// passOn sends what was held back, and from now on holds nothing.
func (c *capture) passOn() {
	if c.through {
		return
	}
	c.through = true
	h := c.ResponseWriter.Header()
	clear(h)
	for k, v := range c.header {
		h[k] = v
	}
	if c.status != 0 {
		c.ResponseWriter.WriteHeader(c.status)
	}
	_, _ = c.ResponseWriter.Write(c.buf.Bytes())
	c.buf = bytes.Buffer{}
}

// FlushError is called by whoever streams.
func (c *capture) FlushError() error {
	c.passOn()
	return http.NewResponseController(c.ResponseWriter).Flush()
}

// EnableFullDuplex lets an upload be read while the answer is written.
func (c *capture) EnableFullDuplex() error {
	return http.NewResponseController(c.ResponseWriter).EnableFullDuplex()
}

// Unwrap is for hijacking: the connection is the handler's then.
func (c *capture) Unwrap() http.ResponseWriter {
	c.taken = true
	return c.ResponseWriter
}
