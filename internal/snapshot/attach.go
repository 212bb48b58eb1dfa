package snapshot

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// maxOption is what fsconfig takes as a string, with its end.
const maxOption = 256

// Attach makes the root that m describes and returns it as a descriptor of a
// detached mount. Closing it unmounts, unless it was moved into a tree.
func Attach(m Mount, readonly bool) (int, error) {
	if readonly {
		m = m.ReadOnly()
	}
	switch {
	case m.Path != "":
		return attachDir(m.Path, readonly)
	case m.Upper == "" && len(m.Lower) == 1:
		return attachDir(m.Lower[0], true)
	case len(m.Lower) == 0:
		return -1, errs.New(errs.Internal, "a mount without layers")
	}
	attach := attachOverlay
	if !appendsLayers() {
		attach = attachNamed
	}
	fd, err := attach(m)
	if errors.Is(err, errOldKernel) {
		fd, err = attachClassic(m)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot mount overlay: %w", err)
	}
	return fd, nil
}

// attachDir clones a directory as a mount.
func attachDir(path string, readonly bool) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("cannot bind %s: %w", path, err)
	}
	if readonly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("cannot make %s read-only: %w", path, err)
		}
	}
	return fd, nil
}

// errOldKernel: no "lowerdir+" in the new mount API (before Linux 6.8), or none of it.
var errOldKernel = errors.New("kernel without lowerdir+")

// attachOverlay uses the new mount API: one call for each layer, so their number is
// bound by the kernel (500) and not by the length of an option.
func attachOverlay(m Mount) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS {
		return -1, errOldKernel
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	_ = unix.FsconfigSetString(fs, "source", "overlay")
	// A layer is read back from its upper directory (commit, diff, export), so
	// that must hold whole files and no redirections, whatever the kernel's default.
	for _, o := range [...]string{"index", "redirect_dir", "metacopy"} {
		_ = unix.FsconfigSetString(fs, o, "off") // a kernel that does not know it has it off
	}
	for _, l := range m.Lower {
		if err := setDir(fs, "lowerdir+", l); err != nil {
			return -1, fmt.Errorf("lower layer %s: %w", l, err)
		}
	}
	if m.Upper != "" {
		if err := setDir(fs, "upperdir", m.Upper); err != nil {
			return -1, fmt.Errorf("upper layer %s: %w", m.Upper, err)
		}
		if err := setDir(fs, "workdir", m.Work); err != nil {
			return -1, fmt.Errorf("work directory %s: %w", m.Work, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, describe(fs, err)
	}
	attr := 0
	if m.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
}

// appendsLayers reports whether overlayfs takes its layers one by one
// ("lowerdir+", since Linux 6.8). An older kernel takes the option without a
// word and fails only when the mount is made.
var appendsLayers = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 8)
})

// attachNamed uses the new mount API on a kernel that wants all layers in one
// option of at most 256 bytes: they are named by descriptor. More layers than
// fit are errOldKernel.
func attachNamed(m Mount) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS {
		return -1, errOldKernel
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	var open []int
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	// The kernel looks the names up when the mount is made: until then they must hold.
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", dir, err)
		}
		open = append(open, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	var lower []string
	for _, l := range m.Lower {
		n, err := name(l)
		if err != nil {
			return -1, err
		}
		lower = append(lower, n)
	}
	opts := [][2]string{{"source", "overlay"}, {"index", "off"}, {"redirect_dir", "off"}, {"metacopy", "off"}, {"lowerdir", strings.Join(lower, ":")}}
	if m.Upper != "" {
		up, err := name(m.Upper)
		if err != nil {
			return -1, err
		}
		work, err := name(m.Work)
		if err != nil {
			return -1, err
		}
		opts = append(opts, [2]string{"upperdir", up}, [2]string{"workdir", work})
	}
	for _, o := range opts {
		if len(o[1]) >= maxOption {
			return -1, errOldKernel
		}
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, describe(fs, err)
	}
	attr := 0
	if m.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
}

// setDir sets an option to a directory, by a short name when the path is too long.
func setDir(fs int, option, path string) error {
	if len(path) < maxOption {
		return unix.FsconfigSetString(fs, option, path)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigSetString(fs, option, fmt.Sprintf("/proc/self/fd/%d", fd))
}

// describe adds what the kernel wrote into the context's log to err.
func describe(fs int, err error) error {
	var buf [512]byte
	n, rerr := unix.Read(fs, buf[:])
	if rerr != nil || n == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[:n])))
}

// attachClassic uses mount(2) on a thread with a mount namespace of its own,
// and takes the mount out of it. Layers are named by descriptor: short names, so that
// many fit into the one page that the options may have.
func attachClassic(m Mount) (int, error) {
	var fd int
	var err error
	onOwnThread(func() { fd, err = classicMount(m) })
	return fd, err
}

// onOwnThread runs fn on a thread that ends with it, and that is not the
// process's first: /proc/self shows that one's namespaces.
func onOwnThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(fn) // on another one, since this is taken
			runtime.UnlockOSThread()
			return
		}
		fn() // and never unlocked
	}()
	<-done
}

func classicMount(m Mount) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, err
	}
	var names []string
	for _, l := range m.Lower {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("lower layer %s: %w", l, err)
		}
		defer unix.Close(fd)
		names = append(names, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	opts := "lowerdir=" + strings.Join(names, ":")
	flags := uintptr(0)
	if m.Upper != "" {
		opts += ",upperdir=" + escape(m.Upper) + ",workdir=" + escape(m.Work)
	} else {
		flags = unix.MS_RDONLY
	}
	if len(opts) >= os.Getpagesize() {
		return -1, errs.New(errs.Invalid, "too many layers for this kernel: %d", len(m.Lower))
	}
	// Any directory will do as the mount point: nobody else sees it.
	point := m.Lower[0]
	if err := unix.Mount("overlay", point, "overlay", flags, opts); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, point, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	_ = unix.Unmount(point, unix.MNT_DETACH)
	return fd, err
}

func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(path)
}
