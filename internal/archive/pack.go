package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// TarOptions says how to write a tree. The zero value writes all of it.
type TarOptions struct {
	// Name is what the path itself is called in the tar; "" means a whole tree
	// whose entries are named relative to the path, without one for itself.
	Name string

	// Skip leaves out a path (relative to the one written, without leading slash)
	// and all below it.
	Skip func(path string) bool

	// MapOwner, when set, changes the owners of files into those that are written.
	MapOwner func(Owner) Owner
}

// Tar writes the tree, or the one file, at path below the directory rootfd to w.
// Symbolic links on the way to path resolve inside the root; path itself is not
// followed when it is one. Sockets are left out.
func Tar(ctx context.Context, w io.Writer, rootfd int, path string, opts TarOptions) error {
	p, err := clean(path)
	if err != nil {
		return err
	}
	pk := newPacker(ctx, w)
	pk.owner = opts.MapOwner
	if p == "." {
		fd, err := unix.Openat(rootfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return pathError("open", path, err)
		}
		defer unix.Close(fd)
		if opts.Name != "" {
			if err := pk.dirHeader(fd, opts.Name); err != nil {
				return err
			}
		}
		if err := pk.children(fd, opts.Name, "", opts.Skip, 0); err != nil {
			return err
		}
		return pk.close()
	}
	up, base := split(p)
	dir, err := openBelow(rootfd, up, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return pathError("open", path, err)
	}
	defer unix.Close(dir)
	if opts.Name == "" {
		fd, err := openDirAt(dir, base)
		if err != nil {
			return pathError("open", path, err)
		}
		defer unix.Close(fd)
		if err := pk.children(fd, "", "", opts.Skip, 0); err != nil {
			return err
		}
		return pk.close()
	}
	if err := pk.add(dir, base, opts.Name, "", opts.Skip, 0); err != nil {
		return err
	}
	return pk.close()
}

// packer writes tar entries of files.
type packer struct {
	ctx   context.Context
	out   *bufio.Writer
	tw    *tar.Writer
	buf   []byte
	links map[fileID]string
	owner func(Owner) Owner // nil takes owners as they are
	upper bool              // the tree is an overlayfs upper directory
}

func newPacker(ctx context.Context, w io.Writer) *packer {
	out := bufio.NewWriterSize(w, chunkSize)
	return &packer{ctx: ctx, out: out, tw: tar.NewWriter(out), buf: make([]byte, chunkSize), links: map[fileID]string{}}
}

func (p *packer) close() error {
	if err := p.tw.Close(); err != nil {
		return err
	}
	return p.out.Flush()
}

// children adds everything in the open directory fd; name is its name in the
// tar and rel its path for skip.
func (p *packer) children(fd int, name, rel string, skip func(string) bool, depth int) error {
	if depth > maxDepth {
		return errs.New(errs.Invalid, "more than %d directories deep at %q", maxDepth, name)
	}
	names, err := readNames(fd)
	if err != nil {
		return pathError("read", name, err)
	}
	for _, n := range names {
		r := join(rel, n)
		if skip != nil && skip(r) {
			continue
		}
		full := join(name, n)
		if name == "." {
			full = "./" + n // clients of "dir/." put another name in the dot's place
		}
		if err := p.add(fd, n, full, r, skip, depth); err != nil {
			return err
		}
	}
	return nil
}

// add adds one file and, for a directory, all in it. One that is gone
// meanwhile is left out.
func (p *packer) add(dir int, base, name, rel string, skip func(string) bool, depth int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return pathError("stat", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return p.file(dir, base, name, &st)
	}
	fd, err := openDirAt(dir, base)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced meanwhile
	}
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	if err := p.dirHeader(fd, name); err != nil {
		return err
	}
	return p.children(fd, name, rel, skip, depth+1)
}

func (p *packer) dirHeader(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", name, err)
	}
	h := p.header(&st, name+"/")
	h.Typeflag = tar.TypeDir
	x, err := readXattrs(fd)
	if err != nil {
		return pathError("read attributes of", name, err)
	}
	putXattrs(h, x)
	if err := p.write(h); err != nil {
		return err
	}
	if p.upper && isOpaque(fd) {
		return p.whiteout(join(name, whiteoutOpaque), st.Mtim)
	}
	return nil
}

// file adds what is not a directory.
func (p *packer) file(dir int, base, name string, st *unix.Stat_t) error {
	h := p.header(st, name)
	if p.upper && isWhiteout(st) {
		up, b := split(name)
		return p.whiteout(join(up, whiteoutPrefix+b), st.Mtim)
	}
	if st.Nlink > 1 {
		if first, ok := p.links[idOf(st)]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.write(h)
		}
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.regular(dir, base, name)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkAt(dir, base, st.Size); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil
		} else if err != nil {
			return pathError("read", name, err)
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil // a socket lives with its process
	}
	x, err := readPathXattrs(procPath(dir) + "/" + base)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return pathError("read attributes of", name, err)
	}
	putXattrs(h, x)
	if err := p.write(h); err != nil {
		return err
	}
	p.remember(st, name)
	return nil
}

func (p *packer) remember(st *unix.Stat_t, name string) {
	if st.Nlink > 1 {
		p.links[idOf(st)] = name
	}
}

// regular adds a regular file with the size that it has when opened: one that
// shrinks is filled up with zeros, one that grows is cut.
func (p *packer) regular(dir int, base, name string) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	h := p.header(&st, name)
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	x, err := readXattrs(fd)
	if err != nil {
		return pathError("read attributes of", name, err)
	}
	putXattrs(h, x)
	if err := p.write(h); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		b := p.buf[:min(left, int64(len(p.buf)))]
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathError("read", name, err)
		}
		if n == 0 {
			clear(b)
			n = len(b)
		}
		left -= int64(n)
		if _, err := p.tw.Write(b[:n]); err != nil {
			return err
		}
		if err := p.ctx.Err(); err != nil {
			return err
		}
	}
	p.remember(&st, name)
	return nil
}

func (p *packer) whiteout(name string, mtime unix.Timespec) error {
	return p.write(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(mtime.Unix()).Truncate(time.Second), Format: tar.FormatPAX})
}

func (p *packer) write(h *tar.Header) error {
	if err := p.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("cannot write archive entry %q: %w", h.Name, err)
	}
	return nil
}

// header fills in what all kinds of files have. User and group names are the
// tree's own affair and are never looked up.
func (p *packer) header(st *unix.Stat_t, name string) *tar.Header {
	own := Owner{int(st.Uid), int(st.Gid)}
	if p.owner != nil {
		own = p.owner(own)
	}
	return &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: own.UID, Gid: own.GID,
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
}

func putXattrs(h *tar.Header, x map[string]string) {
	if len(x) == 0 {
		return
	}
	h.PAXRecords = make(map[string]string, len(x))
	for k, v := range x {
		h.PAXRecords[paxXattr+k] = v
	}
}
