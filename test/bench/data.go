package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// makeBusybox makes a root filesystem around the host's static busybox.
func makeBusybox(dir string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return errors.New("this needs a static busybox: install busybox-static")
	}
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), path); err != nil {
		return err
	}
	for _, a := range []string{"sh", "true", "sleep", "cat", "echo", "head", "yes"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// tarTree writes a directory as a tar.
func tarTree(to, dir string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&(fs.ModeSocket|fs.ModeDevice) != 0 {
			return nil // device nodes are of no use to the measurement
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(path, dir+"/")
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			h.Uid, h.Gid, h.Uname, h.Gname = int(st.Uid), int(st.Gid), "", ""
		}
		if d.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(w, in)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	return err
}

// makeTree generates a root filesystem like a small distribution's: 8,000
// files, 145 MB as a tar, 85 MB gzipped.
func makeTree(dir string) error {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+random.IntN(9))
		for j := range words[i] {
			words[i][j] = byte(random.Uint32())
		}
	}
	for i := range 8000 {
		d := filepath.Join(dir, "usr", fmt.Sprintf("d%02d", i%40), fmt.Sprintf("e%d", i%7))
		if i < 280 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		// Most files are small, a few hold most of the bytes.
		size := 1000 + random.IntN(6000)
		if i%20 == 0 {
			size = 100_000 + random.IntN(350_000)
		}
		text := make([]byte, 0, size+16)
		for len(text) < size {
			text = append(text, words[random.IntN(len(words))]...)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%d", i)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// layers gives the same root filesystem again and again, each time with one
// more small file in front: so nothing need be removed between two samples.
// That matters on ext4, which for a minute or more looks at every inode that
// was deleted before it makes a new one.
type layers struct {
	dir         string
	tar, packed string // the tree, and the same gzipped
}

func newLayers(dir, tree string) (*layers, error) {
	l := &layers{dir: dir, tar: filepath.Join(dir, "layer.tar"), packed: filepath.Join(dir, "layer.gz")}
	if err := tarTree(l.tar, tree); err != nil {
		return nil, err
	}
	in, err := os.Open(l.tar)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return l, writeFile(l.packed, func(w io.Writer) error { return compress(w, in) })
}

// front is the start of a tar that holds one file only this number has.
func front(n int) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	text := fmt.Sprintln("number", n)
	err := w.WriteHeader(&tar.Header{Name: "number", Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err == nil {
		err = w.Flush() // not Close: the tree follows
	}
	return buf.Bytes(), err
}

// plain writes layer n as a tar.
func (l *layers) plain(n int) (string, error) {
	head, err := front(n)
	if err != nil {
		return "", err
	}
	to := filepath.Join(l.dir, fmt.Sprintf("plain%d.tar", n))
	return to, writeFile(to, func(w io.Writer) error { return join(w, head, l.tar) })
}

// archive writes layer n as a docker-archive, the layer gzipped, named
// bench:<n>. The layer is two gzip members, as the format allows.
func (l *layers) archive(n int) (string, error) {
	head, err := front(n)
	if err != nil {
		return "", err
	}
	var packed bytes.Buffer
	if err := compress(&packed, bytes.NewReader(head)); err != nil {
		return "", err
	}
	diff := sha256.New()
	if err := join(diff, head, l.tar); err != nil {
		return "", err
	}
	info, err := os.Stat(l.packed)
	if err != nil {
		return "", err
	}
	config, err := json.Marshal(object{
		"architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": object{"Cmd": []string{"/bin/sh"}},
		"rootfs":  object{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diff.Sum(nil))}},
		"history": []object{{"created": "2024-01-01T00:00:00Z"}},
	})
	if err != nil {
		return "", err
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{fmt.Sprintf("bench:%d", n)}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return "", err
	}
	to := filepath.Join(l.dir, fmt.Sprintf("archive%d.tar", n))
	return to, writeFile(to, func(f io.Writer) error {
		w := tar.NewWriter(f)
		for _, m := range []struct {
			name string
			text []byte
		}{{"config.json", config}, {"manifest.json", manifest}} {
			if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.text))}); err != nil {
				return err
			}
			if _, err := w.Write(m.text); err != nil {
				return err
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: "layer.tar", Mode: 0o644, Size: int64(packed.Len()) + info.Size()}); err != nil {
			return err
		}
		if err := join(w, packed.Bytes(), l.packed); err != nil {
			return err
		}
		return w.Close()
	})
}

// join writes bytes, then a file.
func join(w io.Writer, head []byte, file string) error {
	if _, err := w.Write(head); err != nil {
		return err
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}

func writeFile(to string, write func(io.Writer) error) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	if err := write(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func compress(to io.Writer, from io.Reader) error {
	z := gzip.NewWriter(to)
	if _, err := io.Copy(z, from); err != nil {
		return err
	}
	return z.Close()
}

// writeBundle writes the configuration of an OCI bundle that runs true, with
// the isolation that engines give by default, seccomp left out.
func writeBundle(dir, rootfs, cgroup string) error {
	caps := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW",
		"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT", "CAP_AUDIT_WRITE",
	}
	mount := func(to, kind string, options ...string) object {
		return object{"destination": to, "type": kind, "source": kind, "options": options}
	}
	raw, err := json.MarshalIndent(object{
		"ociVersion": "1.0.2", "hostname": "bench", "root": object{"path": rootfs},
		"process": object{
			"cwd": "/", "args": []string{"true"}, "env": []string{"PATH=/bin"}, "user": object{"uid": 0, "gid": 0},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"mounts": []object{
			mount("/proc", "proc", "nosuid", "noexec", "nodev"), mount("/dev", "tmpfs", "nosuid", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
			mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"), mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": object{
			"cgroupsPath":   cgroup,
			"namespaces":    []object{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}},
			"maskedPaths":   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600)
}
