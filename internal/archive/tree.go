package archive

import (
	"slices"

	"golang.org/x/sys/unix"
)

// readNames returns the names in an open directory, sorted.
func readNames(fd int) ([]string, error) {
	buf := make([]byte, 32<<10)
	var names []string
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	slices.Sort(names)
	return names, nil
}

// openDirAt opens the directory name in dir, which must be no symbolic link.
func openDirAt(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// fileID names a file for as long as it is open.
type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// isOpaque reports whether an open directory of an overlayfs layer hides those below.
func isOpaque(fd int) bool {
	var b [1]byte
	n, err := unix.Fgetxattr(fd, opaqueXattr, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// DiskUsage returns the bytes in the files and symbolic links below dirfd,
// each file counted once.
func DiskUsage(dirfd int) (int64, error) {
	var total int64
	seen := map[fileID]struct{}{}
	var walk func(fd, depth int) error
	walk = func(fd, depth int) error {
		names, err := readNames(fd)
		if err != nil {
			return err
		}
		for _, n := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // gone meanwhile
			}
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				if st.Nlink > 1 {
					if _, ok := seen[idOf(&st)]; ok {
						continue
					}
					seen[idOf(&st)] = struct{}{}
				}
				total += st.Size
				continue
			}
			if depth >= maxDepth {
				return unix.ELOOP
			}
			sub, err := openDirAt(fd, n)
			if err != nil {
				continue
			}
			err = walk(sub, depth+1)
			_ = unix.Close(sub)
			if err != nil {
				return err
			}
		}
		return nil
	}
	fd, err := openDirAt(dirfd, ".")
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return total, walk(fd, 0)
}

func readlinkAt(dir int, name string, size int64) (string, error) {
	buf := make([]byte, max(size+1, 256))
	for {
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}
