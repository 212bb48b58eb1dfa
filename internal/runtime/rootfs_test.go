package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openDir(t *testing.T, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// hostile is a root filesystem full of links that want out.
func hostile(t *testing.T) (outside string, root string, fd int) {
	t.Helper()
	outside = t.TempDir()
	root = filepath.Join(outside, "a", "root")
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"abs": "/", "up": "../..", "upfile": "../../canary", "host": outside, "chain": "chain2", "chain2": "up/../../etc",
		"loop": "loop2", "loop2": "loop", "self": "self", "magic": "/proc/self/root", "dangling": "/new/place", "dot": ".", "etc/back": "../etc/../..",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/plain", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return outside, root, openDir(t, root)
}

// names lists everything below dir but what is below except.
func names(t *testing.T, dir, except string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == except {
			return filepath.SkipDir
		}
		out = append(out, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMakeInRoot(t *testing.T) {
	cases := []struct {
		path string
		file bool
		want string // below the root; "" is an error
	}{
		{"/a/b/c", false, "/a/b/c"},
		{"/a/f", true, "/a/f"},
		{"abs/x/y", false, "/x/y"},
		{"/up/up/x", false, "/x"},
		{"/host/x", false, "OUTSIDE/x"}, // the same names, below the root
		{"/upfile", true, "/canary"},
		{"/chain/x", true, "/etc/x"},
		{"/etc/back/etc/passwd", true, "/etc/passwd"},
		{"/dangling/deep", false, "/new/place/deep"},
		{"/dangling", true, "/new/place"},
		{"/../../../x", false, "/x"},
		{"/a/../../b", false, "/b"},
		{"/dot/dot/z", false, "/z"},
		{"/magic/etc", false, "/proc/self/root/etc"},
		{"/loop/x", false, ""},
		{"/self", false, ""},
		{"/plain/x", false, ""},
	}
	for _, c := range cases {
		t.Run(c.path, func(t *testing.T) {
			outside, root, fd := hostile(t)
			before := names(t, outside, root)
			got, err := makeInRoot(fd, c.path, c.file, Owner{})
			if err == nil {
				defer unix.Close(got)
			}
			if after := names(t, outside, root); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Fatalf("something was made outside of the root: %v", after)
			}
			if c.want == "" {
				if err == nil {
					t.Fatal("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			if len(want) > 7 && want[:7] == "OUTSIDE" {
				want = outside + want[7:]
			}
			var a, b unix.Stat_t
			if err := unix.Fstat(got, &a); err != nil {
				t.Fatal(err)
			}
			if err := unix.Lstat(root+want, &b); err != nil {
				t.Fatal(err)
			}
			if a.Ino != b.Ino || a.Dev != b.Dev || (a.Mode&unix.S_IFMT == unix.S_IFREG) != c.file {
				t.Errorf("inode %d, mode %o; %s is %d", a.Ino, a.Mode, want, b.Ino)
			}
		})
	}
}

// A directory is swapped for a link to the outside while mount points are made.
func TestMakeInRootRace(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	if err := os.MkdirAll(root+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(outside+"/target", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside+"/target", root+"/l"); err != nil {
		t.Fatal(err)
	}
	fd := openDir(t, root)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(fd, "d", fd, "l", unix.RENAME_EXCHANGE)
			}
		}
	}()
	for i := range 3000 {
		if got, err := makeInRoot(fd, fmt.Sprintf("/d/x%d/y", i), i%2 == 0, Owner{}); err == nil {
			_ = unix.Close(got)
		}
	}
	close(stop)
	wg.Wait()
	if e, err := os.ReadDir(outside + "/target"); err != nil || len(e) != 0 {
		t.Fatalf("made outside of the root: %v %v", e, err)
	}
}

func TestOpenInRoot(t *testing.T) {
	_, root, fd := hostile(t)
	for p, want := range map[string]string{"/abs": root, "up/up/up": root, "/etc/back": root, "..": root} {
		got, err := openInRoot(fd, p, unix.O_PATH)
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", got))
		_ = unix.Close(got)
		if link != want {
			t.Errorf("%s leads to %s, want %s", p, link, want)
		}
	}
	for p, want := range map[string]error{"/loop": unix.ELOOP, "/upfile": unix.ENOENT, "/host": unix.ENOENT, "/plain/x": unix.ENOTDIR} {
		if _, err := openInRoot(fd, p, unix.O_PATH); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", p, err, want)
		}
	}
}

func TestMakeNodeRefuses(t *testing.T) {
	fd := openDir(t, t.TempDir())
	for _, d := range []struct{ path, typ string }{{"/etc/x", "c"}, {"/dev/../etc/x", "c"}, {"/dev", "c"}, {"relative", "c"}, {"/dev/x", "q"}, {"/dev/x", ""}} {
		err := makeNode(fd, &specsDevice{Path: d.path, Type: d.typ})
		var se *StartError
		if !errors.As(err, &se) || se.Stage != StageDevice || se.Errno != unix.EINVAL {
			t.Errorf("%+v: %v", d, err)
		}
	}
}
