package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/state"
)

// What a crash at any step of a load leaves is gone after the next start.
func TestSweep(t *testing.T) {
	eachDriver(t, func(t *testing.T, st *store) {
		ctx := context.Background()
		base, _ := sample(t)
		st.load(dockerArchive(t, nil, base))
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		// Unpacking: an active snapshot and a temporary skeleton.
		must(st.opts.Snapshots.Prepare(ctx, newLayerPrefix+"abc", ""))
		must(os.WriteFile(filepath.Join(st.layers.dir, newLayerPrefix+"abc"), []byte("half"), 0o600))
		// Committed, without a row.
		stray := digest.FromString("stray")
		must(st.opts.Snapshots.Prepare(ctx, "s", ""))
		must(st.opts.Snapshots.Commit(ctx, string(stray), "s"))
		must(os.WriteFile(st.layers.skeleton(stray), []byte("x"), 0o600))
		// A layer with its row, without an image.
		id, _, err := st.layers.add(ctx, "", "", bytes.NewReader(tarOf(t, entry{name: "alone", body: "x"})))
		must(err)
		// An upload; and a container's snapshot, which is not ours to sweep.
		must(os.WriteFile(filepath.Join(st.tmp(), "member1"), []byte("x"), 0o600))
		must(st.opts.Snapshots.Prepare(ctx, "container", id.String()))
		must(st.opts.Snapshots.Remove(ctx, "container"))
		must(st.opts.Snapshots.Prepare(ctx, "container", base.mustTop(t)))
		st.reopen()
		if c, all, sk := st.dirs(); c != 1 || all != 2 || sk != 1 {
			t.Fatal(c, "layers", all, "snapshots", sk, "skeletons")
		}
		if e, _ := os.ReadDir(st.tmp()); len(e) != 0 {
			t.Fatal(e)
		}
		if _, err := st.Resolve(ctx, "base:1"); err != nil {
			t.Fatal(err)
		}
	})
}

func (s imageSpec) mustTop(t *testing.T) string {
	im, err := parseImage(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	return im.Top()
}

// After a power cut, a layer that lost content takes its images with it, and
// one that did not is kept.
func TestPowerCut(t *testing.T) {
	st := newStore(t, "overlay2")
	ctx := context.Background()
	base, child := sample(t)
	st.load(dockerArchive(t, nil, base, child))
	im, err := st.Resolve(ctx, "child:1")
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.opts.Snapshots.Mounts(ctx, im.Top())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(m.Layers()[0], "etc/c"), 7); err != nil {
		t.Fatal(err)
	}
	for _, id := range im.Layers {
		row, _ := st.layers.row(id)
		row.Boot = "an earlier one"
		if err := st.db.Update(state.Async, func(tx *state.Tx) error { return tx.Put("layer", string(id), row) }); err != nil {
			t.Fatal(err)
		}
	}
	st.reopen()
	if _, err := st.Resolve(ctx, "child:1"); !errs.Is(err, errs.NotFound) {
		t.Fatal("a damaged image is offered:", err)
	}
	if _, err := st.Resolve(ctx, "base:1"); err != nil {
		t.Fatal(err)
	}
	if c, all, sk := st.dirs(); c != 1 || all != 1 || sk != 1 {
		t.Fatal(c, all, sk)
	}
}

