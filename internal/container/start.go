package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/systemd"
	"berth.dev/berth/internal/undo"
)

// Start runs a container.
func (s *Service) Start(ctx context.Context, ref string) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.Status()
	switch st.Phase {
	case Paused:
		return errs.New(errs.Conflict, "cannot start a paused container, try unpause instead")
	case Running:
		return errs.New(errs.NotModified, "container %s is already started", c.Record().ID)
	case Removing, Dead:
		return errs.New(errs.Conflict, "container is marked for removal and cannot be started")
	}
	c.backoff = 0
	if c.retry != nil {
		c.retry.Stop()
	}
	if st.RestartCount != 0 {
		fresh := *st
		fresh.RestartCount = 0
		c.st.Store(&fresh)
	}
	if err := s.start(ctx, c); err != nil {
		if c.Record().HostConfig.AutoRemove && !c.Status().Phase.Running() { // the client waits for that
			_ = s.remove(c, RemoveOptions{Volumes: true})
		}
		return err
	}
	return nil
}

// start is the run path. c.mu is held. Each numbered step is undone when a
// later one fails; the caller's context only bounds the wait, not the undoing.
func (s *Service) start(ctx context.Context, c *Container) (err error) {
	ctx = context.WithoutCancel(ctx)
	l, r := launcher{s}, c.Record()
	var u undo.Stack
	defer u.Run()
	var fds []int
	give := func(fd int) int {
		fds = append(fds, fd)
		u.Add(func() { _ = unix.Close(fd) })
		return len(fds) - 1
	}
	defer func() {
		if err != nil {
			l.startFailed(c, err)
		}
	}()

	// 1. The root filesystem, made at create if that was just now.
	root := c.takeWarm()
	if root < 0 {
		root, err = roots{s}.attachFor(ctx, r)
		if err != nil {
			return err
		}
		if err = l.writeNetFiles(r); err != nil {
			_ = unix.Close(root)
			return err
		}
	}
	req := &keeper.StartRequest{ID: string(r.ID), RootFD: give(root), MountFD: map[int]int{}, NSFD: map[specs.LinuxNamespaceType]int{}}

	// 2. The user, as the image's own files name it.
	user, err := s.users.of(ctx, s, root, r)
	if err != nil {
		return err
	}

	// 3. The network namespace, pinned before any process exists.
	join := func(t specs.LinuxNamespaceType, fd int) { req.NSFD[t] = give(fd) }
	remapped := s.userns.holds(r.HostConfig)
	if remapped {
		if err := l.mappedNS(r, join); err != nil {
			return err
		}
		if req.IDs, err = s.userns.hostIDs(user.User); err != nil {
			return err
		}
	} else {
		ns := namespaces{}
		if ns.net, ns.ownNet, err = l.netNS(c); err != nil {
			return err
		}
		if ns.net >= 0 {
			join(specs.NetworkNamespace, ns.net)
		}
	}
	if err := l.joinPIDAndIPC(r, join); err != nil {
		return err
	}

	// 4. The specification.
	if req.Spec, err = buildSpec(r, specInput{user: user, defaults: *s.def.Load(), cgroupV2: s.v2(), dir: s.netDir(r), caps: s.caps(), remapped: remapped}); err != nil {
		return err
	}
	if len(r.HostConfig.DeviceRequests) > 0 {
		if err = addRequested(req.Spec, s.o.CDI, r.HostConfig.DeviceRequests); err != nil {
			return err
		}
		if req.Spec.Hooks != nil {
			fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			req.HooksFD = give(fd)
		}
	}
	if remapped {
		req.Spec.Linux.UIDMappings, req.Spec.Linux.GIDMappings = s.userns.uid, s.userns.gid
	}
	for i, m := range req.Spec.Mounts {
		if m.Type != "bind" {
			continue
		}
		fd, err := l.openSource(r, m)
		if err != nil {
			return err
		}
		req.MountFD[i] = give(fd)
	}
	if foreign, err := l.useForeign(r, req, give); err != nil {
		return err
	} else if !foreign {
		if req.Filter, err = s.seccomp.of(r, req.Spec, s.def.Load().Seccomp); err != nil {
			return err
		}
	}
	hc := r.HostConfig
	req.Parent, req.Stdin, req.StdinOnce = hc.CgroupParent, r.Config.OpenStdin, r.Config.StdinOnce
	req.Init = hc.Init != nil && *hc.Init || hc.Init == nil && s.def.Load().Init
	req.Devices = len(hc.Devices) > 0 || len(hc.DeviceRequests) > 0 || hc.Privileged
	var shipped *shipment
	if req.Log, shipped, err = l.logSpec(r); err != nil {
		return err
	}
	if shipped != nil {
		u.Add(shipped.drop)
	}

	if s.o.Systemd != nil {
		var unit *systemd.Unit
		if unit, err = l.scope(ctx, r, req.Spec.Linux.Resources); err != nil {
			return err
		}
		defer func() {
			unit.Release() // the process is in it by then, or there is none
			if err != nil {
				s.o.Systemd.Stop(ctx, scopeName(r.ID))
			}
		}()
		req.Cgroup = unit.Cgroup
	}

	// 5. Clients that attached before.
	c.io.Lock()
	waiting := c.attach
	c.attach = nil
	c.io.Unlock()
	for _, a := range waiting {
		spec := a.spec
		spec.FD = give(a.fd)
		req.Attach = append(req.Attach, spec)
	}

	// 6. The process.
	reply, err := s.keeper.Start(ctx, req, fds)
	if err != nil {
		return l.startError(err)
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // they live on in the keeper
	}
	u.Release()

	// 7. The record and the event.
	c.stopAsked.Store(false)
	c.killed.Store(false)
	st := Status{
		Phase: Running, Pid: reply.Pid, ProcStart: reply.StartTime, Cgroup: reply.Cgroup,
		StartedAt: reply.At.UTC(), FinishedAt: c.Status().FinishedAt, RestartCount: c.Status().RestartCount,
	}
	checked := healthTest(r.Config) != nil
	if checked {
		st.Health = container.Starting
		c.restartHealth()
	}
	if err := s.save(c, st); err != nil {
		return err
	}
	shipping{s}.begin(c, shipped)
	c.networkEvent(s, events.ActionConnect)
	s.event(c, events.ActionStart)
	if checked {
		Execs{s}.watchHealth(c)
	}

	// 8. Clients that attached while it started.
	c.io.Lock()
	late := c.attach
	c.attach = nil
	c.io.Unlock()
	for _, a := range late {
		_ = s.keeper.Attach(ctx, string(r.ID), "", a.spec, a.fd) // ended already: so has the attachment
		_ = unix.Close(a.fd)
	}
	return nil
}

