package registryd

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/oci"
)

// client is a registry with a client that checks statuses.
type client struct {
	*testing.T
	s   *Server
	url string
	h   http.Header // of every request
}

func newClient(t *testing.T, change func(*Config)) *client {
	t.Helper()
	c := &Config{}
	c.Storage.Filesystem.RootDirectory = t.TempDir()
	c.Storage.Delete.Enabled = true
	c.Log.AccessLog.Disabled = true
	if change != nil {
		change(c)
	}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	s, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return &client{T: t, s: s, url: h.URL, h: http.Header{}}
}

type answer struct {
	status int
	h      http.Header
	body   []byte
}

// code is the code of an error in the specification's form.
func (a answer) code() string {
	var e struct {
		Errors []struct{ Code, Message string }
	}
	_ = json.Unmarshal(a.body, &e)
	if len(e.Errors) == 0 {
		return ""
	}
	return e.Errors[0].Code
}

// do sends a request; headers are "Name: value".
func (c *client) do(method, path string, body []byte, headers ...string) answer {
	c.Helper()
	if !strings.HasPrefix(path, "http") {
		path = c.url + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	for k, v := range c.h {
		req.Header[k] = v
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// want is do with the status, and for errors "STATUS CODE".
func (c *client) want(status string, method, path string, body []byte, headers ...string) answer {
	c.Helper()
	a := c.do(method, path, body, headers...)
	got := fmt.Sprint(a.status)
	if a.status >= 400 && strings.Contains(status, " ") {
		got += " " + a.code()
	}
	if got != status {
		c.Fatalf("%s %s: %s, want %s\n%s", method, path, got, status, a.body)
	}
	return a
}

// push uploads a blob in one go.
func (c *client) push(name string, b []byte) digest.Digest {
	c.Helper()
	d := digest.FromBytes(b)
	a := c.want("202", "POST", "/v2/"+name+"/blobs/uploads/", nil)
	c.want("201", "PUT", a.h.Get("Location")+"?digest="+d.String(), b)
	return d
}

func desc(kind string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// image pushes an image of one layer, with a tag, and returns its manifest.
func (c *client) image(name, tag, content string, change func(*ocispec.Manifest)) ([]byte, digest.Digest) {
	c.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	config := []byte(`{"x":"` + content + `"}`)
	m.Config = desc(ocispec.MediaTypeImageConfig, config)
	m.Layers = []ocispec.Descriptor{desc(ocispec.MediaTypeImageLayerGzip, []byte(content))}
	if change != nil {
		change(&m)
	}
	c.push(name, config)
	c.push(name, []byte(content))
	b, err := json.Marshal(m)
	if err != nil {
		c.Fatal(err)
	}
	d := digest.FromBytes(b)
	if tag == "" {
		tag = d.String()
	}
	c.want("201", "PUT", "/v2/"+name+"/manifests/"+tag, b, "Content-Type: "+m.MediaType)
	return b, d
}

func TestBase(t *testing.T) {
	c := newClient(t, nil)
	a := c.want("200", "GET", "/v2/", nil)
	if a.h.Get("Docker-Distribution-Api-Version") != "registry/2.0" || string(a.body) != "{}" {
		t.Errorf("%v %s", a.h, a.body)
	}
	c.want("200", "GET", "/", nil)
	c.want("405 UNSUPPORTED", "POST", "/v2/", nil)
	c.want("404", "GET", "/v2/x", nil)
	c.want("404", "GET", "/nope", nil)
	c.want("400 NAME_INVALID", "GET", "/v2/UP/tags/list", nil)
	c.want("400 NAME_INVALID", "GET", "/v2/a/../b/manifests/x", nil)
}

func TestBlobs(t *testing.T) {
	c := newClient(t, nil)
	body := []byte("the content of a blob")
	d := digest.FromBytes(body)
	at := "/v2/a/b/blobs/" + d.String()
	for _, m := range []string{"GET", "HEAD"} {
		c.want("404", m, at, nil)
	}
	c.want("404 BLOB_UNKNOWN", "GET", at, nil)

	// POST then PUT.
	a := c.want("202", "POST", "/v2/a/b/blobs/uploads/", nil)
	if a.h.Get("Docker-Upload-Uuid") == "" || a.h.Get("Range") != "0-0" {
		t.Error(a.h)
	}
	session := a.h.Get("Location")
	a = c.want("201", "PUT", session+"?digest="+d.String(), body, "Content-Type: application/octet-stream")
	if a.h.Get("Location") != at || a.h.Get("Docker-Content-Digest") != d.String() {
		t.Error(a.h)
	}
	c.want("404 BLOB_UPLOAD_UNKNOWN", "GET", session, nil)
	a = c.want("200", "GET", at, nil)
	if !bytes.Equal(a.body, body) || a.h.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("%s %v", a.body, a.h)
	}
	a = c.want("200", "HEAD", at, nil)
	if a.h.Get("Content-Length") != fmt.Sprint(len(body)) || len(a.body) != 0 {
		t.Error(a.h)
	}
	c.want("304", "GET", at, nil, `If-None-Match: "`+d.String()+`"`)

	// Ranges.
	a = c.want("206", "GET", at, nil, "Range: bytes=4-10")
	if string(a.body) != "content" || a.h.Get("Content-Range") != fmt.Sprintf("bytes 4-10/%d", len(body)) {
		t.Errorf("%q %v", a.body, a.h)
	}
	c.want("416", "GET", at, nil, "Range: bytes=1000-")

	// One POST; SHA-512; wrong and malformed digests.
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := alg.FromString("single")
		a = c.want("201", "POST", "/v2/a/single/blobs/uploads/?digest="+d.String(), []byte("single"))
		if c.want("200", "GET", a.h.Get("Location"), nil); a.h.Get("Location") != "/v2/a/single/blobs/"+d.String() {
			t.Error(a.h)
		}
	}
	c.want("400 DIGEST_INVALID", "POST", "/v2/a/b/blobs/uploads/?digest="+d.String(), []byte("other"))
	a = c.want("202", "POST", "/v2/a/b/blobs/uploads/", nil)
	c.want("400 DIGEST_INVALID", "PUT", a.h.Get("Location")+"?digest=sha256:xx", body)
	c.want("400 DIGEST_INVALID", "PUT", a.h.Get("Location"), body)
	c.want("400 DIGEST_INVALID", "PUT", a.h.Get("Location")+"?digest="+d.String(), []byte("other"))
	c.want("404 BLOB_UPLOAD_UNKNOWN", "GET", a.h.Get("Location"), nil)
	c.want("400 DIGEST_INVALID", "GET", "/v2/a/b/blobs/sha256:x", nil)
	c.want("404 BLOB_UPLOAD_UNKNOWN", "PATCH", "/v2/a/b/blobs/uploads/..", body)
	c.want("404 BLOB_UPLOAD_UNKNOWN", "PATCH", "/v2/a/b/blobs/uploads/00000000-0000-4000-8000-000000000000", body)

	// Cancelled.
	a = c.want("202", "POST", "/v2/a/b/blobs/uploads/", nil)
	c.want("204", "DELETE", a.h.Get("Location"), nil)
	c.want("404 BLOB_UPLOAD_UNKNOWN", "DELETE", a.h.Get("Location"), nil)

	// Mounted, with and without from; what cannot be mounted is uploaded.
	a = c.want("201", "POST", "/v2/m/blobs/uploads/?mount="+d.String()+"&from=a/b", nil)
	c.want("200", "GET", a.h.Get("Location"), nil)
	c.want("201", "POST", "/v2/m2/blobs/uploads/?mount="+d.String(), nil)
	c.want("202", "POST", "/v2/m3/blobs/uploads/?mount="+d.String()+"&from=nowhere", nil)
	c.want("202", "POST", "/v2/m3/blobs/uploads/?mount="+digest.FromString("no").String()+"&from=a/b", nil)

	c.want("202", "POST", "/v2/m3/blobs/uploads/?mount=rubbish&from=a/b", nil)
	c.want("202", "POST", "/v2/m3/blobs/uploads/?mount="+d.String()+"&from=../a", nil)

	// Deleted here, not there.
	c.want("202", "DELETE", at, nil)
	c.want("404 BLOB_UNKNOWN", "GET", at, nil)
	c.want("404 BLOB_UNKNOWN", "DELETE", at, nil)
	c.want("200", "GET", "/v2/m/blobs/"+d.String(), nil)
}

func TestChunks(t *testing.T) {
	c := newClient(t, nil)
	body := []byte("abcdefghij")
	d := digest.FromBytes(body)
	for _, restart := range []bool{false, true} {
		loc := c.want("202", "POST", "/v2/x/blobs/uploads/", nil).h.Get("Location")
		c.want("416 BLOB_UPLOAD_INVALID", "PATCH", loc, body[4:], "Content-Range: 4-9")
		a := c.want("202", "PATCH", loc, body[:4], "Content-Range: 0-3", "Content-Type: application/octet-stream")
		if a.h.Get("Range") != "0-3" {
			t.Error(a.h)
		}
		loc = a.h.Get("Location")
		for _, bad := range []string{"0-3", "5-8", "4-8", "x-y", "9-4", "4", "-1-2"} {
			a = c.want("416 BLOB_UPLOAD_INVALID", "PATCH", loc, body[4:8], "Content-Range: "+bad)
			if a.h.Get("Range") != "0-3" || a.h.Get("Location") == "" {
				t.Error(a.h)
			}
		}
		if a = c.want("204", "GET", loc, nil); a.h.Get("Range") != "0-3" {
			t.Error(a.h)
		}
		if restart { // sessions are files
			clear(c.s.store.sums.m)
		}
		c.want("202", "PATCH", loc, body[4:8], "Content-Range: 4-7")
		c.want("416 BLOB_UPLOAD_INVALID", "PUT", loc+"?digest="+d.String(), body[8:], "Content-Range: 0-1")
		c.want("201", "PUT", loc+"?digest="+d.String(), body[8:], "Content-Range: 8-9")
		if a := c.want("200", "GET", "/v2/x/blobs/"+d.String(), nil); !bytes.Equal(a.body, body) {
			t.Errorf("%s", a.body)
		}
		c.want("202", "DELETE", "/v2/x/blobs/"+d.String(), nil)
	}
	// Streamed: no ranges, no lengths.
	loc := c.want("202", "POST", "/v2/x/blobs/uploads/", nil).h.Get("Location")
	req, _ := http.NewRequest("PATCH", c.url+loc, struct{ io.Reader }{bytes.NewReader(body)})
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 202 || resp.Header.Get("Range") != "0-9" {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	c.want("201", "PUT", loc+"?digest="+d.String(), nil)
}

func TestManifests(t *testing.T) {
	c := newClient(t, nil)
	b, d := c.image("a/b", "v1", "one", nil)
	for _, ref := range []string{"v1", d.String()} {
		a := c.want("200", "GET", "/v2/a/b/manifests/"+ref, nil, "Accept: "+ocispec.MediaTypeImageManifest)
		if !bytes.Equal(a.body, b) || a.h.Get("Docker-Content-Digest") != d.String() || a.h.Get("Content-Type") != ocispec.MediaTypeImageManifest {
			t.Errorf("%s %v", a.body, a.h)
		}
		a = c.want("200", "HEAD", "/v2/a/b/manifests/"+ref, nil)
		if a.h.Get("Content-Length") != fmt.Sprint(len(b)) {
			t.Error(a.h)
		}
	}
	c.want("304", "GET", "/v2/a/b/manifests/v1", nil, `If-None-Match: "`+d.String()+`"`)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/a/b/manifests/nope", nil)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/nope/manifests/nope", nil)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/nope/manifests/"+d.String(), nil)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/a/b/manifests/.x", nil)
	c.want("400 TAG_INVALID", "PUT", "/v2/a/b/manifests/.x", b, "Content-Type: "+ocispec.MediaTypeImageManifest)
	c.want("400 DIGEST_INVALID", "GET", "/v2/a/b/manifests/sha256:abc", nil)

	// By digest, another algorithm, a wrong one.
	d512 := digest.SHA512.FromBytes(b)
	c.want("201", "PUT", "/v2/a/b/manifests/"+d512.String(), b, "Content-Type: "+ocispec.MediaTypeImageManifest)
	c.want("200", "GET", "/v2/a/b/manifests/"+d512.String(), nil)
	c.want("201", "PUT", "/v2/a/b/manifests/five?digest="+d512.String(), b, "Content-Type: "+ocispec.MediaTypeImageManifest)
	if a := c.want("200", "HEAD", "/v2/a/b/manifests/five", nil); a.h.Get("Docker-Content-Digest") != d512.String() {
		t.Error(a.h)
	}
	c.want("400 DIGEST_INVALID", "PUT", "/v2/a/b/manifests/"+digest.FromString("x").String(), b, "Content-Type: "+ocispec.MediaTypeImageManifest)

	// What is not valid.
	kind := "Content-Type: " + ocispec.MediaTypeImageManifest
	config := `{"mediaType":"x","digest":"` + digest.FromString("x").String() + `","size":1}`
	for _, bad := range []string{
		``, `{`, `[]`, `{}`, `{"schemaVersion":1}`, `{"schemaVersion":2}`, `{"schemaVersion":2,"config":{"digest":"sha256:x"}}`,
		`{"schemaVersion":2,"config":` + config + `,"manifests":[]}`, `{"schemaVersion":2,"mediaType":"text/plain","config":` + config + `}`,
		`{"schemaVersion":2,"config":` + strings.Replace(config, `:1`, `:-1`, 1) + `}`, `{"schemaVersion":2,"config":` + config + `}x`,
		`{"schemaVersion":2,"fsLayers":[],"config":` + config + `}`,
	} {
		c.want("400 MANIFEST_INVALID", "PUT", "/v2/a/b/manifests/bad", []byte(bad), kind)
	}
	c.want("400 MANIFEST_INVALID", "PUT", "/v2/a/b/manifests/bad", b, "Content-Type: "+oci.DockerManifest)
	c.want("400 MANIFEST_INVALID", "PUT", "/v2/a/b/manifests/bad", b, "Content-Type: text/plain")
	c.want("404 MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/a/b/manifests/bad", []byte(`{"schemaVersion":2,"config":`+config+`}`), kind)
	c.want("404 MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/other/manifests/bad", b, kind) // in this repository
	c.want("413 MANIFEST_INVALID", "PUT", "/v2/a/b/manifests/bad", bytes.Repeat([]byte(" "), maxManifest+1), kind)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/a/b/manifests/bad", nil)
	big := append(bytes.Repeat([]byte(" "), maxManifest-len(b)), b...)
	c.want("201", "PUT", "/v2/a/b/manifests/big", big, kind)

	// An index, of what is here only. Docker's list.
	for _, k := range []string{ocispec.MediaTypeImageIndex, oci.DockerManifestList} {
		index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, k, ocispec.MediaTypeImageManifest, d, len(b))
		c.want("201", "PUT", "/v2/a/b/manifests/index", []byte(index), "Content-Type: "+k)
		if a := c.want("200", "GET", "/v2/a/b/manifests/index", nil); a.h.Get("Content-Type") != k {
			t.Error(a.h)
		}
		c.want("404 MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/a/b/manifests/index", []byte(strings.Replace(index, d.String(), digest.FromString("no").String(), 1)), "Content-Type: "+k)
	}
	// A manifest that does not name its type keeps the one it was sent with.
	bare := strings.Replace(string(b), `"mediaType":"`+ocispec.MediaTypeImageManifest+`",`, "", 1)
	c.want("201", "PUT", "/v2/a/b/manifests/bare", []byte(bare), "Content-Type: "+oci.DockerManifest+"; charset=utf-8")
	if a := c.want("200", "GET", "/v2/a/b/manifests/bare", nil); a.h.Get("Content-Type") != oci.DockerManifest {
		t.Error(a.h)
	}

	// Deleted: a tag alone, then the manifest with its tags.
	c.image("del", "t1", "x", nil)
	_, dd := c.image("del", "t2", "x", nil)
	c.want("202", "DELETE", "/v2/del/manifests/t1", nil)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/del/manifests/t1", nil)
	c.want("404 MANIFEST_UNKNOWN", "DELETE", "/v2/del/manifests/t1", nil)
	c.want("200", "GET", "/v2/del/manifests/t2", nil)
	c.want("202", "DELETE", "/v2/del/manifests/"+dd.String(), nil)
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/del/manifests/t2", nil)
	c.want("404 MANIFEST_UNKNOWN", "DELETE", "/v2/del/manifests/"+dd.String(), nil)
	c.want("404 NAME_UNKNOWN", "DELETE", "/v2/never/manifests/"+dd.String(), nil)
}