// A load that fails leaves nothing, whatever is wrong with it.
func TestBadArchives(t *testing.T) {
	st := newStore(t, "overlay2")
	base, child := sample(t)
	good := dockerArchive(t, gz, base, child)
	evil := imageSpec{tags: []string{"evil:1"}, layers: [][]byte{base.layers[0], tarOf(t, entry{name: "../x", body: "x"})}}
	other := imageSpec{tags: []string{"o:1"}, layers: [][]byte{base.layers[0], child.layers[1]}}
	swapped := bytes.Replace(dockerArchive(t, nil, other), []byte("etc/c"), []byte("etc/z"), 1)
	layout := func(kind, top string, blobs ...string) []byte { // an image layout whose index names top
		entries := []entry{{name: "index.json", body: `{"manifests":[{"mediaType":"application/vnd.oci.image.` + kind + `.v1+json","digest":"` + string(digest.FromString(top)) + `"}]}`}}
		for _, b := range append(blobs, top) {
			entries = append(entries, entry{name: "blobs/sha256/" + digest.FromString(b).Encoded(), body: b})
		}
		return tarOf(t, entries...)
	}
	nested := []string{`{"schemaVersion":2,"manifests":[]}`}
	for range 6 {
		nested = append(nested, `{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"`+string(digest.FromString(nested[len(nested)-1]))+`"}]}`)
	}
	both := `{"schemaVersion":2,"config":{"digest":"` + string(digest.FromString("{}")) + `"},"layers":[{"digest":"` + string(digest.FromString("l")) + `"}],"manifests":[{"digest":"` + string(digest.FromString("{}")) + `"}]}`
	for name, raw := range map[string][]byte{
		"image and index, as index": layout("index", both, "{}", "l"),
		"image and index, as image": layout("manifest", both, "{}", "l"),
		"another type than said":    layout("manifest", `{"mediaType":"application/vnd.oci.image.index.v1+json","config":{"digest":"`+string(digest.FromString("{}"))+`"}}`, "{}"),
		"an unknown type":           layout("evil", `{"config":{"digest":"`+string(digest.FromString("{}"))+`"}}`, "{}"),
		"indexes in indexes":        layout("index", nested[len(nested)-1], nested...),
		"deep lists":                tarOf(t, entry{name: "manifest.json", body: strings.Repeat("[", 900_000)}),
		"deep objects":              tarOf(t, entry{name: "index.json", body: strings.Repeat(`{"manifests":`, 70_000)}),
		"config of lists":           tarOf(t, entry{name: "manifest.json", body: `[{"Config":"c","Layers":[]}]`}, entry{name: "c", body: strings.Repeat("[", 900_000)}),
		"config with more layers":   tarOf(t, entry{name: "manifest.json", body: `[{"Config":"c","Layers":[]}]`}, entry{name: "c", body: `{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}`}),
		"nothing":                   {},
		"no archive":                []byte(strings.Repeat("not a tar ", 200)),
		"no manifest":               tarOf(t, entry{name: "x", body: "y"}),
		"bad manifest":              tarOf(t, entry{name: "manifest.json", body: "{"}),
		"no config":                 tarOf(t, entry{name: "manifest.json", body: `[{"Config":"../../etc/passwd","Layers":[]}]`}),
		"link loop":                 tarOf(t, entry{name: "manifest.json", link: "manifest.json", kind: '2'}),
		"no layer":                  without(t, good, base.mustName()),
		"cut off":                   good[:len(good)/2],
		"escape":                    dockerArchive(t, nil, evil),
		"wrong digest":              swapped,
		"bad tag":                   dockerArchive(t, nil, imageSpec{tags: []string{"Bad Name"}, layers: base.layers}),
		"wrong blob":                tarOf(t, entry{name: "index.json", body: `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + string(digest.FromString("a")) + `"}]}`}, entry{name: "blobs/sha256/" + digest.FromString("a").Encoded(), body: "b"}),
		"index loop":                tarOf(t, entry{name: "index.json", body: `{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:x"}]}`}),
	} {
		err := st.Load(context.Background(), bytes.NewReader(raw), LoadOptions{}, nil)
		if err == nil || !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if im := st.all(); len(im) != 0 {
			t.Fatal(name, "left an image")
		}
		if c, all, sk := st.dirs(); c+all+sk != 0 {
			t.Errorf("%s left %d layers, %d snapshots, %d skeletons", name, c, all, sk)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := st.Load(ctx, bytes.NewReader(good), LoadOptions{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func (s imageSpec) mustName() string {
	return digest.FromBytes(s.layers[0]).Encoded()[:12] + "/layer.tar"
}

// Loads and removals at the same time end with all or nothing.
func TestConcurrent(t *testing.T) {
	st := newStore(t, "overlay2")
	ctx := context.Background()
	base, child := sample(t)
	raw := dockerArchive(t, nil, base, child)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				if err := st.Load(ctx, bytes.NewReader(raw), LoadOptions{Quiet: true}, nil); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				for _, n := range []string{"child:1", "other/child:x", "base:1"} {
					if _, err := st.Remove(ctx, n, RemoveOptions{}); err != nil && !errs.Is(err, errs.NotFound) {
						t.Error(err)
					}
				}
				if err := st.Save(ctx, []string{"child:1"}, io.Discard); err != nil && !errs.Is(err, errs.NotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	st.load(raw)
	for _, n := range []string{"child:1", "other/child:x", "base:1"} {
		if _, err := st.Remove(ctx, n, RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	if c, all, sk := st.dirs(); c+all+sk != 0 {
		t.Fatal("left behind:", c, all, sk)
	}
}

func TestBuiltin(t *testing.T) {
	st := newStore(t, "overlay2")
	base, _ := sample(t)
	base.tags = []string{"hello:latest"}
	raw := dockerArchive(t, gz, base)
	st.shut()
	st.opts.Builtin = map[string]func() (io.ReadCloser, error){"hello": func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
	st.open()
	for _, n := range []string{"hello", "hello:latest", "docker.io/library/hello"} {
		if im, err := st.Resolve(context.Background(), n); err != nil || im.ID != base.id(t) {
			t.Fatal(n, err)
		}
	}
	if _, err := st.Resolve(context.Background(), "hello:other"); err == nil || err.Error() != "No such image: hello:other" {
		t.Fatal(err)
	}
	// The registry's image, of some program; it is the same each time.
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("program"), 100_000), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		rc, err := Registry(program)()
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Load(context.Background(), rc, LoadOptions{Quiet: true}, nil); err != nil {
			t.Fatal(err)
		}
		_ = rc.Close()
	}
	im, err := st.Resolve(context.Background(), "registry")
	if err != nil || im.Config.Config.Entrypoint[0] != "/bin/registry" {
		t.Fatal(im, err)
	}
	for name, open := range Starter() {
		rc, err := open()
		if err != nil {
			t.Fatal(name, err)
		}
		if err := st.Load(context.Background(), rc, LoadOptions{Quiet: true}, nil); err != nil {
			t.Fatal(name, err)
		}
		_ = rc.Close()
	}
}
