package shift

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/snapshot"
)

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

// Layers are copied once, with every owner shifted and the marks of overlayfs kept.
func TestShift(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(at("layer/d"), 0o755))
	must(os.MkdirAll(at("active/up"), 0o755))
	must(os.MkdirAll(at("active/work"), 0o755))
	must(os.WriteFile(at("layer/f"), []byte("x"), 0o644))
	must(os.Lchown(at("layer/f"), 5, 6))
	must(unix.Chmod(at("layer/f"), 0o4755))
	must(os.Link(at("layer/f"), at("layer/g")))
	must(os.Symlink("f", at("layer/l")))
	must(os.WriteFile(at("layer/far"), nil, 0o644))
	must(os.Lchown(at("layer/far"), 70000, 0))
	must(unix.Mknod(at("layer/gone"), unix.S_IFCHR, 0))
	must(unix.Setxattr(at("layer/d"), "trusted.overlay.opaque", []byte("y"), 0))

	ids := &idmap.Mapping{UID: idmap.Map{{Outside: 100000, Size: 65536}}, GID: idmap.Map{{Outside: 200000, Size: 65536}}}
	l, err := Open(at("shifted"), ids)
	must(err)
	m := snapshot.Mount{Lower: []string{at("layer")}, Upper: at("active/up"), Work: at("active/work")}
	got, err := l.Shift(context.Background(), m)
	must(err)
	to := got.Lower[0]
	for name, want := range map[string][2]uint32{
		".": {100000, 200000}, "f": {100005, 200006}, "d": {100000, 200000}, "l": {100000, 200000}, "gone": {100000, 200000}, "far": {idmap.Overflow, 200000},
	} {
		if uid, gid := owner(t, filepath.Join(to, name)); uid != want[0] || gid != want[1] {
			t.Errorf("%s: %d:%d", name, uid, gid)
		}
	}
	if uid, gid := owner(t, m.Upper); uid != 100000 || gid != 200000 {
		t.Errorf("upper: %d:%d", uid, gid)
	}
	var a, b unix.Stat_t
	must(unix.Lstat(to+"/f", &a))
	must(unix.Lstat(to+"/g", &b))
	if a.Ino != b.Ino || a.Mode&0o7777 != 0o4755 {
		t.Errorf("links or mode are lost: %+v %+v", a, b)
	}
	var value [4]byte
	if n, err := unix.Lgetxattr(to+"/d", "trusted.overlay.opaque", value[:]); err != nil || string(value[:n]) != "y" {
		t.Errorf("the mark of an opaque directory is lost: %v", err)
	}
	again, err := l.Shift(context.Background(), m)
	if err != nil || again.Lower[0] != to {
		t.Errorf("copied again: %v %v", again, err)
	}
	if _, err := l.Shift(context.Background(), snapshot.Mount{Path: at("layer")}); !errs.Is(err, errs.NotImplemented) {
		t.Errorf("a plain directory: %v", err)
	}

	// What a crash leaves, and copies of layers that are gone, go at the next start.
	must(os.Mkdir(to+".new", 0o700))
	must(os.RemoveAll(at("layer")))
	_, err = Open(at("shifted"), ids)
	must(err)
	if left, _ := os.ReadDir(at("shifted")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
