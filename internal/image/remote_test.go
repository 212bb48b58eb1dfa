package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/registry"
	"berth.dev/berth/internal/registry/registrytest"
)

// far is a store with a registry.
type far struct {
	*store
	reg    *registrytest.Registry
	host   string
	remote *Remote

	mu     sync.Mutex
	events []string
}

func newFar(t *testing.T, reg *registrytest.Registry) *far {
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	f := &far{store: &store{t: t, root: t.TempDir(), driver: "vfs"}, reg: reg, host: strings.TrimPrefix(srv.URL, "http://")}
	f.opts.Event = func(a events.Action, id string, attrs map[string]string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.events = append(f.events, fmt.Sprintf("%s %s %s", a, strings.ReplaceAll(id, f.host, "R"), strings.ReplaceAll(attrs["name"], f.host, "R")))
	}
	f.open()
	t.Cleanup(f.shut)
	f.connect(nil)
	return f
}

func (f *far) connect(c *registry.Config) {
	f.t.Helper()
	if c == nil {
		c = new(registry.Config)
	}
	var err error
	if f.remote, err = NewRemote(f.Service, registry.New(c), RemoteLimits{Downloads: 3, Uploads: 5}); err != nil {
		f.t.Fatal(err)
	}
	f.remote.dl.pause = time.Millisecond
}

// pull pulls R/name and returns what was said, without numbers.
func (f *far) pull(name string, o ...func(*PullOptions)) (string, error) {
	var mu sync.Mutex
	var out strings.Builder
	opts := PullOptions{Ref: f.host + "/" + name}
	for _, fn := range o {
		fn(&opts)
	}
	err := f.remote.Pull(context.Background(), opts, func(m jsonstream.Message) {
		mu.Lock()
		defer mu.Unlock()
		if m.Progress != nil && m.Progress.Current > 0 {
			return
		}
		if m.ID != "" {
			out.WriteString(m.ID + ": ")
		}
		out.WriteString(m.Status + "\n")
	})
	return strings.ReplaceAll(out.String(), f.host, "R"), err
}

func (f *far) must(name string, o ...func(*PullOptions)) string {
	f.t.Helper()
	out, err := f.pull(name, o...)
	if err != nil {
		f.t.Fatalf("pull %s: %v\n%s", name, err, out)
	}
	return out
}

// partials are the files of downloads that are left.
func (f *far) partials() int {
	e, err := os.ReadDir(filepath.Join(f.root, "image", "download"))
	if err != nil {
		f.t.Fatal(err)
	}
	return len(e)
}

// clean fails unless the store is empty.
func (f *far) clean(what string) {
	f.t.Helper()
	if c, a, s := f.dirs(); c+a+s+f.partials() != 0 || len(f.all()) != 0 {
		f.t.Errorf("%s left %d, %d snapshots, %d skeletons, %d downloads, %d images", what, c, a, s, f.partials(), len(f.all()))
	}
}

func publish(t testing.TB, reg *registrytest.Registry, repo, tag string, spec imageSpec, pack func(testing.TB, []byte) []byte, inOCI bool) digest.Digest {
	t.Helper()
	cfg := spec.config(t)
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.DockerManifest, Config: ocispec.Descriptor{MediaType: oci.DockerConfig, Digest: reg.PutBlob(repo, cfg), Size: int64(len(cfg))}}
	layerType := oci.DockerLayerGzip
	if inOCI {
		m.MediaType, m.Config.MediaType, layerType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerZstd
	}
	for _, l := range spec.layers {
		if pack != nil {
			l = pack(t, l)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layerType, Digest: reg.PutBlob(repo, l), Size: int64(len(l))})
	}
	raw := manifestJSON(t, m)
	return reg.PutManifest(repo, tag, m.MediaType, raw)
}

