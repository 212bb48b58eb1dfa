package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/enginetest"
	"berth.dev/berth/internal/registry/registrytest"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// publish puts an image of one layer, of which only the tar's digest has to be known.
func publish(t *testing.T, reg *registrytest.Registry, repo string, packed []byte, diff digest.Digest) {
	t.Helper()
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{diff}}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": reg.PutBlob(repo, config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": reg.PutBlob(repo, packed), "size": len(packed), "urls": []string{"http://127.0.0.1:5001/stolen"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest(repo, "latest", manifestType, raw)
}

// zeros reads as many zeros as it says.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n <= 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.n)
	clear(p[:n])
	z.n -= n
	return int(n), nil
}

// A registry that wants memory, credentials, and what the engine can reach.
func TestHostileRegistry(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	listen := func(port int, h http.Handler) string {
		host := fmt.Sprintf("127.0.0.1:%d", port)
		var l net.Listener
		if err := e.Inside(func() (err error) { l, err = net.Listen("tcp", host); return err }); err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = srv.Close() })
		return host
	}
	reg := registrytest.New()
	reg.Users = map[string]string{"me": "canary-secret"}
	location := ""
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v2/led/blobs/") {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
		if strings.HasPrefix(r.URL.Path, "/v2/endless/manifests/") {
			w.Header().Set("Content-Type", manifestType)
			_, _ = io.Copy(w, &zeros{1 << 30})
			return true
		}
		return false
	}
	host := listen(5000, reg)
	stolen := make(chan string, 100)
	listen(5001, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
		w.Header().Set("WWW-Authenticate", `Basic realm="give"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	cl.MustIn("canary-secret", "login", "-u", "me", "--password-stdin", host)

	// A bomb: a layer of a quarter of a gigabyte in a quarter of a megabyte, that is not what it says besides.
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	tw := tar.NewWriter(z)
	const size = 256 << 20
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(tw, &zeros{size}); err != nil {
		t.Fatal(err)
	}
	_, _ = tw.Close(), z.Close()
	publish(t, reg, "bomb", bomb.Bytes(), digest.FromString("something else"))
	publish(t, reg, "led", []byte("layer"), digest.FromString("x"))
	for _, c := range []struct{ name, location, want string }{
		{"bomb", "", "invalid diffID for layer"},
		{"endless", "", "is larger than"},
		{"led", "http://127.0.0.1:5001/blob", "unauthorized"},
		{"led", "file:///etc/passwd", `"file" address is not followed`},
	} {
		location = c.location
		if r := cl.Run("pull", host+"/"+c.name); r.Code != 1 || !strings.Contains(r.Err, c.want) || strings.Contains(r.Out+r.Err, "canary-secret") {
			t.Errorf("%s: %+v, want %q", c.name, r, c.want)
		}
	}
	close(stolen)
	for s := range stolen {
		if !strings.HasSuffix(s, " ") || strings.Contains(s, "stolen") {
			t.Errorf("another server was sent %q", s)
		}
	}
	if strings.Contains(e.Log(), "canary-secret") {
		t.Error("the password is in the log")
	}
	if left, _ := filepath.Glob(filepath.Join(e.DataRoot, "download", "*")); len(left) != 0 {
		b, _ := os.ReadFile(left[0])
		t.Errorf("left behind: %q, %d bytes", left, len(b))
	}
	checkMemory(t, e, "a hostile registry")
}