// startFailed records why a start failed, and lets clients go that waited for it.
func (s launcher) startFailed(c *Container, err error) {
	st := *c.Status()
	st.ExitCode, st.Error = 128, err.Error()
	var f *failedStart
	if errors.As(err, &f) {
		st.ExitCode = f.code
	}
	st.Pid = 0
	_ = s.save(c, st)
	c.io.Lock()
	waiting := c.attach
	c.attach = nil
	c.io.Unlock()
	for _, a := range waiting {
		_ = unix.Close(a.fd)
	}
	c.wake(false, container.WaitResponse{StatusCode: int64(st.ExitCode)})
}

// failedStart is a process that could not be started, with the exit code that
// stands for the reason: 127 not found, 126 not runnable, 128 the rest.
type failedStart struct {
	code int
	msg  string
}

func (f *failedStart) Error() string { return f.msg }

func startFailure(what string, err error) *failedStart {
	var f *keeper.Failure
	if !errors.As(err, &f) || f.Kind != keeper.KindStart {
		return nil
	}
	out := &failedStart{code: 128, msg: startText(what, f.Msg)}
	if f.Stage == string(runtime.StageExec) || f.Stage == string(runtime.StageCwd) {
		switch unix.Errno(f.Errno) {
		case unix.ENOENT, unix.ENOTDIR:
			out.code = 127
		case unix.EACCES, unix.EPERM, unix.EISDIR, unix.ENOEXEC, unix.ELOOP:
			out.code = 126
		}
	}
	if what != "exec" && f.Stage == string(runtime.StageCwd) && unix.Errno(f.Errno) == unix.ENOTDIR {
		return &failedStart{code: 128, msg: fmt.Sprintf("Cannot mkdir: %s is not a directory", f.Path)}
	}
	if out.code == 128 && f.Stage != string(runtime.StageExec) && f.Stage != string(runtime.StageCwd) {
		init := "error during container init: "
		if what == "exec" {
			init = ""
		}
		out.msg = startText(what, init+f.Msg)
	}
	return out
}

func (s launcher) startError(err error) error {
	if f := startFailure("run", err); f != nil {
		kind := errs.Internal
		if f.code != 128 {
			kind = errs.Invalid
		}
		return &errs.Error{Kind: kind, Op: "start", Err: f}
	}
	return errs.Wrap(errs.Internal, err, "cannot start the container")
}

// namespaces is what a start joins.
type namespaces struct {
	net    int
	ownNet bool
}

// netNS returns the network namespace to join, -1 for the host's.
func (s launcher) netNS(c *Container) (fd int, own bool, err error) {
	m := c.Record().HostConfig.NetworkMode
	switch {
	case m.IsHost():
		return -1, false, nil
	case m.IsContainer():
		fd, err := s.joinNet(m.ConnectedContainer())
		return fd, false, err
	case m.IsUserDefined():
		return -1, false, errs.New(errs.NotFound, "network %s not found", m)
	default:
		fd, err := s.o.Networks.Isolated()
		return fd, true, err
	}
}

// netDonor finds the container whose network another shares; it must run.
func (s launcher) netDonor(ref string) (*Container, error) {
	c, err := s.Get(ref)
	if err != nil {
		return nil, errs.New(errs.NotFound, "joining network namespace of container: %v", err)
	}
	if st := c.Status(); !st.Phase.Running() {
		return nil, errs.New(errs.Conflict, "cannot join network namespace of a non running container: container %s is %s", c.Record().Name, st.Phase)
	}
	return c, nil
}