func TestLists(t *testing.T) {
	c := newClient(t, nil)
	c.want("404 NAME_UNKNOWN", "GET", "/v2/r/tags/list", nil)
	for _, tag := range []string{"b", "A", "c", "B", "a"} {
		c.image("r", tag, "x", nil)
	}
	list := func(path string) (string, string) {
		a := c.want("200", "GET", path, nil)
		var v struct {
			Name         string
			Tags         []string
			Repositories []string
		}
		if err := json.Unmarshal(a.body, &v); err != nil {
			t.Fatal(err)
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(a.h.Get("Link"), "<"), ">")
		return strings.Join(append(v.Tags, v.Repositories...), " "), next
	}
	for path, want := range map[string]string{"": "A a B b c", "?n=0": "", "?n=9": "A a B b c", "?last=B": "b c", "?n=1&last=b": "c", "?last=zz": ""} {
		if got, next := list("/v2/r/tags/list" + path); got != want || next != "" {
			t.Errorf("%s: %q %q", path, got, next)
		}
	}
	var pages []string
	for next := "/v2/r/tags/list?n=2"; next != ""; {
		var got string
		got, next = list(next)
		pages = append(pages, got)
	}
	if strings.Join(pages, "|") != "A a|B b|c" {
		t.Error(pages)
	}
	c.want("400 PAGINATION_NUMBER_INVALID", "GET", "/v2/r/tags/list?n=-1", nil)
	c.want("400 PAGINATION_NUMBER_INVALID", "GET", "/v2/r/tags/list?n=x", nil)

	for _, name := range []string{"r/b", "a-b", "a/b", "a"} {
		c.image(name, "t", "x", nil)
	}
	if got, _ := list("/v2/_catalog"); got != "a a-b a/b r r/b" {
		t.Error(got)
	}
	got, next := list("/v2/_catalog?n=3")
	rest, end := list(next)
	if got != "a a-b a/b" || rest != "r r/b" || end != "" {
		t.Error(got, next, rest, end)
	}

	// The old search.
	var found struct {
		NumResults int `json:"num_results"`
		Results    []struct{ Name string }
	}
	c.want("200", "GET", "/v1/_ping", nil)
	if err := json.Unmarshal(c.want("200", "GET", "/v1/search?q=b&n=2", nil).body, &found); err != nil || found.NumResults != 3 || len(found.Results) != 2 {
		t.Error(found, err)
	}
}

