package keeper

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/memory"
)

// The fixed places of the keeper's small mount namespace.
const (
	baseDir  = "/mnt"   // a container's root is stacked here before pivot_root
	emptyDir = "/empty" // read-only and empty, for masks
)

// Main is the program berth-keeper. It returns the exit status.
//
// With the one argument "hold" it is the placeholder of a cgroup instead, which
// ends when its stdin does.
func Main(args []string) int {
	if len(args) == 1 && args[0] == "hold" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return 0
	}
	fs := flag.NewFlagSet("berth-keeper", flag.ContinueOnError)
	var cfg Config
	fs.StringVar(&cfg.ExecRoot, "exec-root", "/run/berth", "directory of the control socket")
	fs.StringVar(&cfg.DataRoot, "data-root", "/var/lib/berth", "directory below which logs are written")
	fs.StringVar(&cfg.Parent, "cgroup-parent", "/berth", "cgroup below which containers get theirs")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serve(cfg); err != nil {
		cfg.Log.Error("the keeper ends", "error", err)
		return 1
	}
	return 0
}

func serve(cfg Config) error {
	memory.Tend()
	st, err := restore()
	if err != nil {
		return fmt.Errorf("cannot read the state of the keeper before: %w", err)
	}
	// Undumpable: no process in a container can look into this one.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	// Started from a descriptor, the process would be called by its number.
	name := append([]byte("berth-keeper"), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return err
	}
	var lock int
	if st != nil {
		lock = st.Lock
		unix.CloseOnExec(lock)
	} else if lock, err = lockDir(cfg); err != nil {
		return err
	}
	k, err := New(cfg)
	if err != nil {
		return err
	}
	k.lockFD = lock
	if st == nil {
		if err := k.rt.Host.Prime(); err != nil {
			return err
		}
		if err := smallRoot(cfg); err != nil {
			return fmt.Errorf("cannot make the keeper's mount namespace: %w", err)
		}
	}
	if st != nil {
		if err := k.resume(st); err != nil {
			return err
		}
	}
	l, err := k.listen(filepath.Join(cfg.ExecRoot, "keeper", "socket"), st)
	if err != nil {
		return err
	}
	return k.Serve(l)
}

const lockWait = 5 * time.Second

// lockDir makes this the only keeper of the exec root. The descriptor, and with
// it the lock, is kept when the program is replaced.
func lockDir(cfg Config) (int, error) {
	dir := filepath.Join(cfg.ExecRoot, "keeper")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return -1, err
	}
	fd, err := unix.Open(filepath.Join(dir, "lock"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	// One that was killed holds the lock until the kernel is done with it.
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("another keeper serves %s: %w", cfg.ExecRoot, err)
		}
	}
}

// smallRoot replaces the tree that this process sees by one of a few mounts:
// every container starts with a copy of it, so what is in it costs each start.
// The process must be in a mount namespace of its own, private to it.
func smallRoot(cfg Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root := filepath.Join(cfg.ExecRoot, "keeper", "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("berth", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return err
	}
	for _, m := range []struct {
		dir   string
		flags uintptr
	}{{"/proc", unix.MS_BIND}, {"/sys", unix.MS_BIND}, {"/sys/fs/cgroup", unix.MS_BIND | unix.MS_REC}, {"/dev", unix.MS_BIND}, {cfg.ExecRoot, unix.MS_BIND}, {cfg.DataRoot, unix.MS_BIND}} {
		if _, err := os.Stat(m.dir); err != nil {
			continue
		}
		if err := os.MkdirAll(root+m.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := unix.Mount(m.dir, root+m.dir, "", m.flags, ""); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	for _, d := range []string{baseDir, emptyDir} {
		if err := os.Mkdir(root+d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("berth", root+emptyDir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// Build identifies the program that runs: the Go build id in its first page.
func Build() string { return BuildOf("/proc/self/exe") }

// BuildOf identifies the program in a file, "" when it cannot be told.
func BuildOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 16<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	_, rest, ok := bytes.Cut(head[:n], []byte("\xff Go build ID: \""))
	if !ok { // ELF files keep it in a note: type 4, name "Go"
		_, rest, ok = bytes.Cut(head[:n], []byte("\x04\x00\x00\x00Go\x00\x00"))
		if !ok {
			return ""
		}
	}
	if i := bytes.IndexAny(rest, "\x00\""); i >= 0 {
		rest = rest[:i]
	}
	return string(rest)
}
