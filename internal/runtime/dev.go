package runtime

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/undo"
)

// DevTree is a /dev made ahead: detached mounts that wait for a container.
// Nothing of it is visible in any mount namespace until it is moved there.
type DevTree struct {
	Root int // tmpfs with the nodes
	Pts  int // devpts, -1 when the container has none of its own
	Shm  int // tmpfs for /dev/shm, -1 when the container has none of default size
	Null int // O_PATH of its null, checked to be char 1:3
}

// DefaultShmSize is what /dev/shm holds when nothing else is asked for, in bytes.
const DefaultShmSize = 64 << 20

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"pts/ptmx", "ptmx"},
}

// DefaultDevices are the nodes that every container has (OCI runtime
// specification, config-linux.md, Default Devices).
func DefaultDevices() []specs.LinuxDevice {
	mode := os.FileMode(0o666)
	node := func(name string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/" + name, Type: "c", Major: major, Minor: minor, FileMode: &mode}
	}
	return []specs.LinuxDevice{
		node("null", 1, 3), node("zero", 1, 5), node("full", 1, 7),
		node("random", 1, 8), node("urandom", 1, 9), node("tty", 5, 0),
	}
}

// Owner are the host's ids that own what is made for a container: those of its
// root, and that of its group of terminals. The zero value is the host's root.
type Owner struct{ UID, GID, TTY uint32 }

// NewDevTree makes a tree with the default nodes and extra ones.
func NewDevTree(extra []specs.LinuxDevice) (*DevTree, error) {
	return NewDevTreeFor(Owner{TTY: 5}, extra)
}

// NewDevTreeFor makes a tree that belongs to the root of a user namespace.
func NewDevTreeFor(o Owner, extra []specs.LinuxDevice) (*DevTree, error) {
	var u undo.Stack
	defer u.Run()
	mount := func(fs string, attr int, opts ...[2]string) (int, error) {
		fd, err := fsMount(fs, attr, opts...)
		if err == nil {
			u.Add(func() { _ = unix.Close(fd) })
		}
		return fd, err
	}
	root, err := mount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_STRICTATIME, [2]string{"mode", "755"}, [2]string{"size", "65536k"}, [2]string{"source", "tmpfs"})
	if err != nil {
		return nil, fmt.Errorf("cannot make /dev: %w", err)
	}
	pts, err := mount("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, [2]string{"ptmxmode", "0666"}, [2]string{"mode", "0620"}, [2]string{"gid", strconv.FormatUint(uint64(o.TTY), 10)}, [2]string{"source", "devpts"})
	if err != nil {
		return nil, fmt.Errorf("cannot make /dev/pts: %w", err)
	}
	shm, err := mount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, [2]string{"mode", "1777"}, [2]string{"size", fmt.Sprint(DefaultShmSize)}, [2]string{"source", "shm"})
	if err != nil {
		return nil, fmt.Errorf("cannot make /dev/shm: %w", err)
	}
	for _, d := range []string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(root, d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[0], root, l[1]); err != nil {
			return nil, err
		}
	}
	for _, d := range DefaultDevices() {
		if err := makeNode(root, &d); err != nil {
			return nil, err
		}
	}
	for i := range extra {
		if err := makeNode(root, &extra[i]); err != nil {
			return nil, err
		}
	}
	if o.UID != 0 || o.GID != 0 {
		if err := o.take(root, pts, shm); err != nil {
			return nil, err
		}
	}
	null, err := unix.Openat(root, "null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	u.Add(func() { _ = unix.Close(null) })
	var st unix.Stat_t
	if err := unix.Fstat(null, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return nil, fmt.Errorf("/dev/null is not the null device")
	}
	u.Release()
	return &DevTree{Root: root, Pts: pts, Shm: shm, Null: null}, nil
}

