// Package overlay keeps each snapshot as the directory of its own changes, and
// leaves stacking to the kernel's overlayfs.
//
// # On disk
//
//	<root>/layers/<digits of the chain id>/     committed
//	    diff/                                   the layer's files, deletions as overlayfs marks them
//	    parent → <digits of the parent>         a symbolic link; none at the bottom
//	<root>/active/<key>/                        active
//	    diff/  work/  parent →
//	<root>/trash/<random>/                      on its way out
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/snapshot"
)

// Driver is the overlay driver.
type Driver struct {
	root string

	mu     sync.RWMutex
	chains map[string][]string // committed directory name → itself and what is below, top first; never changed in place

	spares spares
}

// Candidate offers the driver to snapshot.Choose.
func Candidate() snapshot.Candidate {
	return snapshot.Candidate{Names: []string{"overlay2", "overlay"}, Open: func(root string) (snapshot.Driver, error) {
		return Open(filepath.Join(root, "overlay"))
	}}
}

// Open opens or makes the driver's directory, and fails where overlayfs does
// not work on its file system.
func Open(root string) (*Driver, error) {
	for _, d := range []string{"layers", "active", "trash", "spare"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(root, 0o711); err != nil {
		return nil, err
	}
	for _, d := range []string{"layers", "active"} {
		// Processes of a user namespace walk through here, and list nothing.
		if err := os.Chmod(filepath.Join(root, d), 0o711); err != nil {
			return nil, err
		}
	}
	d := &Driver{root: root, chains: map[string][]string{}}
	if err := d.emptyTrash(); err != nil {
		return nil, err
	}
	if err := d.probe(); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *Driver) emptyTrash() error {
	for _, kind := range []string{"trash", "spare"} {
		entries, err := os.ReadDir(filepath.Join(d.root, kind))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(d.root, kind, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// probe mounts two small layers, deletes a file through the mount and looks
// for the mark: what any later use needs.
func (d *Driver) probe() error {
	dir, err := os.MkdirTemp(filepath.Join(d.root, "trash"), "probe")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	at := func(n string) string { return filepath.Join(dir, n) }
	for _, n := range []string{"low", "up", "work"} {
		if err := os.Mkdir(at(n), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(at("low"), "f"), nil, 0o600); err != nil {
		return err
	}
	fd, err := snapshot.Attach(snapshot.Mount{Lower: []string{at("low")}, Upper: at("up"), Work: at("work")}, false)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(fd, "f", 0)
	_ = unix.Close(fd)
	if err != nil {
		return fmt.Errorf("cannot delete a file on overlayfs: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(at("up"), "f"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return errors.New("overlayfs does not mark deleted files here")
	}
	return nil
}

// Prepare implements snapshot.Driver by four calls: three directories and a link.
func (d *Driver) Prepare(_ context.Context, key, parent string) error {
	name, err := snapshot.DirName(key)
	if err != nil {
		return err
	}
	mode, uid, gid := uint32(0o755), uint32(0), uint32(0)
	pname := ""
	if parent != "" {
		if pname, err = snapshot.DirName(parent); err != nil {
			return err
		}
		// The upper directory's own attributes are those of the root: "/" stays as the image has it.
		var st unix.Stat_t
		if err := unix.Stat(d.layer(pname)+"/diff", &st); err != nil {
			return errs.New(errs.NotFound, "no such snapshot: %s", parent)
		}
		mode, uid, gid = st.Mode&0o7777, st.Uid, st.Gid
	}
	dir := d.active(name)
	if d.takeSpare(dir, spareKind{pname, mode, uid, gid}) {
		return nil
	}
	if err := unix.Mkdir(dir, 0o711); err == unix.EEXIST {
		return errs.New(errs.Conflict, "snapshot %s exists", key)
	} else if err != nil {
		return fmt.Errorf("cannot make snapshot %s: %w", key, err)
	}
	err = fill(dir, pname, mode, uid, gid)
	if err != nil {
		_ = os.RemoveAll(dir)
		return fmt.Errorf("cannot make snapshot %s: %w", key, err)
	}
	return nil
}

func fill(dir, parent string, mode, uid, gid uint32) error {
	if parent != "" {
		if err := unix.Symlink(parent, dir+"/parent"); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(dir+"/work", 0o700); err != nil {
		return err
	}
	diff := dir + "/diff"
	if err := unix.Mkdir(diff, 0o700); err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := unix.Chown(diff, int(uid), int(gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(diff, mode) // whatever the umask is
}

// Commit implements snapshot.Driver.
func (d *Driver) Commit(_ context.Context, name, key string) error {
	n, err := snapshot.DirName(name)
	if err != nil {
		return err
	}
	k, err := snapshot.DirName(key)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(d.active(k) + "/work"); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, d.active(k), unix.AT_FDCWD, d.layer(n), unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return errs.New(errs.Conflict, "snapshot %s exists", name)
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.NotFound, "no such snapshot: %s", key)
	}
	return fmt.Errorf("cannot commit snapshot %s: %w", key, err)
}

// Remove implements snapshot.Driver.
func (d *Driver) Remove(_ context.Context, key string) error {
	n, err := snapshot.DirName(key)
	if err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.chains, n)
	d.mu.Unlock()
	dirs := []string{d.active(n), d.layer(n)}
	if strings.HasPrefix(key, "sha256:") {
		dirs = dirs[1:] // never another's active one
	} else if len(n) == 64 {
		dirs = dirs[:1] // a container's id, never a layer
	}
	if len(n) == 64 && d.keepSpare(dirs[0]) {
		return nil
	}
	for _, dir := range dirs {
		trash := filepath.Join(d.root, "trash", filepath.Base(filepath.Dir(dir))+"-"+n)
		err := unix.Rename(dir, trash)
		if err == unix.ENOENT {
			continue
		}
		if err == unix.ENOTEMPTY || err == unix.EEXIST { // of an earlier removal that failed half-way
			if err := os.RemoveAll(trash); err != nil {
				return err
			}
			err = unix.Rename(dir, trash)
		}
		if err != nil {
			return fmt.Errorf("cannot remove snapshot %s: %w", key, err)
		}
		if err := os.RemoveAll(trash); err != nil {
			return fmt.Errorf("cannot remove snapshot %s: %w", key, err)
		}
	}
	return nil
}

// Mounts implements snapshot.Driver.
func (d *Driver) Mounts(_ context.Context, key string) (snapshot.Mount, error) {
	dir, committed, err := d.find(key)
	if err != nil {
		return snapshot.Mount{}, err
	}
	if committed {
		chain, err := d.chain(filepath.Base(dir))
		if err != nil {
			return snapshot.Mount{}, err
		}
		return snapshot.Mount{Lower: d.dirs(chain)}, nil
	}
	parent, err := parentOf(dir)
	if err != nil {
		return snapshot.Mount{}, err
	}
	if parent == "" {
		return snapshot.Mount{Path: dir + "/diff"}, nil
	}
	chain, err := d.chain(parent)
	if err != nil {
		return snapshot.Mount{}, err
	}
	return snapshot.Mount{Lower: d.dirs(chain), Upper: dir + "/diff", Work: dir + "/work"}, nil
}

// Usage implements snapshot.Driver.
func (d *Driver) Usage(_ context.Context, key string) (int64, error) {
	dir, _, err := d.find(key)
	if err != nil {
		return 0, err
	}
	fd, err := archive.OpenRoot(dir + "/diff")
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return archive.DiskUsage(fd)
}

// Walk implements snapshot.Driver.
func (d *Driver) Walk(ctx context.Context, fn func(snapshot.Info) error) error {
	for _, kind := range []string{"layers", "active"} {
		entries, err := os.ReadDir(filepath.Join(d.root, kind))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			i := snapshot.Info{Key: e.Name(), Committed: kind == "layers"}
			if i.Committed {
				i.Key = snapshot.KeyOf(i.Key)
			}
			parent, err := parentOf(filepath.Join(d.root, kind, e.Name()))
			if err != nil {
				continue // removed meanwhile
			}
			if parent != "" {
				i.Parent = snapshot.KeyOf(parent)
			}
			if err := fn(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// Describe implements snapshot.Describer.
func (d *Driver) Describe(ctx context.Context, key string) (map[string]string, error) {
	dir, _, err := d.find(key)
	if err != nil {
		return nil, err
	}
	data := map[string]string{"MergedDir": dir + "/merged", "UpperDir": dir + "/diff", "WorkDir": dir + "/work"}
	m, err := d.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	lower := m.Lower
	if m.Upper == "" && len(lower) > 0 {
		lower = lower[1:]
	}
	if len(lower) > 0 {
		data["LowerDir"] = strings.Join(lower, ":")
	}
	return data, nil
}

// ApplyTarget implements snapshot.Applier.
func (d *Driver) ApplyTarget(ctx context.Context, key string) (string, []string, bool, error) {
	m, err := d.Mounts(ctx, key)
	if err != nil {
		return "", nil, false, err
	}
	if m.Path != "" {
		return m.Path, nil, true, nil
	}
	if m.Upper == "" {
		return "", nil, false, errs.New(errs.Internal, "snapshot %s is committed", key)
	}
	return m.Upper, m.Lower, true, nil
}

func (d *Driver) layer(name string) string  { return d.root + "/layers/" + name }
func (d *Driver) active(name string) string { return d.root + "/active/" + name }

func (d *Driver) dirs(chain []string) []string {
	dirs := make([]string, len(chain))
	for i, n := range chain {
		dirs[i] = d.layer(n) + "/diff"
	}
	return dirs
}

// find returns the directory of a snapshot. A digest is only ever a committed
// one's name; other keys are looked for among the active ones first.
func (d *Driver) find(key string) (dir string, committed bool, err error) {
	n, err := snapshot.DirName(key)
	if err != nil {
		return "", false, err
	}
	if !strings.HasPrefix(key, "sha256:") {
		if unix.Access(d.active(n), unix.F_OK) == nil {
			return d.active(n), false, nil
		}
	}
	if unix.Access(d.layer(n), unix.F_OK) == nil {
		return d.layer(n), true, nil
	}
	return "", false, errs.New(errs.NotFound, "no such snapshot: %s", key)
}

// chain returns a committed layer and all below it, top first.
func (d *Driver) chain(name string) ([]string, error) {
	d.mu.RLock()
	c := d.chains[name]
	d.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	for n := name; n != ""; {
		if len(c) > 4096 {
			return nil, errs.New(errs.Internal, "snapshot %s stands on itself", name)
		}
		c = append(c, n)
		up, err := parentOf(d.layer(n))
		if err != nil {
			return nil, fmt.Errorf("cannot find the layers of %s: %w", name, err)
		}
		n = up
	}
	d.mu.Lock()
	d.chains[name] = c
	d.mu.Unlock()
	return c, nil
}

// parentOf returns the directory name of a snapshot's parent, "" for none.
func parentOf(dir string) (string, error) {
	p, err := os.Readlink(dir + "/parent")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return p, err
}
