package snapshot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// userNS makes a user namespace with a mapping.
func userNS(t *testing.T, ids []syscall.SysProcIDMap) int {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	fd, err := unix.Open("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// The tree shows the host's ids, the disk has the container's, and the mount
// table of the host stays as it is.
func TestAttachMapped(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	for _, d := range []string{"one", "two", "snap/up", "snap/work", "plain"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"one/f", "two/g", "plain/p"} {
		if err := os.WriteFile(at(f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(at(f), 7, 8); err != nil {
			t.Fatal(err)
		}
	}
	ns := userNS(t, []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}, {ContainerID: 1<<32 - 2, HostID: 0, Size: 1}})
	before, _ := os.ReadFile("/proc/self/mountinfo")
	fd, err := AttachMapped(Mount{Lower: []string{at("one"), at("two")}, Upper: at("snap/up"), Work: at("snap/work")}, ns)
	if errors.Is(err, ErrNoIDMap) {
		return // layers are copied on this kernel: package shift
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	plain, err := AttachMapped(Mount{Path: at("plain")}, ns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	owner := func(fd int, name string) (uid, gid uint32) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		return st.Uid, st.Gid
	}
	for _, f := range []string{"f", "g"} {
		if uid, gid := owner(fd, f); uid != 100007 || gid != 100008 {
			t.Errorf("%s: %d:%d", f, uid, gid)
		}
	}
	if uid, _ := owner(plain, "p"); uid != 100007 {
		t.Errorf("p: %d", uid)
	}
	// A change of a file of a layer below, a new one, and a deletion.
	if err := unix.Fchownat(fd, "f", 100001, 100002, 0); err != nil {
		t.Error(err)
	}
	if err := unix.Mkdirat(fd, "new", 0o755); err != nil {
		t.Error(err)
	}
	if err := unix.Fchownat(fd, "new", 100000, 100000, 0); err != nil {
		t.Error(err)
	}
	if err := unix.Unlinkat(fd, "g", 0); err != nil {
		t.Error(err)
	}
	up, err := unix.Open(at("snap/up"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(up)
	if uid, gid := owner(up, "f"); uid != 1 || gid != 2 {
		t.Errorf("f on disk: %d:%d", uid, gid)
	}
	if uid, gid := owner(up, "new"); uid != 0 || gid != 0 {
		t.Errorf("new on disk: %d:%d", uid, gid)
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(before) != string(after) {
		t.Error("the mount table changed")
	}
	if _, err := AttachMapped(Mount{Lower: []string{at("none")}, Upper: at("snap/up"), Work: at("snap/work")}, ns); err == nil || !strings.Contains(err.Error(), at("none")) {
		t.Errorf("a layer that is not there: %v", err)
	}
}
