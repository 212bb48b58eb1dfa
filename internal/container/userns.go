package container

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/snapshot/shift"
)

// # Containers in user namespaces (--userns-remap)
//
// Each container gets a user namespace of its own, with the daemon's one
// mapping. What is on disk, layers of images and of containers alike, keeps the
// ids that containers know: the root filesystem is attached with mapped ids
// (snapshot.AttachMapped). So commit, diff, export, and a copy into a stopped
// container need no mapping, and a container with --userns=host sees the same
// image. Only what is read or written through a running container's own view
// (/proc/PID/root) has the host's ids, and is mapped on its way.
//
// The mapping of the mounts has one range more than that of the containers: the
// host's root, who makes files through such a view before giving them to
// their owner, and who would otherwise have no id there.
//
// Where mounts with mapped ids do not exist, layers are copied with shifted
// owners (package snapshot/shift), and what containers write has the host's ids on
// disk. Then whatever is read of them is mapped back: see shifted.

// userns is what the service has for containers in user namespaces.
type userns struct {
	ids     *idmap.Mapping
	uid     []specs.LinuxIDMapping
	gid     []specs.LinuxIDMapping
	rt      *runtime.Runtime
	mountNS int // a user namespace with the mapping of the mounts

	layers *shift.Layers // copies with shifted owners; nil with mapped mounts
}

// hostRootOnDisk is the id that stands on disk for the host's root.
const hostRootOnDisk = 1<<32 - 2

func newUserns(ids *idmap.Mapping, dataRoot string, log *slog.Logger) (*userns, error) {
	u := &userns{ids: ids, uid: mappings(ids.UID), gid: mappings(ids.GID)}
	var err error
	if u.rt, err = runtime.New(); err != nil {
		return nil, err
	}
	host := specs.LinuxIDMapping{ContainerID: hostRootOnDisk, HostID: 0, Size: 1}
	withRoot := func(l []specs.LinuxIDMapping) []specs.LinuxIDMapping { return append(l[:len(l):len(l)], host) }
	if u.mountNS, _, err = u.rt.NewUserNS(-1, withRoot(u.uid), withRoot(u.gid), false); err != nil {
		return nil, err
	}
	if err := u.probe(dataRoot); err != nil {
		log.Warn("layers are copied for containers in user namespaces", "reason", err)
		if u.layers, err = shift.Open(filepath.Join(dataRoot, "shifted"), ids); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// probe mounts two small layers with mapped ids and writes through the mount.
func (u *userns) probe(dataRoot string) error {
	dir, err := os.MkdirTemp(dataRoot, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := snapshot.Mount{Lower: []string{filepath.Join(dir, "low")}, Upper: filepath.Join(dir, "own", "up"), Work: filepath.Join(dir, "own", "work")}
	for _, d := range []string{m.Lower[0], m.Upper, m.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	fd, err := snapshot.AttachMapped(m, u.mountNS)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
		return err
	}
	uid, gid := u.ids.Root()
	if err := unix.Fchownat(fd, "d", int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(m.Upper, "d"), &st); err != nil {
		return err
	}
	if st.Uid != 0 || st.Gid != 0 {
		return fmt.Errorf("a directory of the container's root is owned by %d:%d on disk", st.Uid, st.Gid)
	}
	return nil
}

func mappings(m idmap.Map) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(m))
	for _, r := range m {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Outside, Size: r.Size})
	}
	return out
}

// holds reports whether a container runs in a user namespace.
func (u *userns) holds(hc *container.HostConfig) bool { return u != nil && !hc.UsernsMode.IsHost() }

// checkUserns refuses what a container in a user namespace cannot have.
func (s creator) checkUserns(hc *container.HostConfig) error {
	if !s.userns.holds(hc) {
		return nil
	}
	switch {
	case hc.Privileged:
		return errs.New(errs.Invalid, "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
	case hc.NetworkMode.IsHost():
		return errs.New(errs.Invalid, "cannot share the host's network namespace when user namespaces are enabled")
	case hc.PidMode.IsHost():
		return errs.New(errs.Invalid, "cannot share the host PID namespace when user namespaces are enabled")
	}
	return nil
}

// shifts reports whether a container's own layer has the host's ids on disk.
func (u *userns) shifts(r *Record) bool { return u.holds(r.HostConfig) && u.layers != nil }

// ownersOf maps the owners of a container's files, as they are on disk, to
// those that it knows; nil when they are the same.
func (u *userns) ownersOf(r *Record) func(archive.Owner) archive.Owner {
	if u.shifts(r) {
		return u.toContainer
	}
	return nil
}

// mount tells how the root of a container is made, with or without the layer
// of mount points.
func (s roots) mount(ctx context.Context, r *Record, skeleton bool) (snapshot.Mount, error) {
	m, err := s.o.Snapshots.Mounts(ctx, string(r.ID))
	if err != nil {
		return m, err
	}
	if m.Path == "" && skeleton {
		m.Lower = append(m.Lower[:len(m.Lower):len(m.Lower)], skeletonDir(s.o.DataRoot))
	}
	if s.userns.shifts(r) {
		return s.userns.layers.Shift(ctx, m)
	}
	return m, nil
}

// attach makes a container's root filesystem as a detached mount, with the
// owners that are on disk.
func (s roots) attach(ctx context.Context, r *Record, readonly bool) (int, error) {
	m, err := s.mount(ctx, r, !readonly)
	if err != nil {
		return -1, err
	}
	return snapshot.Attach(m, readonly)
}

// makeWorkingDir makes the directory that a container's program starts in, and its
// parents, unless something is mounted there: then only a start can. A start would
// make it in any case; but what is copied into a container before its first needs a place.
func (s roots) makeWorkingDir(ctx context.Context, r *Record, root int) error {
	dir := r.Config.WorkingDir
	if dir == "" || dir == "/" || slices.ContainsFunc(r.Mounts, func(m Mount) bool { return within(dir, m.Destination) }) ||
		slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(k string) bool { return within(dir, k) }) {
		return nil
	}
	if fd, err := linux.OpenInRoot(root, dir, unix.O_PATH); err == nil {
		return unix.Close(fd)
	}
	var own runtime.Owner
	if s.userns.holds(r.HostConfig) {
		if s.userns.shifts(r) {
			own.UID, own.GID = s.userns.ids.Root()
		} else { // nobody of the host can make a file in a mapped mount
			fd, err := s.attach(ctx, r, false)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			root = fd
		}
	}
	return runtime.MakeDir(root, dir, own)
}

