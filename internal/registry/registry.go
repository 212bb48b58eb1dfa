// Package registry is the client of image registries: where they are, how one
// proves who one is, and the calls of the distribution specification.
//
// # Words
//
// A domain is the first part of a full image name ("docker.io", "quay.io",
// "localhost:5000"). An endpoint is an address that serves a domain: the registry
// itself, or a mirror of docker.io. A Repository is one repository at one endpoint,
// with the credentials for it; it lives as long as one pull or push.
//
//	err := client.Each(ctx, name, auth, registry.Pull, func(r *registry.Repository) error {
//		m, err := r.Manifest(ctx, "latest")
//		…
//	})
//
// # Trust
//
// A registry is an adversary. Nothing is believed but digests; documents are
// bounded. Credentials go to the registry's own origin (scheme, host and port)
// and to the token service that it names, never to a mirror, never where a redirect or the
// Location of an upload leads, and never from https to http. A redirect leads to no
// address of the machine or of the link, where metadata services are.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/registry"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/ref"
)

// Hub is the domain of names that name none, and hubHost is where its registry is.
const (
	Hub      = "docker.io"
	hubHost  = "registry-1.docker.io"
	hubIndex = "index.docker.io"
)

// Actions that are asked for in a repository.
const (
	Pull = "pull"
	Push = "pull,push"
)

// Config says where registries are and whom to trust. It is not changed once given.
type Config struct {
	Mirrors  []string // URLs, asked for images of docker.io before docker.io
	Insecure []string // host, host:port or CIDR: certificates are not checked, and plain HTTP will do
	CertDirs []string // directories with HOST/*.crt, HOST/*.cert and HOST/*.key

	// UserAgent is what requests are signed with.
	UserAgent string
}

// Client reaches registries. It is safe for use by several goroutines.
type Client struct {
	mu         sync.Mutex
	cfg        *Config
	transports map[string]*http.Transport // by host and strictness
}

// New returns a client.
func New(c *Config) *Client { return &Client{cfg: c, transports: map[string]*http.Transport{}} }

// Reload takes up another configuration, for what begins from now on.
func (c *Client) Reload(cfg *Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg = cfg
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
	c.transports = map[string]*http.Transport{}
}

// Close drops idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

func (c *Client) config() *Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg
}

// endpoint is one address of a registry.
type endpoint struct {
	base   *url.URL // scheme, host, and a path for a mirror that has one
	mirror bool
	http   *http.Transport
	agent  string
}

// endpoints are the addresses that serve a domain, the best first. Each inner list is of one
// host: https, then http where that is allowed.
func (c *Client) endpoints(ctx context.Context, domain string, mirrors bool) ([][]*endpoint, error) {
	cfg := c.config()
	var list [][]*endpoint
	if domain == Hub || domain == hubIndex {
		if mirrors {
			for _, m := range cfg.Mirrors {
				e, err := c.mirror(cfg, m)
				if err != nil {
					return nil, err
				}
				list = append(list, []*endpoint{e})
			}
		}
		domain = hubHost
	}
	insecure := cfg.insecure(ctx, domain)
	t, err := c.transport(cfg, domain, insecure)
	if err != nil {
		return nil, err
	}
	of := func(scheme string) *endpoint {
		return &endpoint{base: &url.URL{Scheme: scheme, Host: domain}, http: t, agent: cfg.UserAgent}
	}
	own := []*endpoint{of("https")}
	if insecure {
		own = append(own, of("http"))
	}
	return append(list, own), nil
}

func (c *Client) mirror(cfg *Config, m string) (*endpoint, error) {
	if !strings.Contains(m, "://") {
		m = "https://" + m
	}
	u, err := url.Parse(m)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "invalid mirror: %q is not a valid URI", m)
	}
	t, err := c.transport(cfg, u.Host, cfg.insecure(context.Background(), u.Host))
	if err != nil {
		return nil, err
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return &endpoint{base: &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}, mirror: true, http: t, agent: cfg.UserAgent}, nil
}

