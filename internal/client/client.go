// Package client is a thin client of the Engine API.
//
// A Client knows one host (unix, tcp with or without TLS, ssh) and speaks HTTP
// to it, over connections of its own that one request after the other uses
// (transport.go). It has one verb, Do, which sends a Request and gives a response whose
// status is below 400, and Hijack, which turns the connection into a raw
// stream for attach and exec. Get and Post add JSON around Do. Paths and
// query keys stand where they are used, in the command that uses them: the
// Engine API is the interface, and no second one is laid over it.
//
// Version negotiation: a request path starts with /vX.YY. A fixed version
// (DOCKER_API_VERSION) is sent as it is. For an optimistic client (any local
// socket) requests go out with MaxVersion at once, and only a server
// that answers "client version … is too new" costs a second try. Any other
// client asks /_ping first and takes the lower of both versions.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// The API versions that this client speaks.
const (
	MaxVersion = "1.56"
	MinVersion = "1.24"
)

// Options describe a client. Dial overrides how connections are made.
type Options struct {
	Host       string // unix:///path, tcp://host:port[/base], ssh://[user@]host[:port][/path]
	TLS        *TLSFiles
	Version    string // fixed version; empty negotiates
	Headers    map[string]string
	UserAgent  string
	Optimistic bool
	// Refused is called once when nothing listens on a unix socket; when it
	// returns nil the connection is tried again.
	Refused func(context.Context) error
}

// Client speaks to one engine. It is safe for concurrent use.
type Client struct {
	opts     Options
	scheme   string
	urlHost  string
	basePath string
	dial     func(context.Context) (net.Conn, error)
	http     func() *http.Client // for requests that stream a body

	mu      sync.Mutex // guards the fields below
	idle    []*link
	closed  bool
	version string
	settled bool // version was confirmed by the server or fixed
	refused bool // Refused has been called
}

// Error is what the engine answered with a status of 400 or more.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return "Error response from daemon: " + e.Message }

// IsNotFound reports whether err is the engine's 404.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

func hasStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// ConnectError says that the engine could not be reached at all.
type ConnectError struct {
	Host  string
	Err   error
	plain bool // Err says everything itself
}

func (e *ConnectError) Error() string {
	if e.plain {
		return e.Err.Error()
	}
	if errors.Is(e.Err, errPermission) {
		return fmt.Sprintf("permission denied while trying to connect to the Berth daemon socket at %s: %v", e.Host, e.Err)
	}
	if strings.HasPrefix(e.Host, "ssh://") {
		return "error during connect: " + e.Err.Error()
	}
	var op *net.OpError
	if errors.As(e.Err, &op) && op.Op == "dial" {
		return fmt.Sprintf("Cannot connect to the Berth daemon at %s. Is the berth daemon running?", e.Host)
	}
	return "error during connect: " + e.Err.Error()
}

func (e *ConnectError) Unwrap() error { return e.Err }

// New checks the options and returns a client. It does not connect.
func New(o Options) (*Client, error) {
	c := &Client{opts: o, scheme: "http", version: MaxVersion}
	if o.Version != "" {
		c.version, c.settled = strings.TrimPrefix(o.Version, "v"), true
	}
	if err := c.setDialer(); err != nil {
		return nil, err
	}
	if c.scheme == "https" {
		c.scheme = "http" // the dialer has made the TLS connection already
	}
	c.http = sync.OnceValue(c.streamingClient)
	return c, nil
}

// streamingClient is for requests that stream a body: the engine may answer
// before it has read everything, which takes a reader beside the writer.
func (c *Client) streamingClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.connect(ctx) },
			DisableCompression: true,
			DisableKeepAlives:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("unexpected redirect in response")
		},
	}
}

// Host returns the host as it was given.
func (c *Client) Host() string { return c.opts.Host }

// Close drops idle connections, and later those that are in use.
func (c *Client) Close() {
	c.mu.Lock()
	idle := c.idle
	c.idle, c.closed = nil, true
	c.mu.Unlock()
	for _, l := range idle {
		l.Close()
	}
}

