package registryd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/oci"
)

// proxy makes the registry a mirror of another one: what is not in the store is
// fetched, stored while it is sent, and given out from then on. Tags are asked for each
// time; when upstream does not answer, what is stored is given out.
type proxy struct {
	base     *url.URL
	user     string
	password string
	ttl      time.Duration // 0: for ever
	store    *store
	log      *slog.Logger
	client   *http.Client

	authHosts []string // token servers that are told the password too
	metrics   *metrics

	mu       sync.Mutex
	fetching map[string]bool       // NAME@DIGEST
	tokens   map[string]proxyToken // by repository
}

type proxyToken struct {
	header  string
	expires time.Time
}

func newProxy(c *Config, st *store, log *slog.Logger, m *metrics) (*proxy, error) {
	if c.Proxy.RemoteURL == "" {
		if c.Proxy.Username != "" || c.Proxy.Password != "" {
			return nil, errors.New("configuration: proxy has a username or password and no remoteurl")
		}
		return nil, nil
	}
	u, err := url.Parse(c.Proxy.RemoteURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("configuration: proxy.remoteurl %q is not the address of a registry", c.Proxy.RemoteURL)
	}
	ttl := 168 * time.Hour
	if c.Proxy.TTL != nil {
		ttl = *c.Proxy.TTL
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = time.Minute
	return &proxy{
		base: u, user: c.Proxy.Username, password: c.Proxy.Password, ttl: ttl, store: st, log: log, metrics: m,
		authHosts: c.Proxy.AuthHosts,
		client:    &http.Client{Transport: t, CheckRedirect: checkRedirect}, fetching: map[string]bool{}, tokens: map[string]proxyToken{},
	}, nil
}

// get asks upstream, with what authentication it wants.
func (p *proxy) get(ctx context.Context, method, name, path string, accept []string) (*http.Response, error) {
	u := *p.base
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	if i := strings.IndexByte(path, '?'); i >= 0 {
		u.Path, u.RawQuery = strings.TrimSuffix(p.base.Path, "/")+path[:i], path[i+1:]
	}
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header["Accept"] = accept
		req.Header.Set("User-Agent", "berth-registry")
		p.mu.Lock()
		if t, ok := p.tokens[name]; ok && time.Now().Before(t.expires) {
			req.Header.Set("Authorization", t.header)
		}
		p.mu.Unlock()
		resp, err := p.client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try > 0 {
			return resp, nil
		}
		want := resp.Header.Get("Www-Authenticate")
		_ = resp.Body.Close()
		if err := p.login(ctx, name, want); err != nil {
			return nil, err
		}
	}
}

const maxFetch = time.Hour // for a blob

const maxTokens = 10_000

// login gets what answers a challenge.
func (p *proxy) login(ctx context.Context, name, want string) error {
	kind, rest, _ := strings.Cut(want, " ")
	t := proxyToken{expires: time.Now().Add(time.Minute)}
	switch strings.ToLower(kind) {
	case "basic":
		if p.user == "" {
			return errors.New("upstream wants a username")
		}
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(p.user, p.password)
		t.header, t.expires = r.Header.Get("Authorization"), time.Now().Add(time.Hour)
	case "bearer":
		a := parseParams(rest)
		u, err := url.Parse(a["realm"])
		if err != nil || u.Host == "" || p.base.Scheme == "https" && u.Scheme != "https" {
			return errors.New("upstream's challenge has no usable realm")
		}
		q := u.Query()
		if a["service"] != "" {
			q.Set("service", a["service"])
		}
		q.Set("scope", "repository:"+name+":pull")
		u.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return err
		}
		if p.user != "" {
			if p.mayKnow(u) {
				req.SetBasicAuth(p.user, p.password)
			} else {
				p.log.Warn("upstream names a token server elsewhere, which is not told the password; proxy.authhosts allows it", "host", u.Host)
			}
		}
		resp, err := p.client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var answer struct {
			Token       string  `json:"token"`
			AccessToken string  `json:"access_token"`
			ExpiresIn   float64 `json:"expires_in"`
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("upstream's token server: %s", resp.Status)
		}
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer); err != nil {
			return err
		}
		if answer.Token == "" {
			answer.Token = answer.AccessToken
		}
		t.header = "Bearer " + answer.Token
		if answer.ExpiresIn > 60 {
			t.expires = time.Now().Add(time.Duration(answer.ExpiresIn-10) * time.Second)
		}
	default:
		return fmt.Errorf("upstream wants %q, which is not supported", kind)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.tokens) >= maxTokens {
		clear(p.tokens)
	}
	p.tokens[name] = t
	return nil
}

// mayKnow tells whether a token server may be told the password. Upstream names it, and
// could name anybody.
func (p *proxy) mayKnow(u *url.URL) bool {
	if u.Scheme == p.base.Scheme && u.Host == p.base.Host {
		return true
	}
	if slices.Contains(p.authHosts, u.Host) {
		return true
	}
	return u.Scheme == "https" && u.Host == "auth.docker.io" && slices.Contains([]string{"registry-1.docker.io", "index.docker.io", "docker.io"}, p.base.Host)
}

// checkRedirect lets no credentials go to another origin, and nothing from TLS to none.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) >= 10:
		return errors.New("too many redirects")
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return errors.New("redirected from https to " + req.URL.Scheme)
	case req.URL.Scheme != first.Scheme || req.URL.Host != first.Host:
		req.Header.Del("Authorization")
	}
	return nil
}

