package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/undo"
)

// createOptions are the flags of create and run.
type createOptions struct {
	bundle  string
	pidFile string
	console string // path of a unix socket that takes the terminal
	local   bool   // run: the terminal is relayed by this process
	keepFDs int
}

// created is a container that waits for its start.
type created struct {
	*record
	master int // the terminal, for local; -1 for none
}

// create makes a container. The steps are undone when a later one fails.
func (p *program) create(id string, o createOptions) (_ *created, err error) {
	var u undo.Stack
	defer u.Run()

	// 1. The configuration.
	dir, err := p.dir(id)
	if err != nil {
		return nil, err
	}
	if o.bundle, err = filepath.Abs(o.bundle); err != nil {
		return nil, err
	}
	spec, err := readSpec(filepath.Join(o.bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if err := check(spec, o.bundle); err != nil {
		return nil, err
	}
	if err := checkConsole(spec.Process.Terminal, o); err != nil {
		return nil, err
	}
	rt, err := runtime.New()
	if err != nil {
		return nil, err
	}

	// 2. The name.
	if err := os.MkdirAll(p.root, 0o711); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("container with id exists: %s", id)
		}
		return nil, err
	}
	u.Add(func() { _ = os.RemoveAll(dir) })
	r := &record{ID: id, Bundle: o.bundle, Created: time.Now().UTC(), Owner: os.Getenv("SUDO_USER"), Annotations: spec.Annotations, Spec: spec, dir: dir}
	if r.Cgroup, err = cgroupPath(spec, id); err != nil {
		return nil, err
	}
	for _, f := range []string{"start", "late"} {
		if err := unix.Mkfifo(r.fifo(f), 0o600); err != nil {
			return nil, fmt.Errorf("cannot make %s: %w", r.fifo(f), err)
		}
	}
	if err := r.save(); err != nil {
		return nil, err
	}

	// 3. Descriptors: root filesystem, bind sources, namespaces.
	l := &runtime.Launch{Spec: spec, MountFD: map[int]int{}, NSFD: map[specs.LinuxNamespaceType]int{}, Join: -1, CgroupView: -1}
	closeLater := func(fd int) int { u.Add(func() { _ = unix.Close(fd) }); return fd }
	done := undo.Stack{} // what a success closes too
	defer done.Run()
	open := func(fd int, err error) (int, error) {
		if err == nil {
			done.Add(func() { _ = unix.Close(fd) })
		}
		return fd, err
	}
	if l.RootFD, err = open(openRoot(spec.Root.Path)); err != nil {
		return nil, err
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !isBind(m) {
			continue
		}
		fd, err := open(linux.CloneTree(m.Source, slices.Contains(m.Options, "rbind")))
		if err != nil {
			return nil, fmt.Errorf("error mounting %q to rootfs at %q: %w", m.Source, m.Destination, err)
		}
		l.MountFD[i] = fd
	}
	if err := p.namespaces(rt, l, open); err != nil {
		return nil, err
	}
	if l.Preserve, err = preserve(o.keepFDs, spec.Process); err != nil {
		return nil, err
	}
	if spec.Linux.Seccomp != nil {
		if l.Seccomp, l.SeccompFlags, err = runtime.CompileSeccomp(spec.Linux.Seccomp); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		to   *int
	}{{"start", &l.StartFD}, {"late", &l.LateFD}} {
		// For reading and writing: so neither end blocks or ends early.
		if *f.to, err = open(unix.Open(r.fifo(f.name), unix.O_RDWR|unix.O_CLOEXEC, 0)); err != nil {
			return nil, err
		}
	}

	// 4. Cgroup and /dev.
	cg := runtime.NewCgroups(rt.Host)
	g, err := cg.Make(r.Cgroup)
	if err != nil {
		return nil, err
	}
	u.Add(func() { _ = cg.Remove(g) })
	done.Add(g.CloseFDs)
	if err := limit(cg, g, spec.Linux.Resources); err != nil {
		return nil, err
	}
	l.CgroupV1, l.CgroupV2 = g.V1, g.V2FD
	if l.Owner, err = hostIDs(spec.Linux, specs.User{UID: 0, GID: 0}); err != nil {
		return nil, err
	}
	if l.Dev, err = runtime.NewDevTreeFor(l.Owner, spec.Linux.Devices); err != nil {
		return nil, err
	}
	done.Add(l.Dev.Close)
	l.InOrder = l.Dev.CanClone()

	// 5. Stdio.
	c := &created{record: r, master: -1}
	user, err := hostIDs(spec.Linux, spec.Process.User)
	if err != nil {
		return nil, err
	}
	l.Stdio = [3]int{0, 1, 2}
	if spec.Process.Terminal {
		t, err := newTerminal(l.Dev, spec.Process, user)
		if err != nil {
			return nil, err
		}
		done.Add(t.closeSlave)
		l.Stdio, l.ConsolePath, c.master = [3]int{t.slave, t.slave, t.slave}, t.name, closeLater(t.master)
	} else {
		giveStdio(user)
	}

	// 6. The process, and the hooks that come before its root is in place.
	if h := spec.Hooks; h != nil {
		//nolint:staticcheck // prestart is deprecated, and still asked for
		if len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 {
			l.Hooks = func(pid int) error { return p.createHooks(rt, r, g, pid) }
		}
	}
	proc, err := startApart(rt, l, dir)
	if err != nil {
		return nil, startError(err)
	}
	u.Add(func() {
		_ = unix.Kill(proc.Pid, unix.SIGKILL) // a child that nobody has waited for: the number is its own
		_, _ = unix.Wait4(proc.Pid, nil, 0, nil)
	})
	done.Add(func() {
		_ = unix.Close(proc.PidFD)
		if proc.MountNS >= 0 {
			_ = unix.Close(proc.MountNS)
		}
	})
	r.Pid = proc.Pid
	if _, r.StartTime, err = processStat(proc.Pid); err != nil {
		return nil, err
	}
	if c.master >= 0 && !o.local {
		if err := sendTerminal(o.console, c.master); err != nil {
			return nil, err
		}
	}

	// 7. The record.
	if err := r.save(); err != nil {
		return nil, err
	}
	if o.pidFile != "" {
		if err := writePid(o.pidFile, r.Pid); err != nil {
			return nil, err
		}
	}
	u.Release()
	if c.master >= 0 && !o.local {
		_ = unix.Close(c.master)
		c.master = -1
	}
	return c, nil
}