func TestReferrers(t *testing.T) {
	c := newClient(t, nil)
	subject := digest.FromString("not here yet")
	get := func(query string) ([]ocispec.Descriptor, answer) {
		a := c.want("200", "GET", "/v2/r/referrers/"+subject.String()+query, nil)
		var ix ocispec.Index
		if err := json.Unmarshal(a.body, &ix); err != nil || ix.SchemaVersion != 2 || ix.MediaType != ocispec.MediaTypeImageIndex || a.h.Get("Content-Type") != ocispec.MediaTypeImageIndex || ix.Manifests == nil {
			t.Fatalf("%s %v", a.body, err)
		}
		return ix.Manifests, a
	}
	if l, _ := get(""); len(l) != 0 {
		t.Error(l)
	}
	c.want("400 DIGEST_INVALID", "GET", "/v2/r/referrers/sha256:x", nil)
	with := func(kind string) func(*ocispec.Manifest) {
		return func(m *ocispec.Manifest) {
			m.ArtifactType = kind
			m.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 3}
			m.Annotations = map[string]string{"k": kind}
		}
	}
	_, d1 := c.image("r", "", "one", with("text/sbom"))
	c.image("r", "two", "two", with(""))
	l, _ := get("")
	if len(l) != 2 {
		t.Fatal(l)
	}
	kinds := []string{l[0].ArtifactType, l[1].ArtifactType}
	slices.Sort(kinds)
	if kinds[0] != ocispec.MediaTypeImageConfig || kinds[1] != "text/sbom" {
		t.Error(kinds)
	}
	l, a := get("?artifactType=text/sbom")
	if len(l) != 1 || l[0].Digest != d1 || l[0].Annotations["k"] != "text/sbom" || a.h.Get("OCI-Filters-Applied") != "artifactType" {
		t.Error(l, a.h)
	}
	m := c.want("200", "GET", "/v2/r/manifests/"+d1.String(), nil).body
	if a := c.want("201", "PUT", "/v2/r/manifests/again", m, "Content-Type: "+ocispec.MediaTypeImageManifest); a.h.Get("OCI-Subject") != subject.String() {
		t.Error(a.h)
	}
	// What a client without the API listed under a tag.
	if err := os.RemoveAll(c.s.store.referrerDir("r", subject)); err != nil {
		t.Fatal(err)
	}
	if l, _ := get(""); len(l) != 0 {
		t.Error(l)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, d1, len(m))
	c.want("201", "PUT", "/v2/r/manifests/sha256-"+subject.Encoded(), []byte(index), "Content-Type: "+ocispec.MediaTypeImageIndex)
	if l, _ := get(""); len(l) != 1 || l[0].Digest != d1 {
		t.Error(l)
	}
	c.want("202", "DELETE", "/v2/r/manifests/"+d1.String(), nil)
	if l, _ := get(""); len(l) != 0 {
		t.Error(l)
	}
}

