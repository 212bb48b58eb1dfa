package container

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/state"
	"berth.dev/berth/internal/volume"
)

// volumes are the names of a container's volumes, each once; nil for none.
func (r *Record) volumes() []string {
	var out []string
	for i := range r.Mounts {
		if m := &r.Mounts[i]; m.Type == mount.TypeVolume && m.Name != "" && !slices.Contains(out, m.Name) {
			out = append(out, m.Name)
		}
	}
	return out
}

// mountAt is the mount at a place that is a volume or an image, nil for others.
func (r *Record) mountAt(dest string) *Mount {
	for i := range r.Mounts {
		if m := &r.Mounts[i]; m.Destination == dest && (m.Type == mount.TypeVolume || m.Type == mount.TypeImage) {
			return m
		}
	}
	return nil
}

// shallow lets read-only binds hold for the mount itself alone.
func shallow(list []Mount) {
	for i := range list {
		if list[i].Type == mount.TypeBind {
			for j, o := range list[i].Options {
				if o == roOption(true) {
					list[i].Options[j] = roOption(false)
				}
			}
		}
	}
}

// hold finds or makes the volumes of a container that is being made, and finds its images.
func (s volumes) hold(ctx context.Context, r *Record) error {
	for i := range r.Mounts {
		m := &r.Mounts[i]
		switch m.Type {
		case mount.TypeImage:
			if m.Source == m.Name { // else it is another container's
				img, err := s.o.Images.Resolve(ctx, m.Name)
				if err != nil {
					return err
				}
				m.Source = string(img.ID)
			}
		case mount.TypeVolume:
			want := volume.Request{Name: m.Name, Driver: m.Driver}
			if m.want != nil {
				want = *m.want
			}
			want.Holder = string(r.ID)
			v, err := s.o.Volumes.Hold(ctx, want)
			if err != nil {
				return err
			}
			if m.want != nil {
				m.Name, m.Driver, m.Source = v.Name, v.Driver, v.Path
				if v.Driver == "local" && m.Mode == "" && !m.declared {
					m.Mode = "z"
				}
				m.want = nil
			}
		}
	}
	return nil
}

// commit writes the rows by which a container holds volumes and images.
func (s volumes) commit(tx *state.Tx, r *Record) error {
	if len(r.Mounts) == 0 {
		return nil
	}
	for _, ref := range r.imageRefs() {
		if err := tx.Put("ref", ref, "container"); err != nil {
			return err
		}
	}
	return s.o.Volumes.Commit(tx, string(r.ID), r.volumes())
}

// imageRefs are the rows by which a container holds the images among its mounts.
func (r *Record) imageRefs() []string {
	var out []string
	for i := range r.Mounts {
		if m := &r.Mounts[i]; m.Type == mount.TypeImage {
			out = append(out, image.RefKey(digest.Digest(m.Source), string(r.ID)))
		}
	}
	return out
}

// uncommit deletes the rows of commit. With remove the volumes without a name are
// marked for removal, so that a crash before release changes nothing.
func (s volumes) uncommit(tx *state.Tx, r *Record, remove bool) error {
	for _, ref := range r.imageRefs() {
		tx.Delete("ref", ref)
	}
	for _, name := range r.volumes() {
		tx.Delete("ref", volume.RefKey(name, string(r.ID)))
	}
	if !remove {
		return nil
	}
	return s.o.Volumes.Doom(tx, string(r.ID), r.anonymous())
}

// anonymous are the names of the volumes that go with a container.
func (r *Record) anonymous() []string {
	var out []string
	for i := range r.Mounts {
		if m := &r.Mounts[i]; m.Type == mount.TypeVolume && m.Anonymous {
			out = append(out, m.Name)
		}
	}
	return out
}

// release gives the volumes of a container that is no more up.
func (s volumes) release(r *Record, remove bool) {
	if len(r.Mounts) == 0 {
		return
	}
	var gone []string
	if remove {
		gone = r.anonymous()
	}
	if err := s.o.Volumes.Release(context.Background(), string(r.ID), r.volumes(), gone); err != nil {
		s.o.Log.Warn("cannot remove volumes with their container", "id", r.ID, "error", err)
	}
}

// wantFill reports whether a new container has a volume that may have to be filled.
func (s volumes) wantFill(r *Record) bool {
	return slices.ContainsFunc(r.Mounts, func(m Mount) bool {
		return m.Type == mount.TypeVolume && (m.declared || !m.NoCopy && (m.Subpath != "" || s.o.Volumes.IsEmpty(m.Name)))
	})
}

