package registryd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// age makes every blob old enough for a collector.
func age(t *testing.T, s *store) {
	t.Helper()
	old := time.Now().Add(-48 * time.Hour)
	err := filepath.WalkDir(s.root+"/blobs", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.Chtimes(path, old, old)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCollect(t *testing.T) {
	c := newClient(t, nil)
	ctx := context.Background()
	c.image("r", "t", "kept", nil)
	_, untagged := c.image("r", "", "untagged", nil)
	loose := c.push("r", []byte("loose"))
	gone, dg := c.image("r", "gone", "gone", nil)
	c.want("202", "DELETE", "/v2/r/manifests/"+dg.String(), nil)
	collect := func(o CollectOptions) Collected {
		t.Helper()
		got, err := c.s.store.collect(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := collect(CollectOptions{Grace: time.Hour}); got.Blobs != 0 {
		t.Error("within the grace period:", got)
	}
	age(t, c.s.store)
	// Loose, and of "gone" its manifest, config and layer.
	if got := collect(CollectOptions{DryRun: true}); got.Blobs != 4 || got.Manifests != 0 {
		t.Error(got)
	}
	// What a client was told of, mounts, or names now, is wanted again.
	c.want("200", "HEAD", "/v2/r/blobs/"+digest.FromString("gone").String(), nil)
	c.want("201", "POST", "/v2/q/blobs/uploads/?mount="+loose.String()+"&from=r", nil)
	if got := collect(CollectOptions{Grace: time.Hour}); got.Blobs != 2 || got.Bytes == 0 {
		t.Error(got)
	}
	c.want("200", "GET", "/v2/q/blobs/"+loose.String(), nil)
	c.want("404", "PUT", "/v2/r/manifests/gone", gone, "Content-Type: "+ocispec.MediaTypeImageManifest) // its config went
	age(t, c.s.store)
	if got := collect(CollectOptions{}); got.Blobs != 2 {
		t.Error(got)
	}
	c.want("404 BLOB_UNKNOWN", "GET", "/v2/q/blobs/"+loose.String(), nil)
	c.want("200", "GET", "/v2/r/manifests/"+untagged.String(), nil)

	// Untagged ones go only when asked, and not those that an index or a subject leads to.
	b, child := c.image("r", "", "child", nil)
	_, ref := c.image("r", "", "referrer", func(m *ocispec.Manifest) { m.Subject = &ocispec.Descriptor{Digest: child, Size: 1} })
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, child, len(b))
	c.want("201", "PUT", "/v2/r/manifests/index", []byte(index), "Content-Type: "+ocispec.MediaTypeImageIndex)
	age(t, c.s.store)
	if got := collect(CollectOptions{Untagged: true}); got.Manifests != 1 || got.Blobs != 3 {
		t.Error(got)
	}
	c.want("404 MANIFEST_UNKNOWN", "GET", "/v2/r/manifests/"+untagged.String(), nil)
	for _, d := range []string{"t", "index", child.String(), ref.String()} {
		c.want("200", "GET", "/v2/r/manifests/"+d, nil)
	}
}

func TestPurge(t *testing.T) {
	c := newClient(t, nil)
	loc := c.want("202", "POST", "/v2/x/blobs/uploads/", nil).h.Get("Location")
	young := c.want("202", "POST", "/v2/x/blobs/uploads/", nil).h.Get("Location")
	busy, err := c.s.store.newUpload("x") // somebody writes to it
	if err != nil {
		t.Fatal(err)
	}
	defer busy.cancel()
	old := time.Now().Add(-time.Hour)
	for _, id := range []string{filepath.Base(loc), busy.id} {
		if err := os.Chtimes(c.s.store.uploadDir("x", id)+"/data", old, old); err != nil {
			t.Fatal(err)
		}
	}
	for _, dry := range []bool{true, false} {
		if n, err := c.s.store.purgeUploads(time.Minute, dry); n != 1 || err != nil {
			t.Error(n, err)
		}
	}
	c.want("404 BLOB_UPLOAD_UNKNOWN", "GET", loc, nil)
	c.want("204", "GET", young, nil)
	if !exists(busy.dir + "/data") {
		t.Error("an upload was purged while it was written to")
	}
}

// Images are pushed, mounted and deleted while collectors run without a grace period:
// whatever was pushed whole can be pulled whole.
func TestCollectRace(t *testing.T) {
	c := newClient(t, nil)
	stop := make(chan struct{})
	var collectors, pushers sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			other, err := openStore(c.s.c.Storage.Filesystem.RootDirectory, slog.New(slog.DiscardHandler)) // as another process would
			if err != nil {
				t.Error(err)
				return
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := other.collect(context.Background(), CollectOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 4 {
		pushers.Go(func() {
			name := fmt.Sprintf("repo%d", i)
			for n := range 12 {
				content := fmt.Sprintf("layer %d", rand.IntN(5)) // shared by repositories
				m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
				m.SchemaVersion = 2
				config := fmt.Sprintf("config %d", n)
				m.Config = desc("x", []byte(config))
				m.Layers = []ocispec.Descriptor{desc("y", []byte(content))}
				b := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x","digest":%q,"size":1},"layers":[{"mediaType":"y","digest":%q,"size":1}]}`, m.MediaType, m.Config.Digest, m.Layers[0].Digest))
				// A collector without grace may take a blob before its manifest comes: then push again.
				status := 0
				for try := 0; try < 200 && status != 201; try++ {
					for _, x := range []string{config, content} {
						d := digest.FromString(x)
						if c.do("HEAD", "/v2/"+name+"/blobs/"+d.String(), nil).status != 200 {
							c.do("POST", "/v2/"+name+"/blobs/uploads/?digest="+d.String(), []byte(x))
						}
					}
					status = c.do("PUT", "/v2/"+name+"/manifests/t", b, "Content-Type: "+m.MediaType).status
				}
				if status != 201 {
					t.Errorf("%s: %d", name, status)
					return
				}
				for _, d := range []digest.Digest{m.Config.Digest, m.Layers[0].Digest} {
					if a := c.do("GET", "/v2/"+name+"/blobs/"+d.String(), nil); a.status != 200 || digest.FromBytes(a.body) != d {
						t.Errorf("%s %s: %d after a whole push", name, d, a.status)
					}
				}
				c.do("DELETE", "/v2/"+name+"/manifests/"+digest.FromBytes(b).String(), nil)
			}
		})
	}
	pushers.Wait()
	close(stop)
	collectors.Wait()
}

// TestMain runs the server for TestKill, in a process that can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("REGISTRYD_TEST_ROOT"); dir != "" {
		os.Exit(Main(context.Background(), []string{"serve", "--root", dir, "--addr", "127.0.0.1:0", "--delete"}, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// serveProcess starts a server in another process and returns its address.
func serveProcess(t testing.TB, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REGISTRYD_TEST_ROOT="+dir)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for in := bufio.NewScanner(out); in.Scan(); {
		if _, rest, ok := strings.Cut(in.Text(), "msg=listening addr="); ok {
			addr, _, _ := strings.Cut(rest, " ")
			go func() {
				for in.Scan() {
				}
			}()
			return cmd, "http://" + addr
		}
	}
	t.Fatal("the server did not start")
	return nil, ""
}

// A server that is killed at any moment leaves nothing that looks whole and is not; its
// sessions go on where they were.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	st, err := openStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		err := filepath.WalkDir(st.root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			switch {
			case e.Name() == "data" && strings.Contains(path, "/blobs/"):
				parts := strings.Split(path, "/")
				b, err := os.ReadFile(path)
				want := parts[len(parts)-4] + ":" + parts[len(parts)-2]
				if err != nil || digest.FromBytes(b).String() != want {
					t.Errorf("%s is not what its name says", path)
				}
			case e.Name() == "link":
				if d, err := readLink(path); err != nil || !exists(st.blobPath(d)) {
					t.Errorf("%s leads nowhere", path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for round := range 8 {
		cmd, url := serveProcess(t, dir)
		stopped := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stopped:
						return
					default:
					}
					pushOnce(url, fmt.Sprintf("r%d", w), fmt.Sprintf("%d.%d.%d", round, w, n))
				}
			})
		}
		time.Sleep(time.Duration(20+rand.IntN(120)) * time.Millisecond) // any moment is good
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		close(stopped)
		wg.Wait()
		check()
	}
	// A session outlives the process.
	cmd, url := serveProcess(t, dir)
	c := &client{T: t, url: url, h: http.Header{}}
	loc := c.want("202", "POST", "/v2/s/blobs/uploads/", nil).h.Get("Location")
	c.want("202", "PATCH", loc, []byte("half "), "Content-Range: 0-4")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_, c.url = serveProcess(t, dir)
	if a := c.want("204", "GET", loc, nil); a.h.Get("Range") != "0-4" {
		t.Error(a.h)
	}
	c.want("202", "PATCH", loc, []byte("whole"), "Content-Range: 5-9")
	c.want("201", "PUT", loc+"?digest="+digest.FromString("half whole").String(), nil)
}

// pushOnce pushes an image, as far as the server lives.
func pushOnce(url, name, content string) {
	h := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	send := func(method, path, body string) (*http.Response, bool) {
		req, _ := http.NewRequest(method, url+path, strings.NewReader(body))
		resp, err := h.Do(req)
		if err != nil {
			return nil, false
		}
		resp.Body.Close()
		return resp, true
	}
	var list []string
	for _, b := range []string{"{" + content + "}", strings.Repeat(content, 1000)} {
		d := digest.FromString(b)
		list = append(list, fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":%d}`, d, len(b)))
		resp, ok := send("POST", "/v2/"+name+"/blobs/uploads/", "")
		if !ok {
			return
		}
		loc := resp.Header.Get("Location")
		if _, ok = send("PATCH", loc, b[:len(b)/2]); !ok {
			return
		}
		if _, ok = send("PUT", loc+"?digest="+d.String(), b[len(b)/2:]); !ok {
			return
		}
	}
	send("PUT", "/v2/"+name+"/manifests/latest", fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ocispec.MediaTypeImageManifest, list[0], list[1]))
}

func BenchmarkBlobGet(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir := b.TempDir()
			st, err := openStore(dir, slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			u, err := st.newUpload("r")
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, size)
			if _, err := u.append(strings.NewReader(string(data))); err != nil {
				b.Fatal(err)
			}
			d := digest.FromBytes(data)
			if err := u.commit(d); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			benchGet(b, dir, d)
		})
	}
}

// benchGet fetches a blob from a server in another process, over one connection.
func benchGet(b *testing.B, dir string, d digest.Digest) {
	_, url := serveProcess(b, dir)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		resp, err := http.Get(url + "/v2/r/blobs/" + d.String())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}