// namespaces makes what the container joins: the namespaces that have a path,
// and those that are made ahead, the user namespace and the network.
func (p *program) namespaces(rt *runtime.Runtime, l *runtime.Launch, open func(int, error) (int, error)) error {
	linuxSpec := l.Spec.Linux
	user, ownNet := -1, false
	for _, ns := range linuxSpec.Namespaces {
		if ns.Path != "" {
			fd, err := open(unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
			if err != nil {
				return fmt.Errorf("cannot open the %s namespace %s: %w", ns.Type, ns.Path, err)
			}
			l.NSFD[ns.Type] = fd
			if ns.Type == specs.UserNamespace {
				user = fd
			}
			continue
		}
		ownNet = ownNet || ns.Type == specs.NetworkNamespace
	}
	mapped := slices.ContainsFunc(linuxSpec.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	switch {
	case mapped && (user < 0 || ownNet): // its network belongs to the user namespace
		userFD, netFD, err := rt.NewUserNS(user, linuxSpec.UIDMappings, linuxSpec.GIDMappings, ownNet)
		if err != nil {
			return err
		}
		if user < 0 {
			l.NSFD[specs.UserNamespace], _ = open(userFD, nil)
		}
		if ownNet {
			l.NSFD[specs.NetworkNamespace], _ = open(netFD, nil)
		}
	case ownNet:
		fd, err := open(linux.NewNetNS()) // its loopback is up, as runc has it
		if err != nil {
			return err
		}
		l.NSFD[specs.NetworkNamespace] = fd
	}
	return nil
}

// hostIDs are the host's ids for a user of the container, and for its group of terminals.
func hostIDs(l *specs.Linux, u specs.User) (runtime.Owner, error) {
	if !slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) || len(l.UIDMappings) == 0 {
		return runtime.Owner{UID: u.UID, GID: u.GID, TTY: 5}, nil
	}
	out := func(list []specs.LinuxIDMapping, id uint32) (uint32, bool) {
		for _, m := range list {
			if id >= m.ContainerID && id-m.ContainerID < m.Size {
				return m.HostID + id - m.ContainerID, true
			}
		}
		return 0, false
	}
	var o runtime.Owner
	var okUID, okGID, okTTY bool
	o.UID, okUID = out(l.UIDMappings, u.UID)
	o.GID, okGID = out(l.GIDMappings, u.GID)
	if !okUID || !okGID {
		return o, fmt.Errorf("config.json: user %d:%d has no mapping in the user namespace", u.UID, u.GID)
	}
	if o.TTY, okTTY = out(l.GIDMappings, 5); !okTTY {
		o.TTY = o.GID
	}
	return o, nil
}

// preserve returns the descriptors that the process is to inherit: n from 3 on, and
// those of a socket activation, of which the process is told (sd_listen_fds(3)).
func preserve(n int, pr *specs.Process) ([]int, error) {
	if listen, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && listen > 0 {
		n += listen
		pr.Env = append(slices.Clone(pr.Env), fmt.Sprintf("LISTEN_FDS=%d", listen), "LISTEN_PID=1")
	}
	const limit = 64
	if n < 0 || n > limit {
		return nil, fmt.Errorf("cannot preserve %d descriptors: the limit is %d", n, limit)
	}
	var fds []int
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || !inherited(fd) {
			return nil, fmt.Errorf("please check that preserved-fd %d is open: %w", fd, unix.EBADF)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// inherited tells the caller's descriptors from this process's own, which all
// close on exec.
func inherited(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

func checkConsole(terminal bool, o createOptions) error {
	switch {
	case terminal && o.console == "" && !o.local:
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	case !terminal && o.console != "":
		return errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	return nil
}

func startError(err error) error {
	var e *runtime.StartError
	if errors.As(err, &e) {
		return fmt.Errorf("unable to start container process: %w", err)
	}
	return err
}

// openRoot makes a detached copy of the root filesystem's mounts that shares
// no mount event with the host.
func openRoot(path string) (int, error) {
	fd, err := linux.CloneTree(path, true)
	if err != nil {
		return -1, fmt.Errorf("invalid rootfs %q: %w", path, err)
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// limit applies resources. A new cgroup may use all devices: it is limited to
// the default ones before the rules of the configuration, which begin with the
// same "deny all".
func limit(c *runtime.Cgroups, g *runtime.Cgroup, res *specs.LinuxResources) error {
	if err := c.AllowDefaultDevices(g); err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	r := *res
	for len(r.Devices) > 0 && !r.Devices[0].Allow && (r.Devices[0].Type == "" || r.Devices[0].Type == "a") && r.Devices[0].Major == nil {
		r.Devices = r.Devices[1:]
	}
	return c.Apply(g, &r)
}

// startApart starts the process from a thread with a mount namespace of its
// own: what is mounted there, the place where the root is stacked and the empty
// directory for masks, nobody else sees, and it is gone with the thread.
func startApart(rt *runtime.Runtime, l *runtime.Launch, dir string) (*runtime.Process, error) {
	type result struct {
		p   *runtime.Process
		err error
	}
	ch := make(chan result, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with this goroutine
		p, err := func() (*runtime.Process, error) {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return nil, fmt.Errorf("cannot make a mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return nil, err
			}
			if err := unix.Mount("berth", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64k"); err != nil {
				return nil, fmt.Errorf("cannot mount on %s: %w", dir, err)
			}
			l.Base, l.Empty = dir+"/root", dir+"/empty"
			if l.Hooks != nil { // they look for the root where the configuration says
				l.Base = l.Spec.Root.Path
			}
			for _, d := range []string{dir + "/root", l.Empty} {
				if err := os.Mkdir(d, 0o755); err != nil {
					return nil, err
				}
			}
			if err := unix.Mount("berth", l.Empty, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
				return nil, err
			}
			return rt.Start(l)
		}()
		ch <- result{p, err}
	}()
	r := <-ch
	return r.p, r.err
}

// giveStdio lets the container's user open /dev/stdout and the like.
func giveStdio(u runtime.Owner) {
	if u.UID == 0 {
		return
	}
	var null unix.Stat_t
	if unix.Stat("/dev/null", &null) != nil {
		return
	}
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Rdev != null.Rdev && st.Mode&unix.S_IFMT != unix.S_IFREG && st.Uid != u.UID {
			_ = unix.Fchown(fd, int(u.UID), int(st.Gid)) // not everything can change its owner
		}
	}
}

func writePid(file string, pid int) error {
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o666); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
