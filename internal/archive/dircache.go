package archive

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

const dirCacheSize = 64

// dirCache keeps descriptors of the directories used last, so that a run of
// files in one directory costs one path walk. Paths are clean.
type dirCache struct {
	root  int
	fds   map[string]dirRef
	order [dirCacheSize]string // ring of the paths in fds
	next  int
}

// dirRef is an open directory (O_PATH) and its path without symbolic links.
type dirRef struct {
	fd   int
	path string
}

func newDirCache(root int) *dirCache {
	return &dirCache{root: root, fds: make(map[string]dirRef, dirCacheSize)}
}

// open returns the directory p. The descriptor is the cache's, good until the
// next call. The errno of the kernel comes back bare.
func (c *dirCache) open(p string) (dirRef, error) {
	if p == "." {
		return dirRef{c.root, "."}, nil
	}
	if d, ok := c.fds[p]; ok {
		return d, nil
	}
	d := dirRef{path: p}
	var err error
	d.fd, err = openStraight(c.root, p, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		if d.fd, err = openBelow(c.root, p, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			d.path, err = c.canonical(d.fd)
		}
	}
	if err != nil {
		return dirRef{}, err
	}
	if old := c.order[c.next]; old != "" {
		c.drop(old)
	}
	c.order[c.next] = p
	c.next = (c.next + 1) % dirCacheSize
	c.fds[p] = d
	return d, nil
}

// canonical asks the kernel for the path of a directory reached through
// symbolic links.
func (c *dirCache) canonical(fd int) (string, error) {
	root, err := readlink(procPath(c.root))
	if err != nil {
		return "", err
	}
	p, err := readlink(procPath(fd))
	if err != nil {
		return "", err
	}
	if p == root {
		return ".", nil
	}
	if root != "/" {
		p = strings.TrimPrefix(p, root)
	}
	return strings.TrimPrefix(p, "/"), nil
}

func readlink(p string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlink(p, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (c *dirCache) drop(p string) {
	if d, ok := c.fds[p]; ok {
		_ = unix.Close(d.fd)
		delete(c.fds, p)
	}
}

// flush forgets everything: a directory or a symbolic link was replaced.
func (c *dirCache) flush() {
	for p := range c.fds {
		c.drop(p)
	}
	clear(c.order[:])
}
