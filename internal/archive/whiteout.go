package archive

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// whiteout handles an entry whose name starts with ".wh.". What this same tar
// holds at the name is never deleted: whiteouts are about the layers below.
func (u *unpacker) whiteout(dir, base string) error {
	if base == whiteoutOpaque {
		return u.opaqueEntry(dir)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // aufs kept its own files under such names
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return errs.New(errs.Invalid, "invalid whiteout %q in archive", join(dir, base))
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	at := place{parent.fd, name, join(parent.path, name)}
	if u.opts.Whiteouts == Delete {
		return u.deleteLower(at)
	}
	err = unix.Mknodat(at.dir, at.base, unix.S_IFCHR, 0)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return pathError("make whiteout", at.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", at.path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		// Removed below and made again here: nothing from below shows.
		return u.opaque(at)
	}
	return nil
}

func (u *unpacker) opaqueEntry(dir string) error {
	if u.opts.Whiteouts == Overlay {
		up, base := split(dir)
		if _, err := u.parent(dir); err != nil {
			return err
		}
		if dir == "." {
			return u.opaque(place{u.root, ".", "."})
		}
		parent, err := u.dirs.open(up)
		if err != nil {
			return pathError("open", up, err)
		}
		return u.opaque(place{parent.fd, base, dir})
	}
	d, err := u.parent(dir)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", dir, err)
	}
	defer unix.Close(fd)
	return u.displaceAll(fd, d.path, u.isMade)
}

// isMade reports whether this tar made path.
func (u *unpacker) isMade(path string) bool {
	_, ok := u.made[path]
	return ok
}

// deleteLower removes what the layers below have at a place, for Delete.
func (u *unpacker) deleteLower(at place) error {
	var st unix.Stat_t
	err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return pathError("stat", at.path, err)
	}
	if !u.isMade(at.path) {
		return u.displace(at, &st)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(at.dir, at.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", at.path, err)
	}
	defer unix.Close(fd)
	return u.displaceAll(fd, at.path, u.isMade)
}

// opaque marks a directory of an overlayfs layer.
func (u *unpacker) opaque(at place) error {
	fd, err := unix.Openat(at.dir, at.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", at.path, err)
	}
	defer unix.Close(fd)
	return pathError("mark", at.path, unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0))
}
