package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A container that wrote nothing leaves its snapshot as it was made. Such a
// directory is kept for the next one on the same parent: file systems are slow
// to make and delete many small things (ext4 looks through the inodes that were
// deleted in the last seconds, for each new one).

const (
	maxSpares = 64
	// spareAge is how long a directory rests: the mount that used it is
	// destroyed behind the exit of its container.
	spareAge = 200 * time.Millisecond
)

// spareKind is what must agree for a directory to be used again.
type spareKind struct {
	parent         string
	mode, uid, gid uint32
}

type spare struct {
	dir  string
	kind spareKind
	from time.Time
}

type spares struct {
	mu   sync.Mutex
	list []spare // the oldest first
	seq  int
}

// takeSpare moves a spare directory of the kind to dir.
func (d *Driver) takeSpare(dir string, kind spareKind) bool {
	s := &d.spares
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, sp := range s.list {
		if time.Since(sp.from) < spareAge {
			return false // and so are the rest
		}
		if sp.kind != kind {
			continue
		}
		if unix.Renameat2(unix.AT_FDCWD, sp.dir, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE) != nil {
			return false // the key is in use: the usual way reports it
		}
		s.list = append(s.list[:i], s.list[i+1:]...)
		return true
	}
	return false
}

// keepSpare keeps the active directory dir, if it is as new and there is room.
func (d *Driver) keepSpare(dir string) bool {
	parent, err := parentOf(dir)
	if err != nil || parent == "" {
		return false
	}
	var st unix.Stat_t
	if unix.Lstat(dir+"/diff", &st) != nil || !empty(dir+"/diff") || marked(dir+"/diff") {
		return false
	}
	if !empty(dir+"/work") && (unix.Rmdir(dir+"/work/work") != nil || !empty(dir+"/work")) {
		return false
	}
	s := &d.spares
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) >= maxSpares {
		return false
	}
	s.seq++
	to := filepath.Join(d.root, "spare", fmt.Sprint(s.seq))
	if unix.Rename(dir, to) != nil {
		return false
	}
	s.list = append(s.list, spare{to, spareKind{parent, st.Mode & 0o7777, st.Uid, st.Gid}, time.Now()})
	return true
}

func empty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

// marked reports whether the root carries attributes beyond the name that
// overlayfs itself gives to an upper directory.
func marked(dir string) bool {
	buf := make([]byte, 256)
	n, err := unix.Llistxattr(dir, buf)
	if err != nil {
		return true
	}
	list := string(buf[:n])
	return list != "" && list != "trusted.overlay.uuid\x00"
}
