// Package archive moves file trees in and out of tar streams.
//
// # Words
//
// A layer is a tar of changes to a tree. It deletes by whiteouts: an empty
// file ".wh.NAME" removes NAME of the layers below, and ".wh..wh..opq" in a
// directory hides all that the layers below have in it. In overlayfs the first is
// a character device 0:0 and the second the attribute trusted.overlay.opaque.
//
// A skeleton is all of a tar stream but the contents of its regular files:
// headers, padding, and whatever else the producer put there. Skeleton and
// unpacked tree together give back the tar byte for byte, so a layer keeps its
// digest without the tar being kept.
//
// # Ways through
//
//	stream := archive.NewStream(ctx, body)      // decompress and hash, in the background
//	res, err := archive.Unpack(ctx, stream, rootfd, archive.UnpackOptions{…})
//	stream.Digest()                             // of the uncompressed tar
//
//	archive.Tar(ctx, w, rootfd, path, …)        // a tree, or one path of it
//	archive.DiffUpper(ctx, w, upperfd, nil)          // overlayfs's upper directory as a layer
//	archive.DiffTrees(ctx, w, oldfd, newfd)     // the difference of two trees as a layer
//	archive.Changes, archive.ChangedTrees       // the same as a list
//	archive.Reassemble(ctx, w, rootfd, skeleton)
//
// # Safety
//
// A tar is hostile. Every path is resolved by the kernel below a root
// directory's descriptor (openat2), and the last component is never followed.
// A name with ".." that leaves the root is an error; an absolute name or link
// means the root; a symbolic link in the middle of a path is followed inside
// the root only, also when the tree changes meanwhile. Nothing is executed,
// decompression included, and memory does not grow with the size of a file.
package archive

import (
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// Names that layers use for deletion.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	opaqueXattr   = "trusted.overlay.opaque"
	overlayXattrs = "trusted.overlay."
	paxXattr      = "SCHILY.xattr."
)

const (
	maxDepth   = 2048
	maxSeconds = 1 << 33 // the year 2242, well inside of what nanoseconds in 64 bits hold
)

// clean makes a tar's name relative to the root: "." for the root itself.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errs.New(errs.Invalid, "invalid path in archive: %q", name)
	}
	// Most names are clean but for the slash of a directory.
	c := strings.TrimLeft(name, "/")
	c = path.Clean(c)
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", errs.New(errs.Invalid, "invalid path in archive: %q is outside of the root", name)
	}
	if strings.Count(c, "/") > maxDepth {
		return "", errs.New(errs.Invalid, "invalid path in archive: more than %d directories deep", maxDepth)
	}
	return c, nil
}

// split is path.Split for clean paths: the parent is "." at the root.
func split(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ".", p
	}
	return p[:i], p[i+1:]
}

func join(dir, base string) string {
	if dir == "." || dir == "" {
		return base
	}
	return dir + "/" + base
}

// openBelow opens p below root without leaving it. Symbolic links resolve
// inside the root, unless flags has O_NOFOLLOW for the last.
func openBelow(root int, p string, flags int, mode uint32) (int, error) {
	return openat2(root, p, flags, mode, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// openStraight opens p below root and fails with ELOOP at any symbolic link.
func openStraight(root int, p string, flags int) (int, error) {
	return openat2(root, p, flags, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

func openat2(root int, p string, flags int, mode uint32, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, p, &how)
		// EAGAIN: a rename somewhere on the way; the walk must be made anew.
		if err == unix.EINTR || err == unix.EAGAIN && try < 128 {
			continue
		}
		return fd, err
	}
}

// OpenRoot opens a directory to be used as a root.
func OpenRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot open %s: %w", dir, err)
	}
	return fd, nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// fdTime makes a timespec of t; times that files cannot have become the epoch.
func fdTime(t time.Time) unix.Timespec {
	if t.Before(time.Unix(0, 0)) || t.Unix() > maxSeconds {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// pathError gives an errno of the kernel the path that it is about.
func pathError(op, p string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot %s %q: %w", op, p, err)
}