// A list of referrers is no larger than a manifest may be; the rest is on further pages.
func TestReferrerPages(t *testing.T) {
	c := newClient(t, nil)
	subject := digest.FromString("subject")
	want := map[digest.Digest]bool{}
	for i := range 3 {
		_, d := c.image("r", "", fmt.Sprint(i), func(m *ocispec.Manifest) {
			m.ArtifactType = "text/long"
			m.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 3}
			m.Annotations = map[string]string{"long": strings.Repeat("x", 1500<<10)}
		})
		want[d] = true
	}
	pages := 0
	for next := "/v2/r/referrers/" + subject.String() + "?artifactType=text/long"; next != ""; pages++ {
		a := c.want("200", "GET", next, nil)
		var ix ocispec.Index
		if err := json.Unmarshal(a.body, &ix); err != nil || len(a.body) > maxManifest {
			t.Fatal(len(a.body), err)
		}
		for _, m := range ix.Manifests {
			if !want[m.Digest] {
				t.Error("unknown or twice:", m.Digest)
			}
			delete(want, m.Digest)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(a.h.Get("Link"), "<"), ">")
	}
	if pages != 3 || len(want) != 0 {
		t.Error(pages, want)
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	c := newClient(t, func(c *Config) { c.Storage.Filesystem.RootDirectory = dir; c.Storage.Delete.Enabled = false })
	b, d := c.image("r", "t", "x", nil)
	for _, path := range []string{"/v2/r/manifests/t", "/v2/r/manifests/" + d.String(), "/v2/r/blobs/" + digest.FromString("x").String()} {
		c.want("405 UNSUPPORTED", "DELETE", path, nil)
	}
	ro := newClient(t, func(c *Config) {
		c.Storage.Filesystem.RootDirectory = dir
		c.Storage.Maintenance.ReadOnly.Enabled = true
	})
	ro.want("200", "GET", "/v2/r/manifests/t", nil)
	ro.want("405 UNSUPPORTED", "PUT", "/v2/r/manifests/t", b)
	ro.want("405 UNSUPPORTED", "POST", "/v2/r/blobs/uploads/", nil)
	ro.want("405 UNSUPPORTED", "DELETE", "/v2/r/manifests/t", nil)
}