func manifestJSON(t testing.TB, m oci.Manifest) []byte {
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": m.MediaType, "config": m.Config, "layers": m.Layers})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func noise(n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestPull(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	base, child := sample(t)
	d1 := publish(t, reg, "x/base", "1", base, gz, false)
	d2 := publish(t, reg, "x/child", "1", child, zst, true)
	publish(t, reg, "x/plain", "latest", child, nil, false)

	id := func(l []byte) string { return digest.FromBytes(l).Encoded()[:12] }
	b1 := id(gz(t, base.layers[0]))
	want := fmt.Sprintf("1: Pulling from x/base\n%[1]s: Pulling fs layer\n%[1]s: Verifying Checksum\n%[1]s: Download complete\n%[1]s: Pull complete\nDigest: %[2]s\nStatus: Downloaded newer image for R/x/base:1\n", b1, d1)
	if out := f.must("x/base:1"); out != want {
		t.Errorf("pull:\n%s\nwant:\n%s", out, want)
	}
	if out := f.must("x/base:1"); out != fmt.Sprintf("1: Pulling from x/base\nDigest: %s\nStatus: Image is up to date for R/x/base:1\n", d1) {
		t.Errorf("again:\n%s", out)
	}
	if out := f.must("x/child:1"); !strings.Contains(out, id(zst(t, child.layers[0]))+": Already exists\n") || !strings.Contains(out, "Digest: "+string(d2)) {
		t.Errorf("a layer that is here:\n%s", out)
	}
	if out := f.must("x/plain"); !strings.HasPrefix(out, "latest: Pulling from x/plain\nDigest:") || !strings.Contains(out, "Downloaded newer") {
		t.Errorf("an image that is here under another name:\n%s", out)
	}
	if out := f.must("x/base@" + string(d1)); !strings.HasPrefix(out, "R/x/base@"+string(d1)+": Pulling from x/base\n") || !strings.HasSuffix(out, "Status: Image is up to date for R/x/base@"+string(d1)+"\n") {
		t.Errorf("by digest:\n%s", out)
	}
	in, err := f.Inspect(context.Background(), f.host+"/x/base:1")
	if err != nil || !slices.Equal(in.RepoDigests, []string{f.host + "/x/base@" + string(d1)}) || in.ID != string(base.id(t)) {
		t.Errorf("inspect: %v %v %v", in.RepoDigests, in.ID, err)
	}
	if !slices.Contains(f.events, "pull R/x/base:1 R/x/base") {
		t.Errorf("events: %v", f.events)
	}
	publish(t, reg, "x/base", "2", child, gz, false)
	if out := f.must("x/base", func(o *PullOptions) { o.All = true }); !strings.Contains(out, "1: Pulling from x/base") || !strings.Contains(out, "2: Pulling from x/base") || !strings.HasSuffix(out, "newer image for R/x/base\n") {
		t.Errorf("all tags:\n%s", out)
	}
	if f.partials() != 0 {
		t.Error("downloads are left")
	}
	f.reopen()
	f.connect(nil)
	if out := f.must("x/base:1"); !strings.Contains(out, "up to date") {
		t.Errorf("after a restart:\n%s", out)
	}
	if _, err := f.Remove(context.Background(), string(child.id(t)), RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if n := len(f.db.Keys("manifest", string(child.id(t)))); n != 0 {
		t.Errorf("%d manifests of a removed image", n)
	}
}

func TestPullPlatform(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	base, child := sample(t)
	one := publish(t, reg, "m", "", base, gz, false)
	two := publish(t, reg, "m", "", child, gz, false)
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: oci.DockerManifest, Digest: two, Size: 1, Platform: &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}},
		{MediaType: oci.DockerManifest, Digest: one, Size: 1, Platform: &ocispec.Platform{OS: "linux", Architecture: oci.Host().Architecture}},
		{MediaType: oci.DockerManifest, Digest: two, Size: 1, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}},
	}}
	index.SchemaVersion = 2
	raw, _ := json.Marshal(index)
	top := reg.PutManifest("m", "latest", ocispec.MediaTypeImageIndex, raw)
	if out := f.must("m"); !strings.Contains(out, "Digest: "+string(top)) {
		t.Error(out)
	}
	if im, err := f.Resolve(t.Context(), f.host+"/m"); err != nil || im.ID != base.id(t) {
		t.Error(im, err)
	}
	platform := func(p string) func(*PullOptions) { return func(o *PullOptions) { o.Platform = p } }
	if out := f.must("m", platform("linux/arm/v7")); !strings.Contains(out, "does not match the specified platform (linux/arm/v7)") {
		t.Error(out) // its configuration says amd64
	}
	if im, err := f.Resolve(t.Context(), f.host+"/m"); err != nil || im.ID != child.id(t) {
		t.Error(im, err)
	}
	if _, err := f.pull("m", platform("linux/s390x")); err == nil || err.Error() != "no matching manifest for linux/s390x in the manifest list entries" || !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if _, err := f.pull("m", platform("a b")); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	got, err := f.remote.Distribution(t.Context(), f.host+"/m", nil)
	if err != nil || got.Descriptor.Digest != top || len(got.Platforms) != 3 {
		t.Error(got, err)
	}
}

