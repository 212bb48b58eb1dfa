// Package shift shows containers in a user namespace their layers where mounts
// with mapped ids do not exist: kernels before 5.19, and file systems that do
// not have them. It keeps a copy of each layer whose owners are the host's ids,
// made when a container needs it for the first time, and lets overlayfs stack
// those.
//
// What such a container writes has the host's ids on disk. Whoever reads its own
// layer maps them back: that is told by Mount's second result in the container
// service.
//
// # On disk
//
//	<root>/<name of the layer's directory>/    owners shifted; a copy under way has ".new" in its name
package shift

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/snapshot"
)

// Layers keeps the copies for one mapping. It is safe for use by several goroutines.
type Layers struct {
	root string
	ids  *idmap.Mapping

	mu sync.Mutex // one copy is made at a time
}

// Open opens or makes the directory of the copies, and drops those that were
// not finished or whose layer is gone.
func Open(root string, ids *idmap.Mapping) (*Layers, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	l := &Layers{root: root, ids: ids}
	return l, l.sweep()
}

// sweep removes what is of no use any more. A copy names its layer by a link beside it.
func (l *Layers) sweep() error {
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, isLink := strings.CutSuffix(e.Name(), ".of")
		if !isLink {
			if _, err := os.Lstat(filepath.Join(l.root, e.Name()+".of")); err == nil {
				continue
			}
			if err := os.RemoveAll(filepath.Join(l.root, e.Name())); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(l.root, e.Name())); err == nil {
			continue
		}
		for _, n := range []string{name, e.Name()} {
			if err := os.RemoveAll(filepath.Join(l.root, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Shift returns m with its lower layers replaced by copies with shifted owners,
// and its upper directory given to the owner that it has in the user namespace.
func (l *Layers) Shift(ctx context.Context, m snapshot.Mount) (snapshot.Mount, error) {
	if m.Path != "" {
		return m, errs.New(errs.NotImplemented, "this storage driver cannot show a container in a user namespace its files: the kernel, or the file system of the data root, has no mounts with mapped ids; use the overlay2 driver, or --userns=host")
	}
	out := snapshot.Mount{Upper: m.Upper, Work: m.Work, Lower: make([]string, len(m.Lower))}
	for i, dir := range m.Lower {
		var err error
		if out.Lower[i], err = l.copyOf(ctx, dir); err != nil {
			return m, fmt.Errorf("cannot copy the layer %s for a user namespace: %w", dir, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(m.Upper, &st); err != nil {
		return m, err
	}
	if l.ids.UID.In(st.Uid) == idmap.Overflow && l.ids.GID.In(st.Gid) == idmap.Overflow { // as it was made
		own, err := l.owner(archive.Owner{UID: int(st.Uid), GID: int(st.Gid)})
		if err != nil {
			return m, err
		}
		if err := os.Lchown(m.Upper, own.UID, own.GID); err != nil {
			return m, err
		}
	}
	return out, nil
}

// owner shifts an owner. Ids that have no place in the mapping belong to nobody.
func (l *Layers) owner(o archive.Owner) (archive.Owner, error) {
	uid, ok := l.ids.UID.Out(uint32(o.UID))
	if !ok {
		uid = idmap.Overflow
	}
	gid, ok := l.ids.GID.Out(uint32(o.GID))
	if !ok {
		gid = idmap.Overflow
	}
	return archive.Owner{UID: int(uid), GID: int(gid)}, nil
}

// copyOf returns the copy of a layer's directory, and makes it when there is none.
func (l *Layers) copyOf(ctx context.Context, dir string) (string, error) {
	sum := sha256.Sum256([]byte(dir))
	to := filepath.Join(l.root, hex.EncodeToString(sum[:16]))
	if unix.Access(to, unix.F_OK) == nil {
		return to, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if unix.Access(to, unix.F_OK) == nil {
		return to, nil
	}
	if err := l.sweep(); err != nil {
		return "", err
	}
	from, err := archive.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer unix.Close(from)
	tmp := to + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	fd, err := archive.OpenRoot(tmp)
	if err != nil {
		return "", err
	}
	err = archive.CopyLayer(ctx, from, fd, l.owner)
	_ = unix.Close(fd)
	if err == nil {
		if err = os.Symlink(dir, to+".of"); errors.Is(err, os.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
		return "", err
	}
	return to, nil
}

// Forget removes the copies of layers that are gone.
func (l *Layers) Forget() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sweep()
}
