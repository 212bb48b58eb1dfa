package registryd

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestProxy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "htpasswd")
	passwords(t, path, "ann", "secret")
	for name, auth := range map[string]string{"open": "", "basic": "basic", "tokens": "tokens"} {
		t.Run(name, func(t *testing.T) {
			up := newClient(t, func(c *Config) {
				if auth != "" {
					c.Auth.Htpasswd = &HtpasswdConfig{Realm: "r", Path: path}
				}
				if auth == "tokens" {
					c.Auth.Anonymous = "pull"
				}
			})
			if auth != "" {
				up.h.Set("Authorization", strings.TrimPrefix(basic("ann", "secret"), "Authorization: "))
			}
			b, d := up.image("library/box", "latest", "layer", nil)
			var asked atomic.Int64
			down := atomic.Bool{}
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				if down.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				up.s.ServeHTTP(w, r)
			}))
			defer front.Close()
			c := newClient(t, func(c *Config) {
				c.Proxy.RemoteURL = front.URL
				if auth != "" {
					c.Proxy.Username, c.Proxy.Password = "ann", "secret"
				}
			})
			layer := "/v2/library/box/blobs/" + digest.FromString("layer").String()
			for _, ref := range []string{"latest", d.String()} {
				if a := c.want("200", "GET", "/v2/library/box/manifests/"+ref, nil); string(a.body) != string(b) {
					t.Errorf("%s", a.body)
				}
			}
			c.want("200", "HEAD", layer, nil)
			if a := c.want("200", "GET", layer, nil); string(a.body) != "layer" {
				t.Errorf("%s", a.body)
			}
			n := asked.Load()
			if a := c.want("200", "GET", layer, nil); string(a.body) != "layer" || asked.Load() != n {
				t.Error("upstream was asked for what is here")
			}
			c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/library/box/manifests/nope", nil)
			c.want("404 BLOB_UNKNOWN", "GET", "/v2/library/box/blobs/"+digest.FromString("nope").String(), nil)
			c.want("405 UNSUPPORTED", "POST", "/v2/library/box/blobs/uploads/", nil)
			c.want("405 UNSUPPORTED", "DELETE", "/v2/library/box/manifests/latest", nil)
			if a := c.want("200", "GET", "/v2/library/box/tags/list", nil); !strings.Contains(string(a.body), `"latest"`) {
				t.Errorf("%s", a.body)
			}
			var figures strings.Builder
			c.s.metrics.write(&figures)
			for _, want := range []string{`hits_total{type="blob"} 1`, `pulled_bytes_total{type="blob"} 5`, `misses_total{type="manifest"} 1`} {
				if !strings.Contains(figures.String(), "registry_proxy_"+want) {
					t.Errorf("no %s in %s", want, figures.String())
				}
			}
			// A tag moves upstream.
			b2, _ := up.image("library/box", "latest", "newer", nil)
			if a := c.want("200", "GET", "/v2/library/box/manifests/latest", nil); string(a.body) != string(b2) {
				t.Errorf("%s", a.body)
			}
			// Upstream is down.
			down.Store(true)
			c.want("200", "GET", "/v2/library/box/manifests/latest", nil)
			c.want("200", "GET", layer, nil)
			c.want("200", "GET", "/v2/library/box/tags/list", nil)
			c.want("502", "GET", "/v2/library/other/manifests/latest", nil)
			// Old things go.
			age(t, c.s.store)
			if err := c.s.store.expire(time.Hour); err != nil {
				t.Fatal(err)
			}
			c.want("502", "GET", "/v2/library/box/manifests/latest", nil)
		})
	}
}

// What upstream sends under a wrong name is not kept.
func TestProxyLies(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "something else") }))
	defer up.Close()
	c := newClient(t, func(c *Config) { c.Proxy.RemoteURL = up.URL })
	d := digest.FromString("wanted")
	if a := c.want("200", "GET", "/v2/x/blobs/"+d.String(), nil); string(a.body) != "something else" {
		t.Errorf("%s", a.body) // clients verify it
	}
	c.want("502", "GET", "/v2/x/manifests/"+d.String(), nil)
	if c.s.store.hasBlob("x", d) || exists(c.s.store.blobPath(d)) {
		t.Error("kept")
	}
	left, _ := filepath.Glob(c.s.store.uploadDir("x", "*"))
	if len(left) > 0 {
		t.Error("left behind:", left)
	}
}

