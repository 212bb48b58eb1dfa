package registryd

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a/b/c": true, "a.b": true, "a_b": true, "a__b": true, "a-b": true, "a---b": true, "0": true, strings.Repeat("a", 255): true,
		"": false, "A": false, "a..b": false, "a___b": false, "a.-b": false, "-a": false, "a-": false, "a//b": false, "/a": false, "a/": false, "..": false, "a/../b": false, "_a": false, "a b": false, "a\x00": false, strings.Repeat("a", 256): false,
	} {
		if validName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	for tag, want := range map[string]bool{"a": true, "A.b-c_9": true, "_": true, strings.Repeat("a", 128): true, "": false, ".a": false, "-a": false, "a/b": false, "a:b": false, strings.Repeat("a", 129): false} {
		if validTag(tag) != want {
			t.Errorf("%q: %v", tag, !want)
		}
	}
	for path, want := range map[string]route{
		"/v2/": {kind: routeBase}, "/v2/_catalog": {kind: routeCatalog}, "/v2/a/tags/list": {routeTags, "a", ""},
		"/v2/blobs/uploads/tags/list":         {routeTags, "blobs/uploads", ""},
		"/v2/a/manifests/b/manifests/t":       {routeManifest, "a/manifests/b", "t"},
		"/v2/a/blobs/uploads/":                {routeUploads, "a", ""},
		"/v2/a/blobs/uploads":                 {routeUploads, "a", ""},
		"/v2/a/blobs/uploads/x":               {routeUpload, "a", "x"},
		"/v2/a/blobs/sha256:x":                {routeBlob, "a", "sha256:x"},
		"/v2/a/referrers/sha256:x":            {routeReferrers, "a", "sha256:x"},
		"/v2/a":                               {},
		"/v3/":                                {},
		"/v2/manifests/x":                     {routeManifest, "", "x"},
		"/v2/a/blobs/uploads/blobs/uploads/x": {routeUpload, "a/blobs/uploads", "x"},
	} {
		if got := parsePath(path); got != want {
			t.Errorf("%s: %+v", path, got)
		}
	}
}

// No path, method or header makes the server fail, or reaches a file that is not its own.
func FuzzRequest(f *testing.F) {
	for _, p := range []string{"/v2/a/blobs/uploads/../../../x", "/v2/a/manifests/..%2f..", "/v2/a/blobs/sha256:00", "/v2/_catalog?n=1&last=x", "/v1/search?q=", "/v2/a/tags/list?n=9999999999999999999"} {
		f.Add("GET", p, "0-1", "")
	}
	f.Add("PUT", "/v2/a/manifests/t", "", `{"schemaVersion":2,"manifests":[]}`)
	f.Add("POST", "/v2/a/blobs/uploads/?mount=sha256:1&from=../b", "", "x")
	top := f.TempDir()
	if err := os.WriteFile(filepath.Join(top, "data"), []byte("outside"), 0o600); err != nil {
		f.Fatal(err)
	}
	c := &Config{}
	c.Storage.Filesystem.RootDirectory = filepath.Join(top, "in")
	c.Storage.Delete.Enabled, c.Log.AccessLog.Disabled = true, true
	if err := c.finish(); err != nil {
		f.Fatal(err)
	}
	s, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, path, crange, body string) {
		req, err := http.NewRequest(method, "http://x"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header.Set("Content-Range", crange)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, req)
		if w.Code >= 500 || strings.Contains(w.Body.String(), "outside") {
			t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		e, _ := os.ReadDir(top)
		if len(e) != 2 {
			t.Error("made outside:", e)
		}
	})
}

func FuzzManifest(f *testing.F) {
	config := fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":1}`, digest.FromString("x"))
	f.Add([]byte(`{"schemaVersion":2,"config":`+config+`,"layers":[`+config+`],"subject":`+config+`}`), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[`+config+`]}`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[{}]}`), "")
	f.Fuzz(func(t *testing.T, b []byte, contentType string) {
		m, kind, err := parseManifest(b, contentType)
		if err != nil {
			return
		}
		if kind == "" || m.SchemaVersion != 2 {
			t.Errorf("%s: %+v", kind, m)
		}
		for _, d := range m.descriptors() {
			if _, err := parseDigest(d.Digest.String()); err != nil {
				t.Error(err) // it becomes a path
			}
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-1", "bytes 0-1/2", "-", "1-0", "9223372036854775807-9223372036854775808", "+1-2", "0x1-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, b, ok := parseContentRange(s); ok && (a < 0 || b < a || b-a+1 <= 0) {
			t.Error(a, b)
		}
	})
}