// joinNet opens the network namespace of another container.
func (s launcher) joinNet(ref string) (int, error) {
	c, err := s.netDonor(ref)
	if err != nil {
		return -1, err
	}
	return openNS(c, "net")
}

// openSource clones what a bind mount shows, making a missing directory where
// that was asked for.
func (s launcher) openSource(r *Record, m specs.Mount) (int, error) {
	if m.Source == donorShmSource {
		return s.donorShm(r)
	}
	recursive := false
	for _, o := range m.Options {
		recursive = recursive || o == "rbind"
	}
	fd, err := linux.CloneTree(m.Source, recursive)
	if err == nil {
		return fd, nil
	}
	if errors.Is(err, unix.ENOENT) {
		for _, x := range r.Mounts {
			if x.Source == m.Source && x.MakeHost {
				if merr := os.MkdirAll(m.Source, 0o755); merr != nil {
					return -1, errs.New(errs.Invalid, "error while creating mount source path '%s': %v", m.Source, merr)
				}
				if s.userns.holds(r.HostConfig) {
					uid, gid := s.userns.ids.Root()
					if merr := os.Lchown(m.Source, int(uid), int(gid)); merr != nil {
						return -1, errs.New(errs.Internal, "error while creating mount source path '%s': %v", m.Source, merr)
					}
				}
				if fd, err = linux.CloneTree(m.Source, recursive); err == nil {
					return fd, nil
				}
			}
		}
	}
	return -1, errs.New(errs.Invalid, "invalid mount config for type %q: cannot bind %s: %v", mount.TypeBind, m.Source, err)
}

// netDir is the directory of the container whose network files are shown.
func (s *Service) netDir(r *Record) string {
	if m := r.HostConfig.NetworkMode; m.IsContainer() {
		if other, err := s.Get(m.ConnectedContainer()); err == nil && other.Record().ID != r.ID {
			other.shared.Store(true)
			return s.netDir(other.Record())
		}
	}
	return s.dir(r.ID)
}

// writeNetFiles writes hostname, hosts and resolv.conf.
func (s launcher) writeNetFiles(r *Record) error {
	if r.HostConfig.NetworkMode.IsContainer() {
		return nil // those of the other container are shown
	}
	dir := s.dir(r.ID)
	write := func(name, text string) error { return rewrite(filepath.Join(dir, name), text) }
	if err := write("hostname", r.Config.Hostname+"\n"); err != nil {
		return err
	}
	var hosts strings.Builder
	if r.HostConfig.NetworkMode.IsHost() {
		raw, _ := os.ReadFile("/etc/hosts")
		hosts.Write(raw)
	} else {
		hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, h := range r.HostConfig.ExtraHosts {
		if name, ip, ok := cutHost(h); ok {
			fmt.Fprintf(&hosts, "%s\t%s\n", ip, name)
		}
	}
	if err := write("hosts", hosts.String()); err != nil {
		return err
	}
	if err := write("resolv.conf", resolvConf(r.HostConfig, s.def.Load().DNS)); err != nil {
		return err
	}
	if s.userns != nil {
		return s.ownNetFiles(r)
	}
	return nil
}

// rewrite makes the content of a small file text, in place: the file may be
// mounted. One that holds it already, in a directory used again, is left alone.
func rewrite(path, text string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, len(text)+1)
	n, err := unix.Pread(fd, buf, 0)
	if err == nil && string(buf[:n]) == text {
		return nil
	}
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	if n <= len(text) && err == nil && n < len(buf) {
		return nil // it was not longer
	}
	return unix.Ftruncate(fd, int64(len(text)))
}

func cutHost(h string) (name, ip string, ok bool) {
	if name, ip, ok = strings.Cut(h, "="); ok {
		return name, ip, true
	}
	return strings.Cut(h, ":")
}

// resolvConf is the host's file, changed by --dns, --dns-search and --dns-option.
func resolvConf(hc *container.HostConfig, defaults []string) string {
	raw, _ := os.ReadFile("/etc/resolv.conf")
	var dns []string
	for _, a := range hc.DNS {
		dns = append(dns, a.String())
	}
	if len(dns) == 0 {
		dns = defaults
	}
	var b strings.Builder
	keep := func(key string, own []string) {
		if len(own) > 0 {
			return
		}
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, key) {
				b.WriteString(strings.TrimRight(line, "\n") + "\n")
			}
		}
	}
	keep("nameserver", dns)
	for _, d := range dns {
		b.WriteString("nameserver " + d + "\n")
	}
	keep("search", hc.DNSSearch)
	if len(hc.DNSSearch) > 0 && hc.DNSSearch[0] != "." {
		b.WriteString("search " + strings.Join(hc.DNSSearch, " ") + "\n")
	}
	keep("options", hc.DNSOptions)
	if len(hc.DNSOptions) > 0 {
		b.WriteString("options " + strings.Join(hc.DNSOptions, " ") + "\n")
	}
	return b.String()
}
