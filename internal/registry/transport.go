package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"berth.dev/berth/internal/errs"
)

const (
	dialTimeout   = 30 * time.Second
	headerTimeout = 2 * time.Minute
	idleTimeout   = time.Minute // without a byte, a download counts as dropped
	maxRedirects  = 10
)

// led marks the context of a request that goes where an answer has sent it.
type led struct{}

func newTransport(tc *tls.Config) *http.Transport {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tc, ForceAttemptHTTP2: true, DisableCompression: true,
		TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: headerTimeout, IdleConnTimeout: 30 * time.Second,
		MaxIdleConnsPerHost: 8, MaxResponseHeaderBytes: 256 << 10,
	}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
		if ctx.Value(led{}) != nil {
			d.Control = func(_, address string, _ syscall.RawConn) error {
				if a, err := netip.ParseAddrPort(address); err == nil && private(a.Addr()) {
					return fmt.Errorf("a redirect to %s is not followed", a.Addr())
				}
				return nil
			}
		}
		return d.DialContext(ctx, network, addr)
	}
	return t
}

// private reports whether an address is of the machine itself or of the link, where
// the metadata services of clouds are: no registry sends one there for good.
func private(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{100, 100, 100, 200}) || a == netip.MustParseAddr("fd00:ec2::254")
}

// sameOrigin reports whether two URLs are of one server.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(hostPort(a), hostPort(b))
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "http" {
		return u.Host + ":80"
	}
	return u.Host + ":443"
}

// checkLed returns what speaks against going from one URL to another because the first
// said so.
func checkLed(from, to *url.URL) error {
	switch {
	case to.Scheme != "http" && to.Scheme != "https":
		return errs.New(errs.Unavailable, "a redirect from %s to a %q address is not followed", from.Host, to.Scheme)
	case from.Scheme == "https" && to.Scheme == "http":
		return errs.New(errs.Unavailable, "a redirect from https://%s to plain HTTP at %s is not followed", from.Host, to.Host)
	case sameHost(from, to) || local(from):
		return nil
	}
	if strings.EqualFold(to.Hostname(), "localhost") {
		return errs.New(errs.Unavailable, "a redirect from %s to %s is not followed", from.Host, to.Host)
	}
	if a, err := netip.ParseAddr(to.Hostname()); err == nil && private(a) {
		return errs.New(errs.Unavailable, "a redirect from %s to %s is not followed", from.Host, to.Host)
	}
	return nil
}

// sameHost reports whether two URLs are of one machine: other ports of a registry on
// loopback are no stranger than itself.
func sameHost(a, b *url.URL) bool { return strings.EqualFold(a.Hostname(), b.Hostname()) }

// local reports whether a URL is of this machine, by its name.
func local(u *url.URL) bool {
	a, err := netip.ParseAddr(u.Hostname())
	return strings.EqualFold(u.Hostname(), "localhost") || err == nil && a.IsLoopback()
}

// leading returns the context for a request to an address that from has named: a name there
// must not turn out to be the machine itself, unless a proxy asks for it.
func leading(ctx context.Context, from, to *url.URL) context.Context {
	if sameHost(from, to) || local(from) {
		return ctx
	}
	if p, err := http.ProxyFromEnvironment(&http.Request{URL: to}); err != nil || p != nil {
		return ctx
	}
	return context.WithValue(ctx, led{}, true)
}

// send sends a request, and follows redirects when it has no body, taking
// credentials to the same origin only.
func (e *endpoint) send(req *http.Request) (*http.Response, error) {
	first := req.URL
	for range maxRedirects {
		if e.agent != "" {
			req.Header.Set("User-Agent", e.agent)
		}
		res, err := e.http.RoundTrip(req)
		if err != nil {
			if cerr := req.Context().Err(); cerr != nil {
				err = context.Cause(req.Context())
			}
			return nil, &url.Error{Op: verb(req.Method), URL: first.Redacted(), Err: err}
		}
		to, ok := redirect(req, res)
		if !ok {
			return res, nil
		}
		_ = res.Body.Close()
		if to == nil {
			return nil, errs.New(errs.Unavailable, "%s answers with a redirect that leads nowhere", req.URL.Host)
		}
		if err := checkLed(req.URL, to); err != nil {
			return nil, err
		}
		next, err := http.NewRequestWithContext(leading(req.Context(), first, to), req.Method, to.String(), nil)
		if err != nil {
			return nil, errs.New(errs.Unavailable, "%s answers with an invalid redirect", req.URL.Host)
		}
		next.Header = req.Header.Clone()
		if !sameOrigin(first, to) {
			next.Header.Del("Authorization")
		}
		req = next
	}
	return nil, errs.New(errs.Unavailable, "%s redirects more than %d times", first.Host, maxRedirects)
}

func verb(method string) string { return method[:1] + strings.ToLower(method[1:]) }

func redirect(req *http.Request, res *http.Response) (*url.URL, bool) {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, false
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil, false
	}
	to, err := res.Location()
	if err != nil {
		return nil, true
	}
	to.User = nil
	return to, true
}

// idleBody is a body that gives up when nothing comes for a while.
type idleBody struct {
	io.ReadCloser
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

var errIdle = errors.New("the connection has stalled")

func watchIdle(body io.ReadCloser, cancel context.CancelCauseFunc) io.ReadCloser {
	return &idleBody{ReadCloser: body, timer: time.AfterFunc(idleTimeout, func() { cancel(errIdle) }), cancel: cancel}
}

func (b *idleBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.timer.Reset(idleTimeout)
	return n, err
}

func (b *idleBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
