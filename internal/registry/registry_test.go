package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/registry/registrytest"
)

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func name(t *testing.T, s string) ref.Name {
	t.Helper()
	n, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// get fetches a manifest by tag.
func get(c *Client, n ref.Name, auth *registry.AuthConfig) (m *Manifest, err error) {
	err = c.Each(context.Background(), n, auth, Pull, func(r *Repository) error {
		m, err = r.Manifest(context.Background(), n.Tag())
		return err
	})
	return m, err
}

func TestAuth(t *testing.T) {
	for _, bearer := range []bool{false, true} {
		reg := registrytest.New()
		reg.Users, reg.Bearer = map[string]string{"me": "pw"}, bearer
		host := serve(t, reg)
		reg.PutManifest("x/y", "1", "t", []byte("{}"))
		c, n := New(&Config{}), name(t, host+"/x/y:1")
		if m, err := get(c, n, &registry.AuthConfig{Username: "me", Password: "pw"}); err != nil || m.Digest != digest.FromString("{}") {
			t.Errorf("bearer %v: %v", bearer, err)
		}
		if _, err := get(c, n, &registry.AuthConfig{Username: "me", Password: "no"}); err == nil || bearer && !strings.Contains(err.Error(), "unauthorized: incorrect username or password") {
			t.Errorf("bearer %v, wrong password: %v", bearer, err)
		}
		if _, err := get(c, n, nil); err == nil || bearer && !Is(err, Denied) || !bearer && !strings.HasSuffix(err.Error(), "no basic auth credentials") {
			t.Errorf("bearer %v, anonymous: %v", bearer, err)
		}
		identity, err := c.Login(t.Context(), &registry.AuthConfig{Username: "me", Password: "pw", ServerAddress: host})
		if err != nil || bearer != (identity == "identity-me") {
			t.Errorf("bearer %v, login: %q %v", bearer, identity, err)
		}
		_, err = c.Login(t.Context(), &registry.AuthConfig{Username: "me", Password: "no", ServerAddress: "https://" + host + "/v1/"})
		want := "login attempt to http://" + host + "/v2/ failed with status: 401 Unauthorized"
		if bearer {
			want = `Get "http://` + host + `/v2/": unauthorized: incorrect username or password`
			if m, err := get(c, n, &registry.AuthConfig{IdentityToken: identity}); err != nil || m == nil {
				t.Errorf("identity token: %v", err)
			}
		}
		if !errs.Is(err, errs.Unauthorized) || err.Error() != want {
			t.Errorf("login: %v, want %s", err, want)
		}
	}
}

// TestTokenExpires has a registry forget its tokens.
func TestTokenExpires(t *testing.T) {
	reg, refused := registrytest.New(), false
	reg.Users, reg.Bearer = map[string]string{"me": "pw"}, true
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && !refused {
			refused = true
			r.Header.Set("Authorization", "Bearer old")
		}
		return false
	}
	reg.PutManifest("x", "1", "t", []byte("{}"))
	if _, err := get(New(&Config{}), name(t, serve(t, reg)+"/x:1"), &registry.AuthConfig{Username: "me", Password: "pw"}); err != nil || !refused {
		t.Error(err)
	}
	if n := reg.Count("GET", "/token"); n != 2 {
		t.Errorf("%d tokens", n)
	}
}

