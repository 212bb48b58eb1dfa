package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/snapshot"
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

// userns is what the service has for containers in user namespaces.
type userns struct {
	ids     *idmap.Mapping
	uid     []specs.LinuxIDMapping
	gid     []specs.LinuxIDMapping
	rt      *runtime.Runtime
	mountNS int // a user namespace with the mapping of the mounts
}

// hostRootOnDisk is the id that stands on disk for the host's root.
const hostRootOnDisk = 1<<32 - 2

func newUserns(ids *idmap.Mapping) (*userns, error) {
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
	return u, nil
}

func mappings(m idmap.Map) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(m))
	for _, r := range m {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Outside, Size: r.Size})
	}
	return out
}

// remapped reports whether a container runs in a user namespace.
func (s *Service) remapped(hc *container.HostConfig) bool {
	return s.userns != nil && !hc.UsernsMode.IsHost()
}

// checkUserns refuses what a container in a user namespace cannot have.
func (s creator) checkUserns(hc *container.HostConfig) error {
	if !s.remapped(hc) {
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

// attachFor attaches the root filesystem that a container is to run on.
func (s *Service) attachFor(ctx context.Context, r *Record) (int, error) {
	if !s.remapped(r.HostConfig) {
		return s.attachRoot(ctx, r.ID, false)
	}
	m, err := s.o.Snapshots.Mounts(ctx, string(r.ID))
	if err != nil {
		return -1, err
	}
	if m.Path == "" {
		m.Lower = append(m.Lower[:len(m.Lower):len(m.Lower)], skeletonDir(s.o.DataRoot))
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
			find = func(_, ref string) (*Container, error) { return s.netDonor(ref) }
		}
		c, err := find(d.what, d.ref)
		if err != nil {
			return err
		}
		if !s.remapped(c.Record().HostConfig) {
			return errs.New(errs.Invalid, "failed to join %s namespace: container %s runs in the host's user namespace; use --userns=host", d.what, c.Record().ID)
		}
		if user >= 0 {
			continue // the first one's: each of them has the same mapping
		}
		if user, err = openNS(c, "user"); err != nil {
			return err
		}
	}
	net := -1
	var err error
	if hc.NetworkMode.IsContainer() {
		net, err = s.joinNet(hc.NetworkMode.ConnectedContainer())
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
	if s.remapped(r.HostConfig) {
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
func (s *Service) toHost(o archive.Owner) (archive.Owner, error) {
	ids := s.userns.ids
	uid, ok1 := ids.UID.Out(uint32(o.UID))
	gid, ok2 := ids.GID.Out(uint32(o.GID))
	if !ok1 || !ok2 {
		return o, errs.New(errs.Invalid, "the owner %d:%d is not mapped: it is outside of the daemon's ranges of subordinate ids", o.UID, o.GID)
	}
	return archive.Owner{UID: int(uid), GID: int(gid)}, nil
}

// toContainer is the way back. What the container sees as nobody's goes out so.
func (s *Service) toContainer(o archive.Owner) archive.Owner {
	ids := s.userns.ids
	return archive.Owner{UID: int(ids.UID.In(uint32(o.UID))), GID: int(ids.GID.In(uint32(o.GID)))}
}
