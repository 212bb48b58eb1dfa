// Package plugin finds and calls plugins that speak Docker's plugin protocol:
// JSON over HTTP, on a unix socket or a TCP address.
//
// A plugin NAME is found, in this order, as
//
//	<run>/NAME.sock, <run>/NAME/NAME.sock     a socket
//	<dir>/NAME.spec, <dir>/NAME/NAME.spec     a file that holds one URL
//	<dir>/NAME.json, <dir>/NAME/NAME.json     {"Name", "Addr", "TLSConfig": {…}}
//
// It is activated by its first call: POST /Plugin.Activate answers with the
// interfaces that it implements. The protocol is described at
// https://docs.docker.com/engine/extend/plugin_api/.
package plugin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/internal/errs"
)

// Dirs are where plugins are looked for.
type Dirs struct {
	Sockets []string // directories of sockets
	Specs   []string // directories of .spec and .json files
}

// DefaultDirs are those that plugins are installed into.
func DefaultDirs() Dirs {
	return Dirs{Sockets: []string{"/run/docker/plugins"}, Specs: []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}}
}

const (
	mediaType = "application/vnd.docker.plugins.v1.2+json"
	maxAnswer = 4 << 20 // bytes of one answer
	// CallTime bounds one call, and the wait for a plugin that is being started.
	CallTime = 10 * time.Second
)

// Plugin is one plugin. It is safe for use by several goroutines.
type Plugin struct {
	Name string
	// Time bounds one call; 0 is CallTime.
	Time time.Duration
	// Retry is how long a call that reaches nobody is tried again, with pauses of one, two,
	// four seconds: the plugin may be between two versions of itself. 0 is not at all.
	Retry time.Duration

	dirs Dirs
	mu   sync.Mutex
	base string // URL of the plugin, once activated
	http *http.Client
	impl []string
	seen bool // it has been activated before
}

// Error is what a plugin answers instead of a result.
type Error struct {
	Status int // of HTTP
	Text   string
}

func (e *Error) Error() string { return e.Text }

// New names a plugin, which need not run yet.
func New(name string, dirs Dirs) *Plugin { return &Plugin{Name: name, dirs: dirs} }

type spec struct {
	Addr      string
	TLSConfig *struct {
		InsecureSkipVerify        bool
		CAFile, CertFile, KeyFile string
	}
}

// find reads where the plugin listens.
func (p *Plugin) find() (*spec, error) {
	if p.Name == "" || strings.ContainsAny(p.Name, "/\x00") || p.Name == "." || p.Name == ".." {
		return nil, errs.New(errs.Invalid, "invalid plugin name %q", p.Name)
	}
	for _, dir := range p.dirs.Sockets {
		for _, file := range []string{filepath.Join(dir, p.Name+".sock"), filepath.Join(dir, p.Name, p.Name+".sock")} {
			if fi, err := os.Stat(file); err == nil && fi.Mode()&os.ModeSocket != 0 {
				return &spec{Addr: "unix://" + file}, nil
			}
		}
	}
	for _, dir := range p.dirs.Specs {
		for _, base := range []string{filepath.Join(dir, p.Name), filepath.Join(dir, p.Name, p.Name)} {
			if raw, err := readSmall(base + ".spec"); err == nil {
				return &spec{Addr: strings.TrimSpace(string(raw))}, nil
			}
			if raw, err := readSmall(base + ".json"); err == nil {
				var s spec
				if err := json.Unmarshal(raw, &s); err != nil {
					return nil, fmt.Errorf("%s.json: %w", base, err)
				}
				return &s, nil
			}
		}
	}
	return nil, errs.New(errs.NotFound, "plugin %q not found", p.Name)
}