// Version returns the API version in use, after negotiation where that is needed.
func (c *Client) Version(ctx context.Context) string {
	_ = c.negotiate(ctx, true)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// CurrentVersion returns the API version as far as it is known.
func (c *Client) CurrentVersion() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// AtLeast reports whether the API version in use is v or later. It negotiates
// when the version is not certain yet.
func (c *Client) AtLeast(ctx context.Context, v string) bool {
	return !less(c.Version(ctx), v)
}

// Less reports whether API version a is before b.
func Less(a, b string) bool { return less(a, b) }

func less(a, b string) bool {
	a1, a2, _ := strings.Cut(a, ".")
	b1, b2, _ := strings.Cut(b, ".")
	if n, m := atoi(a1), atoi(b1); n != m {
		return n < m
	}
	return atoi(a2) < atoi(b2)
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// Ping is what /_ping answers in its headers.
type Ping struct {
	APIVersion, OSType, BuilderVersion, Swarm string
	Experimental                              bool
}

// Ping asks /_ping.
func (c *Client) Ping(ctx context.Context) (Ping, error) {
	res, err := c.send(ctx, &Request{Method: http.MethodHead, Path: "/_ping"}, nil, "")
	var ae *Error
	if errors.As(err, &ae) {
		// The answer to HEAD has no text: ask again for the reason.
		res, err = c.send(ctx, &Request{Method: http.MethodGet, Path: "/_ping"}, nil, "")
	}
	if err != nil {
		return Ping{}, err
	}
	res.Body.Close()
	h := res.Header
	return Ping{
		APIVersion: h.Get("Api-Version"), OSType: h.Get("Ostype"), BuilderVersion: h.Get("Builder-Version"),
		Swarm: h.Get("Swarm"), Experimental: h.Get("Docker-Experimental") == "true",
	}, nil
}

// negotiate settles the version. An optimistic client does so only when certain is set.
func (c *Client) negotiate(ctx context.Context, certain bool) error {
	c.mu.Lock()
	done := c.settled || c.opts.Optimistic && !certain
	c.mu.Unlock()
	if done {
		return nil
	}
	p, err := c.Ping(ctx)
	if err != nil {
		return err
	}
	c.settle(p.APIVersion)
	return nil
}

func (c *Client) settle(server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if server == "" {
		server = MinVersion
	}
	if less(server, c.version) {
		c.version = server
	}
	c.settled = true
}

// Request is one call. Path starts after the version prefix. Body is sent as
// JSON; Stream is sent as it is and cannot be repeated.
type Request struct {
	Method, Path string
	Query        url.Values
	Header       http.Header
	Body         any
	Stream       io.Reader
	ContentType  string
}

// Do sends the request. The response has a status below 400; the caller closes its body.
func (c *Client) Do(ctx context.Context, r Request) (*http.Response, error) {
	body, err := encode(r.Body)
	if err != nil {
		return nil, err
	}
	if err := c.negotiate(ctx, r.Stream != nil); err != nil {
		return nil, err
	}
	res, err := c.send(ctx, &r, body, c.CurrentVersion())
	if c.tooNew(err) {
		res, err = c.send(ctx, &r, body, c.CurrentVersion())
	}
	return res, err
}

// tooNew lowers the version when err is the server's refusal of it, and reports whether to try again.
func (c *Client) tooNew(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusBadRequest || !strings.Contains(e.Message, "is too new") {
		return false
	}
	c.mu.Lock()
	done := c.settled
	c.mu.Unlock()
	i := strings.LastIndexByte(e.Message, ' ')
	v := strings.TrimRight(e.Message[i+1:], ". \n")
	if done || v == "" || !strings.HasPrefix(v, "1.") {
		return false
	}
	c.settle(v)
	return true
}

func encode(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

func (c *Client) newRequest(ctx context.Context, r *Request, body []byte, version string) (*http.Request, error) {
	p := c.basePath + r.Path
	if version != "" {
		p = c.basePath + "/v" + version + r.Path
	}
	u := &url.URL{Scheme: c.scheme, Host: c.urlHost, Path: p, RawQuery: r.Query.Encode()}
	var rd io.Reader
	switch {
	case r.Stream != nil:
		rd = r.Stream
	case body != nil:
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u.String(), rd)
	if err != nil {
		return nil, err
	}
	req.Host = c.urlHost
	if c.urlHost == "unix" {
		req.Host = "api.moby.localhost"
	}
	for k, v := range c.opts.Headers {
		req.Header.Set(k, v)
	}
	if c.opts.UserAgent != "" {
		req.Header.Set("User-Agent", c.opts.UserAgent)
	}
	for k, v := range r.Header {
		req.Header[k] = v
	}
	switch {
	case r.ContentType != "":
		req.Header.Set("Content-Type", r.ContentType)
	case body != nil:
		req.Header.Set("Content-Type", "application/json")
	case rd != nil:
		req.Header.Set("Content-Type", "text/plain")
	}
	return req, nil
}

func (c *Client) send(ctx context.Context, r *Request, body []byte, version string) (*http.Response, error) {
	req, err := c.newRequest(ctx, r, body, version)
	if err != nil {
		return nil, err
	}
	var res *http.Response
	if r.Stream != nil {
		res, err = c.http().Do(req)
	} else {
		res, err = c.roundTrip(req)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		var ce *ConnectError
		if errors.As(err, &ce) {
			return nil, ce
		}
		return nil, &ConnectError{Host: c.opts.Host, Err: err}
	}
	if res.StatusCode >= 400 {
		defer res.Body.Close()
		return nil, readError(res)
	}
	return res, nil
}

func readError(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	e := &Error{Status: res.StatusCode}
	var m struct{ Message string }
	switch {
	case strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") && json.Unmarshal(b, &m) == nil:
		e.Message = strings.TrimSpace(m.Message)
	default:
		e.Message = strings.TrimSpace(string(b))
	}
	if e.Message == "" {
		where := ""
		if res.Request != nil {
			where = " for API route and version " + res.Request.URL.Path
		}
		e.Message = fmt.Sprintf("request returned %s%s, check if the server supports the requested API version",
			http.StatusText(res.StatusCode), where)
	}
	return e
}

// JSON sends a request and decodes the answer into out, which may be nil.
func (c *Client) JSON(ctx context.Context, r Request, out any) error {
	res, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if raw, ok := out.(*[]byte); ok {
		*raw, err = io.ReadAll(res.Body)
		return err
	}
	err = json.NewDecoder(res.Body).Decode(out)
	_, _ = io.Copy(io.Discard, res.Body)
	return err
}

// Get fetches one JSON value.
func Get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var v T
	err := c.JSON(ctx, Request{Method: http.MethodGet, Path: path, Query: query}, &v)
	return v, err
}

// Post sends body and decodes the answer.
func Post[T any](ctx context.Context, c *Client, path string, query url.Values, body any) (T, error) {
	var v T
	err := c.JSON(ctx, Request{Method: http.MethodPost, Path: path, Query: query, Body: body}, &v)
	return v, err
}

// Call sends a request whose answer carries nothing.
func (c *Client) Call(ctx context.Context, method, path string, query url.Values) error {
	return c.JSON(ctx, Request{Method: method, Path: path, Query: query}, nil)
}