// insecure reports whether a host was named as one that needs no certificate. The machine
// itself needs none.
func (c *Config) insecure(ctx context.Context, host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if name == "localhost" || slices.Contains(c.Insecure, host) || slices.Contains(c.Insecure, name) {
		return true
	}
	var nets []netip.Prefix
	for _, i := range c.Insecure {
		if p, err := netip.ParsePrefix(i); err == nil {
			nets = append(nets, p)
		}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		a = a.Unmap()
		return a.IsLoopback() || slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if len(nets) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", name) // unknown: no member of a network
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
	})
}

// transport returns the connections to a host, with the certificates that were put
// there for it.
func (c *Client) transport(cfg *Config, host string, insecure bool) (*http.Transport, error) {
	key := fmt.Sprint(host, " ", insecure)
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.transports[key]; t != nil && c.cfg == cfg {
		return t, nil
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure} //nolint:gosec // as the user asked
	for _, dir := range cfg.CertDirs {
		if err := readCerts(tc, filepath.Join(dir, host)); err != nil {
			return nil, err
		}
	}
	t := newTransport(tc)
	if c.cfg == cfg {
		c.transports[key] = t
	}
	return t, nil
}

// readCerts adds a directory's authorities (*.crt) and client certificates (*.cert with
// *.key). That it is not there is no error.
func readCerts(tc *tls.Config, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrInvalid) {
			return nil
		}
		return errs.New(errs.Internal, "cannot read certificates: %w", err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == name })
	}
	for _, e := range entries {
		name := e.Name()
		switch filepath.Ext(name) {
		case ".crt":
			pem, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			if tc.RootCAs == nil {
				if tc.RootCAs, err = x509.SystemCertPool(); err != nil {
					return fmt.Errorf("unable to get system cert pool: %w", err)
				}
			}
			tc.RootCAs.AppendCertsFromPEM(pem)
		case ".cert":
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if !has(key) {
				return errs.New(errs.Internal, "missing key %s for client certificate %s. CA certificates must use the extension .crt", key, name)
			}
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name), filepath.Join(dir, key))
			if err != nil {
				return err
			}
			tc.Certificates = append(tc.Certificates, pair)
		case ".key":
			cert := strings.TrimSuffix(name, ".key") + ".cert"
			if !has(cert) {
				return errs.New(errs.Internal, "missing client certificate %s for key %s", cert, name)
			}
		}
	}
	return nil
}

// Each calls fn with the repository of a name at one endpoint after the other, until one
// answers: mirrors first, for a pull. An error of a mirror leads to the next; the
// last one is returned.
func (c *Client) Each(ctx context.Context, n ref.Name, auth *registry.AuthConfig, actions string, fn func(*Repository) error) error {
	hosts, err := c.endpoints(ctx, n.Domain(), actions == Pull)
	if err != nil {
		return err
	}
	for i, host := range hosts {
		var r *Repository
		if r, err = open(ctx, host, n.Path(), auth, actions); err == nil {
			if err = fn(r); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i < len(hosts)-1 && !host[0].mirror {
			break
		}
	}
	return err
}

// open finds out which scheme a host speaks, and how it wants to know who asks.
func open(ctx context.Context, host []*endpoint, path string, auth *registry.AuthConfig, actions string) (*Repository, error) {
	var first error
	for _, e := range host {
		r := &Repository{ep: e, path: path, actions: actions, tokens: map[string]token{}}
		if !e.mirror && auth != nil {
			r.auth = *auth
		}
		err := r.ping(ctx)
		if err == nil {
			return r, nil
		}
		var answer *Error
		if errors.As(err, &answer) || ctx.Err() != nil {
			return nil, err // it speaks
		}
		if first == nil || e.base.Scheme == "http" {
			first = err // of the scheme that is left
		}
	}
	return nil, first
}
