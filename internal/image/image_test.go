package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/snapshot/copy"
	"berth.dev/berth/internal/snapshot/overlay"
	"berth.dev/berth/internal/state"
)

// store is a service with what it stands on. Unpacking keeps owners, so tests need root.
type store struct {
	*Service
	t      testing.TB
	root   string
	driver string
	db     *state.DB
	opts   Options
}

func newStore(t testing.TB, driver string) *store {
	t.Helper()
	st := &store{t: t, root: t.TempDir(), driver: driver}
	st.open()
	t.Cleanup(st.shut)
	return st
}

func (st *store) open() {
	st.t.Helper()
	db, err := state.Open(filepath.Join(st.root, "state"))
	if err != nil {
		st.t.Fatal(err)
	}
	snaps, err := snapshot.Choose(st.driver, filepath.Join(st.root, "snapshots"), overlay.Candidate(), copy.Candidate())
	if err != nil {
		st.t.Fatal(err)
	}
	st.db = db
	st.opts.Root, st.opts.DB, st.opts.Snapshots = filepath.Join(st.root, "image"), db, snaps
	if st.Service, err = Open(context.Background(), st.opts); err != nil {
		st.t.Fatal(err)
	}
}

func (st *store) shut() {
	if st.Service == nil {
		return
	}
	if err := st.Close(); err != nil {
		st.t.Error(err)
	}
	if err := st.db.Close(); err != nil {
		st.t.Error(err)
	}
	st.Service = nil
}

func (st *store) reopen() { st.t.Helper(); st.shut(); st.open() }

// dirs counts the committed snapshots, all snapshots, and the skeletons.
func (st *store) dirs() (committed, all, skeletons int) {
	st.t.Helper()
	err := st.opts.Snapshots.Walk(context.Background(), func(i snapshot.Info) error {
		all++
		if i.Committed {
			committed++
		}
		return nil
	})
	if err != nil {
		st.t.Fatal(err)
	}
	e, err := os.ReadDir(filepath.Join(st.root, "image", "skeleton"))
	if err != nil {
		st.t.Fatal(err)
	}
	return committed, all, len(e)
}