func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// dialer returns a client for the address of s and the base URL of its calls.
func dialer(s *spec) (*http.Client, string, error) {
	u, err := url.Parse(s.Addr)
	if err != nil || u.Scheme == "" {
		return nil, "", errs.New(errs.Invalid, "unknown protocol in the plugin address %q", s.Addr)
	}
	t := &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}
	var d net.Dialer
	switch u.Scheme {
	case "unix":
		path := u.Host + u.Path
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
		return &http.Client{Transport: t}, "http://plugin", nil
	case "tcp", "http":
		if s.TLSConfig == nil {
			return &http.Client{Transport: t}, "http://" + u.Host, nil
		}
	case "https":
	default:
		return nil, "", errs.New(errs.Invalid, "unknown protocol in the plugin address %q", s.Addr)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c := s.TLSConfig; c != nil {
		conf.InsecureSkipVerify = c.InsecureSkipVerify //nolint:gosec // the administrator's file asks for it
		if c.CAFile != "" {
			pem, err := os.ReadFile(c.CAFile)
			if err != nil {
				return nil, "", err
			}
			conf.RootCAs = x509.NewCertPool()
			conf.RootCAs.AppendCertsFromPEM(pem)
		}
		if c.CertFile != "" {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, "", err
			}
			conf.Certificates = []tls.Certificate{pair}
		}
	}
	t.TLSClientConfig = conf
	return &http.Client{Transport: t}, "https://" + u.Host, nil
}

// Activate finds the plugin and learns what it implements, once; a plugin that
// is still starting up is waited for.
func (p *Plugin) Activate(ctx context.Context, iface string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.base == "" {
		ctx, cancel := context.WithTimeout(ctx, CallTime)
		defer cancel()
		for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
			err := p.activate(ctx)
			if err == nil {
				break
			}
			var stranger *tls.CertificateVerificationError
			if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Invalid) || errors.As(err, &stranger) {
				return err // time mends none of them
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause):
			}
		}
	}
	if !slices.Contains(p.impl, iface) {
		return errs.New(errs.Invalid, "%w: plugin=%q, requested implementation=%q", ErrInterface, p.Name, iface)
	}
	return nil
}

func (p *Plugin) activate(ctx context.Context) error {
	s, err := p.find()
	if err != nil {
		return err
	}
	client, base, err := dialer(s)
	if err != nil {
		return err
	}
	var m struct{ Implements []string }
	if err := call(ctx, client, base+"/Plugin.Activate", nil, &m); err != nil {
		client.CloseIdleConnections()
		return err
	}
	p.base, p.http, p.impl, p.seen = base, client, m.Implements, true
	return nil
}

// ErrInterface says that a plugin is there, but is none of the kind that was asked for.
var ErrInterface = errors.New("Plugin does not implement the requested driver") //nolint:staticcheck // Docker's words

// Call calls one method, such as "AuthZPlugin.AuthZReq", of an interface, such as
// "authz". in and out are its JSON bodies.
func (p *Plugin) Call(ctx context.Context, iface, method string, in, out any) error {
	began := time.Now()
	for pause := time.Second; ; pause *= 2 {
		err := p.once(ctx, iface, method, in, out)
		if err == nil || p.Retry == 0 || !p.away(err) || time.Since(began)+pause >= p.Retry {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (p *Plugin) once(ctx context.Context, iface, method string, in, out any) error {
	if err := p.Activate(ctx, iface); err != nil {
		return err
	}
	p.mu.Lock()
	client, base := p.http, p.base
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(p.Time, CallTime))
	defer cancel()
	return call(ctx, client, base+"/"+method, in, out)
}

// away reports whether nobody was reached by a call to a plugin that was there before, and
// forgets where it was.
func (p *Plugin) away(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var op *net.OpError
	if !p.seen || !(errors.As(err, &op) && op.Op == "dial") && !errs.Is(err, errs.NotFound) {
		return false
	}
	if p.http != nil {
		p.http.CloseIdleConnections()
	}
	p.base, p.http, p.impl = "", nil, nil
	return true
}

// call posts in and decodes the answer into out.
func call(ctx context.Context, client *http.Client, url string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", mediaType)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(raw) > maxAnswer {
		return errors.New("the plugin's answer is too large")
	}
	if res.StatusCode != http.StatusOK {
		var e struct{ Err string }
		if json.Unmarshal(raw, &e) == nil && e.Err != "" {
			return &Error{res.StatusCode, e.Err}
		}
		return &Error{res.StatusCode, fmt.Sprintf("%s: %s", res.Status, strings.TrimSpace(string(raw[:min(len(raw), 1024)])))}
	}
	if out == nil {
		return nil
	}
	// The first value counts: plugins are known that send a second one behind an error.
	return json.NewDecoder(bytes.NewReader(raw)).Decode(out)
}
