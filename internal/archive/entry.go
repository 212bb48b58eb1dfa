package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

const (
	maxSparse   = 1 << 40 // bytes that a sparse file may claim to be
	sparseBlock = 4096    // zeros in such blocks become holes
)

// regular makes a file. In a fresh tree that is open, write, utimens, close.
func (u *unpacker) regular(at place, h *tar.Header, own Owner) error {
	sparse := isSparse(h)
	if u.bytes += h.Size; u.opts.MaxBytes > 0 && u.bytes > u.opts.MaxBytes {
		return errs.New(errs.Invalid, "archive is larger than %d bytes unpacked", u.opts.MaxBytes)
	}
	if sparse && h.Size > maxSparse {
		return errs.New(errs.Invalid, "sparse file %q of %d bytes is too large", h.Name, h.Size)
	}
	mode := uint32(h.Mode) & 0o7777
	fd, err := u.create(at, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch {
	case sparse:
		u.forget(at.path)
		err = u.writeSparse(fd, h.Size)
	case h.Size > 0:
		u.rec.content(at.path, h.Size)
		err = u.write(fd, h.Size)
		u.rec.capture()
	}
	if err != nil {
		return pathError("write", at.path, err)
	}
	u.size += h.Size
	chowned := false
	if !u.opts.NoChown && (!u.fresh || own.UID != u.uid || own.GID != u.gid) {
		if err := unix.Fchown(fd, own.UID, own.GID); err != nil {
			return pathError("change owner of", at.path, err)
		}
		chowned = true
	}
	if !u.fresh || chowned && mode&0o6000 != 0 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return pathError("change mode of", at.path, err)
		}
	}
	if x := entryXattrs(h); len(x) > 0 {
		if err := setXattrs(fd, x); err != nil {
			return pathError("set attributes of", at.path, err)
		}
	}
	atime, mtime := times(h)
	return pathError("set times of", at.path, futimens(fd, atime, mtime))
}

// create makes and opens a new file; what is there under its name goes.
func (u *unpacker) create(at place, mode uint32) (int, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at.dir, at.base, flags, mode)
	if err == unix.EEXIST {
		if err := u.makeRoom(at); err != nil {
			return -1, err
		}
		fd, err = unix.Openat(at.dir, at.base, flags, mode)
	}
	if err != nil {
		return -1, pathError("create", at.path, err)
	}
	return fd, nil
}