type entry struct {
	name string
	body string
	link string
	kind byte
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.body)), ModTime: time.Unix(1_700_000_000, 0), Linkname: e.link}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if e.kind != 0 {
			h.Typeflag = e.kind
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

type imageSpec struct {
	tags   []string
	layers [][]byte
	labels map[string]string
	at     int64 // created, Unix
}

func (s imageSpec) config(t testing.TB) []byte {
	diffs := []digest.Digest{}
	hist := []any{}
	for _, l := range s.layers {
		diffs = append(diffs, digest.FromBytes(l))
		hist = append(hist, map[string]any{"created": time.Unix(s.at, 0).UTC(), "created_by": "COPY x"})
	}
	raw, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": time.Unix(s.at, 0).UTC(),
		"config": map[string]any{"Labels": s.labels, "Cmd": []string{"/x"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "history": hist,
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (s imageSpec) id(t testing.TB) digest.Digest { return digest.FromBytes(s.config(t)) }

// dockerArchive is the old layout: <id>/layer.tar.
func dockerArchive(t testing.TB, pack func(testing.TB, []byte) []byte, images ...imageSpec) []byte {
	var members []entry
	var items []oci.ArchiveItem
	for _, im := range images {
		cfg := im.config(t)
		item := oci.ArchiveItem{Config: digest.FromBytes(cfg).Encoded() + ".json", RepoTags: im.tags}
		members = append(members, entry{name: item.Config, body: string(cfg)})
		for _, l := range im.layers {
			name := digest.FromBytes(l).Encoded()[:12] + "/layer.tar"
			item.Layers = append(item.Layers, name)
			if pack != nil {
				l = pack(t, l)
			}
			members = append(members, entry{name: name, body: string(l)})
		}
		items = append(items, item)
	}
	m, err := json.Marshal(items)
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(members, entry{name: "manifest.json", body: string(m)})...)
}

func (st *store) load(archive []byte) string {
	st.t.Helper()
	var out strings.Builder
	if err := st.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Quiet: true}, func(m jsonstream.Message) { out.WriteString(m.Stream) }); err != nil {
		st.t.Fatal(err)
	}
	return out.String()
}

func sample(t testing.TB) (base, child imageSpec) {
	one := tarOf(t, entry{name: "etc/"}, entry{name: "etc/a", body: "A"}, entry{name: "etc/b", body: "B"})
	two := tarOf(t, entry{name: "etc/"}, entry{name: "etc/.wh.a"}, entry{name: "etc/c", body: strings.Repeat("C", 3000)})
	base = imageSpec{tags: []string{"base:1"}, layers: [][]byte{one}, labels: map[string]string{"k": "v"}, at: 1000}
	child = imageSpec{tags: []string{"child:1", "other/child:x"}, layers: [][]byte{one, two}, at: 2000}
	return base, child
}

func eachDriver(t *testing.T, fn func(t *testing.T, st *store)) {
	for _, d := range []string{"overlay2", "vfs"} {
		t.Run(d, func(t *testing.T) { fn(t, newStore(t, d)) })
	}
}

func TestLoadResolveRemove(t *testing.T) {
	eachDriver(t, func(t *testing.T, st *store) {
		ctx := context.Background()
		base, child := sample(t)
		out := st.load(dockerArchive(t, gz, base, child))
		if want := "Loaded image: base:1\nLoaded image: child:1\nLoaded image: other/child:x\n"; out != want {
			t.Fatalf("%q, want %q", out, want)
		}
		id := child.id(t)
		for _, name := range []string{"child:1", "docker.io/library/child:1", "other/child:x", string(id), id.Encoded(), id.Encoded()[:10], "sha256:" + id.Encoded()[:7]} {
			im, err := st.Resolve(ctx, name)
			if err != nil || im.ID != id {
				t.Fatal(name, im, err)
			}
		}
		for name, want := range map[string]string{
			"child": "No such image: child:latest", "nosuch:x": "No such image: nosuch:x", "a b": "invalid reference format",
			strings.Repeat("0", 64): "No such image: sha256:" + strings.Repeat("0", 64),
		} {
			if _, err := st.Resolve(ctx, name); err == nil || err.Error() != want {
				t.Errorf("%s: %v, want %s", name, err, want)
			}
		}
		if c, _, sk := st.dirs(); c != 2 || sk != 2 {
			t.Fatal("layers are not shared:", c, sk)
		}
		st.reopen()
		got, err := st.Remove(ctx, "child:1", RemoveOptions{})
		if err != nil || len(got) != 1 || got[0].Untagged != "child:1" {
			t.Fatal(got, err)
		}
		got, err = st.Remove(ctx, "other/child:x", RemoveOptions{})
		if err != nil || len(got) != 3 || got[0].Untagged != "other/child:x" || got[1].Deleted != string(id) || got[2].Deleted != string(oci.ChainIDs([]digest.Digest{digest.FromBytes(child.layers[0]), digest.FromBytes(child.layers[1])})[1]) {
			t.Fatal(got, err)
		}
		if _, err := st.Remove(ctx, base.id(t).Encoded()[:12], RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if c, all, sk := st.dirs(); c+all+sk != 0 {
			t.Fatal("left behind:", c, all, sk)
		}
	})
}

func TestSaveLoadRoundTrip(t *testing.T) {
	eachDriver(t, func(t *testing.T, st *store) {
		ctx := context.Background()
		odd := tarOf(t,
			entry{name: "./"}, entry{name: "./x", body: "first"}, entry{name: "x", body: "second, longer"}, entry{name: "/x", body: "3"},
			entry{name: "d/"}, entry{name: "d/f", body: "in d"}, entry{name: "l", link: "d", kind: tar.TypeSymlink}, entry{name: "l/g", body: "through l"},
			entry{name: "l/f", body: "replaced through l"}, entry{name: "h", link: "d/f", kind: tar.TypeLink}, entry{name: "h", body: "no link any more"},
			entry{name: "d", body: "a file where a tree was"}, entry{name: "p", kind: tar.TypeFifo},
			entry{name: strings.Repeat("long/", 40) + "name", body: "pax"}, entry{name: ".wh..wh.plnk/1", body: "aufs"})
		odd = append(odd, make([]byte, 3*512)...)
		odd = append(odd, "rubbish after the end"...)
		base, _ := sample(t)
		im := imageSpec{tags: []string{"odd:1"}, layers: [][]byte{base.layers[0], odd, make([]byte, 1024)}, at: 5}
		st.load(dockerArchive(t, zst, base, im))
		var a, b bytes.Buffer
		if err := st.Save(ctx, []string{"odd", "base:1"}, &a); err != nil {
			t.Fatal(err)
		}
		if err := st.Save(ctx, []string{"odd", "base:1"}, &b); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Fatal("two saves differ", err)
		}
		other := newStore(t, st.driver)
		if out := other.load(a.Bytes()); out != "Loaded image: odd:1\nLoaded image: base:1\n" {
			t.Fatal(out)
		}
		for _, s := range []imageSpec{im, base} {
			got, err := other.Resolve(ctx, s.tags[0])
			if err != nil || got.ID != s.id(t) {
				t.Fatal(got, err)
			}
		}
		// Without manifest.json it is an OCI layout with the same images.
		third := newStore(t, st.driver)
		if out := third.load(gz(t, without(t, a.Bytes(), "manifest.json"))); !strings.Contains(out, "odd:1") || !strings.Contains(out, "base:1") {
			t.Fatal(out)
		}
	})
}

// without is a tar but for one member.
func without(t *testing.T, archive []byte, name string) []byte {
	var b bytes.Buffer
	tr, tw := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&b)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == name {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(tw, tr); err != nil {
			t.Fatal(err)
		}
	}
	_ = tw.Close()
	return b.Bytes()
}