// A fetch that breaks off is not kept, and the client sees that it was not whole.
func TestProxyBreaks(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no length: only the way it ends tells
		_, _ = io.WriteString(w, "the first half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer up.Close()
	c := newClient(t, func(c *Config) { c.Proxy.RemoteURL = up.URL })
	d := digest.FromString("wanted")
	resp, err := http.Get(c.url + "/v2/x/blobs/" + d.String())
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half a blob looks whole")
	}
	left, _ := filepath.Glob(c.s.store.uploadDir("x", "*"))
	if c.s.store.hasBlob("x", d) || len(left) > 0 {
		t.Error("kept:", left)
	}
}

// The password goes to upstream's own host and to those that the configuration names,
// whatever upstream redirects to or names as its token server.
func TestProxyPassword(t *testing.T) {
	var leaked atomic.Int64
	d := digest.FromString("blob")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		if r.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"token":"t"}`)
			return
		}
		_, _ = io.WriteString(w, "blob")
	}))
	defer other.Close()
	for _, challenge := range []string{`Bearer realm="` + other.URL + `/token",service="x"`, `Basic realm="x"`} {
		up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("Www-Authenticate", challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, other.URL+"/elsewhere", http.StatusTemporaryRedirect) // another port of the same host
		}))
		for _, allow := range []bool{false, true} {
			c := newClient(t, func(c *Config) {
				c.Proxy.RemoteURL, c.Proxy.Username, c.Proxy.Password = up.URL, "ann", "secret"
				if allow {
					c.Proxy.AuthHosts = []string{strings.TrimPrefix(other.URL, "http://")}
				}
			})
			leaked.Store(0)
			if a := c.want("200", "GET", "/v2/x/blobs/"+d.String(), nil); string(a.body) != "blob" {
				t.Errorf("%s", a.body)
			}
			want := int64(0)
			if allow && strings.HasPrefix(challenge, "Bearer") {
				want = 1 // the token server, which the configuration names
			}
			if leaked.Load() != want {
				t.Errorf("%s, named %v: told %d times", challenge, allow, leaked.Load())
			}
		}
		up.Close()
	}
}

func TestNotifications(t *testing.T) {
	var mu sync.Mutex
	var got []event
	refuse := 3
	all := make(chan struct{}, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v struct{ Events []event }
		mu.Lock()
		defer mu.Unlock()
		if refuse > 0 {
			refuse--
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if r.Header.Get("Content-Type") != eventsMediaType || r.Header.Get("X-Key") != "k" || json.NewDecoder(r.Body).Decode(&v) != nil {
			t.Error(r.Header)
		}
		for _, e := range v.Events {
			got = append(got, e)
			all <- struct{}{}
		}
	}))
	defer hook.Close()
	c := newClient(t, func(c *Config) {
		e := EndpointConfig{Name: "hook", URL: hook.URL, Headers: map[string][]string{"X-Key": {"k"}}, Threshold: 2, Backoff: 20 * time.Millisecond}
		e.Ignore.Actions = []string{"pull"}
		c.Notifications.Events.IncludeReferences = true
		c.Notifications.Endpoints = []EndpointConfig{e, {Name: "off", Disabled: true}}
	})
	var wg sync.WaitGroup
	c.s.events.start(t.Context(), &wg)
	_, d := c.image("a/b", "v1", "x", nil)
	c.want("200", "GET", "/v2/a/b/manifests/v1", nil)
	c.want("201", "POST", "/v2/m/blobs/uploads/?mount="+digest.FromString("x").String()+"&from=a/b", nil)
	c.want("202", "DELETE", "/v2/a/b/manifests/v1", nil)
	for range 5 {
		select {
		case <-all:
		case <-time.After(10 * time.Second):
			t.Fatal("events are missing")
		}
	}
	c.s.events.drain(t.Context())
	mu.Lock()
	defer mu.Unlock()
	var actions []string
	for _, e := range got {
		actions = append(actions, e.Action)
	}
	if strings.Join(actions, " ") != "push push push mount delete" {
		t.Error(actions)
	}
	m := got[2]
	if m.Target.Digest != d || m.Target.Tag != "v1" || m.Target.Repository != "a/b" || m.Target.URL != c.url+"/v2/a/b/manifests/"+d.String() || m.ID == "" || len(m.Target.References) != 2 || m.Request.Method != "PUT" || m.Source.InstanceID == "" {
		t.Errorf("%+v", m)
	}
	if got[3].Target.From != "a/b" || got[4].Target.Tag != "v1" {
		t.Errorf("%+v", got[3:])
	}
}
