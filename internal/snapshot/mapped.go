package snapshot

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// ErrNoIDMap means that the kernel or the file system has no mounts with mapped ids.
var ErrNoIDMap = errors.New("no mounts with mapped ids here")

// AttachMapped is Attach for a container in a user namespace: the directories
// are shown with their owners mapped as the user namespace behind userns maps
// ids, and what is written through the mount is mapped back. So on disk there
// are only the ids that containers know, for images and containers alike.
//
// Overlayfs itself cannot be mapped, but takes layers that are. It wants them in
// the caller's mount namespace: each is cloned, mapped, and put over its own
// path, on a thread in a mount namespace of its own, which ends with the call.
// No lower layer may lie in the directory that holds Upper and Work.
func AttachMapped(m Mount, userns int) (int, error) {
	if m.Path != "" {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return -1, fmt.Errorf("cannot bind %s: %w", m.Path, err)
		}
		if err := mapIDs(fd, userns, m.Path); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	if len(m.Lower) == 0 || m.Upper == "" {
		return -1, errs.New(errs.Internal, "a mapped mount without layers")
	}
	var fd int
	var err error
	onOwnThread(func() { fd, err = attachMapped(m, userns) })
	return fd, err
}

// attachMapped must run on a thread of its own.
func attachMapped(m Mount, userns int) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, err
	}
	// Upper and work directory must be of one mount.
	home := filepath.Dir(m.Upper)
	if filepath.Dir(m.Work) != home {
		return -1, errs.New(errs.Internal, "%s and %s are not in one directory", m.Upper, m.Work)
	}
	for _, dir := range append([]string{home}, m.Lower...) {
		if err := cover(dir, userns); err != nil {
			return -1, err
		}
	}
	attach := attachOverlay
	if !appendsLayers() {
		attach = attachNamed
	}
	fd, err := attach(m)
	if errors.Is(err, errOldKernel) {
		fd, err = classicMount(m)
	}
	if err != nil {
		return -1, fmt.Errorf("cannot mount overlay: %w", err)
	}
	return fd, nil
}

// cover puts a mapped clone of a directory over it.
func cover(dir string, userns int) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := mapIDs(fd, userns, dir); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	return nil
}

func mapIDs(mount, userns int, dir string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		return fmt.Errorf("cannot map the ids of %s: %w", dir, ErrNoIDMap)
	}
	if err != nil {
		return fmt.Errorf("cannot map the ids of %s: %w", dir, err)
	}
	return nil
}
