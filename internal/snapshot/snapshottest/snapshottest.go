// Package snapshottest is the suite that every snapshot driver passes.
package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/snapshot"
)

// Run runs the suite. open is called with the same root again and again, as at
// restarts. It needs root.
func Run(t *testing.T, open func(root string) (snapshot.Driver, error)) {
	for name, fn := range map[string]func(*suite){
		"Stack": (*suite).stack, "Deletes": (*suite).deletes, "ReadOnly": (*suite).readOnly, "Errors": (*suite).errors,
		"Walk": (*suite).walk, "Usage": (*suite).usage, "Attributes": (*suite).attributes, "Deep": (*suite).deep, "Restart": (*suite).restart,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{t: t, root: filepath.Join(t.TempDir(), "driver"), open: open}
			s.restartDriver()
			fn(s)
		})
	}
}

type suite struct {
	t    *testing.T
	root string
	open func(string) (snapshot.Driver, error)
	d    snapshot.Driver
}

func (s *suite) restartDriver() {
	s.t.Helper()
	d, err := s.open(s.root)
	if err != nil {
		s.t.Fatal(err)
	}
	s.d = d
}

func (s *suite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// chain is a valid chain id made from a number.
func chain(n int) string { return fmt.Sprintf("sha256:%064x", n) }

// in calls fn with a path at which a snapshot's root can be reached.
func (s *suite) in(key string, readonly bool, fn func(dir string)) {
	s.t.Helper()
	m, err := s.d.Mounts(context.Background(), key)
	s.must(err)
	fd, err := snapshot.Attach(m, readonly)
	s.must(err)
	defer unix.Close(fd)
	fn(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func (s *suite) write(key string, files map[string]string) {
	s.t.Helper()
	s.in(key, false, func(dir string) {
		for name, body := range files {
			s.must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			s.must(os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644))
		}
	})
}

func (s *suite) files(key string) string {
	s.t.Helper()
	var list []string
	s.in(key, true, func(dir string) {
		s.must(fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				b, rerr := os.ReadFile(filepath.Join(dir, p))
				list, err = append(list, p+"="+string(b)), rerr
			}
			return err
		}))
	})
	slices.Sort(list)
	return strings.Join(list, " ")
}

func (s *suite) want(key, want string) {
	s.t.Helper()
	if got := s.files(key); got != want {
		s.t.Fatalf("%s holds %q, want %q", key, got, want)
	}
}

// layer makes a committed snapshot with files.
func (s *suite) layer(n, parent int, files map[string]string) {
	s.t.Helper()
	ctx, p := context.Background(), ""
	if parent > 0 {
		p = chain(parent)
	}
	key := fmt.Sprintf("build-%d", n)
	s.must(s.d.Prepare(ctx, key, p))
	s.write(key, files)
	s.must(s.d.Commit(ctx, chain(n), key))
}

func (s *suite) stack() {
	ctx := context.Background()
	s.layer(1, 0, map[string]string{"a": "1", "d/b": "1"})
	s.layer(2, 1, map[string]string{"a": "2", "d/c": "2"})
	s.must(s.d.Prepare(ctx, "one", chain(2)))
	s.must(s.d.Prepare(ctx, "two", chain(2)))
	s.write("one", map[string]string{"a": "one"})
	s.want("one", "a=one d/b=1 d/c=2")
	s.want("two", "a=2 d/b=1 d/c=2")
	s.want(chain(2), "a=2 d/b=1 d/c=2")
	s.want(chain(1), "a=1 d/b=1")
}

func (s *suite) deletes() {
	ctx := context.Background()
	s.layer(1, 0, map[string]string{"a": "1", "d/b": "1", "d/c": "1"})
	s.must(s.d.Prepare(ctx, "x", chain(1)))
	s.in("x", false, func(dir string) {
		s.must(os.Remove(dir + "/a"))
		s.must(os.RemoveAll(dir + "/d"))
		s.must(os.Mkdir(dir+"/d", 0o755))
		s.must(os.WriteFile(dir+"/d/new", []byte("n"), 0o600))
	})
	s.want("x", "d/new=n")
	s.must(s.d.Commit(ctx, chain(2), "x"))
	s.want(chain(2), "d/new=n")
	s.want(chain(1), "a=1 d/b=1 d/c=1")
}

func (s *suite) readOnly() {
	s.layer(1, 0, map[string]string{"a": "1"})
	s.must(s.d.Prepare(context.Background(), "x", chain(1)))
	s.in("x", true, func(dir string) {
		if err := os.WriteFile(dir+"/b", nil, 0o600); !errors.Is(err, unix.EROFS) {
			s.t.Fatal("a read-only root took a write:", err)
		}
	})
}