// TestRedirects has a hostile registry send the engine wherever it likes: credentials stay
// where they belong, and some places are not gone to at all.
func TestRedirects(t *testing.T) {
	var seen []string
	other := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization"))
		w.Header().Set("WWW-Authenticate", `Basic realm="give"`)
		if r.URL.Path == "/ask" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "blob")
	}))
	reg, to := registrytest.New(), ""
	reg.Users = map[string]string{"me": "pw"}
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Location", to)
		w.WriteHeader(map[string]int{"GET": 307, "HEAD": 302, "POST": 202, "PATCH": 202, "PUT": 201}[r.Method])
		return true
	}
	host := serve(t, reg)
	c, auth, d := New(&Config{}), &registry.AuthConfig{Username: "me", Password: "pw"}, digest.FromString("blob")
	read := func() error {
		return c.Each(t.Context(), name(t, host+"/x:1"), auth, Pull, func(r *Repository) error {
			_, err := r.ReadBlob(t.Context(), d, 100)
			return err
		})
	}
	for _, to = range []string{"http://" + other + "/blob", "//" + other + "/blob", "http://me:pw@" + other + "/blob"} {
		if err := read(); err != nil {
			t.Error(to, err)
		}
	}
	to = "http://" + other + "/ask"
	if err := read(); err == nil {
		t.Error("credentials were given to whom they are not for")
	}
	upload := func() error {
		return c.Each(t.Context(), name(t, host+"/x:1"), auth, Push, func(r *Repository) error {
			up, err := r.Upload(t.Context(), "", "")
			if err == nil {
				err = up.Stream(t.Context(), strings.NewReader("data"))
			}
			return err
		})
	}
	_ = upload()
	if len(seen) < 5 || slices.ContainsFunc(seen, func(s string) bool { return s != "" }) {
		t.Errorf("another server has got %q", seen)
	}
	for _, to = range []string{"file:///etc/passwd", "gopher://x/", "/loop", "http://[::1", "", "ftp://" + other} {
		if err := read(); err == nil {
			t.Errorf("a redirect to %q was followed", to)
		}
		if err := upload(); err == nil {
			t.Errorf("an upload to %q was begun", to)
		}
	}
	from, _ := url.Parse("https://registry.example.com/v2/")
	for to, ok := range map[string]bool{
		"https://cdn.example.net/x": true, "http://cdn.example.net/x": false, "https://169.254.169.254/latest": false, "https://127.0.0.1/x": false, "https://localhost/x": false,
		"https://[::1]/x": false, "https://[fe80::1]/x": false, "https://[::ffff:127.0.0.1]/": false, "https://0.0.0.0/": false, "https://10.1.2.3/x": true, "https://registry.example.com:8443/": true,
	} {
		u, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkLed(from, u); (err == nil) != ok {
			t.Errorf("%s: %v", to, err)
		}
	}
	// A name that turns out to be the machine itself.
	tr := newTransport(nil)
	ctx := context.WithValue(t.Context(), led{}, true)
	if _, err := tr.DialContext(ctx, "tcp", other); err == nil || !strings.Contains(err.Error(), "is not followed") {
		t.Error(err)
	}
}

// TestRealm has a registry of the open world name a token service that is none.
func TestRealm(t *testing.T) {
	for realm, ok := range map[string]bool{"http://evil.example/token": false, "https://127.0.0.1:1/token": false, "file:///x": false, "::": false, "": false} {
		e := &endpoint{base: &url.URL{Scheme: "https", Host: "registry.example.com"}, http: newTransport(nil)}
		_, _, err := fetchToken(t.Context(), e, challenge{"bearer", map[string]string{"realm": realm}}, &registry.AuthConfig{Username: "me", Password: "pw"}, nil, false)
		if (err == nil) != ok || strings.Contains(fmt.Sprint(err), "pw") {
			t.Errorf("%q: %v", realm, err)
		}
	}
}

func TestChallenges(t *testing.T) {
	h := http.Header{"Www-Authenticate": {
		`Basic realm="x, y"`, `Bearer realm="https://a/token",service="s \"q\"",scope="a:b:c,d"`, `Negotiate`, `Bearer`, strings.Repeat("x", 10_000), `Bearer realm="open`, `Bearer realm=bare, service=s2`,
	}}
	got := challenges(h)
	if len(got) != 4 || got[0].scheme != "bearer" || got[0].params["service"] != `s "q"` || got[0].params["scope"] != "a:b:c,d" || got[2].params["service"] != "s2" || got[3].scheme != "basic" {
		t.Errorf("%v", got)
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="s"`)
	f.Add(`Basic realm=`)
	f.Add(`Bearer realm="\`)
	f.Fuzz(func(_ *testing.T, s string) { challenges(http.Header{"Www-Authenticate": {s}}) })
}

func TestMirrors(t *testing.T) {
	broken := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }))
	empty := registrytest.New()
	full := registrytest.New()
	full.PutManifest("library/mysql", "latest", "t", []byte("{}"))
	c := New(&Config{Mirrors: []string{"http://127.0.0.1:1/", "http://" + broken, "http://" + serve(t, empty) + "/", "http://" + serve(t, full)}})
	if _, err := get(c, name(t, "mysql"), &registry.AuthConfig{Username: "me", Password: "pw"}); err != nil {
		t.Error(err)
	}
	for _, r := range append(empty.Log, full.Log...) {
		if r.Authorization != "" {
			t.Error("a mirror has got the Hub's credentials")
		}
	}
	hosts, err := c.endpoints(t.Context(), Hub, false)
	if err != nil || len(hosts) != 1 || len(hosts[0]) != 1 || hosts[0][0].base.String() != "https://registry-1.docker.io" {
		t.Error(hosts, err)
	}
}