// TestPullDropped has connections end early, and engines too.
func TestPullDropped(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	spec := imageSpec{layers: [][]byte{tarOf(t, entry{name: "big", body: noise(3 << 20)}), tarOf(t, entry{name: "small", body: "x"})}, at: 1}
	publish(t, reg, "big", "1", spec, gz, false)
	publish(t, reg, "small", "1", imageSpec{layers: spec.layers[1:], at: 1}, gz, false)
	big := digest.FromBytes(gz(t, spec.layers[0]))

	// The connection is lost three times; each time it goes on.
	reg.Fault = func(http.ResponseWriter, *http.Request) bool { return false }
	reg.Cut[big] = 1 << 20
	f.must("big:1")
	reg.Lock()
	var ranges []string
	for _, r := range reg.Log {
		if strings.HasSuffix(r.Path, string(big)) {
			ranges = append(ranges, r.Range)
		}
	}
	reg.Unlock()
	if len(ranges) != 2 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") {
		t.Errorf("ranges %q", ranges)
	}
	if f.partials() != 0 {
		t.Error("downloads are left")
	}

	// What a dead engine has left is taken up, and proven.
	if _, err := f.Remove(t.Context(), f.host+"/big:1", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(f.root, "image", "download", big.Encoded())
	for _, c := range []struct{ name, content, ranges string }{
		{"part", string(gz(t, spec.layers[0])[:1<<20]), "bytes=1048576-"},
		{"whole", string(gz(t, spec.layers[0])), ""},
		{"wrong", strings.Repeat("x", 1000), "bytes=1000- "},
		{"longer", strings.Repeat("x", 4<<20), " "},
	} {
		if err := os.WriteFile(left, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		reg.Lock()
		reg.Log = nil
		reg.Unlock()
		f.must("big:1")
		got := ""
		for _, r := range reg.Log {
			if strings.HasSuffix(r.Path, string(big)) {
				got += r.Range
				if r.Range == "" {
					got += " "
				}
			}
		}
		if got != c.ranges || f.partials() != 0 {
			t.Errorf("%s: asked for %q, want %q; %d left", c.name, got, c.ranges, f.partials())
		}
		if _, err := f.Remove(t.Context(), f.host+"/big:1", RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	// A registry that gives only the whole.
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }
	reg.Cut[big] = 1 << 20
	f.must("big:1")
	if _, err := f.Remove(t.Context(), f.host+"/big:1", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}

	// One that has too much to do for a while, and one that never gets better.
	fails := 0
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if fails < 0 || !strings.HasSuffix(r.URL.Path, string(big)) {
			return false
		}
		fails++
		w.WriteHeader(http.StatusServiceUnavailable)
		return fails != 3 || func() bool { fails = -1; return true }()
	}
	if out := f.must("big:1"); !strings.Contains(out, "Retrying in 5 seconds") || !strings.Contains(out, "Retrying in 1 second\n") || strings.Contains(out, "Retrying in 20 seconds") {
		t.Error(out)
	}
	if _, err := f.Remove(t.Context(), f.host+"/big:1", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(big)) {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	out, err := f.pull("big:1")
	if err == nil || !strings.Contains(out, "Retrying in 20 seconds") || err.Error() != "received unexpected HTTP status: 502 Bad Gateway" {
		t.Error(err, out)
	}

	// A prune removes what nobody has come back for.
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.must("x/none", func(o *PullOptions) { o.Ref = f.host + "/small:1" })
	if f.partials() == 0 {
		t.Error("a pull has removed what another may need")
	}
	if _, err := f.Prune(t.Context(), nil); err != nil || f.partials() != 0 {
		t.Error(err, f.partials())
	}
}

// TestPullTogether has several pulls need the same.
func TestPullTogether(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	one, two := tarOf(t, entry{name: "one", body: noise(1 << 20)}), tarOf(t, entry{name: "two", body: noise(2 << 20)})
	specs := []imageSpec{{layers: [][]byte{one, two}, at: 1}, {layers: [][]byte{one, two}, at: 2}, {layers: [][]byte{one, two, one}, at: 3}}
	for i, s := range specs {
		publish(t, reg, "same", fmt.Sprint(i), s, gz, false)
	}
	block := make(chan struct{})
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && strings.HasSuffix(r.URL.Path, string(digest.FromBytes(gz(t, one)))) {
			<-block
		}
		return false
	}
	var wg sync.WaitGroup
	for i := range specs {
		wg.Go(func() {
			if out, err := f.pull(fmt.Sprint("same:", i)); err != nil || strings.Count(out, "Pull complete") != 2+i/2 {
				t.Error(err, out)
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		f.remote.dl.mu.Lock()
		d := f.remote.dl.all[digest.FromBytes(gz(t, one))]
		ready := d != nil && d.refs == 4
		f.remote.dl.mu.Unlock()
		if ready {
			break
		}
	}
	close(block)
	wg.Wait()
	for _, l := range [][]byte{one, two} {
		if n := reg.Count("GET", string(digest.FromBytes(gz(t, l)))); n != 1 {
			t.Errorf("a layer was fetched %d times", n)
		}
	}
	if f.partials() != 0 {
		t.Error("downloads are left")
	}

	// One of two that wait goes away: the other has its image.
	if _, err := f.Prune(t.Context(), map[string][]string{"dangling": {"false"}}); err != nil {
		t.Fatal(err)
	}
	f.clean("prune")
	block = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- f.remote.Pull(ctx, PullOptions{Ref: f.host + "/same:0"}, nil) }()
	wait := func(refs int) {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			f.remote.dl.mu.Lock()
			d := f.remote.dl.all[digest.FromBytes(gz(t, one))]
			n := 0
			if d != nil {
				n = d.refs
			}
			f.remote.dl.mu.Unlock()
			if n == refs {
				return
			}
		}
		t.Errorf("never %d who wait", refs)
	}
	wait(1)
	wg.Go(func() { f.must("same:1") })
	wait(2)
	cancel()
	if err := <-gone; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	wait(1)
	close(block)
	wg.Wait()

	// The last one goes away: the request ends.
	if _, err := f.Prune(t.Context(), map[string][]string{"dangling": {"false"}}); err != nil {
		t.Fatal(err)
	}
	block = make(chan struct{})
	defer close(block)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { gone <- f.remote.Pull(ctx, PullOptions{Ref: f.host + "/same:0"}, nil) }()
	wait(1)
	cancel()
	if err := <-gone; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	wait(0)
}

// TestPullLies has a registry that says what is not so: an error, and nothing is left.
func TestPullLies(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	base, child := sample(t)
	replace := func(d digest.Digest, b []byte) {
		reg.Lock()
		defer reg.Unlock()
		reg.Blobs[d] = b
	}
	type doc struct {
		m         oci.Manifest
		cfg       []byte
		mediaType string
		raw       []byte
	}
	for _, c := range []struct {
		name, want string
		change     func(d *doc)
	}{
		{"another layer under the digest", "filesystem layer verification failed for digest", func(d *doc) {
			replace(d.m.Layers[1].Digest, bytes.Repeat([]byte{7}, int(d.m.Layers[1].Size)))
		}},
		{"a longer layer", "is larger than the", func(d *doc) { d.m.Layers[1].Size -= 3 }},
		{"a shorter layer", "unexpected EOF", func(d *doc) { d.m.Layers[1].Size += 3 }},
		{"no size", "invalid manifest: invalid layer", func(d *doc) { d.m.Layers[1].Size = 0 }},
		{"a negative size", "invalid manifest: invalid layer", func(d *doc) { d.m.Layers[1].Size = -5 }},
		{"a layer with another diff id", "invalid diffID for layer", func(d *doc) { d.m.Layers[1] = d.m.Layers[0] }},
		{"no such layer", "blob unknown", func(d *doc) { d.m.Layers[1].Digest = digest.FromString("nothing") }},
		{"a path as digest", "invalid manifest: invalid layer", func(d *doc) { d.m.Layers[1].Digest = "sha256:../../../../etc/passwd" }},
		{"fewer layers", "layers from manifest don't match image configuration", func(d *doc) { d.m.Layers = d.m.Layers[:1] }},
		{"an encrypted layer", "unsupported layer media type", func(d *doc) { d.m.Layers[1].MediaType += "+encrypted" }},
		{"no tar", "", func(d *doc) {
			b := gz(t, []byte(noise(5000)))
			d.m.Layers[0] = ocispec.Descriptor{MediaType: oci.DockerLayerGzip, Digest: reg.PutBlob("lie", b), Size: int64(len(b))}
		}},
		{"another configuration under the digest", "image config verification failed", func(d *doc) { replace(d.m.Config.Digest, []byte(`{}`)) }},
		{"a huge configuration", "is larger than", func(d *doc) {
			b := append(slices.Clone(d.cfg), bytes.Repeat([]byte(" "), maxConfig)...)
			d.m.Config.Digest = reg.PutBlob("lie", b)
		}},
		{"another kind of thing", "this is no image for containers", func(d *doc) { d.m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }},
		{"two types", "as the registry says", func(d *doc) { d.mediaType = ocispec.MediaTypeImageIndex }},
		{"both image and index", "is both an image and an index", func(d *doc) {
			d.raw = []byte(strings.Replace(string(manifestJSON(t, d.m)), "{", `{"manifests":[{"digest":"x"}],`, 1))
		}},
		{"no json", "manifest sha256", func(d *doc) { d.raw = []byte("x") }},
		{"a huge manifest", "is larger than", func(d *doc) { d.raw = bytes.Repeat([]byte(" "), registry.MaxManifest+1) }},
		{"schema 1", "schema 1", func(d *doc) {
			d.raw, d.mediaType = []byte(`{"schemaVersion":1,"name":"x"}`), "application/vnd.docker.distribution.manifest.v1+prettyjws"
		}},
		{"an index of itself", "no matching manifest", func(d *doc) {
			d.raw, d.mediaType = []byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[]}`), ocispec.MediaTypeImageIndex
		}},
		{"windows", `operating system "windows"`, func(d *doc) {
			d.m.Config.Digest = reg.PutBlob("lie", []byte(strings.Replace(string(d.cfg), "linux", "windows", 1)))
		}},
	} {
		reg.Lock()
		reg.Blobs = map[digest.Digest][]byte{}
		reg.Unlock()
		publish(t, reg, "lie", "1", child, gz, false)
		var d doc
		if err := json.Unmarshal(reg.Manifests["lie"]["1"].Raw, &d.m); err != nil {
			t.Fatal(err)
		}
		d.cfg, d.mediaType = child.config(t), oci.DockerManifest
		c.change(&d)
		if d.raw == nil {
			d.raw = manifestJSON(t, d.m)
		}
		reg.PutManifest("lie", "1", d.mediaType, d.raw)
		out, err := f.pull("lie:1")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q\n%s", c.name, err, c.want, out)
		}
		if c.name == "no such layer" || c.name == "a shorter layer" || c.name == "fewer layers" {
			f.remote.dl.mu.Lock() // what came whole or in part is kept for another try
			_ = os.RemoveAll(f.remote.dl.dir)
			_ = os.MkdirAll(f.remote.dl.dir, 0o700)
			f.remote.dl.mu.Unlock()
		}
		// The layer that was right may wait for another try, too.
		left, _ := filepath.Glob(filepath.Join(f.remote.dl.dir, "*"))
		for _, l := range left {
			if b, err := os.ReadFile(l); err == nil && digest.FromBytes(b).Encoded() == filepath.Base(l) {
				_ = os.Remove(l)
			}
		}
		f.clean(c.name)
	}
	// A manifest by digest has that digest.
	dig := publish(t, reg, "lie", "1", base, gz, false)
	reg.Lock()
	reg.Manifests["lie"][string(dig)] = registrytest.Manifest{MediaType: oci.DockerManifest, Raw: []byte("{}")}
	reg.Unlock()
	if _, err := f.pull("lie@" + string(dig)); err == nil || !strings.Contains(err.Error(), "manifest verification failed for digest") {
		t.Error(err)
	}
	f.clean("a lie about a manifest")
}

func TestPullErrors(t *testing.T) {
	reg := registrytest.New()
	reg.Users, reg.Bearer = map[string]string{"me": "pw"}, true
	f := newFar(t, reg)
	_, err := f.pull("secret/x:1")
	want := "pull access denied for " + f.host + "/secret/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
	if err == nil || err.Error() != want || !errs.Is(err, errs.NotFound) {
		t.Errorf("%v\nwant %s", err, want)
	}
	reg.Users = nil
	if _, err := f.pull("x:1"); err == nil || err.Error() != "manifest for "+f.host+"/x:1 not found: manifest unknown: manifest unknown" || !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	if _, err := f.pull("x", func(o *PullOptions) { o.All = true }); err == nil || err.Error() != "repository "+f.host+"/x not found: name unknown: repository name not known to registry" {
		t.Error(err)
	}
	for _, bad := range []string{"", "UPPER", "a b", "x:" + strings.Repeat("t", 200)} {
		if err := f.remote.Pull(t.Context(), PullOptions{Ref: bad}, nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	f.clean("errors")
}

func TestPush(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	base, child := sample(t)
	f.load(dockerArchive(t, nil, base, child))
	ctx := t.Context()
	push := func(name, tag string) (string, error) {
		var out strings.Builder
		err := f.remote.Push(ctx, PushOptions{Repo: f.host + "/" + name, Tag: tag}, func(m jsonstream.Message) {
			switch {
			case m.Aux != nil:
				out.WriteString("aux " + string(*m.Aux) + "\n")
			case m.Progress == nil || m.Progress.Current == 0:
				out.WriteString(strings.TrimPrefix(m.ID+": "+m.Status, ": ") + "\n")
			}
		})
		return strings.ReplaceAll(out.String(), f.host, "R"), err
	}
	tag := func(from, to, t string) {
		f.t.Helper()
		if err := f.Tag(ctx, from, f.host+"/"+to, t); err != nil {
			f.t.Fatal(err)
		}
	}
	tag("child:1", "a/x", "1")
	tag("base:1", "a/x", "2")
	out, err := push("a/x", "1")
	if err != nil || !strings.HasPrefix(out, "The push refers to repository [R/a/x]\n") || strings.Count(out, ": Preparing\n") != 2 || strings.Count(out, ": Pushed\n") != 2 {
		t.Fatal(err, out)
	}
	m := reg.Manifests["a/x"]["1"]
	dig := digest.FromBytes(m.Raw)
	if want := fmt.Sprintf("1: digest: %s size: %d\naux {\"Tag\":\"1\",\"Digest\":\"%s\",\"Size\":%d}\n", dig, len(m.Raw), dig, len(m.Raw)); !strings.HasSuffix(out, want) {
		t.Errorf("%s\nwant %s", out, want)
	}
	if in, err := f.Inspect(ctx, "child:1"); err != nil || !slices.Contains(in.RepoDigests, f.host+"/a/x@"+string(dig)) {
		t.Error(in.RepoDigests, err)
	}
	if out, err := push("a/x", "1"); err != nil || strings.Count(out, ": Layer already exists\n") != 2 {
		t.Error(err, out)
	}
	if out, err := push("a/x", ""); err != nil || !strings.Contains(out, "2: digest: ") {
		t.Error(err, out)
	}
	tag("child:1", "b/y", "1")
	if out, err := push("b/y", "1"); err != nil || strings.Count(out, ": Mounted from a/x\n") != 2 || !strings.Contains(out, string(dig)) {
		t.Error(err, out)
	}
	for _, want := range []string{"push R/a/x:1 R/a/x", "push R/a/x R/a/x", "push R/b/y:1 R/b/y"} {
		if !slices.Contains(f.events, want) {
			t.Errorf("no event %q in %q", want, f.events)
		}
	}
	for tag, want := range map[string]string{"nope": "tag does not exist: " + f.host + "/a/x:nope"} {
		if _, err := push("a/x", tag); err == nil || err.Error() != want || !errs.Is(err, errs.NotFound) {
			t.Error(err)
		}
	}
	if _, err := push("none", "x"); err == nil || err.Error() != "An image does not exist locally with the tag: "+f.host+"/none" {
		t.Error(err)
	}

	// Here and back again: another registry gets the same manifest, though nothing is kept
	// of the compressed layers.
	other := registrytest.New()
	srv := httptest.NewServer(other)
	defer srv.Close()
	if _, err := f.Prune(ctx, map[string][]string{"dangling": {"false"}}); err != nil {
		t.Fatal(err)
	}
	f.clean("prune")
	f.must("a/x:1")
	name := strings.TrimPrefix(srv.URL, "http://") + "/c/z"
	if err := f.Tag(ctx, f.host+"/a/x:1", name, "1"); err != nil {
		t.Fatal(err)
	}
	if err := f.remote.Push(ctx, PushOptions{Repo: name, Tag: "1"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(other.Manifests["c/z"]["1"].Raw); got != dig {
		t.Errorf("%s in the other registry, %s in the first", got, dig)
	}

	// A registry that fails for a while, and one that refuses.
	third, fails := registrytest.New(), 0
	third.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch {
			return false
		}
		third.Lock()
		fails++
		fail := fails <= 2
		third.Unlock()
		if fail {
			_, _ = io.CopyN(io.Discard, r.Body, 10)
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	srv3 := httptest.NewServer(third)
	defer srv3.Close()
	name = strings.TrimPrefix(srv3.URL, "http://") + "/c/z"
	if err := f.Tag(ctx, f.host+"/a/x:1", name, "1"); err != nil {
		t.Fatal(err)
	}
	if err := f.remote.Push(ctx, PushOptions{Repo: name, Tag: "1"}, nil); err != nil {
		t.Error(err)
	}
	third.Users = map[string]string{"me": "pw"}
	if err := f.remote.Push(ctx, PushOptions{Repo: name, Tag: "1"}, nil); err == nil || !strings.Contains(err.Error(), "no basic auth credentials") {
		t.Error(err)
	}
}

// TestPullOrder has more layers than may come at once: the lowest come first.
func TestPullOrder(t *testing.T) {
	reg := registrytest.New()
	f := newFar(t, reg)
	f.remote.SetLimits(RemoteLimits{Downloads: 1})
	spec := imageSpec{at: 1}
	var want []string
	for i := range 8 {
		spec.layers = append(spec.layers, tarOf(t, entry{name: fmt.Sprint(i), body: noise(1000 * i)}))
		want = append(want, digest.FromBytes(gz(t, spec.layers[i])).String())
	}
	publish(t, reg, "many", "1", spec, gz, false)
	reg.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(20 * time.Millisecond) // else the first may be here before others look
		}
		return false
	}
	if out := f.must("many:1"); !strings.Contains(out, ": Waiting\n") {
		t.Error(out)
	}
	var got []string
	for _, r := range reg.Log {
		if _, d, ok := strings.Cut(r.Path, "/blobs/"); ok && d != string(spec.id(t)) {
			got = append(got, d)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("fetched %q", got)
	}
}

// TestReporter shows that who reports never waits.
func TestReporter(t *testing.T) {
	block := make(chan struct{})
	var got []jsonstream.Message
	r := newReporter(func(m jsonstream.Message) { <-block; got = append(got, m) })
	r.say("", "first")
	for i := range int64(100_000) {
		r.send(jsonstream.Message{ID: "a", Status: "Downloading", Progress: &jsonstream.Progress{Current: i + 1, Total: 100_000}})
	}
	r.step("a", "Download complete")
	close(block)
	r.close()
	r.step("a", "late")
	if len(got) < 3 || len(got) > 5 || got[len(got)-1].Status != "Download complete" || got[len(got)-2].Progress.Current != 100_000 {
		t.Errorf("%d messages", len(got))
	}
}
