package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

func TestChoose(t *testing.T) {
	bad := Candidate{Names: []string{"overlay2", "overlay"}, Open: func(string) (Driver, error) { return nil, errors.New("no overlayfs") }}
	good := Candidate{Names: []string{"vfs", "copy"}, Open: func(string) (Driver, error) { return nil, nil }}
	for name, want := range map[string]string{"": "vfs", "copy": "vfs", "vfs": "vfs"} {
		s, err := Choose(name, "/x", bad, good)
		if err != nil || s.Name != want {
			t.Errorf("%q: %v %v", name, s, err)
		}
	}
	if _, err := Choose("overlay", "/x", bad, good); err == nil || err.Error() != `storage driver "overlay" cannot be used in /x: no overlayfs` {
		t.Error(err)
	}
	if _, err := Choose("zfs", "/x", bad, good); !errs.Is(err, errs.Invalid) || err.Error() != `unknown storage driver "zfs": it is one of overlay2, vfs` {
		t.Error(err)
	}
	if _, err := Choose("", "/x", bad); !errs.Is(err, errs.Unavailable) {
		t.Error(err)
	}
}

// The way for kernels without lowerdir+ gives the same tree, and leaves the
// host's mount table alone.
func TestAttachClassic(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"one", "two", "up", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "one", "f"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile("/proc/self/mountinfo")
	m := Mount{Lower: []string{filepath.Join(dir, "one"), filepath.Join(dir, "two")}, Upper: filepath.Join(dir, "up"), Work: filepath.Join(dir, "work")}
	fd, err := attachClassic(m)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f, err := unix.Openat(fd, "f", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(f)
	if _, err := os.Stat(filepath.Join(dir, "up", "f")); err != nil {
		t.Fatal("nothing was copied up:", err)
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(before) != string(after) {
		t.Fatal("the mount table changed")
	}
}
