package client

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/enginetest"
	"berth.dev/berth/internal/registry/registrytest"
)

// serveRegistry serves a registry at a port of the engine's loopback.
func serveRegistry(t *testing.T, e *enginetest.Engine, reg *registrytest.Registry, port int) string {
	t.Helper()
	host := fmt.Sprintf("127.0.0.1:%d", port)
	var l net.Listener
	err := e.Inside(func() (err error) {
		l, err = net.Listen("tcp", host)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: reg, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return host
}

var pushedDigest = regexp.MustCompile(`digest: (sha256:[0-9a-f]{64}) size: [0-9]+`)

func TestPullPush(t *testing.T) {
	t.Parallel()
	reg := registrytest.New()
	e := enginetest.Start(t, enginetest.WithArgs("--registry-mirror", "http://127.0.0.1:5000"))
	host := serveRegistry(t, e, reg, 5000)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		repo := host + "/" + c.Name + "/bb"
		c.Must("tag", enginetest.Image, repo+":1")
		out := c.Must("push", repo+":1")
		m := pushedDigest.FindStringSubmatch(out)
		if m == nil || !strings.HasPrefix(out, "The push refers to repository ["+repo+"]") {
			t.Fatalf("push: %s", out)
		}
		pushed := m[1]
		if out := c.Must("push", repo+":1"); !strings.Contains(out, "Layer already exists") || !strings.Contains(out, pushed) {
			t.Errorf("again: %s", out)
		}
		if got := c.Inspect(repo+":1", "{{.RepoDigests}}"); !strings.Contains(got, repo+"@"+pushed) {
			t.Errorf("digests: %s", got)
		}
		// A child of it, whose lower layer is there.
		c.Must("create", "--name", "src", repo+":1", "true")
		file := filepath.Join(t.TempDir(), "more")
		if err := os.WriteFile(file, []byte("more"), 0o644); err != nil {
			t.Fatal(err)
		}
		c.Must("cp", file, "src:/more")
		c.Must("commit", "-m", "more", "src", repo+":2")
		c.Must("rm", "src")
		if out := c.Must("push", "-a", repo); strings.Count(out, "digest: sha256:") != 2 {
			t.Errorf("push -a: %s", out)
		}
		c.Must("rmi", repo+":1", repo+":2")
		if out := c.Must("pull", repo+":1"); !strings.Contains(out, "1: Pulling from "+c.Name+"/bb") || !strings.Contains(out, "Digest: "+pushed) ||
			!strings.Contains(out, "Status: Downloaded newer image for "+repo+":1") || !strings.HasSuffix(out, repo+":1") {
			t.Errorf("pull: %s", out)
		}
		if out := c.Must("pull", repo+":1"); !strings.Contains(out, "Status: Image is up to date for "+repo+":1") {
			t.Errorf("pull again: %s", out)
		}
		if out := c.Must("pull", "-a", "-q", repo); out != repo {
			t.Errorf("pull -a -q: %q", out)
		}
		if out := c.Must("images", "-q", repo); strings.Count(out, "\n") != 1 {
			t.Errorf("images of the repository: %s", out)
		}
		c.Must("rmi", repo+":1", repo+":2")
		if out := c.Must("run", "--rm", repo+"@"+pushed, "echo", "ran"); out != "ran" {
			t.Errorf("run by digest: %q", out)
		}
		if out := c.Must("pull", "--platform", "linux/arm64", repo+":1"); !strings.Contains(out, "does not match the specified platform (linux/arm64)") {
			t.Errorf("another platform: %s", out)
		}
		for _, bad := range []struct{ args, want string }{
			{"pull " + repo + ":nope", "manifest for " + repo + ":nope not found: manifest unknown: manifest unknown"},
			{"pull -a " + host + "/none", "repository " + host + "/none not found: name unknown: repository name not known to registry"},
			{"pull -a " + repo + ":1", "tag can't be used with --all-tags/-a"},
			{"pull 127.0.0.1:1/x", `Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`},
			{"pull UPPER", "must be lowercase"},
			{"push " + repo + ":nope", "tag does not exist: " + repo + ":nope"},
			{"push " + host + "/none", "An image does not exist locally with the tag: " + host + "/none"},
			{"push 127.0.0.1:1/x", "An image does not exist locally with the tag: 127.0.0.1:1/x"},
			{"run --pull never " + host + "/none:1", "No such image"},
			{"run " + host + "/none:1", "not found: manifest unknown"},
		} {
			if r := c.Run(strings.Fields(bad.args)...); r.Code == 0 || !strings.Contains(r.Err, bad.want) {
				t.Errorf("%s: %d %s, want %s", bad.args, r.Code, r.Err, bad.want)
			}
		}
		// A name without a host: the Hub, for which the mirror stands in.
		hub := "hub" + c.Name
		c.Must("tag", enginetest.Image, host+"/library/"+hub+":1")
		c.Must("push", "-q", host+"/library/"+hub+":1")
		c.Must("rmi", host+"/library/"+hub+":1")
		r := c.Run("run", "--rm", hub+":1", "echo", "from the hub")
		if r.Code != 0 || strings.TrimSpace(r.Out) != "from the hub" || !strings.Contains(r.Err, "Unable to find image '"+hub+":1' locally") || !strings.Contains(r.Err, "1: Pulling from library/"+hub) {
			t.Errorf("run of what is not here: %+v", r)
		}
		if out := c.Must("search", "--format", "{{.Name}}", host+"/"+hub); out != host+"/library/"+hub {
			t.Errorf("search: %s", out)
		}
		var d struct {
			Descriptor struct{ Digest string }
			Platforms  []struct{ Architecture string }
		}
		if status, body := e.Call("GET", "/distribution/"+repo+":1/json", nil, &d); status != 200 || d.Descriptor.Digest != pushed || len(d.Platforms) != 1 {
			t.Errorf("distribution: %d %s", status, body)
		}
	})
}