// take gives a tree to o. Extra devices keep their owners.
func (o Owner) take(root, pts, shm int) error {
	for _, fd := range []int{root, pts, shm} {
		if err := unix.Fchownat(fd, "", int(o.UID), int(o.GID), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("cannot give /dev to the container's root: %w", err)
		}
	}
	names := []string{"pts", "shm", "mqueue"}
	for _, l := range devLinks {
		names = append(names, l[1])
	}
	for _, d := range DefaultDevices() {
		names = append(names, path.Base(d.Path))
	}
	for _, n := range names {
		if err := unix.Fchownat(root, n, int(o.UID), int(o.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot give /dev/%s to the container's root: %w", n, err)
		}
	}
	_ = unix.Fchownat(pts, "ptmx", int(o.UID), int(o.GID), 0)
	return nil
}

// Close gives the tree back; what was moved into a container stays there.
func (d *DevTree) Close() {
	for _, fd := range []int{d.Root, d.Pts, d.Shm, d.Null} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func makeNode(root int, d *specs.LinuxDevice) error {
	rel, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
	if !ok {
		return &StartError{Stage: StageDevice, Path: d.Path, Errno: unix.EINVAL, Msg: fmt.Sprintf("device path %q is not below /dev", d.Path)}
	}
	dir := root
	if parent := path.Dir(rel); parent != "." {
		fd, err := makeInRoot(root, parent, false, Owner{})
		if err != nil {
			return &StartError{Stage: StageDevice, Path: d.Path, Errno: errnoOf(err)}
		}
		defer unix.Close(fd)
		dir = fd
	}
	var typ uint32
	switch d.Type {
	case "c", "u":
		typ = unix.S_IFCHR
	case "b":
		typ = unix.S_IFBLK
	case "p":
		typ = unix.S_IFIFO
	default:
		return &StartError{Stage: StageDevice, Path: d.Path, Errno: unix.EINVAL, Msg: fmt.Sprintf("device type %q is not one of c, u, b, p", d.Type)}
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	name := path.Base(rel)
	err := unix.Mknodat(dir, name, typ|mode, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))
	if err == unix.EEXIST { //nolint:errorlint // a bare errno: a default node, or a link, named again
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			err = unix.Mknodat(dir, name, typ|mode, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))
		}
	}
	if err == nil { // the umask took bits away
		err = unix.Fchmodat(dir, name, mode, 0)
	}
	if err == nil && (d.UID != nil || d.GID != nil) {
		uid, gid := -1, -1
		if d.UID != nil {
			uid = int(*d.UID)
		}
		if d.GID != nil {
			gid = int(*d.GID)
		}
		err = unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &StartError{Stage: StageDevice, Path: d.Path, Errno: errnoOf(err)}
	}
	return nil
}

// fsMount makes a detached mount of a new instance of a filesystem.
func fsMount(fs string, attr int, opts ...[2]string) (int, error) {
	fc, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fc)
	for _, o := range opts {
		if err := unix.FsconfigSetString(fc, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fc); err != nil {
		return -1, err
	}
	return unix.Fsmount(fc, unix.FSMOUNT_CLOEXEC, attr)
}

// OpenTerminal makes a pseudo terminal in the tree's devpts. It returns the
// master, the slave and the slave's path in the container.
func (d *DevTree) OpenTerminal() (master, slave int, name string, err error) {
	fd, err := unix.Openat(d.Pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, -1, "", fmt.Errorf("cannot open a terminal: %w", err)
	}
	if d.Root >= 0 {
		err = unix.Mknodat(d.Root, "console", unix.S_IFREG|0o600, 0) // what the slave is bound over
	}
	if err == nil {
		slave, name, err = unlockTerminal(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, -1, "", err
	}
	return fd, slave, name, nil
}

// unlockTerminal unlocks a new master and opens its slave.
func unlockTerminal(master int) (slave int, name string, err error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, "", fmt.Errorf("cannot unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, "", err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, "", fmt.Errorf("cannot open the terminal: %w", errno)
	}
	return int(fd), fmt.Sprintf("/dev/pts/%d", n), nil
}

// CanClone reports whether this kernel copies mounts that are attached nowhere
// (Linux 6.15). Older ones list mounts in the order in which they were attached.
func (d *DevTree) CanClone() bool {
	fd, err := unix.OpenTree(d.Root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
