package container

import (
	"fmt"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// donor finds the container whose namespace another joins; it must run. The
// errors are told with what was to be joined.
func (s launcher) donor(what, ref string) (*Container, error) {
	fail := func(format string, args ...any) (*Container, error) {
		return nil, errs.New(errs.Internal, "failed to join %s namespace: %s", what, fmt.Sprintf(format, args...))
	}
	if ref == "" {
		return fail("invalid name or ID supplied: %q", ref)
	}
	c, err := s.Get(ref)
	if err != nil {
		return fail("%v", err)
	}
	switch st := c.Status(); {
	case st.Phase == Restarting:
		return fail("Container %s is restarting, wait until the container is running", c.Record().ID)
	case !st.Phase.Running():
		return fail("container %s is not running", c.Record().ID)
	}
	return c, nil
}

// shares reports whether others may join the ipc namespace of a container.
func shares(r *Record) bool {
	m := r.HostConfig.IpcMode
	return m.IsShareable() || m.IsHost() || m.IsContainer()
}

// joinPIDAndIPC opens the namespaces that --pid and --ipc container:X name.
func (s launcher) joinPIDAndIPC(r *Record, give func(specs.LinuxNamespaceType, int)) error {
	if m := r.HostConfig.PidMode; m.IsContainer() {
		c, err := s.donor("PID", m.Container())
		if err != nil {
			return err
		}
		fd, err := openNS(c, "pid")
		if err != nil {
			return err
		}
		give(specs.PIDNamespace, fd)
	}
	if m := r.HostConfig.IpcMode; m.IsContainer() {
		c, err := s.donor("IPC", m.Container())
		if err != nil {
			return err
		}
		if !shares(c.Record()) {
			return errs.New(errs.Invalid, "failed to join IPC namespace: container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", c.Record().ID)
		}
		fd, err := openNS(c, "ipc")
		if err != nil {
			return err
		}
		give(specs.IPCNamespace, fd)
	}
	return nil
}

func openNS(c *Container, file string) (int, error) {
	fd, err := openProcess(c.Status(), "ns/"+file, unix.O_RDONLY)
	if err != nil {
		return -1, errs.New(errs.Conflict, "cannot join the %s namespace of container %s: %v", file, c.Record().ID, err)
	}
	return fd, nil
}

// donorShmSource stands in a specification for the donor's /dev/shm. No path of
// a bind mount looks like it.
const donorShmSource = "donor's shm"

// donorShm clones the /dev/shm of the container whose ipc namespace is joined:
// POSIX shared memory is files there. Only from inside the donor's mount
// namespace can that be done. No link is followed, and it must be a tmpfs.
func (s launcher) donorShm(r *Record) (int, error) {
	c, err := s.donor("IPC", r.HostConfig.IpcMode.Container())
	if err != nil {
		return -1, err
	}
	ns, err := openNS(c, "mnt")
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	fd, err := inMounts(ns, cloneShm)
	if err != nil {
		return -1, errs.New(errs.Conflict, "cannot share the /dev/shm of container %s: %v", c.Record().ID, err)
	}
	return fd, nil
}

// inMounts runs f, which opens something, on a thread in a mount namespace.
func inMounts(ns int, f func() (int, error)) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the other namespace
		fd, err := -1, unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err == nil {
			fd, err = f()
		}
		done <- result{fd, err}
	}()
	res := <-done
	return res.fd, res.err
}

// cloneRoot clones a running container's root mount by itself, without what is mounted in it.
func cloneRoot(c *Container) (int, error) {
	ns, err := openNS(c, "mnt")
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	return inMounts(ns, func() (int, error) {
		return unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	})
}

func cloneShm() (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	dir, err := unix.Openat2(unix.AT_FDCWD, "/dev/shm", &how)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir, &st); err != nil {
		return -1, err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return -1, fmt.Errorf("it is not a tmpfs")
	}
	return unix.OpenTree(dir, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}
