package archive

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// Whiteouts says what an entry named ".wh.…" means.
type Whiteouts uint8

const (
	// Literal: nothing special; the names are ordinary.
	Literal Whiteouts = iota
	// Overlay: deletions in overlayfs's form, for a directory that is one layer.
	Overlay
	// Delete: what is named is removed, for a tree that holds the layers below.
	Delete
)

// UnpackOptions says how to unpack. The zero value unpacks everything with
// its owners, over what is there.
type UnpackOptions struct {
	Whiteouts Whiteouts

	// Prefix is a directory below the root where everything goes. It must exist.
	Prefix string

	// Lower are the host paths of the layers below, top first, for Overlay: a directory
	// that the tar implies but does not hold gets its attributes from there.
	Lower []string

	// Skeleton records the stream. The root must hold nothing of this layer yet.
	Skeleton *SkeletonWriter

	// Owner, when set, owns everything, whatever the tar says.
	Owner *Owner

	// MapOwner, when set, changes the owners that the tar says, and root where it
	// says none.
	MapOwner func(Owner) (Owner, error)

	// NoChown leaves everything to the caller's own user.
	NoChown bool

	// NoOverwriteDirNonDir refuses to replace a directory by something else
	// and the other way round.
	NoOverwriteDirNonDir bool

	// MaxEntries and MaxBytes bound what a tar may hold; 0 is no bound.
	MaxEntries, MaxBytes int64
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// Result tells what was unpacked.
type Result struct {
	Size    int64 // bytes in files and symbolic links
	Entries int64
}

// Unpack unpacks the uncompressed tar r below the directory rootfd and reads
// it to its end. After an error the tree holds what came before it.
func Unpack(ctx context.Context, r io.Reader, rootfd int, opts UnpackOptions) (Result, error) {
	u := &unpacker{
		ctx: ctx, opts: opts, root: rootfd, dirs: newDirCache(rootfd),
		rec: &recorder{src: r, sk: opts.Skeleton, captured: true},
		buf: make([]byte, chunkSize), uid: os.Geteuid(), gid: os.Getegid(),
		fresh: opts.Whiteouts == Overlay || opts.Skeleton != nil && opts.Whiteouts == Literal,
	}
	if opts.Whiteouts == Delete {
		u.made = map[string]struct{}{}
	}
	var err error
	onOwnThread(func() {
		// An umask of its own, so that modes come out as they are given.
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			unix.Umask(0)
			err = u.run()
		}
	})
	u.dirs.flush()
	return Result{Size: u.size, Entries: u.entries}, err
}

// onOwnThread runs fn on a thread that ends with it, and that is not the
// process's first, which would stay behind with what fn did to it.
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

type unpacker struct {
	ctx  context.Context
	opts UnpackOptions
	root int
	dirs *dirCache
	rec  *recorder
	tr   *tar.Reader
	buf  []byte

	uid, gid int
	fresh    bool // the tree holds what this tar made and nothing else

	// late are directories whose attributes are set when all is in them.
	late []lateDir

	// made are the paths that this tar made, kept for Delete only. noContent are paths
	// whose content is not the skeleton's 'f' record: hard links, sparse files.
	made, noContent map[string]struct{}

	size, entries, bytes int64
}

// lateDir is a directory to finish: everything but its times only when full is set.
type lateDir struct {
	path  string
	mode  uint32
	owner Owner
	atime unix.Timespec
	mtime unix.Timespec
	xattr map[string]string
	full  bool
}

func (u *unpacker) run() error {
	u.tr = tar.NewReader(u.rec)
	if u.opts.Prefix != "" {
		p, err := clean(u.opts.Prefix)
		if err != nil {
			return err
		}
		u.opts.Prefix = p
	}
	for {
		if u.entries&63 == 0 {
			if err := u.ctx.Err(); err != nil {
				return err
			}
		}
		h, err := u.tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err)
		}
		u.entries++
		if u.opts.MaxEntries > 0 && u.entries > u.opts.MaxEntries {
			return errs.New(errs.Invalid, "archive has more than %d entries", u.opts.MaxEntries)
		}
		if err := u.entry(h); err != nil {
			return err
		}
	}
	if err := u.rec.drain(); err != nil {
		return readError(err)
	}
	return u.finishDirs()
}

