package archive

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// DiffUpper writes an overlayfs upper directory to w as a layer. own, when not
// nil, changes the owners of files into those that are written.
func DiffUpper(ctx context.Context, w io.Writer, upperfd int, own func(Owner) Owner) error {
	fd, err := openDirAt(upperfd, ".")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := newPacker(ctx, w)
	p.upper, p.owner = true, own
	if err := p.children(fd, "", "", nil, 0); err != nil {
		return err
	}
	return p.close()
}

// DiffTrees writes what changed from the tree oldfd to the tree newfd to w as
// a layer.
func DiffTrees(ctx context.Context, w io.Writer, oldfd, newfd int) error {
	p := newPacker(ctx, w)
	now := unix.NsecToTimespec(time.Now().Truncate(time.Second).UnixNano())
	// Parents of changes are part of the layer, as they are in overlayfs.
	var open []string // directories above the current path that are written
	err := compare(ctx, oldfd, newfd, func(c comparison) error {
		if err := p.parents(newfd, &open, c.path); err != nil {
			return err
		}
		up, base := split(c.path)
		if c.kind == Deleted {
			return p.whiteout(join(up, whiteoutPrefix+base), now)
		}
		if c.new.Mode&unix.S_IFMT != unix.S_IFDIR {
			return p.file(c.newdir, base, c.path, &c.new)
		}
		if len(open) > 0 && open[len(open)-1] == c.path {
			return nil
		}
		fd, err := openDirAt(c.newdir, base)
		if err != nil {
			return pathError("open", c.path, err)
		}
		defer unix.Close(fd)
		open = append(open, c.path)
		if err := p.dirHeader(fd, c.path); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.close()
}

// parents writes the directories above path that are not written yet. open is
// the chain of those that are, from the last path.
func (p *packer) parents(root int, open *[]string, path string) error {
	chain := *open
	for len(chain) > 0 && !isBelow(path, chain[len(chain)-1]) {
		chain = chain[:len(chain)-1]
	}
	from := 0
	if len(chain) > 0 {
		from = len(chain[len(chain)-1]) + 1
	}
	for i := from; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		fd, err := openStraight(root, path[:i], unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return pathError("open", path[:i], err)
		}
		err = p.dirHeader(fd, path[:i])
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		chain = append(chain, path[:i])
	}
	*open = chain
	return nil
}

func isBelow(path, dir string) bool {
	return len(path) > len(dir) && path[:len(dir)] == dir && path[len(dir)] == '/'
}

// ChangeKind says what happened to a path, in the numbers of the Engine API.
type ChangeKind uint8

// The kinds of change.
const (
	Modified ChangeKind = 0
	Added    ChangeKind = 1
	Deleted  ChangeKind = 2
)

// Change is one changed path, absolute in its tree.
type Change struct {
	Path string
	Kind ChangeKind
}

// ChangedTrees lists what changed from the tree oldfd to the tree newfd,
// with the directories above it as modified, sorted by path.
func ChangedTrees(ctx context.Context, oldfd, newfd int) ([]Change, error) {
	var l changeList
	err := compare(ctx, oldfd, newfd, func(c comparison) error {
		l.add(c.path, c.kind)
		return nil
	})
	return l.changes, err
}

// changeList collects changes in the order of a walk and adds their parents.
type changeList struct {
	changes []Change
	above   []string // directories above the last path that are listed
}

func (l *changeList) add(path string, kind ChangeKind) {
	for len(l.above) > 0 && !isBelow(path, l.above[len(l.above)-1]) {
		l.above = l.above[:len(l.above)-1]
	}
	from := 0
	if len(l.above) > 0 {
		from = len(l.above[len(l.above)-1]) + 1
	}
	for i := from; i < len(path); i++ {
		if path[i] == '/' {
			l.changes = append(l.changes, Change{"/" + path[:i], Modified})
			l.above = append(l.above, path[:i])
		}
	}
	l.changes = append(l.changes, Change{"/" + path, kind})
	l.above = append(l.above, path)
}

// UsageOfChanges returns the bytes in the files of newfd that are not as in oldfd.
func UsageOfChanges(ctx context.Context, oldfd, newfd int) (int64, error) {
	var total int64
	seen := map[fileID]struct{}{}
	err := compare(ctx, oldfd, newfd, func(c comparison) error {
		if c.kind == Deleted || c.new.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if _, ok := seen[idOf(&c.new)]; !ok {
			seen[idOf(&c.new)] = struct{}{}
			total += c.new.Size
		}
		return nil
	})
	return total, err
}

// comparison is one difference that compare found. newdir is the open directory
// of the path in the new tree.
type comparison struct {
	path   string
	kind   ChangeKind
	newdir int
	new    unix.Stat_t
}

// compare walks two trees side by side, sorted, and calls fn for what differs.
// Below something added all is added; below something deleted nothing is told.
func compare(ctx context.Context, oldfd, newfd int, fn func(comparison) error) error {
	of, err := openDirAt(oldfd, ".")
	if err != nil {
		return err
	}
	defer unix.Close(of)
	nf, err := openDirAt(newfd, ".")
	if err != nil {
		return err
	}
	defer unix.Close(nf)
	return compareDirs(ctx, of, nf, "", 0, fn)
}

// compareDirs compares two open directories; oldfd is -1 when there is no old one.
func compareDirs(ctx context.Context, oldfd, newfd int, path string, depth int, fn func(comparison) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return unix.ELOOP
	}
	var olds []string
	var err error
	if oldfd >= 0 {
		if olds, err = readNames(oldfd); err != nil {
			return err
		}
	}
	news, err := readNames(newfd)
	if err != nil {
		return err
	}
	for len(olds) > 0 || len(news) > 0 {
		if len(news) == 0 || len(olds) > 0 && olds[0] < news[0] {
			if err := fn(comparison{path: join(path, olds[0]), kind: Deleted, newdir: newfd}); err != nil {
				return err
			}
			olds = olds[1:]
			continue
		}
		name := news[0]
		news = news[1:]
		inOld := len(olds) > 0 && olds[0] == name
		if inOld {
			olds = olds[1:]
		}
		if err := compareOne(ctx, oldfd, newfd, path, name, inOld, depth, fn); err != nil {
			return err
		}
	}
	return nil
}

