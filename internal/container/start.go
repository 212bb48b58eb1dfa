package container

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	remapped, nets := s.userns.holds(r.HostConfig), Nets{s}
	if remapped {
		if err := l.mappedNS(r, join); err != nil {
			return err
		}
		if req.IDs, err = s.userns.hostIDs(user.User); err != nil {
			return err
		}
	} else if !nets.own(r) {
		net, err := l.netNS(r)
		if err != nil {
			return err
		}
		if net >= 0 {
			join(specs.NetworkNamespace, net)
		}
	}
	var links []link
	if nets.own(r) {
		into := -1 // a namespace of the network's making, unless the user namespace brings one
		if fd, ok := req.NSFD[specs.NetworkNamespace]; ok {
			into = fds[fd]
		}
		if links, err = nets.links(r); err != nil {
			return err
		}
		fd, err := nets.attach(ctx, r, into, links)
		if err != nil {
			return err
		}
		u.Add(func() { s.o.Networks.Release(string(r.ID)) })
		if into < 0 {
			join(specs.NetworkNamespace, fd)
		}
	}
	if err := l.joinPIDAndIPC(r, join); err != nil {
		return err
	}

	// 4. The specification.
	if req.Spec, err = buildSpec(r, specInput{user: user, defaults: *s.def.Load(), cgroupV2: s.v2(), dir: s.netDir(r), caps: s.caps(), remapped: remapped}); err != nil {
		return err
	}
	for _, x := range links {
		req.Spec.Process.Env = append(req.Spec.Process.Env, x.environment(r.Name)...)
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
	if nets.own(r) {
		s.o.Networks.KeepNames(string(r.ID))
	}
	if !nets.own(r) {
		c.networkEvent(s, events.ActionConnect)
	}
	s.event(c, events.ActionStart)
	nets.relink(c)
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

// netNS returns the namespace of a container that has no interfaces of its own,
// -1 for the host's.
func (s launcher) netNS(r *Record) (int, error) {
	switch m := r.HostConfig.NetworkMode; {
	case m.IsHost():
		return -1, nil
	case m.IsContainer():
		return s.joinNet(r, m.ConnectedContainer())
	default:
		return s.o.Networks.Isolated()
	}
}

// netDonor finds the container whose network another shares; it must run.
func (s launcher) netDonor(r *Record, ref string) (*Container, error) {
	c, err := s.Get(ref)
	if err != nil {
		return nil, errs.New(errs.NotFound, "joining network namespace of container: %v", err)
	}
	if c.Record().ID == r.ID {
		return nil, errs.New(errs.Internal, "cannot join own network namespace")
	}
	if st := c.Status(); !st.Phase.Running() {
		return nil, errs.New(errs.Conflict, "cannot join network namespace of a non running container: container %s is %s", c.Record().Name, st.Phase)
	}
	return c, nil
}

// joinNet opens the network namespace of another container.
func (s launcher) joinNet(r *Record, ref string) (int, error) {
	c, err := s.netDonor(r, ref)
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
