package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// e is an entry of a test's tar: a directory when name ends in a slash.
type e struct {
	name, body, link string
	kind             byte
	mode             int64
	uid              int
	pax              map[string]string
}

var when = time.Unix(1_600_000_000, 123456789)

func makeTar(t testing.TB, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, x := range entries {
		h := &tar.Header{
			Name: x.name, Linkname: x.link, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(x.body)),
			ModTime: when, Uid: x.uid, Format: tar.FormatPAX, PAXRecords: x.pax, Devmajor: 1, Devminor: 3,
		}
		if strings.HasSuffix(x.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if x.kind != 0 {
			h.Typeflag = x.kind
		}
		if x.mode != 0 {
			h.Mode = x.mode
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, x.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// jail is a directory to unpack into, beside a canary that nothing may touch.
type jail struct {
	t    testing.TB
	dir  string
	root string
	fd   int
}

func newJail(t testing.TB) *jail {
	t.Helper()
	j := &jail{t: t, dir: t.TempDir()}
	j.root = filepath.Join(j.dir, "root")
	for _, d := range []string{"root", "outside"} {
		if err := os.Mkdir(filepath.Join(j.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(j.dir, "outside", "canary"), []byte("alive"), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	if j.fd, err = OpenRoot(j.root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(j.fd) })
	return j
}

func (j *jail) unpack(raw []byte, o UnpackOptions) error {
	j.t.Helper()
	_, err := Unpack(context.Background(), bytes.NewReader(raw), j.fd, o)
	j.check()
	return err
}

// check fails when anything outside of the root changed.
func (j *jail) check() {
	j.t.Helper()
	out, err := os.ReadDir(j.dir)
	if err != nil || len(out) != 2 {
		j.t.Fatal("something was made outside of the root:", out, err)
	}
	in, err := os.ReadDir(filepath.Join(j.dir, "outside"))
	if err != nil || len(in) != 1 {
		j.t.Fatal("something was made outside of the root:", in, err)
	}
	var st unix.Stat_t
	b, err := os.ReadFile(filepath.Join(j.dir, "outside", "canary"))
	if err != nil || string(b) != "alive" || unix.Stat(filepath.Join(j.dir, "outside", "canary"), &st) != nil || st.Nlink != 1 || st.Mode&0o777 != 0o644 {
		j.t.Fatalf("the canary was touched: %q %v %+v", b, err, st)
	}
}

// tree lists what is below the root.
func (j *jail) tree() string {
	j.t.Helper()
	var l []string
	err := filepath.WalkDir(j.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == j.root {
			return err
		}
		rel, _ := filepath.Rel(j.root, p)
		switch {
		case d.IsDir():
			rel += "/"
			fd, oerr := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if oerr == nil && isOpaque(fd) {
				rel += "!"
			}
			_ = unix.Close(fd)
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			rel += "->" + to
		case d.Type().IsRegular():
			b, rerr := os.ReadFile(p)
			if rerr != nil {
				return rerr
			}
			rel += "=" + string(b)
		default:
			var st unix.Stat_t
			_ = unix.Lstat(p, &st)
			if isWhiteout(&st) {
				rel += "(gone)"
			} else {
				rel += "(special)"
			}
		}
		l = append(l, rel)
		return nil
	})
	if err != nil {
		j.t.Fatal(err)
	}
	slices.Sort(l)
	return strings.Join(l, " ")
}

// TestHostile unpacks what has broken others. Each must fail or stay inside.
func TestHostile(t *testing.T) {
	for name, c := range map[string]struct {
		tar  []e
		fail bool
		want string // the tree, where it is fixed
	}{
		"dot dot":                 {[]e{{name: "../outside/canary", body: "x"}}, true, ""},
		"dot dot deep":            {[]e{{name: "a/../../outside/canary", body: "x"}}, true, ""},
		"dot dot alone":           {[]e{{name: "..", kind: tar.TypeDir}}, true, ""},
		"absolute":                {[]e{{name: "/outside/canary", body: "x"}}, false, "outside/ outside/canary=x"},
		"hard link out":           {[]e{{name: "x", link: "../outside/canary", kind: tar.TypeLink}}, true, ""},
		"hard link absolute":      {[]e{{name: "x", link: "/outside/canary", kind: tar.TypeLink}}, true, ""},
		"hard link to itself":     {[]e{{name: "x", body: "1"}, {name: "x", link: "x", kind: tar.TypeLink}}, true, ""},
		"hard link to the root":   {[]e{{name: "x", link: ".", kind: tar.TypeLink}}, true, ""},
		"link through link":       {[]e{{name: "l", link: "../outside", kind: tar.TypeSymlink}, {name: "x", link: "l/canary", kind: tar.TypeLink}}, true, ""},
		"write through link":      {[]e{{name: "l", link: "../outside", kind: tar.TypeSymlink}, {name: "l/canary", body: "x"}}, true, ""},
		"write through absolute":  {[]e{{name: "l", link: "/outside", kind: tar.TypeSymlink}, {name: "l/canary", body: "x"}}, true, ""},
		"write through inside":    {[]e{{name: "d/"}, {name: "l", link: "/d", kind: tar.TypeSymlink}, {name: "l/f", body: "x"}}, false, "d/ d/f=x l->/d"},
		"write through file link": {[]e{{name: "l", link: "../outside/canary", kind: tar.TypeSymlink}, {name: "l", body: "x"}}, false, "l=x"},
		"directory over link":     {[]e{{name: "l", link: "../outside", kind: tar.TypeSymlink}, {name: "l/"}, {name: "l/canary", body: "x"}}, false, "l/ l/canary=x"},
		"mode through link":       {[]e{{name: "d/"}, {name: "d/", mode: 0o777}, {name: "d", link: "../outside", kind: tar.TypeSymlink}}, false, "d->../outside"},
		"link loop":               {[]e{{name: "a", link: "b", kind: tar.TypeSymlink}, {name: "b", link: "a", kind: tar.TypeSymlink}, {name: "a/f", body: "x"}}, true, ""},
		"proc root":               {[]e{{name: "p", link: "/proc/self/root", kind: tar.TypeSymlink}, {name: "p/f", body: "x"}}, true, ""},
		"whiteout of dot dot":     {[]e{{name: ".wh..."}}, true, ""},
		"whiteout of dot":         {[]e{{name: ".wh.."}}, true, ""},
		"whiteout of nothing":     {[]e{{name: ".wh."}}, true, ""},
		"whiteout through link":   {[]e{{name: "l", link: "../outside", kind: tar.TypeSymlink}, {name: "l/.wh.canary"}}, true, ""},
		"opaque through link":     {[]e{{name: "l", link: "../outside", kind: tar.TypeSymlink}, {name: "l/.wh..wh..opq"}}, true, ""},
		"overlay attribute":       {[]e{{name: "d/", pax: map[string]string{paxXattr + opaqueXattr: "y"}}}, false, "d/"},
		"negative owner":          {[]e{{name: "x", uid: -1}}, true, ""},
		"huge owner":              {[]e{{name: "x", uid: 1 << 32}}, true, ""},
		"unknown type":            {[]e{{name: "x", kind: 'Z'}}, true, ""},
		"too deep":                {[]e{{name: strings.Repeat("a/", maxDepth+2) + "x"}}, true, ""},
		"file as directory":       {[]e{{name: "f", body: "1"}, {name: "f/g", body: "x"}}, true, ""},
		"device inside":           {[]e{{name: "null", kind: tar.TypeChar}}, false, "null(special)"},
		"swap under cached parent": {[]e{
			{name: "d/"}, {name: "d/one", body: "1"}, {name: "d", link: "../outside", kind: tar.TypeSymlink}, {name: "d/canary", body: "x"},
		}, true, ""},
		"swap of a link's target": {[]e{
			{name: "a/"},
			{name: "b/"},
			{name: "l", link: "a", kind: tar.TypeSymlink},
			{name: "l/f", body: "1"},
			{name: "l", link: "b", kind: tar.TypeSymlink},
			{name: "l/f", body: "2"},
		}, false, "a/ a/f=1 b/ b/f=2 l->b"},
		"huge name":        {[]e{{name: strings.Repeat("n", 70_000), pax: map[string]string{"comment": "x"}}}, true, ""},
		"huge link":        {[]e{{name: "l", link: strings.Repeat("n/", 35_000), kind: tar.TypeSymlink}}, true, ""},
		"the same twice":   {[]e{{name: "f", body: "1"}, {name: "./f", body: "2"}, {name: "/f", body: "3"}}, false, "f=3"},
		"file over a pipe": {[]e{{name: "f", kind: tar.TypeFifo}, {name: "f", body: "x"}}, false, "f=x"},
		"below a pipe":     {[]e{{name: "f", kind: tar.TypeFifo}, {name: "f/g", body: "x"}}, true, ""},
		"opaque dot dot":   {[]e{{name: "../.wh..wh..opq"}}, true, ""},
		"opaque of a file": {[]e{{name: "f", body: "x"}, {name: "f/.wh..wh..opq"}}, true, ""},
		"truncated":        {nil, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []Whiteouts{Overlay, Delete} {
				j := newJail(t)
				raw := makeTar(t, c.tar...)
				if name == "truncated" {
					raw = makeTar(t, e{name: "f", body: strings.Repeat("x", 5000)})[:2000]
				}
				err := j.unpack(raw, UnpackOptions{Whiteouts: mode})
				if c.fail != (err != nil) {
					t.Fatalf("error %v, want one: %v; tree %s", err, c.fail, j.tree())
				}
				if c.want != "" && j.tree() != c.want {
					t.Fatalf("tree %q, want %q", j.tree(), c.want)
				}
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	lower := []e{{name: "a", body: "1"}, {name: "d/"}, {name: "d/x", body: "1"}, {name: "d/y", body: "1"}, {name: "k/"}, {name: "k/z", body: "1"}}
	for name, c := range map[string]struct {
		upper            []e
		overlay, deleted string
	}{
		"file":                {[]e{{name: ".wh.a"}}, "a(gone)", "d/ d/x=1 d/y=1 k/ k/z=1"},
		"missing":             {[]e{{name: ".wh.nosuch"}}, "nosuch(gone)", "a=1 d/ d/x=1 d/y=1 k/ k/z=1"},
		"opaque":              {[]e{{name: "d/"}, {name: "d/n", body: "2"}, {name: "d/.wh..wh..opq"}}, "d/! d/n=2", "a=1 d/ d/n=2 k/ k/z=1"},
		"opaque first":        {[]e{{name: "d/"}, {name: "d/.wh..wh..opq"}, {name: "d/n", body: "2"}}, "d/! d/n=2", "a=1 d/ d/n=2 k/ k/z=1"},
		"remade":              {[]e{{name: ".wh.d"}, {name: "d/"}, {name: "d/n", body: "2"}}, "d/! d/n=2", "a=1 d/ d/n=2 k/ k/z=1"},
		"remade, mark last":   {[]e{{name: "d/"}, {name: "d/n", body: "2"}, {name: ".wh.d"}}, "d/! d/n=2", "a=1 d/ d/n=2 k/ k/z=1"},
		"same layer's file":   {[]e{{name: "a", body: "2"}, {name: ".wh.a"}}, "a=2", "a=2 d/ d/x=1 d/y=1 k/ k/z=1"},
		"mark, then file":     {[]e{{name: ".wh.a"}, {name: "a", body: "2"}}, "a=2", "a=2 d/ d/x=1 d/y=1 k/ k/z=1"},
		"aufs":                {[]e{{name: ".wh..wh.plnk/"}, {name: ".wh..wh.aufs", body: "x"}}, "", "a=1 d/ d/x=1 d/y=1 k/ k/z=1"},
		"whole tree":          {[]e{{name: ".wh..wh..opq"}, {name: "only", body: "2"}}, "only=2", "only=2"},
		"directory with mark": {[]e{{name: "k/.wh.z"}}, "k/ k/z(gone)", "a=1 d/ d/x=1 d/y=1 k/"},
	} {
		t.Run(name, func(t *testing.T) {
			o, d := newJail(t), newJail(t)
			if err := o.unpack(makeTar(t, c.upper...), UnpackOptions{Whiteouts: Overlay}); err != nil {
				t.Fatal(err)
			}
			if got := o.tree(); got != c.overlay {
				t.Errorf("overlay: %q, want %q", got, c.overlay)
			}
			if err := d.unpack(makeTar(t, lower...), UnpackOptions{Whiteouts: Delete}); err != nil {
				t.Fatal(err)
			}
			if err := d.unpack(makeTar(t, c.upper...), UnpackOptions{Whiteouts: Delete}); err != nil {
				t.Fatal(err)
			}
			if got := d.tree(); got != c.deleted {
				t.Errorf("delete: %q, want %q", got, c.deleted)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	j := newJail(t)
	caps := string([]byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	err := j.unpack(makeTar(t,
		e{name: "./", kind: tar.TypeDir, mode: 0o711, uid: 9},
		e{name: "suid", body: "x", mode: 0o4755, uid: 5, pax: map[string]string{paxXattr + "security.capability": caps, paxXattr + "user.k": "v"}},
		e{name: "sgid/", mode: 0o2777},
		e{name: "sgid/f", body: "x", mode: 0o666},
		e{name: "link", link: "suid", kind: tar.TypeSymlink, uid: 6},
		e{name: "hard", link: "suid", kind: tar.TypeLink},
	), UnpackOptions{Whiteouts: Overlay})
	if err != nil {
		t.Fatal(err)
	}
	stat := func(n string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(j.root, n), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := stat("."); st.Mode&0o7777 != 0o711 || st.Uid != 9 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("root: %+v", st)
	}
	if st := stat("suid"); st.Mode&0o7777 != 0o4755 || st.Uid != 5 || st.Nlink != 2 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("suid: %+v", st)
	}
	if st := stat("sgid"); st.Mode&0o7777 != 0o2777 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("sgid: %+v", st)
	}
	if st := stat("sgid/f"); st.Mode&0o7777 != 0o666 || st.Gid != 0 {
		t.Errorf("sgid/f: %+v", st)
	}
	if st := stat("link"); st.Uid != 6 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("link: %+v", st)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(j.root, "suid"), "security.capability", buf); err != nil || string(buf[:n]) != caps {
		t.Error("capabilities:", buf[:max(n, 0)], err)
	}
	// A tmpfs before Linux 6.6 has no attributes of this kind; they are left out there.
	if n, err := unix.Lgetxattr(filepath.Join(j.root, "hard"), "user.k", buf); !errors.Is(err, unix.ENOTSUP) && (err != nil || string(buf[:n]) != "v") {
		t.Error("user.k:", err)
	}
}

// A directory that a layer implies looks as it does below.
func TestImpliedParent(t *testing.T) {
	low, up := newJail(t), newJail(t)
	if err := low.unpack(makeTar(t, e{name: "var/"}, e{name: "var/tmp/", mode: 0o1777, uid: 3}), UnpackOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	if err := up.unpack(makeTar(t, e{name: "var/tmp/new/f", body: "x"}), UnpackOptions{Whiteouts: Overlay, Lower: []string{low.root}}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(up.root, "var/tmp"), &st); err != nil || st.Mode&0o7777 != 0o1777 || st.Uid != 3 || st.Mtim.Nano() != when.UnixNano() {
		t.Fatalf("%+v %v", st, err)
	}
	if err := unix.Stat(filepath.Join(up.root, "var/tmp/new"), &st); err != nil || st.Mode&0o7777 != 0o755 || st.Uid != 0 {
		t.Fatalf("%+v %v", st, err)
	}
}

func TestNoOverwriteDirNonDir(t *testing.T) {
	j := newJail(t)
	if err := j.unpack(makeTar(t, e{name: "d/"}, e{name: "f", body: "1"}), UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	o := UnpackOptions{NoOverwriteDirNonDir: true}
	if err := j.unpack(makeTar(t, e{name: "d", body: "x"}), o); err == nil || err.Error() != `cannot overwrite directory "/d" with non-directory "d"` {
		t.Error(err)
	}
	if err := j.unpack(makeTar(t, e{name: "f/"}), o); err == nil || err.Error() != `cannot overwrite non-directory "/f" with directory "f"` {
		t.Error(err)
	}
}

func TestPrefixStaysInRoot(t *testing.T) {
	j := newJail(t)
	if err := os.Symlink("../../outside", filepath.Join(j.root, "way-out")); err != nil {
		t.Fatal(err)
	}
	if err := j.unpack(makeTar(t, e{name: "canary", body: "x"}), UnpackOptions{Prefix: "/way-out"}); err == nil {
		t.Error("a prefix that leads out was taken: ", j.tree())
	}
	if err := os.Mkdir(filepath.Join(j.root, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := j.unpack(makeTar(t, e{name: "f", body: "x"}), UnpackOptions{Prefix: "in"}); err != nil || !strings.Contains(j.tree(), "in/f=x") {
		t.Error(err, j.tree())
	}
}

func TestBounds(t *testing.T) {
	j := newJail(t)
	if err := j.unpack(makeTar(t, e{name: "a"}, e{name: "b"}, e{name: "c"}), UnpackOptions{MaxEntries: 2}); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if err := j.unpack(makeTar(t, e{name: "a", body: "12345"}), UnpackOptions{MaxBytes: 4}); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(makeTar(t, e{name: "x"})), j.fd, UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// roundTrip unpacks raw with a skeleton and checks that the tar comes back.
func roundTrip(t testing.TB, raw []byte, mode Whiteouts) {
	t.Helper()
	j := newJail(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "skeleton"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sk, err := NewSkeletonWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	err = j.unpack(raw, UnpackOptions{Whiteouts: mode, Skeleton: sk})
	if cerr := sk.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil {
		return // a tar that is refused need not come back
	}
	var out bytes.Buffer
	if err := Reassemble(context.Background(), &out, j.fd, f); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), raw) {
		t.Fatalf("%d bytes came back as %d others", len(raw), out.Len())
	}
}

func oddTars(t testing.TB) map[string][]byte {
	long := strings.Repeat("n", 200)
	plain := makeTar(t, e{name: "a", body: "1"})
	return map[string][]byte{
		"empty": make([]byte, 1024), "nothing": {}, "one block": make([]byte, 512),
		"trailing":      append(slices.Clone(plain), strings.Repeat("junk", 999)...),
		"no end":        plain[:len(plain)-1024],
		"twice":         makeTar(t, e{name: "a", body: "11"}, e{name: "a", body: "2"}, e{name: "./a", body: "333"}),
		"twice empty":   makeTar(t, e{name: "a", body: "11"}, e{name: "a"}, e{name: "a", body: "2"}),
		"hard replaced": makeTar(t, e{name: "a", body: "11"}, e{name: "b", link: "a", kind: tar.TypeLink}, e{name: "b", body: "22"}, e{name: "a", body: "33"}),
		"tree replaced": makeTar(t, e{name: "d/"}, e{name: "d/e/"}, e{name: "d/e/f", body: "1"}, e{name: "d", body: "22"}, e{name: "d/"}, e{name: "d/e/"}, e{name: "d/e/f", body: "3"}),
		"through link":  makeTar(t, e{name: "d/"}, e{name: "d/f", body: "1"}, e{name: "l", link: "d", kind: tar.TypeSymlink}, e{name: "l/f", body: "2"}, e{name: "l/g", body: "3"}, e{name: "d/g", body: "4"}),
		"long":          makeTar(t, e{name: long, body: "x"}, e{name: "l", link: long, kind: tar.TypeSymlink}),
		"whiteouts":     makeTar(t, e{name: "d/"}, e{name: "d/.wh.x"}, e{name: "d/.wh..wh..opq"}, e{name: ".wh.y", body: "with content"}),
		"sparse":        sparseTar(t),
	}
}

// sparseTar is a PAX 1.0 sparse file: data at 8192, 20000 bytes in all.
func sparseTar(t testing.TB) []byte {
	var b bytes.Buffer
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "holes") + record("GNU.sparse.realsize", "20000")
	head := func(name string, kind byte, size int) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x00")
		copy(h[108:], "0000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00", size))
		copy(h[136:], "00000000000\x00        ")
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return h
	}
	pad := func(s string) []byte { return append([]byte(s), make([]byte, (512-len(s)%512)%512)...) }
	b.Write(head("PaxHeaders/holes", 'x', len(pax)))
	b.Write(pad(pax))
	m := pad("1\n8192\n512\n")
	b.Write(head("GNUSparseFile.0/holes", '0', len(m)+512))
	b.Write(m)
	b.Write(bytes.Repeat([]byte("D"), 512))
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for name, raw := range oddTars(t) {
		t.Run(name, func(t *testing.T) {
			roundTrip(t, raw, Overlay)
			roundTrip(t, raw, Delete)
		})
	}
}

func TestSparse(t *testing.T) {
	j := newJail(t)
	if err := j.unpack(sparseTar(t), UnpackOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(j.root, "holes"))
	want := append(make([]byte, 8192), bytes.Repeat([]byte("D"), 512)...)
	if err != nil || len(b) != 20000 || !bytes.Equal(b[:8704], want) {
		t.Fatal(len(b), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(j.root, "holes"), &st); err != nil || st.Blocks*512 > 8192 {
		t.Fatal("the holes were filled:", st.Blocks)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, raw := range oddTars(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<20 || bytes.Contains(raw, []byte("sparse")) {
			return
		}
		roundTrip(t, raw, Overlay)
		roundTrip(t, raw, Delete)
	})
}

func TestDiffUpper(t *testing.T) {
	j := newJail(t)
	src := []e{{name: "d/"}, {name: "d/.wh..wh..opq"}, {name: "d/f", body: "1", pax: map[string]string{paxXattr + "user.k": "v"}}, {name: "d/.wh.x"}, {name: "h", link: "d/f", kind: tar.TypeLink}, {name: "s", link: "to", kind: tar.TypeSymlink}, {name: "p", kind: tar.TypeFifo}}
	if err := j.unpack(makeTar(t, src...), UnpackOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := DiffUpper(context.Background(), &out, j.fd, nil); err != nil {
		t.Fatal(err)
	}
	k := newJail(t)
	if err := k.unpack(out.Bytes(), UnpackOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	if j.tree() != k.tree() {
		t.Fatalf("%q came back as %q", j.tree(), k.tree())
	}
	var x, y unix.Stat_t
	_ = unix.Stat(filepath.Join(k.root, "d/f"), &x)
	_ = unix.Stat(filepath.Join(k.root, "h"), &y)
	if x.Ino != y.Ino || x.Mtim.Nano() != when.UnixNano() {
		t.Fatalf("%+v %+v", x, y)
	}
}

func TestDiffTreesAndChanges(t *testing.T) {
	ctx := context.Background()
	old, now := newJail(t), newJail(t)
	base := makeTar(t, e{name: "a", body: "1"}, e{name: "d/"}, e{name: "d/e/"}, e{name: "d/e/f", body: "1"}, e{name: "d/g", body: "1"}, e{name: "k/"}, e{name: "k/x", body: "1"})
	if err := old.unpack(base, UnpackOptions{Whiteouts: Delete}); err != nil {
		t.Fatal(err)
	}
	if err := CopyTree(ctx, old.fd, now.fd); err != nil {
		t.Fatal(err)
	}
	if c, err := ChangedTrees(ctx, old.fd, now.fd); err != nil || len(c) != 0 {
		t.Fatal("a copy differs:", c, err)
	}
	at := func(n string) string { return filepath.Join(now.root, n) }
	_ = os.WriteFile(at("d/e/f"), []byte("22"), 0o644)
	_ = os.Remove(at("a"))
	_ = os.RemoveAll(at("k"))
	_ = os.WriteFile(at("d/new"), []byte("n"), 0o644)
	c, err := ChangedTrees(ctx, old.fd, now.fd)
	if got, want := fmt.Sprint(c), "[{/a 2} {/d 0} {/d/e 0} {/d/e/f 0} {/d/new 1} {/k 2}]"; err != nil || got != want {
		t.Fatalf("%s %v, want %s", got, err, want)
	}
	var out bytes.Buffer
	if err := DiffTrees(ctx, &out, old.fd, now.fd); err != nil {
		t.Fatal(err)
	}
	again, upper := newJail(t), newJail(t)
	_ = again.unpack(base, UnpackOptions{Whiteouts: Delete})
	if err := again.unpack(out.Bytes(), UnpackOptions{Whiteouts: Delete}); err != nil || again.tree() != now.tree() {
		t.Fatalf("%v: %q, want %q", err, again.tree(), now.tree())
	}
	if err := upper.unpack(out.Bytes(), UnpackOptions{Whiteouts: Overlay}); err != nil {
		t.Fatal(err)
	}
	c, err = Changes(ctx, upper.fd, []string{old.root})
	if got, want := fmt.Sprint(c), "[{/a 2} {/d 0} {/d/e 0} {/d/e/f 0} {/d/new 1} {/k 2}]"; err != nil || got != want {
		t.Fatalf("%s %v, want %s", got, err, want)
	}
}

func TestTarOfOnePath(t *testing.T) {
	j := newJail(t)
	if err := j.unpack(makeTar(t, e{name: "d/"}, e{name: "d/f", body: "1"}, e{name: "d/skip", body: "1"}, e{name: "l", link: "/d", kind: tar.TypeSymlink}), UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	names := func(path string, o TarOptions) string {
		var out bytes.Buffer
		if err := Tar(context.Background(), &out, j.fd, path, o); err != nil {
			t.Fatal(err)
		}
		var l []string
		for tr := tar.NewReader(&out); ; {
			h, err := tr.Next()
			if err == io.EOF {
				return strings.Join(l, " ")
			}
			if err != nil {
				t.Fatal(err)
			}
			l = append(l, h.Name)
		}
	}
	skip := func(p string) bool { return strings.HasSuffix(p, "skip") }
	for _, c := range []struct{ path, name, want string }{
		{"/", "", "d/ d/f l"}, {"/", "root", "root/ root/d/ root/d/f root/l"}, {"/d", "x", "x/ x/f"}, {"/d", "", "f"}, {"/l/f", "f", "f"}, {"/l", "l", "l"},
	} {
		if got := names(c.path, TarOptions{Name: c.name, Skip: skip}); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	if err := Tar(context.Background(), io.Discard, j.fd, "/../outside", TarOptions{}); err == nil {
		t.Error("a path that leads out was taken")
	}
}

func TestStream(t *testing.T) {
	raw := makeTar(t, e{name: "f", body: strings.Repeat("0123456789", 100_000)})
	for _, kind := range []Compression{None, Gzip, Zstd} {
		s := NewStream(context.Background(), bytes.NewReader(compress(t, kind, raw)))
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, raw) || s.Digest() != digest.FromBytes(raw) || s.Compression() != kind || s.Size() != int64(len(raw)) {
			t.Errorf("%q: %v", kind, err)
		}
		_ = s.Close()
		cut := compress(t, kind, raw)
		if kind == None {
			continue
		}
		s = NewStream(context.Background(), bytes.NewReader(cut[:len(cut)-9]))
		if _, err := io.ReadAll(s); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q cut off: %v", kind, err)
		}
		_ = s.Close()
	}
}
