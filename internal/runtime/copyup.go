package runtime

import (
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/undo"
)

// copyUp makes the tmpfs mounts with the option tmpcopyup ahead and fills them
// with what the root filesystem has in their place. Where there is nothing the
// mount is like any other. drop closes what was made.
func (l *Launch) copyUp() (drop func(), err error) {
	if !slices.ContainsFunc(l.Spec.Mounts, func(m specs.Mount) bool { return slices.Contains(m.Options, "tmpcopyup") }) {
		return func() {}, nil
	}
	var u undo.Stack
	defer u.Run()
	var made []int
	u.Add(func() { closeFDs(made) })
	for i, m := range l.Spec.Mounts {
		if m.Type != "tmpfs" || !slices.Contains(m.Options, "tmpcopyup") {
			continue
		}
		dest := path.Clean("/" + m.Destination)
		fail := func(err error) error {
			return &StartError{Stage: StageMount, Path: dest, Errno: errnoOf(err), Msg: fmt.Sprintf("tmpcopyup: cannot fill the tmpfs at %q: %v", dest, err)}
		}
		src, err := openInRoot(l.RootFD, dest, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == unix.ENOENT { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return nil, fail(err)
		}
		opt := parseOptions(m.Options)
		var st unix.Stat_t
		if err = unix.Fstat(src, &st); err == nil {
			opts := [][2]string{{"source", "tmpfs"}, {"mode", fmt.Sprintf("%o", st.Mode&0o7777)}, {"uid", fmt.Sprint(st.Uid)}, {"gid", fmt.Sprint(st.Gid)}}
			for _, d := range opt.data { // the later one counts
				k, v, _ := strings.Cut(d, "=")
				opts = append(opts, [2]string{k, v})
			}
			var fd int
			// Read-only only when it is full.
			if fd, err = fsMount("tmpfs", int(opt.set&^unix.MOUNT_ATTR_RDONLY), opts...); err == nil {
				made = append(made, fd)
				if err = copyDir(src, fd, fd, map[uint64]string{}, "", 0); err == nil && opt.set&unix.MOUNT_ATTR_RDONLY != 0 {
					err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
				}
				if l.MountFD == nil {
					l.MountFD = map[int]int{}
				}
				l.MountFD[i] = fd
			}
		}
		_ = unix.Close(src)
		if err != nil {
			return nil, fail(err)
		}
	}
	u.Release()
	return func() { closeFDs(made) }, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

const maxCopyDepth = 128

// copyDir copies what is in the open directory src into dst. top is the copy's
// root, below which links are made by the paths in seen (by inode).
func copyDir(src, dst, top int, seen map[uint64]string, at string, depth int) error {
	if depth > maxCopyDepth {
		return unix.ELOOP
	}
	dup, err := unix.FcntlInt(uintptr(src), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dup), at)
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyEntry(src, dst, top, seen, n, path.Join(at, n), depth); err != nil {
			return err
		}
	}
	return nil
}

func copyEntry(src, dst, top int, seen map[uint64]string, name, at string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := seen[st.Ino]; ok {
			return unix.Linkat(top, first, dst, name, 0)
		}
		seen[st.Ino] = at
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		s, err := unix.Openat(src, name, flags, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		d, err := unix.Openat(dst, name, flags, 0)
		if err != nil {
			return err
		}
		defer unix.Close(d)
		if err := copyDir(s, d, top, seen, at, depth+1); err != nil {
			return err
		}
	case unix.S_IFREG:
		if err := copyFile(src, dst, name); err != nil {
			return err
		}
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(src, name, buf)
		if err == nil {
			err = unix.Symlinkat(string(buf[:n]), dst, name)
		}
		if err != nil {
			return err
		}
	case unix.S_IFSOCK:
		return nil
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if kind != unix.S_IFLNK { // nobody else sees the copy: no name can change under way
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyFile(src, dst int, name string) error {
	s, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(s), name)
	defer in.Close()
	d, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(d), name)
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return nil
}