// readError classes what a tar reader says: a bad stream is the sender's fault.
func readError(err error) error {
	var e *errs.Error
	if errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return errs.New(errs.Invalid, "cannot read archive: %w", err)
	}
	return err
}

// entry unpacks one entry of the tar.
func (u *unpacker) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	own, err := u.owner(h)
	if err != nil {
		return err
	}
	if u.opts.Prefix != "" && u.opts.Prefix != "." {
		if name == "." {
			name = u.opts.Prefix
		} else {
			name = u.opts.Prefix + "/" + name
		}
	}
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			u.addLate(".", h, own, true)
		}
		return nil
	}
	dir, base := split(name)
	if u.opts.Whiteouts != Literal && strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	at := place{parent.fd, base, join(parent.path, base)}
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.directory(at, h, own)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		err = u.regular(at, h, own)
	case tar.TypeSymlink:
		err = u.node(at, h, own, func() error { return unix.Symlinkat(h.Linkname, at.dir, at.base) })
		u.size += int64(len(h.Linkname))
	case tar.TypeLink:
		err = u.link(at, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = u.device(at, h, own)
	default:
		return errs.New(errs.Invalid, "unhandled tar header type %d", h.Typeflag)
	}
	if err == nil && u.made != nil {
		u.made[at.path] = struct{}{}
	}
	return err
}

// place is where an entry goes: an open directory, the name in it, and the
// path from the root without symbolic links.
type place struct {
	dir  int
	base string
	path string
}

func (u *unpacker) owner(h *tar.Header) (Owner, error) {
	if u.opts.Owner != nil {
		return *u.opts.Owner, nil
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return Owner{}, errs.New(errs.Invalid, "invalid owner %d:%d of %q in archive", h.Uid, h.Gid, h.Name)
	}
	if u.opts.MapOwner != nil {
		return u.opts.MapOwner(Owner{h.Uid, h.Gid})
	}
	return Owner{h.Uid, h.Gid}, nil
}

// parent opens the directory that an entry goes into, and makes what is missing.
func (u *unpacker) parent(dir string) (dirRef, error) {
	d, err := u.dirs.open(dir)
	if err == nil {
		return d, nil
	}
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return d, pathError("open", dir, err)
	}
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		p := dir[:i]
		if _, err := u.dirs.open(p); err == nil {
			continue
		}
		up, base := split(p)
		above, err := u.dirs.open(up)
		if err != nil {
			return d, pathError("open", up, err)
		}
		if err := u.imply(place{above.fd, base, join(above.path, base)}); err != nil {
			return d, err
		}
	}
	if d, err = u.dirs.open(dir); err != nil {
		return d, pathError("open", dir, err)
	}
	return d, nil
}

// imply makes a directory that the tar did not mention, as the layers below
// have it, or owned by root with mode 0755.
func (u *unpacker) imply(at place) error {
	existed, err := u.mkdir(at, 0o755, true)
	if err != nil {
		return err
	}
	if u.made != nil {
		u.made[at.path] = struct{}{}
	}
	if existed {
		return nil
	}
	late := lateDir{path: at.path, mode: 0o755, full: true}
	if !u.lowerDir(&late) {
		if u.opts.Owner != nil {
			late.owner = *u.opts.Owner
		} else if u.opts.MapOwner != nil {
			if late.owner, err = u.opts.MapOwner(Owner{}); err != nil {
				return err
			}
		}
		now := unix.NsecToTimespec(time.Now().UnixNano())
		late.atime, late.mtime = now, now
	}
	u.late = append(u.late, late)
	return nil
}