func (s *suite) errors() {
	ctx := context.Background()
	s.layer(1, 0, nil)
	s.must(s.d.Prepare(ctx, "x", ""))
	for what, c := range map[string]struct {
		err  error
		kind errs.Kind
	}{
		"a key in use":               {s.d.Prepare(ctx, "x", ""), errs.Conflict},
		"a missing parent":           {s.d.Prepare(ctx, "y", chain(9)), errs.NotFound},
		"a name in use":              {s.d.Commit(ctx, chain(1), "x"), errs.Conflict},
		"a missing key":              {s.d.Commit(ctx, chain(3), "nosuch"), errs.NotFound},
		"a key that leads elsewhere": {s.d.Prepare(ctx, "../x", ""), errs.Invalid},
		"an empty key":               {s.d.Remove(ctx, ""), errs.Invalid},
	} {
		if !errs.Is(c.err, c.kind) {
			s.t.Errorf("%s: %v, want %v", what, c.err, c.kind)
		}
	}
	if _, err := s.d.Mounts(ctx, "nosuch"); !errs.Is(err, errs.NotFound) {
		s.t.Error(err)
	}
	s.must(s.d.Remove(ctx, "nosuch"))
	s.must(s.d.Remove(ctx, chain(77)))
	s.want("x", "")
}

func (s *suite) walk() {
	ctx := context.Background()
	s.layer(1, 0, map[string]string{"a": "1"})
	s.must(s.d.Prepare(ctx, "x", chain(1)))
	list := func() string {
		var l []string
		s.must(s.d.Walk(ctx, func(i snapshot.Info) error {
			l = append(l, fmt.Sprintf("%s<%s:%v", i.Key, i.Parent, i.Committed))
			return nil
		}))
		slices.Sort(l)
		return strings.Join(l, " ")
	}
	if got, want := list(), chain(1)+"<:true x<"+chain(1)+":false"; got != want {
		s.t.Fatalf("%q, want %q", got, want)
	}
	s.must(s.d.Remove(ctx, "x"))
	s.must(s.d.Remove(ctx, chain(1)))
	if got := list(); got != "" {
		s.t.Fatal(got)
	}
}

func (s *suite) usage() {
	ctx := context.Background()
	s.layer(1, 0, map[string]string{"a": "12345"})
	s.must(s.d.Prepare(ctx, "x", chain(1)))
	s.write("x", map[string]string{"b": "123"})
	for key, want := range map[string]int64{chain(1): 5, "x": 3} {
		if got, err := s.d.Usage(ctx, key); err != nil || got != want {
			s.t.Errorf("%s: %d %v, want %d", key, got, err, want)
		}
	}
}

// attributes of the root itself come from the parent.
func (s *suite) attributes() {
	ctx := context.Background()
	s.must(s.d.Prepare(ctx, "b", ""))
	named := true // tmpfs knows no user attributes before Linux 6.6
	s.in("b", false, func(dir string) {
		s.must(os.WriteFile(dir+"/f", nil, 0o640))
		s.must(os.Link(dir+"/f", dir+"/g"))
		s.must(os.Chown(dir+"/f", 5, 6))
		if err := unix.Setxattr(dir+"/f", "user.k", []byte("v"), 0); errors.Is(err, unix.EOPNOTSUPP) {
			named = false
		} else {
			s.must(err)
		}
		s.must(os.Chown(dir, 7, 8))
		s.must(os.Chmod(dir, 0o750))
	})
	s.must(s.d.Commit(ctx, chain(1), "b"))
	s.must(s.d.Prepare(ctx, "x", chain(1)))
	s.in("x", true, func(dir string) {
		var root, f, g unix.Stat_t
		s.must(unix.Stat(dir+"/.", &root))
		s.must(unix.Stat(dir+"/f", &f))
		s.must(unix.Stat(dir+"/g", &g))
		if root.Uid != 7 || root.Gid != 8 || root.Mode&0o7777 != 0o750 || f.Ino != g.Ino || f.Uid != 5 || f.Gid != 6 || f.Mode&0o777 != 0o640 {
			s.t.Errorf("root %+v\nfile %+v", root, f)
		}
		b := make([]byte, 8)
		if n, err := unix.Getxattr(dir+"/f", "user.k", b); named && (err != nil || string(b[:n]) != "v") {
			s.t.Error("attribute lost:", err)
		}
	})
}

func (s *suite) deep() {
	const layers = 70
	for i := 1; i <= layers; i++ {
		s.layer(i, i-1, map[string]string{fmt.Sprintf("f%03d", i): ""})
	}
	s.must(s.d.Prepare(context.Background(), "x", chain(layers)))
	if got := len(strings.Fields(s.files("x"))); got != layers {
		s.t.Fatal(got, "files, want", layers)
	}
}

func (s *suite) restart() {
	ctx := context.Background()
	s.layer(1, 0, map[string]string{"a": "1"})
	s.must(s.d.Prepare(ctx, "x", chain(1)))
	s.write("x", map[string]string{"b": "2"})
	// What a crash leaves: a tree half removed.
	s.must(os.MkdirAll(filepath.Join(s.root, "trash", "left", "over"), 0o755))
	s.restartDriver()
	s.want("x", "a=1 b=2")
	if e, err := os.ReadDir(filepath.Join(s.root, "trash")); err != nil || len(e) != 0 {
		s.t.Fatal("trash was not emptied:", e, err)
	}
}