func TestQuota(t *testing.T) {
	dir := t.TempDir()
	change := func(c *Config) {
		c.Storage.Filesystem.RootDirectory = dir
		c.Storage.Quota.Repository, c.Storage.Quota.Total = 1000, 1500
	}
	c := newClient(t, change)
	blob := func(n int, x string) []byte { return bytes.Repeat([]byte(x), n) }
	d := c.push("a", blob(800, "a"))
	up := func(c *client, name string, b []byte) answer {
		a := c.do("POST", "/v2/"+name+"/blobs/uploads/", nil)
		if a.status != 202 {
			return a
		}
		return c.do("PUT", a.h.Get("Location")+"?digest="+digest.FromBytes(b).String(), b)
	}
	if a := up(c, "a", blob(300, "b")); a.status != 403 || a.code() != "DENIED" || !strings.Contains(string(a.body), "quota exceeded") {
		t.Errorf("%d %s", a.status, a.body)
	}
	c.want("201", "POST", "/v2/b/blobs/uploads/?mount="+d.String()+"&from=a", nil) // counts there, once in all
	if a := up(c, "c", blob(701, "c")); a.status != 403 {
		t.Errorf("%d %s", a.status, a.body)
	}
	again := newClient(t, change) // counted again from the disk
	if a := up(again, "a", blob(300, "b")); a.status != 403 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := up(again, "a", blob(200, "b")); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	again.want("202", "DELETE", "/v2/a/blobs/"+d.String(), nil)
	if a := up(again, "a", blob(300, "e")); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
	left, _ := filepath.Glob(dir + "/docker/registry/v2/repositories/*/_uploads/*")
	if len(left) != 0 {
		t.Error("left behind:", left)
	}
}