// attachFor makes the root filesystem that a container is to run on.
func (s roots) attachFor(ctx context.Context, r *Record) (int, error) {
	if !s.userns.holds(r.HostConfig) || s.userns.shifts(r) {
		return s.attach(ctx, r, false)
	}
	m, err := s.mount(ctx, r, true)
	if err != nil {
		return -1, err
	}
	return snapshot.AttachMapped(m, s.userns.mountNS)
}

// mappedNS finds or makes the user namespace of a container and the network
// namespace in it. A container that shares a namespace of another shares its user
// namespace too: only there has it any power over what is shared.
func (s launcher) mappedNS(r *Record, give func(specs.LinuxNamespaceType, int)) error {
	u, hc := s.userns, r.HostConfig
	user := -1
	for _, d := range []struct{ what, ref string }{
		{"network", hc.NetworkMode.ConnectedContainer()}, {"IPC", hc.IpcMode.Container()}, {"PID", hc.PidMode.Container()},
	} {
		if d.ref == "" {
			continue
		}
		find := s.donor
		if d.what == "network" {
			find = func(_, ref string) (*Container, error) { return s.netDonor(r, ref) }
		}
		c, err := find(d.what, d.ref)
		if err != nil {
			return err
		}
		if !s.userns.holds(c.Record().HostConfig) {
			return errs.New(errs.Invalid, "failed to join %s namespace: container %s runs in the host's user namespace; use --userns=host", d.what, c.Record().ID)
		}
		if user >= 0 {
			continue // the first one's: each of them has the same mapping
		}
		if user, err = openNS(c, "user"); err != nil {
			return err
		}
	}
	var net int
	var err error
	if hc.NetworkMode.IsContainer() {
		net, err = s.joinNet(r, hc.NetworkMode.ConnectedContainer())
	} else if user >= 0 {
		_, net, err = u.rt.NewUserNS(user, nil, nil, true)
	} else {
		user, net, err = u.rt.NewUserNS(-1, u.uid, u.gid, true)
	}
	if err != nil {
		if user >= 0 {
			_ = unix.Close(user)
		}
		return errs.Wrap(errs.Internal, err, "")
	}
	give(specs.UserNamespace, user)
	give(specs.NetworkNamespace, net)
	return nil
}

// hostIDs are the host's ids of a container's root and of a process in it.
func (u *userns) hostIDs(p specs.User) (*keeper.HostIDs, error) {
	var out keeper.HostIDs
	var ok1, ok2 bool
	out.UID, ok1 = u.ids.UID.Out(p.UID)
	out.GID, ok2 = u.ids.GID.Out(p.GID)
	if !ok1 || !ok2 {
		return nil, errs.New(errs.Invalid, "the user %d:%d is not mapped: it is outside of the daemon's ranges of subordinate ids", p.UID, p.GID)
	}
	out.Owner.UID, out.Owner.GID = u.ids.Root()
	var ok bool
	if out.Owner.TTY, ok = u.ids.GID.Out(5); !ok {
		out.Owner.TTY = out.Owner.GID
	}
	return &out, nil
}

// ownNetFiles gives the network files of a container to its root. Directories
// of containers are used again: those of the host's root are given back too.
func (s launcher) ownNetFiles(r *Record) error {
	uid, gid := uint32(0), uint32(0)
	if s.userns.holds(r.HostConfig) {
		uid, gid = s.userns.ids.Root()
	}
	for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
		if err := os.Lchown(filepath.Join(s.dir(r.ID), f), int(uid), int(gid)); err != nil {
			return fmt.Errorf("cannot give %s to the container: %w", f, err)
		}
	}
	return nil
}

// toHost maps the owners of an archive to those that they have in a running
// container's own view.
func (u *userns) toHost(o archive.Owner) (archive.Owner, error) {
	ids := u.ids
	uid, ok1 := ids.UID.Out(uint32(o.UID))
	gid, ok2 := ids.GID.Out(uint32(o.GID))
	if !ok1 {
		return o, errs.New(errs.Invalid, "Container ID %d cannot be mapped to a host ID", o.UID)
	}
	if !ok2 {
		return o, errs.New(errs.Invalid, "Container ID %d cannot be mapped to a host ID", o.GID)
	}
	return archive.Owner{UID: int(uid), GID: int(gid)}, nil
}

// toContainer is the way back. What the container sees as nobody's goes out so.
func (u *userns) toContainer(o archive.Owner) archive.Owner {
	ids := u.ids
	return archive.Owner{UID: int(ids.UID.In(uint32(o.UID))), GID: int(ids.GID.In(uint32(o.GID)))}
}