func TestInsecure(t *testing.T) {
	c := &Config{Insecure: []string{"reg.example", "other.example:5000", "10.0.0.0/8"}}
	for host, want := range map[string]bool{
		"reg.example": true, "reg.example:5000": true, "other.example": false, "other.example:5000": true, "10.1.2.3:5000": true, "11.1.2.3": false,
		"localhost:5000": true, "127.0.0.1": true, "[::1]:5000": true,
	} {
		if got := c.insecure(t.Context(), host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

// TestCertificates has an authority and a client's certificate in certs.d.
func TestCertificates(t *testing.T) {
	reg := registrytest.New()
	reg.PutManifest("x", "1", "t", []byte("{}"))
	srv := httptest.NewTLSServer(reg)
	defer srv.Close()
	// Not by its address, which would need no certificate.
	host := strings.Replace(srv.Listener.Addr().String(), "127.0.0.1", "example.com", 1)
	dir := t.TempDir()
	dial := func(c *Client) error {
		hosts, err := c.endpoints(t.Context(), host, false)
		if err != nil {
			return err
		}
		hosts[0][0].http.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		}
		_, err = get(c, name(t, host+"/x:1"), nil)
		return err
	}
	var unknown x509.UnknownAuthorityError
	if err := dial(New(&Config{CertDirs: []string{dir}})); !errors.As(err, &unknown) {
		t.Errorf("an unknown authority: %v", err)
	}
	if err := dial(New(&Config{Insecure: []string{host}})); err != nil {
		t.Errorf("insecure: %v", err)
	}
	put := func(file string, kind string, der []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, host, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("ca.crt", "CERTIFICATE", srv.Certificate().Raw)
	if err := dial(New(&Config{CertDirs: []string{dir}})); err != nil {
		t.Errorf("with the authority: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "me"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	put("client.cert", "CERTIFICATE", der)
	if err := dial(New(&Config{CertDirs: []string{dir}})); err == nil || !strings.Contains(err.Error(), "missing key client.key for client certificate client.cert") {
		t.Errorf("without a key: %v", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put("client.key", "PRIVATE KEY", raw)
	c := New(&Config{CertDirs: []string{dir}})
	if err := dial(c); err != nil {
		t.Errorf("with a client's certificate: %v", err)
	}
	hosts, err := c.endpoints(t.Context(), host, false)
	if err != nil || len(hosts[0][0].http.TLSClientConfig.Certificates) != 1 || len(hosts[0]) != 1 {
		t.Errorf("%v, %d schemes", err, len(hosts[0]))
	}
}

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		status     int
		body, want string
	}{
		{404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, "manifest unknown: manifest unknown"},
		{404, `<html>`, "manifest unknown: manifest unknown"},
		{401, ``, "unauthorized: authentication required"},
		{403, `{"details":"not \u001b[31myours"}`, "denied: not [31myours"},
		{429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`, "toomanyrequests: You have reached your pull rate limit."},
		{500, `oops`, "received unexpected HTTP status: 500 Internal Server Error"},
	} {
		host := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v2/" {
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}
		}))
		if _, err := get(New(&Config{}), name(t, host+"/x:1"), nil); err == nil || err.Error() != c.want {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}

func TestSearch(t *testing.T) {
	hub := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/search" || r.URL.Query().Get("q") != "mysql" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, `{"num_results":2,"results":[{"name":"mysql","is_official":true,"star_count":100,"description":"a"},{"name":"x/mysql","star_count":3}]}`)
	}))
	c := New(&Config{})
	for _, f := range []struct {
		filters filter.Args
		limit   int
		want    int
	}{{nil, 0, 2}, {nil, 1, 1}, {filter.Args{"is-official": {"true"}}, 0, 1}, {filter.Args{"is-official": {"false"}}, 0, 1}, {filter.Args{"stars": {"3"}}, 0, 2}, {filter.Args{"stars": {"4"}}, 0, 1}, {filter.Args{"is-automated": {"true"}}, 0, 0}} {
		if got, err := c.Search(t.Context(), hub+"/mysql", f.limit, f.filters, nil); err != nil || len(got) != f.want {
			t.Errorf("%v %d: %v %v", f.filters, f.limit, got, err)
		}
	}
	for _, f := range []filter.Args{{"stars": {"x"}}, {"is-official": {"x"}}, {"what": {"x"}}} {
		if _, err := c.Search(t.Context(), hub+"/mysql", 0, f, nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", f, err)
		}
	}
	if _, err := c.Search(t.Context(), hub+"/mysql", 101, nil, nil); err == nil || err.Error() != "limit 101 is outside the range of [1, 100]" {
		t.Error(err)
	}
	reg := registrytest.New()
	reg.PutManifest("a/mysql", "1", "t", []byte("{}"))
	reg.PutManifest("b", "1", "t", []byte("{}"))
	host := serve(t, reg)
	if got, err := c.Search(t.Context(), host+"/mysql", 0, nil, nil); err != nil || len(got) != 1 || got[0].Name != host+"/a/mysql" {
		t.Error(got, err)
	}
}