// fill gives empty volumes what the image has at their places. root is the new
// container's tree; nothing of it leads out of it.
func (s volumes) fill(ctx context.Context, r *Record, root int) error {
	for i := range r.Mounts {
		m := &r.Mounts[i]
		if m.Type != mount.TypeVolume || m.NoCopy {
			continue
		}
		src, err := linux.OpenInRoot(root, m.Destination, unix.O_PATH)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return errs.New(errs.Internal, "cannot look for %s in the image: %v", m.Destination, err)
		}
		err = s.fillFrom(ctx, r, m, src)
		_ = unix.Close(src)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s volumes) fillFrom(ctx context.Context, r *Record, m *Mount, src int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if m.declared {
			return errs.New(errs.Internal, "cannot mount volume over existing file, file exists %s", m.Destination)
		}
		return nil
	}
	return s.o.Volumes.Fill(ctx, m.Name, m.Subpath, string(r.ID), src)
}

// open clones what a volume or an image shows in a container that starts, and makes
// the volume usable; endOne takes that back.
func (s volumes) open(ctx context.Context, r *Record, m *Mount) (fd int, err error) {
	if m.Type == mount.TypeImage {
		return s.openImage(ctx, r, m)
	}
	path, err := s.o.Volumes.Mount(ctx, m.Name, string(r.ID))
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			s.unuse(m.Name, string(r.ID))
		}
	}()
	at, err := volume.OpenIn(path, m.Subpath)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	if fd, err = cloneAt(at); err != nil {
		return -1, errs.New(errs.Internal, "error while mounting volume '%s': %v", path, err)
	}
	s.o.Volumes.Mounted(m.Name, string(r.ID), m.Destination, string(m.Propagation), m.RW)
	return fd, nil
}

// cloneAt makes a detached copy of the tree of mounts at an open place.
func cloneAt(fd int) (int, error) {
	return unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
}

// openImage attaches the tree of an image, read-only.
func (s volumes) openImage(ctx context.Context, r *Record, m *Mount) (int, error) {
	img, err := s.o.Images.Resolve(ctx, m.Source)
	if err != nil {
		return -1, err
	}
	if img.Top() == "" {
		return -1, errs.New(errs.Invalid, "image %s has no files to mount", m.Name)
	}
	sm, err := s.o.Snapshots.Mounts(ctx, img.Top())
	if err != nil {
		return -1, err
	}
	fd := -1
	switch {
	case s.userns.shifts(r):
		if sm, err = s.userns.layers.Shift(ctx, sm); err == nil {
			fd, err = snapshot.Attach(sm, true)
		}
	case s.userns.holds(r.HostConfig):
		fd, err = snapshot.AttachMapped(sm, s.userns.mountNS)
	default:
		fd, err = snapshot.Attach(sm, true)
	}
	if err != nil || m.Subpath == "" {
		return fd, err
	}
	defer unix.Close(fd)
	at, err := volume.OpenBelow(fd, m.Name, m.Subpath)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return cloneAt(at)
}

// end is called when a container's process is gone.
func (s volumes) end(r *Record) {
	for i := range r.Mounts {
		s.endOne(r, &r.Mounts[i])
	}
}

// endOne takes back what open did for one mount.
func (s volumes) endOne(r *Record, m *Mount) {
	if m.Type != mount.TypeVolume {
		return
	}
	s.unuse(m.Name, string(r.ID))
	s.o.Volumes.Unmounted(m.Name, string(r.ID))
}

func (s volumes) unuse(name, user string) {
	if err := s.o.Volumes.Unmount(context.Background(), name, user); err != nil {
		s.o.Log.Warn("cannot unmount a volume", "user", user, "volume", name, "error", err)
	}
}

// openStopped opens a path below a volume or image of a container that does not run:
// the directory to start from, and the path from there. The volume need not stay
// mounted: the descriptor keeps it.
func (s volumes) openStopped(ctx context.Context, r *Record, m *Mount, p string) (fd int, rel string, err error) {
	rest := "/" + strings.TrimPrefix(strings.TrimPrefix(p, m.Destination), "/")
	if m.Type == mount.TypeImage {
		fd, err = s.openImage(ctx, r, m)
		return fd, rest, err
	}
	user := "copy-" + string(newID())
	path, err := s.o.Volumes.Mount(ctx, m.Name, user)
	if err != nil {
		return -1, "", err
	}
	fd, err = volume.OpenIn(path, m.Subpath)
	s.unuse(m.Name, user)
	return fd, rest, err
}
