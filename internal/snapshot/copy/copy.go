// Package copy gives each snapshot a whole tree of its own. It needs nothing
// of the kernel, takes the space and time of the copies, and shares blocks where
// the file system can.
//
// # On disk
//
//	<root>/layers/<digits of the chain id>/tree    committed
//	<root>/active/<key>/tree                       active
//	<root>/…/parent → <digits of the parent>       a symbolic link; none at the bottom
//	<root>/trash/<random>                          on its way in or out
package copy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/snapshot"
)

// Driver is the copy driver.
type Driver struct{ root string }

// Candidate offers the driver to snapshot.Choose.
func Candidate() snapshot.Candidate {
	return snapshot.Candidate{Names: []string{"vfs", "copy"}, Open: func(root string) (snapshot.Driver, error) {
		return Open(filepath.Join(root, "copy"))
	}}
}

// Open opens or makes the driver's directory.
func Open(root string) (*Driver, error) {
	if err := os.RemoveAll(filepath.Join(root, "trash")); err != nil {
		return nil, err
	}
	for _, d := range []string{"layers", "active", "trash"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o711); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(root, 0o711); err != nil {
		return nil, err
	}
	return &Driver{root: root}, nil
}

// Prepare implements snapshot.Driver.
func (d *Driver) Prepare(ctx context.Context, key, parent string) error {
	name, err := snapshot.DirName(key)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(d.active(name)); err == nil {
		return errs.New(errs.Conflict, "snapshot %s exists", key)
	}
	tmp, err := os.MkdirTemp(filepath.Join(d.root, "trash"), "new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o711); err != nil {
		return err
	}
	if parent == "" {
		if err := os.Mkdir(tmp+"/tree", 0o755); err != nil {
			return err
		}
		if err := os.Chmod(tmp+"/tree", 0o755); err != nil {
			return err
		}
	} else if err := d.fill(ctx, tmp, parent); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, d.active(name), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return errs.New(errs.Conflict, "snapshot %s exists", key)
	}
	return err
}

func (d *Driver) fill(ctx context.Context, tmp, parent string) error {
	pname, err := snapshot.DirName(parent)
	if err != nil {
		return err
	}
	from, err := archive.OpenRoot(d.layer(pname) + "/tree")
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "no such snapshot: %s", parent)
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if err := os.Symlink(pname, tmp+"/parent"); err != nil {
		return err
	}
	if err := os.Mkdir(tmp+"/tree", 0o700); err != nil {
		return err
	}
	to, err := archive.OpenRoot(tmp + "/tree")
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := archive.CopyTree(ctx, from, to); err != nil {
		return fmt.Errorf("cannot copy snapshot %s: %w", parent, err)
	}
	return nil
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
	switch err := unix.Renameat2(unix.AT_FDCWD, d.active(k), unix.AT_FDCWD, d.layer(n), unix.RENAME_NOREPLACE); err {
	case nil:
		return nil
	case unix.EEXIST:
		return errs.New(errs.Conflict, "snapshot %s exists", name)
	case unix.ENOENT:
		return errs.New(errs.NotFound, "no such snapshot: %s", key)
	default:
		return fmt.Errorf("cannot commit snapshot %s: %w", key, err)
	}
}

// Remove implements snapshot.Driver.
func (d *Driver) Remove(_ context.Context, key string) error {
	n, err := snapshot.DirName(key)
	if err != nil {
		return err
	}
	dirs := []string{d.active(n), d.layer(n)}
	if strings.HasPrefix(key, "sha256:") {
		dirs = dirs[1:] // never another's active one
	} else if len(n) == 64 {
		dirs = dirs[:1] // a container's id, never a layer
	}
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		tmp, err := os.MkdirTemp(filepath.Join(d.root, "trash"), "old")
		if err != nil {
			return err
		}
		if err := unix.Rename(dir, tmp); err != nil && err != unix.ENOENT {
			return fmt.Errorf("cannot remove snapshot %s: %w", key, err)
		}
		if err := os.RemoveAll(tmp); err != nil {
			return fmt.Errorf("cannot remove snapshot %s: %w", key, err)
		}
	}
	return nil
}

// Mounts implements snapshot.Driver.
func (d *Driver) Mounts(_ context.Context, key string) (snapshot.Mount, error) {
	dir, _, err := d.find(key)
	return snapshot.Mount{Path: dir + "/tree"}, err
}

// Usage implements snapshot.Driver: what differs from the parent.
func (d *Driver) Usage(ctx context.Context, key string) (int64, error) {
	dir, _, err := d.find(key)
	if err != nil {
		return 0, err
	}
	fd, err := archive.OpenRoot(dir + "/tree")
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	parent, err := parentOf(dir)
	if err != nil {
		return 0, err
	}
	if parent == "" {
		return archive.DiskUsage(fd)
	}
	old, err := archive.OpenRoot(d.layer(parent) + "/tree")
	if err != nil {
		return 0, err
	}
	defer unix.Close(old)
	return archive.UsageOfChanges(ctx, old, fd)
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
			parent, err := parentOf(filepath.Join(d.root, kind, e.Name()))
			if err != nil {
				continue
			}
			i := snapshot.Info{Key: e.Name(), Committed: kind == "layers"}
			if i.Committed {
				i.Key = snapshot.KeyOf(i.Key)
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

// ParentPath returns the tree that an active snapshot was copied from, "" for none: what
// its changes are told against.
func (d *Driver) ParentPath(key string) (string, error) {
	dir, _, err := d.find(key)
	if err != nil {
		return "", err
	}
	parent, err := parentOf(dir)
	if err != nil || parent == "" {
		return "", err
	}
	return d.layer(parent) + "/tree", nil
}

// ApplyTarget implements snapshot.Applier.
func (d *Driver) ApplyTarget(_ context.Context, key string) (string, []string, bool, error) {
	dir, committed, err := d.find(key)
	if err == nil && committed {
		err = errs.New(errs.Internal, "snapshot %s is committed", key)
	}
	return dir + "/tree", nil, false, err
}

func (d *Driver) layer(name string) string  { return d.root + "/layers/" + name }
func (d *Driver) active(name string) string { return d.root + "/active/" + name }

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

func parentOf(dir string) (string, error) {
	p, err := os.Readlink(dir + "/parent")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return p, err
}
