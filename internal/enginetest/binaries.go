package enginetest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Root is the top directory of the module.
var Root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	return "."
})

var built = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("BERTH_BIN"); dir != "" {
		return dir, nil
	}
	bin := filepath.Join(Root(), "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	// Several test programs may come here at once.
	lock, err := os.OpenFile(filepath.Join(bin, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	cmd := exec.Command("make", "-s", "build")
	cmd.Dir = Root()
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return bin, cmd.Run()
})

// Binaries returns the directory of the programs: $BERTH_BIN, or bin/, which is
// built first.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatalf("make build: %v", err)
	}
	return dir
}

var busybox = sync.OnceValues(func() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	when := time.Unix(1700000000, 0)
	add := func(name string, mode int64, kind byte, link string, data []byte) {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: name, Mode: mode, Typeflag: kind, Linkname: link, Size: int64(len(data)), ModTime: when})
		}
		if err == nil {
			_, err = w.Write(data)
		}
	}
	for _, d := range []string{"bin/", "sbin/", "etc/", "home/", "home/berth/", "root/", "usr/", "usr/bin/", "var/", "dev/", "proc/", "sys/"} {
		add(d, 0o755, tar.TypeDir, "", nil)
	}
	add("tmp/", 0o1777, tar.TypeDir, "", nil)
	add("bin/busybox", 0o755, tar.TypeReg, "", program)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			add("bin/"+applet, 0o777, tar.TypeSymlink, "busybox", nil)
		}
	}
	add("etc/passwd", 0o644, tar.TypeReg, "", []byte("root:x:0:0:root:/root:/bin/sh\nberth:x:1000:1001:Berth:/home/berth:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	add("etc/group", 0o644, tar.TypeReg, "", []byte("root:x:0:\nberth:x:1001:\nextra:x:2000:berth\nmore:x:2001:berth,root\nnogroup:x:65534:\n"))
	if err == nil {
		err = w.Close()
	}
	return buf.Bytes(), err
})

// rootfs is the busybox root filesystem as a tar archive.
func rootfs(t testing.TB) io.Reader {
	t.Helper()
	b, err := busybox()
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	return bytes.NewReader(b)
}

// Rootfs returns the busybox root filesystem as a tar archive, for tests that
// build an odd image from it.
func Rootfs(t testing.TB) []byte {
	t.Helper()
	b, err := busybox()
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	return b
}
