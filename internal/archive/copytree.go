package archive

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// CopyTree copies everything in the directory from, and its own attributes, into the
// empty directory to: owners, modes, times, attributes, devices and hard links.
// File contents share blocks where the file system can.
func CopyTree(ctx context.Context, from, to int) error { return copyInto(ctx, from, to, nil) }

// copyInto copies with other owners, and the marks of overlayfs, when own is given.
func copyInto(ctx context.Context, from, to int, own func(Owner) (Owner, error)) error {
	src, err := openDirAt(from, ".")
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := openDirAt(to, ".")
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	c := &copier{ctx: ctx, root: dst, links: map[fileID]string{}, own: own}
	return c.dir(src, dst, "", 0)
}

type copier struct {
	ctx     context.Context
	root    int
	links   map[fileID]string
	own     func(Owner) (Owner, error) // nil keeps owners
	noClone atomic.Bool                // the file system does not share blocks
}

const (
	manyFiles = 32       // of a directory: they are copied by several at once
	smallFile = 64 << 10 // bytes; more is copied in the kernel
)

var smallBuffers = sync.Pool{New: func() any { return new([smallFile]byte) }}

// dir copies the content of an open directory into another and then its attributes.
func (c *copier) dir(src, dst int, path string, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return unix.ELOOP
	}
	names, err := readNames(src)
	if err != nil {
		return pathError("read", path, err)
	}
	if len(names) >= manyFiles {
		if names, err = c.plain(src, dst, path, names); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := c.one(src, dst, n, join(path, n), depth); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return pathError("stat", path, err)
	}
	return pathError("set attributes of", path, c.attributes(src, dst, &st))
}

// plain copies the regular files with one name among those of a directory, several at
// once, and returns the names of the rest.
func (c *copier) plain(src, dst int, path string, names []string) (rest []string, err error) {
	var next atomic.Int64
	var mu sync.Mutex // guards rest and err
	var work sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) {
		work.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(names) {
					return
				}
				var st unix.Stat_t
				ferr := c.ctx.Err()
				if ferr == nil {
					ferr = unix.Fstatat(src, names[i], &st, unix.AT_SYMLINK_NOFOLLOW)
				}
				if ferr == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1) {
					mu.Lock()
					rest = append(rest, names[i])
					mu.Unlock()
					continue
				}
				if ferr == nil {
					ferr = c.regular(src, dst, names[i], &st)
				}
				if ferr != nil {
					next.Store(int64(len(names))) // the others end
					mu.Lock()
					if err == nil {
						err = pathError("copy", join(path, names[i]), ferr)
					}
					mu.Unlock()
					return
				}
			}
		})
	}
	work.Wait()
	return rest, err
}

func (c *copier) attributes(src, dst int, st *unix.Stat_t) error {
	own, err := c.owner(st)
	if err != nil {
		return err
	}
	if err := unix.Fchown(dst, own.UID, own.GID); err != nil {
		return err
	}
	if err := c.marks(src, dst); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	x, err := readXattrs(src)
	if err != nil {
		return err
	}
	if err := setXattrs(dst, x); err != nil {
		return err
	}
	return futimens(dst, st.Atim, st.Mtim)
}

func (c *copier) one(src, dst int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", path, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[idOf(&st)]; ok {
			return pathError("link", path, unix.Linkat(c.root, first, dst, name, 0))
		}
		c.links[idOf(&st)] = path
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return pathError("make directory", path, err)
		}
		s, err := openDirAt(src, name)
		if err != nil {
			return pathError("open", path, err)
		}
		defer unix.Close(s)
		d, err := openDirAt(dst, name)
		if err != nil {
			return pathError("open", path, err)
		}
		defer unix.Close(d)
		return c.dir(s, d, path, depth+1)
	case unix.S_IFREG:
		return pathError("copy", path, c.regular(src, dst, name, &st))
	case unix.S_IFLNK:
		target, err := readlinkAt(src, name, st.Size)
		if err == nil {
			err = unix.Symlinkat(target, dst, name)
		}
		if err != nil {
			return pathError("copy", path, err)
		}
	case unix.S_IFSOCK:
		return nil
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return pathError("make node", path, err)
		}
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil { // past the umask; the tree is ours alone
			return pathError("change mode of", path, err)
		}
	}
	own, err := c.owner(&st)
	if err != nil {
		return pathError("change owner of", path, err)
	}
	if err := unix.Fchownat(dst, name, own.UID, own.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("change owner of", path, err)
	}
	return pathError("set times of", path, unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

func (c *copier) regular(src, dst int, name string, st *unix.Stat_t) error {
	s, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	d, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if err := c.data(s, d, st); err != nil {
		return err
	}
	return c.attributes(s, d, st)
}

// data copies the content: as shared blocks, else extent by extent, so that holes stay holes.
func (c *copier) data(s, d int, st *unix.Stat_t) error {
	if st.Size == 0 {
		return nil
	}
	if !c.noClone.Load() {
		err := unix.IoctlFileClone(d, s)
		if err == nil {
			return nil
		}
		if err == unix.EOPNOTSUPP || err == unix.EXDEV || err == unix.ENOTTY {
			c.noClone.Store(true)
		}
	}
	if st.Size <= smallFile && st.Blocks*512 >= st.Size {
		done, err := copySmall(s, d, st.Size)
		if done || err != nil {
			return err
		}
	}
	if err := unix.Ftruncate(d, st.Size); err != nil {
		return err
	}
	whole := st.Blocks*512 >= st.Size
	for off := int64(0); off < st.Size; {
		end := st.Size
		if !whole {
			start, err := unix.Seek(s, off, unix.SEEK_DATA)
			if err == unix.ENXIO {
				return nil
			}
			if err != nil {
				return err
			}
			off = start
			if end, err = unix.Seek(s, off, unix.SEEK_HOLE); err != nil {
				return err
			}
		}
		if err := copyRange(s, d, off, end); err != nil {
			return err
		}
		off = end
	}
	return c.ctx.Err()
}

// copySmall copies a small file by one read and one write. It reports whether that was
// all; else nothing was written.
func copySmall(s, d int, size int64) (done bool, err error) {
	buf := smallBuffers.Get().(*[smallFile]byte) //nolint:forcetypeassert // the pool has nothing else
	defer smallBuffers.Put(buf)
	n, err := unix.Pread(s, buf[:size], 0)
	if err != nil || int64(n) != size {
		return false, nil //nolint:nilerr // the other way tells
	}
	w, err := unix.Pwrite(d, buf[:n], 0)
	if err == nil && w != n {
		err = unix.ENOSPC
	}
	return err == nil, err
}

func copyRange(s, d int, off, end int64) error {
	for off < end {
		r, w := off, off
		n, err := unix.CopyFileRange(s, &r, d, &w, int(min(end-off, 1<<30)), 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return copyByHand(s, d, off, end)
		}
		off += int64(n)
	}
	return nil
}

func copyByHand(s, d int, off, end int64) error {
	buf := make([]byte, chunkSize)
	for off < end {
		n, err := unix.Pread(s, buf[:min(int64(len(buf)), end-off)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Pwrite(d, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// CopyAttributes gives the directory to the owner, mode, extended attributes and
// times of the directory from.
func CopyAttributes(from, to int) error {
	src, err := openDirAt(from, ".")
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := openDirAt(to, ".")
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return (&copier{}).attributes(src, dst, &st)
}