func TestConflicts(t *testing.T) {
	st := newStore(t, "overlay2")
	ctx := context.Background()
	base, child := sample(t)
	st.load(dockerArchive(t, nil, base, child))
	hold := func(id digest.Digest, holder string) {
		if err := st.db.Update(state.Async, func(tx *state.Tx) error { return tx.Put("ref", RefKey(id, holder), "container") }); err != nil {
			t.Fatal(err)
		}
	}
	c1 := strings.Repeat("c1", 32)
	hold(base.id(t), c1)
	short := child.id(t).Encoded()[:12]
	refused := func(name string, force bool, want string) {
		t.Helper()
		_, err := st.Remove(ctx, name, RemoveOptions{Force: force})
		if err == nil || err.Error() != want || !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v\nwant %s", name, err, want)
		}
	}
	bshort := base.id(t).Encoded()[:12]
	refused("base:1", false, `conflict: unable to remove repository reference "base:1" (must force) - container c1c1c1c1c1c1 is using its referenced image `+bshort)
	refused(short, false, "conflict: unable to delete "+short+" (must be forced) - image is referenced in multiple repositories")
	refused(bshort, false, "conflict: unable to delete "+bshort+" (must be forced) - image is being used by stopped container c1c1c1c1c1c1")
	st.o.Running = func(h string) bool { return h == c1 }
	refused(bshort, true, "conflict: unable to delete "+bshort+" (cannot be forced) - image is being used by running container c1c1c1c1c1c1")
	st.o.Running = func(string) bool { return false }

	// Forced under a stopped container: gone for users, layers stay until it is released.
	if _, err := st.Remove(ctx, short, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Remove(ctx, "base:1", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Resolve(ctx, base.id(t).String()); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	st.reopen()
	if c, _, _ := st.dirs(); c != 1 {
		t.Fatal(c, "layers, want the container's one")
	}
	if err := st.db.Update(state.Async, func(tx *state.Tx) error { tx.Delete("ref", RefKey(base.id(t), c1)); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := st.Release(ctx, base.id(t)); err != nil {
		t.Fatal(err)
	}
	if c, all, sk := st.dirs(); c+all+sk != 0 {
		t.Fatal("left behind:", c, all, sk)
	}
}

func TestListAndPrune(t *testing.T) {
	st := newStore(t, "overlay2")
	ctx := context.Background()
	base, child := sample(t)
	st.load(dockerArchive(t, nil, base, child))
	loose := imageSpec{layers: child.layers[1:], at: 3000}
	if out := st.load(dockerArchive(t, nil, loose)); out != "Loaded image ID: "+string(loose.id(t))+"\n" {
		t.Fatal(out)
	}
	list := func(o ListOptions) string {
		t.Helper()
		got, err := st.List(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range got {
			n := "<none>"
			if len(s.RepoTags) > 0 {
				n = strings.Join(s.RepoTags, "+")
			}
			names = append(names, n)
		}
		return strings.Join(names, " ")
	}
	for _, c := range []struct {
		f    filter.Args
		want string
	}{
		{nil, "<none> child:1+other/child:x base:1"},
		{filter.Args{"dangling": {"true"}}, "<none>"},
		{filter.Args{"dangling": {"false"}}, "child:1+other/child:x base:1"},
		{filter.Args{"label": {"k=v"}}, "base:1"},
		{filter.Args{"label!": {"k"}}, "<none> child:1+other/child:x"},
		{filter.Args{"before": {"child:1"}}, "base:1"},
		{filter.Args{"since": {"child:1"}}, "<none>"},
		{filter.Args{"until": {"1500"}}, "base:1"},
		{filter.Args{"reference": {"child"}}, "child:1"},
		{filter.Args{"reference": {"*/child:*"}}, "other/child:x"},
	} {
		if got := list(ListOptions{Filters: c.f}); got != c.want {
			t.Errorf("%v: %q, want %q", c.f, got, c.want)
		}
	}
	if _, err := st.List(ctx, ListOptions{Filters: filter.Args{"nosuch": {"1"}}}); err == nil || err.Error() != "invalid filter 'nosuch'" {
		t.Error(err)
	}
	sums, _ := st.List(ctx, ListOptions{SharedSize: true})
	if i := slices.IndexFunc(sums, func(s imagetypes.Summary) bool { return s.ID == string(child.id(t)) }); sums[i].SharedSize != 2 || sums[i].Size != 3002 || sums[i].Containers != -1 {
		t.Errorf("%+v", sums[i])
	}
	rep, err := st.Prune(ctx, nil)
	if err != nil || len(rep.ImagesDeleted) != 2 || rep.SpaceReclaimed != 3000 {
		t.Fatal(rep, err)
	}
	rep, err = st.Prune(ctx, filter.Args{"dangling": {"false"}})
	if err != nil || rep.SpaceReclaimed != 3002 {
		t.Fatal(rep, err)
	}
	if got := list(ListOptions{All: true}); got != "" {
		t.Fatal(got)
	}
	if c, all, sk := st.dirs(); c+all+sk != 0 {
		t.Fatal("left behind:", c, all, sk)
	}
}

func TestImportCommitInspectHistory(t *testing.T) {
	st := newStore(t, "overlay2")
	ctx := context.Background()
	tree := tarOf(t, entry{name: "bin/"}, entry{name: "bin/sh", body: "#!"})
	id, err := st.Import(ctx, bytes.NewReader(gz(t, tree)), ImportOptions{Repo: "imp", Message: "hi", Changes: []string{"CMD [\"/bin/sh\"]", "ENV A=1 B=\"two words\"", "EXPOSE 80 53/udp"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ins, err := st.Inspect(ctx, "imp")
	if err != nil {
		t.Fatal(err)
	}
	if ins.ID != string(id) || ins.Comment != "hi" || ins.RootFS.Layers[0] != string(digest.FromBytes(tree)) || !slices.Equal(ins.Config.Cmd, []string{"/bin/sh"}) ||
		!slices.Equal(ins.Config.Env, []string{"A=1", "B=two words"}) || len(ins.Config.ExposedPorts) != 2 || ins.Size != 2 || ins.GraphDriver.Data["UpperDir"] == "" {
		t.Fatalf("%+v %+v", ins, ins.Config)
	}
	change := tarOf(t, entry{name: "new", body: "1234"})
	cid, err := st.Commit(ctx, CommitOptions{Repo: "com", Tag: "t", Parent: id, Layer: bytes.NewReader(change), Author: "me", CreatedBy: "sh", KeepLink: true, Changes: []string{"USER 7"}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := st.History(ctx, "com:t")
	if err != nil || len(h) != 2 || h[0].ID != string(cid) || h[0].Size != 4 || h[1].ID != string(id) || h[1].Tags[0] != "imp:latest" {
		t.Fatalf("%+v %v", h, err)
	}
	im, _ := st.Resolve(ctx, "com:t")
	if im.Config.Config.User != "7" || im.Config.Config.Cmd[0] != "/bin/sh" || im.Parent != id || im.Size != 6 {
		t.Fatalf("%+v", im)
	}
	empty, err := st.Commit(ctx, CommitOptions{Parent: id, Layer: bytes.NewReader(make([]byte, 1024))})
	if err != nil {
		t.Fatal(err)
	}
	if im, _ := st.Resolve(ctx, string(empty)); len(im.Layers) != 1 || !im.Config.History[1].EmptyLayer {
		t.Fatalf("%+v", im)
	}
	// A parent without a name goes with its last child; one with a name stays.
	_, err = st.Remove(ctx, id.Encoded(), RemoveOptions{Force: true})
	if err == nil || !strings.HasSuffix(err.Error(), "(cannot be forced) - image has dependent child images") {
		t.Fatal(err)
	}
	if err := st.Tag(ctx, "com:t", "again", ""); err != nil {
		t.Fatal(err)
	}
	if err := st.Tag(ctx, "com:t", "Bad", ""); err == nil || err.Error() != "invalid reference format: repository name (library/Bad) must be lowercase" {
		t.Fatal(err)
	}
	for _, c := range []string{"FROM x", "NOSUCH y", "EXPOSE x", "ENV", "ENV A='x"} {
		if _, err := st.Import(ctx, bytes.NewReader(tree), ImportOptions{Changes: []string{c}}, nil); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", c, err)
		}
	}
}
