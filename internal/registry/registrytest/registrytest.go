// Package registrytest is a registry in memory for tests: the calls of the distribution
// specification that an engine makes, users with passwords or tokens, and faults.
//
//	reg := registrytest.New()
//	reg.Users = map[string]string{"me": "secret"}
//	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool { … } // true: it has answered
//	srv := httptest.NewServer(reg)
package registrytest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Manifest is a stored manifest.
type Manifest struct {
	MediaType string
	Raw       []byte
}

// Request is one request, as it came.
type Request struct{ Method, Path, Query, Host, Authorization, Range string }

// Registry is a registry. The fields in the first block are set before it serves; of the others
// a test takes Lock.
type Registry struct {
	Users  map[string]string // by name; nil: nobody needs to log in
	Bearer bool              // tokens, from /token of the same server, instead of passwords
	Realm  string            // of tokens, when it is not that
	Fault  func(w http.ResponseWriter, r *http.Request) bool

	sync.Mutex
	Blobs     map[digest.Digest][]byte
	Has       map[string]map[digest.Digest]bool // blobs of each repository
	Manifests map[string]map[string]Manifest    // of each repository, by tag and by digest
	Log       []Request
	Cut       map[digest.Digest]int // the next answer with a blob ends after so many bytes, once

	uploads map[string][]byte
	next    int
}

// New returns an empty registry.
func New() *Registry {
	return &Registry{
		Blobs: map[digest.Digest][]byte{}, Has: map[string]map[digest.Digest]bool{}, Manifests: map[string]map[string]Manifest{},
		Cut: map[digest.Digest]int{}, uploads: map[string][]byte{},
	}
}

// PutBlob stores a blob.
func (g *Registry) PutBlob(repo string, b []byte) digest.Digest {
	g.Lock()
	defer g.Unlock()
	d := digest.FromBytes(b)
	g.Blobs[d] = b
	g.hold(repo, d)
	return d
}

func (g *Registry) hold(repo string, d digest.Digest) {
	if g.Has[repo] == nil {
		g.Has[repo] = map[digest.Digest]bool{}
	}
	g.Has[repo][d] = true
}

// PutManifest stores a manifest under its digest and, when there is one, a tag.
func (g *Registry) PutManifest(repo, tag, mediaType string, raw []byte) digest.Digest {
	g.Lock()
	defer g.Unlock()
	if g.Manifests[repo] == nil {
		g.Manifests[repo] = map[string]Manifest{}
	}
	d := digest.FromBytes(raw)
	g.Manifests[repo][string(d)] = Manifest{mediaType, raw}
	if tag != "" {
		g.Manifests[repo][tag] = Manifest{mediaType, raw}
	}
	return d
}

