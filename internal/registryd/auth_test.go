package registryd

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"
)

func passwords(t *testing.T, path string, pairs ...string) {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		h, err := bcrypt.GenerateFromPassword([]byte(pairs[i+1]), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s:%s\n", pairs[i], h)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func basic(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestHtpasswd(t *testing.T) {
	if cost, err := bcrypt.Cost([]byte(absent)); err != nil || cost != bcrypt.DefaultCost {
		t.Error("absent users are told by the time that takes:", cost, err)
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	passwords(t, path, "ann", "secret", "bob", "")
	c := newClient(t, func(c *Config) { c.Auth.Htpasswd = &HtpasswdConfig{Realm: "My Registry", Path: path} })
	for _, p := range []string{"/v2/", "/v2/_catalog", "/v2/x/tags/list"} {
		a := c.want("401 UNAUTHORIZED", "GET", p, nil)
		if a.h.Get("Www-Authenticate") != `Basic realm="My Registry"` || a.h.Get("Docker-Distribution-Api-Version") == "" {
			t.Error(a.h)
		}
	}
	c.want("401 UNAUTHORIZED", "GET", "/v1/search?q=x", nil)
	for _, bad := range []string{basic("ann", "wrong"), basic("eve", "secret"), basic("ann", ""), "Authorization: Bearer x", basic("ann:secret", "")} {
		c.want("401 UNAUTHORIZED", "GET", "/v2/", nil, bad)
	}
	for range 2 {
		c.want("200", "GET", "/v2/", nil, basic("ann", "secret"))
	}
	// A changed file counts, also for whom it knew.
	passwords(t, path, "eve", "new password")
	c.s.auth.(*htpasswd).looks = time.Time{}
	c.want("401 UNAUTHORIZED", "GET", "/v2/", nil, basic("ann", "secret"))
	c.want("200", "GET", "/v2/", nil, basic("eve", "new password"))

	for _, bad := range []string{"ann:plain", "ann", "ann:{SHA}xx"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		h := &htpasswd{path: path}
		if err := h.load(); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// Pulls need no password, pushes do, and clients learn of it from the challenge.
func TestAnonymousPull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "htpasswd")
	passwords(t, path, "ann", "secret")
	c := newClient(t, func(c *Config) {
		c.Auth.Htpasswd = &HtpasswdConfig{Realm: "r", Path: path}
		c.Auth.Anonymous = "pull"
	})
	a := c.want("401 UNAUTHORIZED", "GET", "/v2/", nil)
	p := parseParams(strings.TrimPrefix(a.h.Get("Www-Authenticate"), "Bearer "))
	if p["realm"] != c.url+"/auth/token" {
		t.Fatal(a.h)
	}
	get := func(auth ...string) string {
		var v struct{ Token string }
		if err := json.Unmarshal(c.want("200", "GET", p["realm"]+"?service=registry&scope="+url.QueryEscape("repository:x:pull,push"), nil, auth...).body, &v); err != nil {
			t.Fatal(err)
		}
		return "Authorization: Bearer " + v.Token
	}
	c.want("401 UNAUTHORIZED", "GET", p["realm"], nil, basic("ann", "wrong"))
	nobody, ann := get(), get(basic("ann", "secret"))
	c.want("200", "GET", "/v2/", nil, nobody)
	a = c.want("401 UNAUTHORIZED", "POST", "/v2/x/blobs/uploads/", nil, nobody)
	if !strings.Contains(a.h.Get("Www-Authenticate"), `scope="repository:x:pull,push",error="insufficient_scope"`) {
		t.Error(a.h)
	}
	c.want("401 UNAUTHORIZED", "GET", "/v2/_catalog", nil, nobody)
	c.want("200", "GET", "/v2/_catalog", nil, ann)
	c.want("201", "POST", "/v2/x/blobs/uploads/?digest="+digest.FromString("b").String(), []byte("b"), ann)
	c.want("200", "GET", "/v2/x/blobs/"+digest.FromString("b").String(), nil, nobody)
	c.want("401 UNAUTHORIZED", "DELETE", "/v2/x/blobs/"+digest.FromString("b").String(), nil, nobody)
	c.want("401 UNAUTHORIZED", "GET", "/v2/", nil, nobody+"x")
	old := c.s.tokens.sign(ownToken{User: "ann", Expires: time.Now().Unix() - 1})
	c.want("401 UNAUTHORIZED", "GET", "/v2/", nil, "Authorization: Bearer "+old)
}

// certificate makes a certificate for key, signed by parent or by itself.
func certificate(t *testing.T, key crypto.Signer, parent *x509.Certificate, by crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pemFile(t *testing.T, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// jwt signs a token by ES256, RS256 or EdDSA.
func jwt(t *testing.T, key crypto.Signer, head, body map[string]any) string {
	t.Helper()
	part := func(v any) string { b, _ := json.Marshal(v); return base64.RawURLEncoding.EncodeToString(b) }
	text := part(head) + "." + part(body)
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, k, sum[:])
		err = e
		sig = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(text))
	}
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestTokens(t *testing.T) {
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rs, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := certificate(t, ec, nil, nil)
	leafKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf := certificate(t, leafKey, ca, ec)
	b64 := base64.RawURLEncoding.EncodeToString
	point, _ := leafKey.PublicKey.Bytes()
	set, _ := json.Marshal(map[string]any{"keys": []any{
		map[string]string{"kty": "RSA", "kid": "rsa", "n": b64(rs.N.Bytes()), "e": b64(big.NewInt(int64(rs.E)).Bytes())},
		map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(ed.Public().(ed25519.PublicKey))},
		map[string]string{"kty": "EC", "crv": "P-256", "kid": "ec", "x": b64(point[1:33]), "y": b64(point[33:])},
	}})
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(jwks, set, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, func(c *Config) {
		c.Auth.Token = &TokenConfig{Realm: "https://auth.example/token", Service: "reg", Issuer: "me", RootCertBundle: pemFile(t, "CERTIFICATE", ca.Raw), JWKS: jwks}
	})
	body := func(change func(m map[string]any)) map[string]any {
		m := map[string]any{
			"iss": "me", "aud": "reg", "sub": "ann", "exp": time.Now().Unix() + 300, "nbf": time.Now().Unix() - 1,
			"access": []any{map[string]any{"type": "repository", "name": "a/b", "actions": []string{"pull", "push"}}},
		}
		if change != nil {
			change(m)
		}
		return m
	}
	with := func(token string) string { return "Authorization: Bearer " + token }
	a := c.want("401 UNAUTHORIZED", "GET", "/v2/a/b/tags/list", nil)
	if a.h.Get("Www-Authenticate") != `Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull"` {
		t.Error(a.h)
	}
	good := jwt(t, ec, map[string]any{"alg": "ES256", "kid": fingerprint(ca)}, body(nil))
	for name, token := range map[string]string{
		"id of a certificate": good,
		"chain":               jwt(t, leafKey, map[string]any{"alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(leaf.Raw)}}, body(nil)),
		"rsa":                 jwt(t, rs, map[string]any{"alg": "RS256", "kid": "rsa"}, body(nil)),
		"ed25519":             jwt(t, ed, map[string]any{"alg": "EdDSA", "kid": "ed"}, body(nil)),
		"ec":                  jwt(t, leafKey, map[string]any{"alg": "ES256", "kid": "ec"}, body(nil)),
		"audiences":           jwt(t, ec, map[string]any{"alg": "ES256", "kid": fingerprint(ca)}, body(func(m map[string]any) { m["aud"] = []string{"x", "reg"} })),
	} {
		if a := c.do("POST", "/v2/a/b/blobs/uploads/", nil, with(token)); a.status != 202 {
			t.Errorf("%s: %d %s", name, a.status, a.h)
		}
	}
	c.want("401 UNAUTHORIZED", "GET", "/v2/other/tags/list", nil, with(good))
	c.want("401 UNAUTHORIZED", "GET", "/v2/_catalog", nil, with(good))
	c.want("401 UNAUTHORIZED", "DELETE", "/v2/a/b/manifests/x", nil, with(good))
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good, ".")[1] + "."
	hmacs := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"rsa"}`)) + "." + strings.Split(good, ".")[1] + ".AAAA"
	self := certificate(t, stranger, nil, nil)
	head := map[string]any{"alg": "ES256", "kid": fingerprint(ca)}
	for name, token := range map[string]string{
		"no signature": none, "hmac": hmacs, "rubbish": "x.y.z", "empty": "", "truncated": good[:len(good)-4],
		"stranger":       jwt(t, stranger, head, body(nil)),
		"own chain":      jwt(t, stranger, map[string]any{"alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(self.Raw)}}, body(nil)),
		"critical":       jwt(t, ec, map[string]any{"alg": "ES256", "kid": fingerprint(ca), "crit": []string{"x"}}, body(nil)),
		"algorithm":      jwt(t, ec, map[string]any{"alg": "RS256", "kid": fingerprint(ca)}, body(nil)),
		"expired":        jwt(t, ec, head, body(func(m map[string]any) { m["exp"] = time.Now().Unix() - 61 })),
		"no end":         jwt(t, ec, head, body(func(m map[string]any) { delete(m, "exp") })),
		"not yet":        jwt(t, ec, head, body(func(m map[string]any) { m["nbf"] = time.Now().Unix() + 120 })),
		"other issuer":   jwt(t, ec, head, body(func(m map[string]any) { m["iss"] = "you" })),
		"other audience": jwt(t, ec, head, body(func(m map[string]any) { m["aud"] = []string{"x"} })),
		"wrong types":    jwt(t, ec, head, body(func(m map[string]any) { m["access"] = "all" })),
	} {
		if a := c.do("GET", "/v2/a/b/tags/list", nil, with(token)); a.status != 401 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	// A blob of a repository that one may not pull is not mounted, nor one from anywhere.
	c.s.auth = nil
	d := c.push("hidden", []byte("hidden"))
	c.s.auth, _ = newTokenVerifier(c.s.c.Auth.Token)
	c.want("202", "POST", "/v2/a/b/blobs/uploads/?mount="+d.String()+"&from=hidden", nil, with(good))
	c.want("202", "POST", "/v2/a/b/blobs/uploads/?mount="+d.String(), nil, with(good))
}

func TestTLS(t *testing.T) {
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := certificate(t, caKey, nil, nil)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	cert := certificate(t, key, ca, caKey)
	der, _ := x509.MarshalPKCS8PrivateKey(key)
	certFile, keyFile := pemFile(t, "CERTIFICATE", cert.Raw), pemFile(t, "PRIVATE KEY", der)
	c := &Config{}
	c.Storage.Filesystem.RootDirectory, c.HTTP.Addr = t.TempDir(), "127.0.0.1:0"
	c.HTTP.TLS.Certificate, c.HTTP.TLS.Key, c.HTTP.TLS.ClientCAs = certFile, keyFile, []string{pemFile(t, "CERTIFICATE", ca.Raw)}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	s, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tc, err := s.tlsConfig()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", tc)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: s, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = srv.Serve(l) }()
	defer l.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for _, with := range []bool{true, false} {
		cc := &tls.Config{RootCAs: pool}
		if with {
			cc.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: cc}}
		resp, err := h.Get("https://" + l.Addr().String() + "/v2/")
		if with != (err == nil) {
			t.Errorf("certificate %v: %v", with, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}