func compareOne(ctx context.Context, oldfd, newfd int, path, name string, inOld bool, depth int, fn func(comparison) error) error {
	c := comparison{path: join(path, name), kind: Added, newdir: newfd}
	if err := unix.Fstatat(newfd, name, &c.new, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", c.path, err)
	}
	newIsDir := c.new.Mode&unix.S_IFMT == unix.S_IFDIR
	oldIsDir, same := false, false
	if inOld {
		var old unix.Stat_t
		if err := unix.Fstatat(oldfd, name, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", c.path, err)
		}
		c.kind = Modified
		oldIsDir = old.Mode&unix.S_IFMT == unix.S_IFDIR
		same = sameFile(oldfd, newfd, name, &old, &c.new)
	}
	if !same {
		if err := fn(c); err != nil {
			return err
		}
	}
	if !newIsDir {
		return nil
	}
	nd, err := openDirAt(newfd, name)
	if err != nil {
		return pathError("open", c.path, err)
	}
	defer unix.Close(nd)
	od := -1
	if oldIsDir {
		if od, err = openDirAt(oldfd, name); err != nil {
			return pathError("open", c.path, err)
		}
		defer unix.Close(od)
	}
	return compareDirs(ctx, od, nd, c.path, depth+1, fn)
}

// sameFile reports whether a file is as it was, by its attributes. A
// directory's size and time change with what is in it, and do not count.
func sameFile(oldfd, newfd int, name string, a, b *unix.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return false
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return true
	}
	if a.Size != b.Size || a.Mtim != b.Mtim {
		return false
	}
	if a.Mode&unix.S_IFMT == unix.S_IFLNK {
		x, err1 := readlinkAt(oldfd, name, a.Size)
		y, err2 := readlinkAt(newfd, name, b.Size)
		return err1 == nil && err2 == nil && x == y
	}
	if a.Mode&unix.S_IFMT == unix.S_IFREG && a.Ctim != b.Ctim {
		x, err1 := readPathXattrs(procPath(oldfd) + "/" + name)
		y, err2 := readPathXattrs(procPath(newfd) + "/" + name)
		if err1 != nil || err2 != nil || len(x) != len(y) {
			return false
		}
		for k := range x {
			if v, ok := y[k]; !ok || v != x[k] {
				return false
			}
		}
	}
	return true
}

// Changes lists what an overlayfs upper directory changes of the layers below,
// given by host paths, top first. It is sorted by path.
func Changes(ctx context.Context, upperfd int, lower []string) ([]Change, error) {
	fd, err := openDirAt(upperfd, ".")
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	c := &upperWalk{ctx: ctx}
	for _, l := range lower {
		root, err := OpenRoot(l)
		if err != nil {
			return nil, err
		}
		defer unix.Close(root)
		c.lower = append(c.lower, root)
	}
	err = c.dir(fd, "", false, 0)
	return c.list.changes, err
}

type upperWalk struct {
	ctx   context.Context
	lower []int
	list  changeList
}

func (u *upperWalk) dir(fd int, path string, hidden bool, depth int) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return unix.ELOOP
	}
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		p := join(path, n)
		old, below := unix.Stat_t{}, false
		if !hidden {
			old, below = u.below(p)
		}
		switch {
		case isWhiteout(&st):
			if below {
				u.list.add(p, Deleted)
			}
			continue
		case !below:
			u.list.add(p, Added)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR && sameDir(&old, &st):
			// Copied up for what is in it; listed when that is.
		default:
			u.list.add(p, Modified)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := openDirAt(fd, n)
		if err != nil {
			continue
		}
		err = u.dir(sub, p, hidden || isOpaque(sub), depth+1)
		_ = unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// sameDir reports whether a directory was copied up and not changed itself.
func sameDir(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtim == b.Mtim
}

// below finds what the layers below show at path.
func (u *upperWalk) below(path string) (unix.Stat_t, bool) {
	var st unix.Stat_t
	for _, root := range u.lower {
		fd, err := openStraight(root, path, unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			if u.hides(root, path) {
				return st, false
			}
			continue
		}
		if err != nil {
			return st, false // something else than a directory is in the way
		}
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		return st, err == nil && !isWhiteout(&st)
	}
	return st, false
}

// hides reports whether a layer has an opaque directory above path.
func (u *upperWalk) hides(root int, path string) bool {
	for up, _ := split(path); ; up, _ = split(up) {
		if fd, err := openStraight(root, up, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			opaque := isOpaque(fd)
			_ = unix.Close(fd)
			if opaque {
				return true
			}
		}
		if up == "." {
			return false
		}
	}
}