// A connection that breaks leaves what came, and the client goes on from there.
func TestResume(t *testing.T) {
	c := newClient(t, nil)
	body := make([]byte, 600<<10)
	_, _ = rand.Read(body)
	loc := c.want("202", "POST", "/v2/x/blobs/uploads/", nil).h.Get("Location")
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", loc, len(body))
	_, _ = conn.Write(body[:300<<10])
	deadline := time.Now().Add(5 * time.Second)
	for c.do("GET", loc, nil).status != 409 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	c.want("409 BLOB_UPLOAD_INVALID", "PATCH", loc, body) // one at a time
	conn.Close()
	a := c.do("GET", loc, nil)
	for a.status == 409 && time.Now().Before(deadline) {
		a = c.do("GET", loc, nil)
	}
	var last int
	if _, err := fmt.Sscanf(a.h.Get("Range"), "0-%d", &last); err != nil || a.status != 204 {
		t.Fatal(a.status, a.h)
	}
	c.want("202", "PATCH", loc, body[last+1:], fmt.Sprintf("Content-Range: %d-%d", last+1, len(body)-1))
	c.want("201", "PUT", loc+"?digest="+digest.FromBytes(body).String(), nil)
}

func TestServe(t *testing.T) {
	c := &Config{}
	c.Storage.Filesystem.RootDirectory = t.TempDir()
	c.HTTP.Addr, c.HTTP.Debug.Addr = "127.0.0.1:0", "127.0.0.1:0"
	c.HTTP.Debug.Prometheus.Enabled, c.Health.StorageDriver.Enabled = true, true
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	s, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/v2/")
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	for path, want := range map[string]string{"/metrics": `registry_http_requests_total{handler="base",method="get",code="200"} 1`, "/debug/health": "{}"} {
		w := httptest.NewRecorder()
		s.debug().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