// parseParams reads k="v", k=v of a challenge.
func parseParams(s string) map[string]string {
	m := map[string]string{}
	for s != "" {
		k, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		var v string
		if strings.HasPrefix(rest, `"`) {
			v, rest, _ = strings.Cut(rest[1:], `"`)
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			v, rest, _ = strings.Cut(rest, ",")
		}
		m[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
		s = rest
	}
	return m
}

func acceptManifests() []string {
	return []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, oci.DockerManifest, oci.DockerManifestList}
}

// manifest has the store know what a request asks for, if upstream does. The answer then
// comes from the store.
func (p *proxy) manifest(r *request) error {
	path := "/v2/" + r.name + "/manifests/" + r.ref
	tag := tagOf(r.ref)
	have, herr := p.store.getManifest(r.name, r.ref)
	if herr == nil && tag == "" {
		p.metrics.hits[ofManifest].Add(1)
		return nil
	}
	if tag != "" && !validTag(tag) {
		return nil
	}
	if tag == "" {
		if _, err := parseDigest(r.ref); err != nil {
			return err
		}
	}
	if herr == nil { // has the tag moved?
		resp, err := p.get(r.Context(), http.MethodHead, r.name, path, acceptManifests())
		if err != nil {
			p.log.Warn("upstream does not answer; what is stored is given out", "repository", r.name, "err", err)
			return nil
		}
		_ = resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusNotFound:
			return manifestUnknown(r.ref)
		case resp.StatusCode != http.StatusOK, resp.Header.Get("Docker-Content-Digest") == have.digest.String():
			p.metrics.hits[ofManifest].Add(1)
			return nil
		}
	}
	resp, err := p.get(r.Context(), http.MethodGet, r.name, path, acceptManifests())
	if err != nil {
		return p.upstream(herr, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return manifestUnknown(r.ref)
	case resp.StatusCode != http.StatusOK:
		return p.upstream(herr, errors.New(resp.Status))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil || len(body) > maxManifest {
		return p.upstream(herr, errors.New("its manifest ends early or is too large"))
	}
	d := digest.FromBytes(body)
	if tag == "" {
		want, _ := parseDigest(r.ref)
		if d = want.Algorithm().FromBytes(body); d != want {
			return p.upstream(herr, errors.New("its manifest is not what its digest says"))
		}
	}
	m, kind, err := parseManifest(body, resp.Header.Get("Content-Type"))
	if err != nil {
		return p.upstream(herr, err)
	}
	p.metrics.misses[ofManifest].Add(1)
	p.metrics.pulled[ofManifest].Add(int64(len(body)))
	return p.store.putManifest(r.name, tag, d, kind, m, body, false)
}

// upstream is the answer when the other registry fails us: nil when there is
// something stored to give out.
func (p *proxy) upstream(stored error, err error) error {
	p.log.Warn("upstream", "url", p.base.Redacted(), "err", err)
	if stored == nil {
		return nil
	}
	return fail(http.StatusBadGateway, "UNKNOWN", "the registry that this one mirrors does not answer", nil)
}

// blob fetches one that is not stored, and answers with it. It reports false when the
// store has it.
func (p *proxy) blob(r *request, d digest.Digest) (bool, error) {
	if p.store.hasBlob(r.name, d) {
		p.metrics.hits[ofBlob].Add(1)
		return false, nil
	}
	p.metrics.misses[ofBlob].Add(1)
	key := r.name + "@" + d.String()
	p.mu.Lock()
	mine := r.Method == http.MethodGet && !p.fetching[key]
	if mine {
		p.fetching[key] = true
	}
	p.mu.Unlock()
	ctx := r.Context()
	if mine {
		defer func() {
			p.mu.Lock()
			delete(p.fetching, key)
			p.mu.Unlock()
		}()
		// Who went away has begun a fetch that others want too.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), maxFetch)
		defer cancel()
	}
	resp, err := p.get(ctx, r.Method, r.name, blobURL(r.name, d), nil)
	if err != nil {
		return true, p.upstream(err, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return true, blobUnknown(d)
	case resp.StatusCode != http.StatusOK:
		return true, p.upstream(errToken, errors.New(resp.Status))
	}
	h := r.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", d.String())
	if resp.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	if !mine {
		_, err = io.Copy(r.w, resp.Body)
		return true, err
	}
	u, err := p.store.newUpload(r.name)
	if err != nil {
		return true, err
	}
	n, err := u.append(io.TeeReader(resp.Body, &lenient{w: r.w}))
	p.metrics.pulled[ofBlob].Add(n)
	if err != nil {
		u.cancel()
		p.log.Warn("a blob could not be fetched whole", "repository", r.name, "digest", d, "err", err)
		return true, http.ErrAbortHandler
	}
	if err := u.commit(d); err != nil {
		p.log.Error("what upstream sent is not kept", "repository", r.name, "digest", d, "err", err)
	}
	return true, nil
}

// lenient writes until it fails, and never says so: the fetch goes on for the store.
type lenient struct {
	w   io.Writer
	bad bool
}

func (l *lenient) Write(b []byte) (int, error) {
	if !l.bad {
		_, err := l.w.Write(b)
		l.bad = err != nil
	}
	return len(b), nil
}

// tags passes upstream's list on. It reports false when upstream does not answer.
func (p *proxy) tags(r *request) (bool, error) {
	path := "/v2/" + r.name + "/tags/list"
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	resp, err := p.get(r.Context(), http.MethodGet, r.name, path, nil)
	if err != nil {
		return false, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusNotFound {
			return true, nameUnknown(r.name)
		}
		return false, nil
	}
	if l := resp.Header.Get("Link"); l != "" {
		r.w.Header().Set("Link", l)
	}
	r.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, err = io.Copy(r.w, io.LimitReader(resp.Body, 16<<20))
	return true, err
}