// lowerDir fills late from the topmost layer below that has the path.
func (u *unpacker) lowerDir(late *lateDir) bool {
	for _, l := range u.opts.Lower {
		root, err := OpenRoot(l)
		if err != nil {
			return false
		}
		fd, err := openStraight(root, late.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		_ = unix.Close(root)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		late.xattr, _ = readXattrs(fd)
		_ = unix.Close(fd)
		if err != nil {
			return false
		}
		late.mode, late.owner = st.Mode&0o7777, Owner{int(st.Uid), int(st.Gid)}
		late.atime, late.mtime = st.Atim, st.Mtim
		return true
	}
	return false
}

// mkdir makes a directory and reports whether it was there. One that takes the
// place of a whiteout of this layer becomes opaque. One that is only implied
// takes no other's place.
func (u *unpacker) mkdir(at place, mode uint32, implied bool) (existed bool, err error) {
	for range 2 {
		err := unix.Mkdirat(at.dir, at.base, mode)
		if err == nil {
			return false, nil
		}
		if err != unix.EEXIST {
			return false, pathError("make directory", at.path, err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(at.dir, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, pathError("stat", at.path, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return true, nil
		}
		if u.opts.NoOverwriteDirNonDir {
			return false, errs.New(errs.Invalid, "cannot overwrite non-directory %q with directory %q", "/"+at.path, at.base)
		}
		wh := u.opts.Whiteouts == Overlay && isWhiteout(&st)
		if implied && !wh {
			return false, pathError("make directory", at.path, unix.ENOTDIR)
		}
		if err := u.displace(at, &st); err != nil {
			return false, err
		}
		if !wh {
			continue
		}
		if err := unix.Mkdirat(at.dir, at.base, mode); err != nil {
			return false, pathError("make directory", at.path, err)
		}
		return false, u.opaque(at)
	}
	return false, pathError("make directory", at.path, unix.EEXIST)
}

func (u *unpacker) directory(at place, h *tar.Header, own Owner) error {
	mode := uint32(h.Mode) & 0o7777
	existed, err := u.mkdir(at, mode&0o1777, false)
	if err != nil {
		return err
	}
	// What mkdir gave already needs no second call: mode but for set-id bits,
	// and the owner.
	full := existed || !u.fresh || mode&0o6000 != 0 || own.UID != u.uid || own.GID != u.gid
	u.addLate(at.path, h, own, full)
	return nil
}

func (u *unpacker) addLate(path string, h *tar.Header, own Owner, full bool) {
	atime, mtime := times(h)
	x := entryXattrs(h)
	u.late = append(u.late, lateDir{
		path: path, mode: uint32(h.Mode) & 0o7777, owner: own, atime: atime, mtime: mtime,
		xattr: x, full: full || len(x) > 0,
	})
}

// finishDirs gives directories their attributes, deepest and latest first, and each
// path only what its last entry says.
func (u *unpacker) finishDirs() error {
	seen := make(map[string]struct{}, len(u.late))
	for i := len(u.late) - 1; i >= 0; i-- {
		d := &u.late[i]
		if _, ok := seen[d.path]; ok {
			continue
		}
		seen[d.path] = struct{}{}
		if err := u.finishDir(d); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return pathError("set attributes of", d.path, err) // gone ones were replaced later on
		}
	}
	return nil
}

func (u *unpacker) finishDir(d *lateDir) error {
	if !d.full {
		up, base := split(d.path)
		parent, err := u.dirs.open(up)
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(parent.fd, base, []unix.Timespec{d.atime, d.mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
	fd, err := openStraight(u.root, d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !u.opts.NoChown {
		if err := unix.Fchown(fd, d.owner.UID, d.owner.GID); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, d.mode); err != nil {
		return err
	}
	if err := setXattrs(fd, d.xattr); err != nil {
		return err
	}
	return futimens(fd, d.atime, d.mtime)
}