func TestRegistryLogin(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	for i, bearer := range []bool{false, true} {
		reg := registrytest.New()
		reg.Users, reg.Bearer = map[string]string{"me": "secret"}, bearer
		host := serveRegistry(t, e, reg, 5000+i)
		e.Each(t, func(t *testing.T, c *enginetest.Client) {
			repo := host + "/" + c.Name
			c.Must("tag", enginetest.Image, repo)
			refused := "no basic auth credentials"
			if bearer {
				refused = "pull access denied for " + repo + ", repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
			}
			if r := c.Run("pull", repo); r.Code != 1 || !strings.Contains(r.Err, refused) {
				t.Errorf("anonymous pull: %+v", r)
			}
			if r := c.Run("push", repo); r.Code != 1 {
				t.Errorf("anonymous push: %+v", r)
			}
			if r := c.RunIn(strings.NewReader("wrong\n"), "login", "-u", "me", "--password-stdin", host); r.Code != 1 || !strings.Contains(r.Err, "Error response from daemon: ") || !strings.Contains(strings.ToLower(r.Err), "unauthorized") {
				t.Errorf("wrong password: %+v", r)
			}
			if out := c.MustIn("secret\n", "login", "-u", "me", "--password-stdin", host); !strings.HasSuffix(out, "Login Succeeded") {
				t.Errorf("login: %s", out)
			}
			// Where a token was kept instead of the password docker asks for that again.
			if r := c.Run("login", host); !bearer && (r.Code != 0 || !strings.Contains(r.Out+r.Err, "Authenticating with existing credentials")) {
				t.Errorf("login again: %+v", r)
			}
			c.Must("push", repo)
			c.Must("rmi", repo)
			c.Must("pull", repo)
			c.Must("rmi", repo)
			c.Must("logout", host)
			if r := c.Run("pull", repo); r.Code != 1 || !strings.Contains(r.Err, refused) {
				t.Errorf("pull after logout: %+v", r)
			}
			if strings.Contains(e.Log(), "secret") {
				t.Error("the password is in the log")
			}
		})
	}
}

// bigImage is an image with one layer of noise.
func bigImage(t *testing.T, reg *registrytest.Registry, repo string, size int) digest.Digest {
	t.Helper()
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	var layer, packed bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := tw.WriteHeader(&tar.Header{Name: "noise", Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, _ = tw.Write(data)
	_ = tw.Close()
	z, _ := gzip.NewWriterLevel(&packed, gzip.NoCompression)
	_, _ = z.Write(layer.Bytes())
	_ = z.Close()
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(layer.Bytes())}}})
	if err != nil {
		t.Fatal(err)
	}
	d := reg.PutBlob(repo, packed.Bytes())
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": reg.PutBlob(repo, config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": d, "size": packed.Len()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest(repo, "latest", "application/vnd.oci.image.manifest.v1+json", manifest)
	return d
}

// TestPullKilled kills the engine in the middle of a layer: the next pull goes on there.
func TestPullKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	reg := registrytest.New()
	host := serveRegistry(t, e, reg, 5000)
	const size = 4 << 20
	layer := bigImage(t, reg, "big", size)
	var once sync.Once
	gone := make(chan struct{}, 2)
	reg.Fault = func(w http.ResponseWriter, r *http.Request) (answered bool) {
		if !strings.HasSuffix(r.URL.Path, string(layer)) {
			return false
		}
		once.Do(func() {
			reg.Lock()
			b := reg.Blobs[layer]
			reg.Unlock()
			answered = true
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write(b[:size/2])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			gone <- struct{}{}
		})
		return answered
	}
	c := e.Client("docker")
	done := make(chan struct{})
	go func() { defer close(done); c.Run("pull", host+"/big") }()
	file := filepath.Join(e.DataRoot, "download", layer.Encoded())
	enginetest.Eventually(t, "half of the layer", func() bool {
		st, err := os.Stat(file)
		return err == nil && st.Size() == size/2
	})
	e.Kill9Daemon()
	<-done
	e.StartDaemon()
	c.Must("pull", host+"/big")
	reg.Lock()
	last := reg.Log[len(reg.Log)-1]
	reg.Unlock()
	if last.Range != fmt.Sprintf("bytes=%d-", size/2) {
		t.Errorf("the second pull asked for %+v", last)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the download is left")
	}
	if got := c.Inspect(host+"/big", "{{.Size}}"); got != strconv.Itoa(size) {
		t.Errorf("size %s", got)
	}

	// A client that goes away ends the download, and the next goes on.
	c.Must("rmi", host+"/big")
	<-gone
	once = sync.Once{}
	reg.Lock()
	reg.Log = nil
	reg.Unlock()
	first := c.Command("pull", host+"/big")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "half of the layer", func() bool {
		st, err := os.Stat(file)
		return err == nil && st.Size() == size/2
	})
	_ = first.Process.Kill()
	_ = first.Wait()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the download goes on for nobody")
	}
	e.Client("berth").Must("pull", host+"/big")
}
