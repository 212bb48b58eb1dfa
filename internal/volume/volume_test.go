package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/plugin"
	"berth.dev/berth/internal/state"
)

// box is a service in a directory of its own, which can be opened again as after a crash.
type box struct {
	*Service
	t    testing.TB
	root string
	db   *state.DB
	dirs plugin.Dirs

	mu  sync.Mutex
	log []string
}

func newBox(t testing.TB) *box {
	t.Helper()
	b := &box{t: t, root: t.TempDir()}
	b.open()
	t.Cleanup(func() { _ = b.db.Close() })
	return b
}

func (b *box) open() {
	b.t.Helper()
	var err error
	if b.db, err = state.Open(filepath.Join(b.root, "state")); err != nil {
		b.t.Fatal(err)
	}
	b.Service, err = Open(Options{
		Root: b.root, DB: b.db, UID: os.Getuid(), GID: os.Getgid(), Plugins: b.dirs, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Event: func(a events.Action, name string, attrs map[string]string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.log = append(b.log, fmt.Sprint(a, " ", name, " ", attrs))
		},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// crash opens the service anew on what is on disk.
func (b *box) crash() {
	b.t.Helper()
	if err := b.db.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.open()
}

func (b *box) create(name string, labels ...string) volume.Volume {
	b.t.Helper()
	l := map[string]string{}
	for _, x := range labels {
		k, v, _ := strings.Cut(x, "=")
		l[k] = v
	}
	v, err := b.Create(context.Background(), volume.CreateRequest{Name: name, Labels: l})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// hold makes the holder a container of the volumes, as a create does.
func (b *box) hold(holder string, names ...string) {
	b.t.Helper()
	for _, n := range names {
		if _, err := b.Hold(context.Background(), Request{Name: n, Holder: holder}); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := b.db.Update(state.Async, func(tx *state.Tx) error { return b.Commit(tx, holder, names) }); err != nil {
		b.t.Fatal(err)
	}
	b.Committed(names)
}

func (b *box) names(filters string) []string {
	b.t.Helper()
	f, err := filter.Parse(filters)
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := b.List(context.Background(), f)
	if err != nil {
		b.t.Fatal(err)
	}
	out := []string{}
	for _, v := range res.Volumes {
		out = append(out, v.Name)
	}
	return out
}

func (b *box) expect(filters string, want ...string) {
	b.t.Helper()
	if got := b.names(filters); !slices.Equal(got, want) {
		b.t.Errorf("%s: %q, want %q", filters, got, want)
	}
}

func TestLife(t *testing.T) {
	b := newBox(t)
	ctx := context.Background()
	v := b.create("v1", "a=b")
	if v.Driver != "local" || v.Scope != "local" || v.Mountpoint != filepath.Join(b.root, "volumes/v1/_data") || v.Labels["a"] != "b" {
		t.Errorf("%+v", v)
	}
	if at, err := time.Parse(time.RFC3339, v.CreatedAt); err != nil || time.Since(at) > time.Minute {
		t.Errorf("created at %s", v.CreatedAt)
	}
	again, err := b.Create(ctx, volume.CreateRequest{Name: "v1", Driver: "local", Labels: map[string]string{"x": "y"}})
	if err != nil || again.Labels["a"] != "b" || again.CreatedAt != v.CreatedAt {
		t.Errorf("a second create: %+v %v", again, err)
	}
	anon := b.create("")
	if _, ok := anon.Labels[AnonymousLabel]; !ok || len(anon.Name) != 64 {
		t.Errorf("%+v", anon)
	}
	b.hold("c1", "v1", "v2")
	b.crash()
	b.expect(`{"dangling":["true"]}`, anon.Name)
	b.expect(`{"dangling":["0"]}`, "v1", "v2")
	b.expect(`{"name":["^v"],"label":["a=b"]}`, "v1")
	b.expect(`{"driver":["nope"]}`)
	if err := b.Remove(ctx, "v1", true); !errs.Is(err, errs.Conflict) || err.Error() != "remove v1: volume is in use - [c1]" {
		t.Errorf("%v", err)
	}
	if err := b.Remove(ctx, "none", false); !errs.Is(err, errs.NotFound) || err.Error() != "get none: no such volume" {
		t.Errorf("%v", err)
	}
	if err := b.Remove(ctx, "none", true); err != nil {
		t.Error(err)
	}
	if err := b.Release(ctx, "c1", []string{"v1", "v2"}, []string{"v2"}); err != nil {
		t.Error(err)
	}
	b.expect("", slices.Sorted(slices.Values([]string{anon.Name, "v1"}))...)
	if err := b.Remove(ctx, "v1", false); err != nil {
		t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.log[0] != "create v1 map[driver:local]" || b.log[len(b.log)-1] != "destroy v1 map[driver:local]" {
		t.Errorf("%q", b.log)
	}
}

func TestRefused(t *testing.T) {
	b := newBox(t)
	for _, c := range []struct {
		r    volume.CreateRequest
		kind errs.Kind
		want string
	}{
		{volume.CreateRequest{Name: "a"}, errs.Invalid, "create a: volume name is too short, names should be at least two alphanumeric characters"},
		{volume.CreateRequest{Name: "../x"}, errs.Invalid, `create ../x: "../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
		{volume.CreateRequest{Name: "v1", DriverOpts: map[string]string{"x": "y"}}, errs.Invalid, `create v1: invalid option: "x"`},
		{volume.CreateRequest{Name: "v1", DriverOpts: map[string]string{"type": "nfs"}}, errs.Invalid, `create v1: missing required option: "device"`},
		{volume.CreateRequest{Name: "v1", DriverOpts: map[string]string{"device": "x"}}, errs.Invalid, `create v1: missing required option: "type"`},
		{volume.CreateRequest{Name: "v1", DriverOpts: map[string]string{"size": "1g"}}, errs.Invalid, `create v1: quota size requested but no quota support`},
		{volume.CreateRequest{Name: "v1", DriverOpts: map[string]string{"type": "cifs", "device": "//h:1/x"}}, errs.Invalid, `create v1: port not allowed in CIFS device URL, include 'port' in 'o='`},
		{volume.CreateRequest{Name: "v1", Driver: "nope"}, errs.NotFound, `create v1: error looking up volume plugin nope: plugin "nope" not found`},
	} {
		_, err := b.Create(context.Background(), c.r)
		if !errs.Is(err, c.kind) || err.Error() != c.want {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
	b.expect("")
	if list, _ := os.ReadDir(filepath.Join(b.root, "volumes")); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	for _, f := range []string{`{"x":["y"]}`, `{"dangling":["maybe"]}`} {
		args, _ := filter.Parse(f)
		if _, err := b.List(context.Background(), args); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestPrune(t *testing.T) {
	b := newBox(t)
	anon, used := b.create(""), b.create("", "keep")
	b.create("named", "keep")
	b.hold("c1", used.Name)
	data := filepath.Join(anon.Mountpoint, "f")
	if err := os.WriteFile(data, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(data, data+"2"); err != nil {
		t.Fatal(err)
	}
	du, err := b.DiskUsage(context.Background())
	if err != nil || len(du) != 3 {
		t.Fatal(du, err)
	}
	for _, v := range du {
		if want := map[string]int64{anon.Name: 100}[v.Name]; v.UsageData.Size != want || v.UsageData.RefCount != map[bool]int64{true: 1}[v.Name == used.Name] {
			t.Errorf("%s: %+v", v.Name, v.UsageData)
		}
	}
	for _, c := range []struct {
		filters string
		want    []string
		size    uint64
	}{
		{`{"label":["keep"]}`, []string{}, 0},
		{`{}`, []string{anon.Name}, 100},
		{`{"all":["1"],"label!":["keep"]}`, []string{}, 0},
		{`{"all":["1"]}`, []string{"named"}, 0},
	} {
		f, _ := filter.Parse(c.filters)
		rep, err := b.Prune(context.Background(), f)
		if err != nil || !slices.Equal(rep.VolumesDeleted, c.want) || rep.SpaceReclaimed != c.size {
			t.Errorf("%s: %+v %v", c.filters, rep, err)
		}
	}
	for f, want := range map[string]string{
		`{"all":["x"]}`: `invalid filter 'all': strconv.ParseBool: parsing "x": invalid syntax`, `{"all":["1","0"]}`: "invalid filter 'all=[1 0]': only one value is expected",
		`{"name":["x"]}`: "invalid filter 'name'",
	} {
		args, _ := filter.Parse(f)
		if _, err := b.Prune(context.Background(), args); !errs.Is(err, errs.Invalid) || err.Error() != want {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// tree makes a directory with a bit of everything and returns it open.
func tree(t testing.TB) int {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "img")
	for _, d := range []string{"sub/deep", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "f"), []byte("text"), 0o4755))
	must(os.Link(filepath.Join(dir, "f"), filepath.Join(dir, "sub/hard")))
	must(os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	old := time.Unix(1e9, 5)
	must(os.Chtimes(filepath.Join(dir, "f"), old, old))
	must(os.Chmod(dir, os.ModeSticky|0o750))
	must(os.Chtimes(dir, old, old))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func checkTree(t testing.TB, dir string) {
	t.Helper()
	old := time.Unix(1e9, 5)
	fi, err := os.Stat(dir)
	if err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o750 || !fi.ModTime().Equal(old) {
		t.Errorf("the directory: %v %v %v", fi.Mode(), fi.ModTime(), err)
	}
	a, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil || !a.ModTime().Equal(old) || a.Mode()&0o777 != 0o755 {
		t.Errorf("f: %v %v", a, err)
	}
	if b, err := os.Stat(filepath.Join(dir, "sub/hard")); err != nil || !os.SameFile(a, b) {
		t.Errorf("the hard link: %v", err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "link")); l != "/etc/passwd" || err != nil {
		t.Errorf("the link: %s %v", l, err)
	}
	if fi, err := os.Lstat(filepath.Join(dir, "fifo")); err != nil || fi.Mode() != os.ModeNamedPipe|0o640 {
		t.Errorf("the fifo: %v", err)
	}
	if !exists(filepath.Join(dir, "empty")) || !exists(filepath.Join(dir, "sub/deep")) {
		t.Error("a directory is missing")
	}
}

func TestFill(t *testing.T) {
	b := newBox(t)
	ctx := context.Background()
	src := tree(t)
	v := b.create("v1")
	if !b.IsEmpty("v1") {
		t.Error("a new volume is not empty")
	}
	if err := b.Fill(ctx, "v1", "", "c1", src); err != nil {
		t.Fatal(err)
	}
	checkTree(t, v.Mountpoint)
	if exists(filepath.Join(b.root, "volumes/v1/_fill")) {
		t.Error("the copy stays")
	}
	// A volume with files stays as it is.
	other := b.create("v2")
	if err := os.Mkdir(filepath.Join(other.Mountpoint, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(ctx, "v2", "", "c1", src); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(other.Mountpoint, "f")) {
		t.Error("a volume with files was filled")
	}
	// A directory in it is filled alone; one that is not there is the start's to tell.
	if err := b.Fill(ctx, "v2", "sub", "c1", src); err != nil {
		t.Fatal(err)
	}
	checkTree(t, filepath.Join(other.Mountpoint, "sub"))
	if err := b.Fill(ctx, "v2", "none", "c1", src); err != nil {
		t.Error(err)
	}
	// A link out of the volume is not followed.
	if err := os.Symlink("/tmp", filepath.Join(other.Mountpoint, "out")); err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(ctx, "v2", "out", "c1", src); !errs.Is(err, errs.Invalid) {
		t.Errorf("a link out: %v", err)
	}
	// An empty directory gives its attributes.
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	empty := b.create("v3")
	if err := b.Fill(ctx, "v3", "", "c1", fd); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(empty.Mountpoint); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
}

// The states that a crash can leave on disk, each brought to an end by the next start.
func TestCrashes(t *testing.T) {
	b := newBox(t)
	ctx := context.Background()
	src := tree(t)
	at := func(p string) string { return filepath.Join(b.root, "volumes", p) }

	// Made for a container that was never recorded, and filled.
	if _, err := b.Hold(ctx, Request{Name: "unborn", Holder: "c0"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(ctx, "unborn", "", "c0", src); err != nil {
		t.Fatal(err)
	}
	// Half a copy.
	b.create("half")
	if err := os.Mkdir(at("half/_fill"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("half/_fill/f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A whole copy, half moved.
	b.create("moving")
	if err := b.Fill(ctx, "moving", "", "c1", src); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at("moving/_data"), at("moving/_fill")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("moving/_data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at("moving/_fill/f"), at("moving/_data/f")); err != nil {
		t.Fatal(err)
	}
	m := b.get("moving")
	m.rec.Moving = true
	if err := b.put(m); err != nil {
		t.Fatal(err)
	}
	// A container removed, its volume not yet.
	b.hold("c2", "doomed", "shared")
	b.hold("c3", "shared")
	err := b.db.Update(state.Async, func(tx *state.Tx) error {
		for _, n := range []string{"doomed", "shared"} {
			tx.Delete("ref", RefKey(n, "c2"))
		}
		return b.Doom(tx, "c2", []string{"doomed", "shared"})
	})
	if err != nil {
		t.Fatal(err)
	}
	// A removal cut off behind the first step, one whose files were left, and a guest.
	b.create("cut")
	if err := os.Rename(at("cut"), at(".gone-1")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at("guest/_data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at("no volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.crash()
	b.expect("", "guest", "half", "moving", "shared")
	b.expect(`{"dangling":["false"]}`, "shared")
	if !exists(at("moving/_data/link")) || exists(at("moving/_fill")) || exists(at("unborn")) || exists(at("doomed")) {
		t.Error("not brought to an end")
	}
	for i := 0; exists(at(".gone-1")) || exists(at("half/_fill")); i++ {
		if i > 500 {
			t.Fatal("files of a removed volume stay")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !b.IsEmpty("half") || !exists(at("no volume")) {
		t.Error("touched what it must not")
	}
	b.crash()
	b.expect("", "guest", "half", "moving", "shared")
}

// A container that does not come to be leaves no volume, unless somebody else holds it.
func TestAbandon(t *testing.T) {
	b := newBox(t)
	ctx := context.Background()
	b.create("old")
	for _, n := range []string{"old", "new", "both"} {
		if _, err := b.Hold(ctx, Request{Name: n, Holder: "c1"}); err != nil {
			t.Fatal(err)
		}
	}
	b.hold("c2", "both")
	b.Abandon(ctx, "c1", []string{"old", "new", "both"})
	b.expect("", "both", "old")
	b.crash()
	b.expect("", "both", "old")
	b.expect(`{"dangling":["0"]}`, "both")
}

// Many at once make, hold and remove one volume: each container that was recorded has it.
func TestRace(t *testing.T) {
	b := newBox(t)
	ctx := context.Background()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			holder := fmt.Sprint("c", i)
			for range 50 {
				if _, err := b.Hold(ctx, Request{Name: "v1", Holder: holder}); err != nil {
					t.Error(err)
					return
				}
				if err := b.db.Update(state.Async, func(tx *state.Tx) error { return b.Commit(tx, holder, []string{"v1"}) }); err != nil {
					t.Error(err)
					return
				}
				b.Committed([]string{"v1"})
				if !exists(filepath.Join(b.root, "volumes/v1/_data")) {
					t.Error("removed while it was held")
				}
				if err := b.db.Update(state.Async, func(tx *state.Tx) error {
					tx.Delete("ref", RefKey("v1", holder))
					return b.Doom(tx, holder, []string{"v1"})
				}); err != nil {
					t.Error(err)
					return
				}
				if err := b.Release(ctx, holder, []string{"v1"}, []string{"v1"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.crash()
	b.expect("")
}

func TestOpenIn(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for l, to := range map[string]string{"in": "a/b", "a/up": "../c", "root": "/", "out": "../..", "chain": "root", "proc": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(dir, l)); err != nil {
			t.Fatal(err)
		}
	}
	for p, kind := range map[string]errs.Kind{
		"": 255, "a": 255, "in": 255, "a/up": 255, "none": errs.NotFound, "root": errs.Invalid, "root/etc": errs.Invalid, "out": errs.Invalid,
		"chain": errs.Invalid, "proc": errs.Invalid, "../x": errs.Invalid,
	} {
		fd, err := OpenIn(dir, p)
		if err == nil {
			_ = unix.Close(fd)
		}
		if (kind == 255) != (err == nil) || err != nil && !errs.Is(err, kind) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// A volume with options is mounted by its first user and unmounted after the last.
func TestMountOptions(t *testing.T) {
	enginetest.RequireRoot(t)
	b := newBox(t)
	ctx := context.Background()
	if _, err := b.Create(ctx, volume.CreateRequest{Name: "tm", DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=64k,mode=700,noexec"}}); err != nil {
		t.Fatal(err)
	}
	path, err := b.Mount(ctx, "tm", "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(path, unix.MNT_DETACH) }()
	for range 2 { // the second is no further user
		if again, err := b.Mount(ctx, "tm", "c2"); again != path || err != nil {
			t.Fatal(again, err)
		}
	}
	if !isMount(path) {
		t.Fatal("not mounted")
	}
	unmount := func(user string, still bool) {
		t.Helper()
		if err := b.Unmount(ctx, "tm", user); err != nil || isMount(path) != still {
			t.Fatalf("%v, mounted: %v", err, isMount(path))
		}
	}
	unmount("nobody", true)
	unmount("c1", true)
	unmount("c2", false)
	// After a crash those that run keep it.
	b.hold("c1", "tm")
	if _, err := b.Mount(ctx, "tm", "c1"); err != nil {
		t.Fatal(err)
	}
	b.crash()
	b.Keep(func(string) bool { return true })
	unmount("c1", false)
	if _, err := b.Mount(ctx, "tm", "c1"); err != nil {
		t.Fatal(err)
	}
	b.crash()
	b.Keep(func(string) bool { return false })
	if isMount(path) {
		t.Error("mounted for nobody")
	}
	if _, err := b.Create(ctx, volume.CreateRequest{Name: "no", DriverOpts: map[string]string{"type": "none", "device": "/no/such", "o": "bind,password=x"}}); err != nil {
		t.Fatal(err)
	}
	_, err = b.Mount(ctx, "no", "c1")
	data := filepath.Join(b.root, "volumes/no/_data")
	if want := "error while mounting volume '" + data + "': failed to mount local volume: mount /no/such:" + data + ", flags: 0x1000, data: password=********: no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestPlugin(t *testing.T) {
	run := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(run, "drv.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	where := t.TempDir()
	var mu sync.Mutex
	vols, calls := map[string]bool{"theirs": true}, []string{}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // a test
			var in pluginRequest
			_ = json.NewDecoder(r.Body).Decode(&in)
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, strings.TrimSpace(filepath.Base(r.URL.Path)+" "+in.Name+" "+in.ID))
			out := map[string]any{}
			switch strings.TrimPrefix(r.URL.Path, "/VolumeDriver.") {
			case "/Plugin.Activate":
				out["Implements"] = []string{"VolumeDriver"}
			case "Capabilities":
				out["Capabilities"] = map[string]string{"Scope": "Global"}
			case "Create":
				if in.Opts["bad"] != "" {
					out["Err"] = "bad option"
				}
				vols[in.Name] = out["Err"] == nil
			case "Remove":
				delete(vols, in.Name)
			case "Mount":
				out["Mountpoint"] = where
			case "Get":
				if vols[in.Name] {
					out["Volume"] = pluginVolume{Name: in.Name, Mountpoint: where, Status: map[string]any{"hello": "world"}}
				} else {
					out["Err"] = "no such volume"
				}
			case "List":
				list := []pluginVolume{}
				for n, ok := range vols {
					if ok {
						list = append(list, pluginVolume{Name: n})
					}
				}
				out["Volumes"] = list
			}
			_ = json.NewEncoder(w).Encode(out)
		}))
	}()
	b := &box{t: t, root: t.TempDir(), dirs: plugin.Dirs{Sockets: []string{run}}}
	b.open()
	t.Cleanup(func() { _ = b.db.Close() })
	ctx := context.Background()
	b.expect("", "theirs")
	if _, err := b.Create(ctx, volume.CreateRequest{Name: "p1", Driver: "drv", DriverOpts: map[string]string{"bad": "1"}}); err == nil || err.Error() != "create p1: bad option" {
		t.Errorf("%v", err)
	}
	v, err := b.Create(ctx, volume.CreateRequest{Name: "p1", Driver: "drv"})
	if err != nil || v.Scope != "global" || v.Driver != "drv" {
		t.Fatalf("%+v %v", v, err)
	}
	if v, err = b.Inspect(ctx, "p1"); err != nil || v.Status["hello"] != "world" || v.Mountpoint != where {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := b.Create(ctx, volume.CreateRequest{Name: "p1", Driver: "local"}); !errs.Is(err, errs.Conflict) ||
		err.Error() != "create p1: driver 'drv' already has volume 'p1': volume name must be unique" {
		t.Errorf("%v", err)
	}
	if path, err := b.Mount(ctx, "p1", "c1"); path != where || err != nil {
		t.Errorf("%s %v", path, err)
	}
	if err := b.Unmount(ctx, "p1", "c1"); err != nil {
		t.Error(err)
	}
	if err := b.Remove(ctx, "p1", false); err != nil {
		t.Error(err)
	}
	mu.Lock()
	if want := []string{"VolumeDriver.Mount p1 c1", "VolumeDriver.Unmount p1 c1", "VolumeDriver.Remove p1"}; !slices.Equal(calls[len(calls)-3:], want) {
		t.Errorf("%q", calls)
	}
	vols["theirs"] = false
	mu.Unlock()
	// What the plugin does not know any more may be made anew, by another driver.
	if v, err = b.Create(ctx, volume.CreateRequest{Name: "theirs", Driver: "local"}); err != nil || v.Driver != "local" {
		t.Errorf("%+v %v", v, err)
	}
}

// A list of 10,000 volumes is answered in milliseconds.
func BenchmarkList(b *testing.B) {
	x := newBox(b)
	for i := range 10000 {
		x.vols[fmt.Sprint("v", i)] = newVolume(Record{Name: fmt.Sprint("v", i), Driver: "local"})
	}
	for b.Loop() {
		if _, err := x.List(context.Background(), nil); err != nil {
			b.Fatal(err)
		}
	}
}