// Count tells how many requests of a method had a path with part in it.
func (g *Registry) Count(method, part string) int {
	g.Lock()
	defer g.Unlock()
	n := 0
	for _, r := range g.Log {
		if r.Method == method && strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.Lock()
	g.Log = append(g.Log, Request{r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.Header.Get("Authorization"), r.Header.Get("Range")})
	g.Unlock()
	if g.Fault != nil && g.Fault(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		g.token(w, r)
		return
	}
	if !g.allowed(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	switch {
	case !ok:
		http.NotFound(w, r)
	case path == "":
		_, _ = io.WriteString(w, "{}")
	case path == "_catalog":
		g.Lock()
		defer g.Unlock()
		names := []string{}
		for n := range g.Manifests {
			names = append(names, n)
		}
		slices.Sort(names)
		_ = json.NewEncoder(w).Encode(map[string]any{"repositories": names})
	default:
		for _, part := range []struct {
			sep    string
			handle func(w http.ResponseWriter, r *http.Request, repo, rest string)
		}{{"/blobs/uploads/", g.upload}, {"/blobs/", g.blob}, {"/manifests/", g.manifest}, {"/tags/", g.tags}} {
			if repo, rest, ok := strings.Cut(path, part.sep); ok {
				part.handle(w, r, repo, rest)
				return
			}
		}
		http.NotFound(w, r)
	}
}

func (g *Registry) user(r *http.Request) bool {
	name, password, ok := r.BasicAuth()
	want, known := g.Users[name]
	return ok && known && want == password
}

// token gives a token that says what it is for.
func (g *Registry) token(w http.ResponseWriter, r *http.Request) {
	who := "anonymous"
	if _, _, ok := r.BasicAuth(); ok {
		if !g.user(r) {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
			return
		}
		who, _, _ = r.BasicAuth()
	}
	doc := map[string]any{"expires_in": 300}
	if r.Method == http.MethodPost {
		_ = r.ParseForm()
		name, ok := strings.CutPrefix(r.PostForm.Get("refresh_token"), "identity-")
		if !ok {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "bad refresh token")
			return
		}
		who = name
	}
	if r.URL.Query().Get("offline_token") == "true" && who != "anonymous" {
		doc["refresh_token"] = "identity-" + who
	}
	scope := strings.Join(r.URL.Query()["scope"], " ")
	if r.Method == http.MethodPost {
		scope = r.PostForm.Get("scope")
	}
	doc["token"] = base64.RawURLEncoding.EncodeToString([]byte(who + "|" + scope))
	_ = json.NewEncoder(w).Encode(doc)
}

func (g *Registry) allowed(w http.ResponseWriter, r *http.Request) bool {
	if g.Users == nil {
		return true
	}
	if !g.Bearer {
		if g.user(r) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return false
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	realm := g.Realm
	if realm == "" {
		realm = scheme + "://" + r.Host + "/token"
	}
	challenge := fmt.Sprintf(`Bearer realm=%q,service="test"`, realm)
	if t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		b, _ := base64.RawURLEncoding.DecodeString(t)
		who, scope, _ := strings.Cut(string(b), "|")
		repo := strings.TrimPrefix(r.URL.Path, "/v2/")
		for _, sep := range []string{"/blobs/", "/manifests/", "/tags/"} {
			repo, _, _ = strings.Cut(repo, sep)
		}
		if repo == "" || who != "anonymous" && strings.Contains(scope, "repository:"+repo+":") {
			return true
		}
		challenge += fmt.Sprintf(`,scope="repository:%s:pull",error="insufficient_scope"`, repo)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (g *Registry) blob(w http.ResponseWriter, r *http.Request, repo, name string) {
	d := digest.Digest(name)
	g.Lock()
	b, ok := g.Blobs[d]
	ok = ok && g.Has[repo][d]
	cut, cutting := g.Cut[d]
	if r.Method == http.MethodGet {
		delete(g.Cut, d)
	}
	g.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	status := http.StatusOK
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		if n, err := strconv.Atoi(strings.TrimSuffix(from, "-")); err == nil && n < len(b) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", n, len(b)-1, len(b)))
			b, status = b[n:], http.StatusPartialContent
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if cutting && cut < len(b) {
		_, _ = w.Write(b[:cut])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(b)
}

func (g *Registry) manifest(w http.ResponseWriter, r *http.Request, repo, name string) {
	if r.Method == http.MethodPut {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		tag := name
		if strings.Contains(name, ":") {
			tag = ""
		}
		w.Header().Set("Docker-Content-Digest", string(g.PutManifest(repo, tag, r.Header.Get("Content-Type"), raw)))
		w.WriteHeader(http.StatusCreated)
		return
	}
	g.Lock()
	m, ok := g.Manifests[repo][name]
	g.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	if m.MediaType != "" {
		w.Header().Set("Content-Type", m.MediaType)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(m.Raw)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(m.Raw)
	}
}

func (g *Registry) tags(w http.ResponseWriter, r *http.Request, repo, _ string) {
	g.Lock()
	defer g.Unlock()
	all, ok := g.Manifests[repo]
	if !ok {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
		return
	}
	tags := []string{}
	for t := range all {
		if !strings.Contains(t, ":") {
			tags = append(tags, t)
		}
	}
	slices.Sort(tags)
	// One on each page, so that pages are followed.
	last := r.URL.Query().Get("last")
	at, _ := slices.BinarySearch(tags, last)
	if last != "" {
		at++
	}
	page := tags[min(at, len(tags)):min(at+1, len(tags))]
	if at+1 < len(tags) {
		w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?last=%s&n=1>; rel="next"`, repo, page[0]))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": page})
}

func (g *Registry) upload(w http.ResponseWriter, r *http.Request, repo, id string) {
	q := r.URL.Query()
	at := func(id string) { w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=x") }
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	g.Lock()
	defer g.Unlock()
	switch r.Method {
	case http.MethodPost:
		if d := digest.Digest(q.Get("mount")); g.Has[q.Get("from")][d] {
			g.hold(repo, d)
			w.WriteHeader(http.StatusCreated)
			return
		}
		g.next++
		id := strconv.Itoa(g.next)
		g.uploads[id] = nil
		at(id)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPatch:
		g.uploads[id] = append(g.uploads[id], body...)
		at(id)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		b := append(g.uploads[id], body...)
		delete(g.uploads, id)
		d := digest.FromBytes(b)
		if string(d) != q.Get("digest") || q.Get("state") != "x" {
			refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		g.Blobs[d] = b
		g.hold(repo, d)
		w.WriteHeader(http.StatusCreated)
	default:
		delete(g.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	}
}