// write copies size bytes of the entry to fd.
func (u *unpacker) write(fd int, size int64) error {
	for size > 0 {
		n, err := u.tr.Read(u.buf[:min(size, int64(len(u.buf)))])
		for p := u.buf[:n]; len(p) > 0; {
			w, werr := unix.Write(fd, p)
			if werr == unix.EINTR {
				continue
			}
			if werr != nil {
				return werr
			}
			p = p[w:]
		}
		size -= int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return readError(err)
		}
		if errors.Is(err, io.EOF) && size > 0 {
			return errs.New(errs.Invalid, "cannot read archive: %w", io.ErrUnexpectedEOF)
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// writeSparse writes the blocks that are not all zeros. What passes stays in
// the skeleton: the map of a sparse file does not show in its content.
func (u *unpacker) writeSparse(fd int, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		n, err := io.ReadFull(u.tr, u.buf[:min(size-off, int64(len(u.buf)))])
		if err != nil {
			return readError(err)
		}
		for i := 0; i < n; i += sparseBlock {
			p := u.buf[i:min(i+sparseBlock, n)]
			if allZero(p) {
				continue
			}
			if _, err := unix.Pwrite(fd, p, off+int64(i)); err != nil {
				return err
			}
		}
		off += int64(n)
		if err := u.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

var zeroBlock [sparseBlock]byte // never written

func allZero(p []byte) bool { return bytes.Equal(p, zeroBlock[:len(p)]) }

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// node makes something that is not opened, by fn, and sets its owner and times.
func (u *unpacker) node(at place, h *tar.Header, own Owner, fn func() error) error {
	err := fn()
	if errors.Is(err, unix.EEXIST) {
		if err := u.makeRoom(at); err != nil {
			return err
		}
		err = fn()
	}
	if err != nil {
		return pathError("create", at.path, err)
	}
	if !u.opts.NoChown && (!u.fresh || own.UID != u.uid || own.GID != u.gid) {
		if err := unix.Fchownat(at.dir, at.base, own.UID, own.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("change owner of", at.path, err)
		}
	}
	if x := entryXattrs(h); len(x) > 0 {
		if err := setPathXattrs(procPath(at.dir)+"/"+at.base, x); err != nil {
			return pathError("set attributes of", at.path, err)
		}
	}
	atime, mtime := times(h)
	return pathError("set times of", at.path, unix.UtimesNanoAt(at.dir, at.base, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
}

func (u *unpacker) device(at place, h *tar.Header, own Owner) error {
	mode := uint32(h.Mode) & 0o7777
	dev := 0
	switch h.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	default:
		mode |= unix.S_IFBLK
	}
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return errs.New(errs.Invalid, "invalid device number of %q in archive", h.Name)
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	return u.node(at, h, own, func() error { return unix.Mknodat(at.dir, at.base, mode, dev) })
}

// link makes a hard link to a path of the same tree. The target's last
// component is never followed.
func (u *unpacker) link(at place, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	if u.opts.Prefix != "" && u.opts.Prefix != "." {
		target = u.opts.Prefix + "/" + target
	}
	if target == "." {
		return errs.New(errs.Invalid, "invalid hard link %q to the root in archive", h.Name)
	}
	dir, base := split(target)
	from, err := u.dirs.open(dir)
	if err != nil {
		return pathError("open", dir, err)
	}
	if canon := join(from.path, base); canon == at.path {
		return errs.New(errs.Invalid, "invalid hard link %q to itself in archive", h.Name)
	}
	// at.dir may have been dropped from the cache by the look-up just made, and
	// the other way round: hold both.
	fromfd, err := unix.FcntlInt(uintptr(from.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fromfd)
	up, name := split(at.path)
	to, err := u.dirs.open(up)
	if err != nil {
		return pathError("open", up, err)
	}
	at.dir, at.base = to.fd, name
	mk := func() error { return unix.Linkat(fromfd, base, at.dir, at.base, 0) }
	err = mk()
	if errors.Is(err, unix.EEXIST) {
		if err := u.makeRoom(at); err != nil {
			return err
		}
		if to, err = u.dirs.open(up); err != nil {
			return pathError("open", up, err)
		}
		at.dir = to.fd
		err = mk()
	}
	if err != nil {
		return pathError("link", at.path, err)
	}
	u.forget(at.path)
	return nil
}

// forget notes that the file at path has no 'f' record of its own.
func (u *unpacker) forget(path string) {
	if u.opts.Skeleton == nil {
		return
	}
	if u.noContent == nil {
		u.noContent = map[string]struct{}{}
	}
	u.noContent[path] = struct{}{}
}

// makeRoom removes what is at a place that a new non-directory takes.
func (u *unpacker) makeRoom(at place) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", at.path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && u.opts.NoOverwriteDirNonDir {
		return errs.New(errs.Invalid, "cannot overwrite directory %q with non-directory %q", "/"+at.path, at.base)
	}
	return u.displace(at, &st)
}

// displace removes the file or tree at a place; contents that the skeleton
// counts on go to its side records.
func (u *unpacker) displace(at place, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := unix.Openat(at.dir, at.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return pathError("open", at.path, err)
		}
		err = u.displaceAll(fd, at.path, nil)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		// Descriptors below go with the directory; at.dir is the caller's and
		// stays open, so only what lies below is dropped.
		u.dropBelow(at.path)
		if err := unix.Unlinkat(at.dir, at.base, unix.AT_REMOVEDIR); err != nil {
			return pathError("remove", at.path, err)
		}
		return nil
	case unix.S_IFLNK:
		// Any cached path may have led through it, but for the parent in use.
		u.dropLinked(at.dir)
		u.size -= st.Size
	case unix.S_IFREG:
		if st.Nlink == 1 {
			u.size -= st.Size
		}
		if u.opts.Skeleton != nil && st.Size > 0 && u.recorded(at.path) {
			if err := u.keepSide(at, st.Size); err != nil {
				return pathError("keep", at.path, err)
			}
		}
	}
	delete(u.noContent, at.path)
	delete(u.made, at.path)
	if err := unix.Unlinkat(at.dir, at.base, 0); err != nil {
		return pathError("remove", at.path, err)
	}
	return nil
}

// recorded reports whether path holds the content of an 'f' record.
func (u *unpacker) recorded(path string) bool {
	if _, not := u.noContent[path]; not {
		return false
	}
	if u.made == nil {
		return true
	}
	_, made := u.made[path]
	return made
}

func (u *unpacker) keepSide(at place, size int64) error {
	fd, err := unix.Openat(at.dir, at.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), at.path)
	defer f.Close()
	return u.opts.Skeleton.replaced(at.path, f, size)
}

// displaceAll removes everything in the directory fd that keep does not hold back.
func (u *unpacker) displaceAll(fd int, path string, keep func(path string) bool) error {
	names, err := readNames(fd)
	if err != nil {
		return pathError("read", path, err)
	}
	for _, n := range names {
		at := place{fd, n, join(path, n)}
		if keep != nil && keep(at.path) {
			sub, err := unix.Openat(fd, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue
			}
			if err != nil {
				return pathError("open", at.path, err)
			}
			err = u.displaceAll(sub, at.path, keep)
			_ = unix.Close(sub)
			if err != nil {
				return err
			}
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", at.path, err)
		}
		if err := u.displace(at, &st); err != nil {
			return err
		}
	}
	return nil
}

// dropBelow forgets the cached directories at and below path.
func (u *unpacker) dropBelow(path string) {
	for key, d := range u.dirs.fds {
		if d.path == path || strings.HasPrefix(d.path, path+"/") {
			u.dirs.drop(key)
		}
	}
	delete(u.made, path)
}

// dropLinked forgets the cached directories that were reached through symbolic
// links, but for the one in use.
func (u *unpacker) dropLinked(inUse int) {
	for key, d := range u.dirs.fds {
		if key != d.path && d.fd != inUse {
			u.dirs.drop(key)
		}
	}
}

// futimens is utimensat(fd, NULL, …).
func futimens(fd int, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func times(h *tar.Header) (atime, mtime unix.Timespec) {
	mtime = fdTime(h.ModTime)
	if h.AccessTime.Before(h.ModTime) {
		return mtime, mtime
	}
	return fdTime(h.AccessTime), mtime
}
