package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/undo"
)

// start makes a task. The steps are those of the engine's run path; each is
// undone when a later one fails. The reply's descriptors stay the keeper's.
func (k *Keeper) start(r *StartRequest, fds []int) (_ *StartReply, handles []int, err error) {
	keep := map[int]bool{} // indexes of fds that the task keeps
	defer func() {
		for i, fd := range fds {
			if !keep[i] {
				_ = unix.Close(fd)
			}
		}
	}()
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Linux == nil {
		return nil, nil, errors.New("a start needs a specification with process and linux")
	}
	k.slots <- struct{}{}
	defer func() { <-k.slots }()
	var u undo.Stack
	defer u.Run()

	// 1. The name.
	t := &task{id: r.ID, starting: true, term: r.Spec.Process.Terminal, pidFD: -1, mountNS: -1}
	if err := k.reserve(t); err != nil {
		return nil, nil, err
	}
	u.Add(func() { k.mu.Lock(); delete(k.tasks, r.ID); k.mu.Unlock() })

	fd := func(i int) (int, error) {
		if i < 0 || i >= len(fds) {
			return -1, fmt.Errorf("descriptor %d is missing", i)
		}
		return fds[i], nil
	}
	l := &runtime.Launch{Spec: r.Spec, Base: baseDir, Empty: emptyDir, Init: r.Init, StartFD: -1, Join: -1, CgroupV2: -1}
	if l.RootFD, err = fd(r.RootFD); err != nil {
		return nil, nil, err
	}
	l.MountFD = make(map[int]int, len(r.MountFD))
	for m, i := range r.MountFD {
		if l.MountFD[m], err = fd(i); err != nil {
			return nil, nil, err
		}
	}
	l.NSFD = make(map[specs.LinuxNamespaceType]int, len(r.NSFD))
	for ns, i := range r.NSFD {
		if l.NSFD[ns], err = fd(i); err != nil {
			return nil, nil, err
		}
	}
	if l.Seccomp, l.SeccompFlags, err = k.filter(r.Filter); err != nil {
		return nil, nil, err
	}
	for _, ns := range r.Spec.Linux.Namespaces {
		t.nsFlags |= nsBits[ns.Type]
	}

	if r.OCI != nil {
		host, err := fd(r.OCI.Host)
		if err != nil {
			return nil, nil, err
		}
		t.io = &stdio{loop: k.loop, term: t.term, once: r.StdinOnce, logSpec: r.Log}
		u.Add(func() { k.loop.mu.Lock(); t.io.abandon(); k.loop.mu.Unlock() })
		attach := func() {
			for _, a := range r.Attach {
				if a.FD >= 0 && a.FD < len(fds) {
					keep[a.FD] = true
					t.io.attach(fds[a.FD], a)
				}
			}
		}
		if err := (foreign{k}).startOCI(r, t, l, host, attach); err != nil {
			return nil, nil, err
		}
		u.Release()
		reply, handles := k.register(t, r)
		return reply, handles, nil
	}

	// 2. Cgroup and /dev, made ahead where possible.
	if t.cgroup, err = k.pool.cgroup(r, ownDevices(r.Spec.Linux.Resources)); err != nil {
		return nil, nil, err
	}
	u.Add(func() { k.later(func() { k.removeCgroup(t.cgroup) }) })
	l.CgroupV1, l.CgroupV2, l.CgroupView = t.cgroup.V1, t.cgroup.V2FD, t.cgroup.View
	if err := k.cgroups.Apply(t.cgroup, r.Spec.Linux.Resources); err != nil {
		return nil, nil, &Failure{Kind: KindStart, Stage: string(runtime.StageCgroup), Msg: "error setting cgroup config for procHooks process: " + err.Error()}
	}
	var devices []specs.LinuxDevice
	if r.Devices {
		devices = r.Spec.Linux.Devices
	}
	if r.IDs != nil {
		l.Owner = r.IDs.Owner
		l.Dev, err = runtime.NewDevTreeFor(l.Owner, devices)
	} else {
		l.Dev, err = k.pool.dev(devices)
	}
	if err != nil {
		return nil, nil, err
	}
	defer l.Dev.Close()

	// 3. Stdio.
	t.io = &stdio{loop: k.loop, term: t.term, once: r.StdinOnce, logSpec: r.Log, ids: r.IDs}
	child, console, err := t.io.open(l.Dev, r.Stdin, r.Spec.Process)
	if err != nil {
		return nil, nil, err
	}
	defer closeAll(child[:])
	u.Add(func() { k.loop.mu.Lock(); t.io.abandon(); k.loop.mu.Unlock() })
	l.Stdio, l.ConsolePath = child, console
	for _, a := range r.Attach {
		if a.FD >= 0 && a.FD < len(fds) {
			keep[a.FD] = true
			k.loop.mu.Lock()
			t.io.attach(fds[a.FD], a)
			k.loop.mu.Unlock()
		}
	}

	// 4. The process.
	hooksIn := -1
	if r.HooksFD > 0 {
		if hooksIn, err = fd(r.HooksFD); err != nil {
			return nil, nil, err
		}
	}
	p, err := launch(k.rt, l, hookPlace{filepath.Join(k.cfg.ExecRoot, "keeper", "hooks", r.ID), hooksIn}, r.ID)
	if err != nil {
		return nil, nil, err
	}
	u.Release()
	t.pid, t.pidFD, t.mountNS, t.at = p.Pid, p.PidFD, p.MountNS, time.Now()
	t.start = startTime(p.Pid)
	t.cgroup.CloseFDs()

	// 5. The record, then the watch: an exit cannot be seen before it is known.
	reply, handles := k.register(t, r)
	return reply, handles, nil
}

// register makes a process that has been started a task: it is recorded, then
// watched. It returns the reply and its descriptors.
func (k *Keeper) register(t *task, r *StartRequest) (*StartReply, []int) {
	k.journal.write(entry{Op: opStart, ID: t.id, Pid: t.pid, Start: t.start, Cgroup: t.cgroup.Rel, Term: t.term, NS: t.nsFlags, Log: r.Log, OCI: t.oci, At: t.at})
	reply := &StartReply{Pid: t.pid, StartTime: t.start, Cgroup: t.cgroup.Rel, At: t.at}
	k.mu.Lock()
	t.starting = false
	k.mu.Unlock()
	k.loop.mu.Lock()
	// Copies: the originals may be closed by the exit before the reply is sent.
	handles := dupAll(t.handles())
	t.oom.limited = limitsMemory(r.Spec.Linux.Resources)
	t.watch(k.loop)
	k.loop.mu.Unlock()
	k.afterReply(handles)
	if t.oom.limited {
		go t.watchOOM(k, true) // a kill before that is seen at the exit, or when the watch begins
	}
	return reply, handles
}

func ownDevices(r *specs.LinuxResources) bool { return r != nil && len(r.Devices) > 0 }

// afterReply closes the descriptors of a reply some time after it was sent.
func (k *Keeper) afterReply(fds []int) {
	time.AfterFunc(time.Second, func() { closeAll(fds) })
}

func dupAll(fds []int) []int {
	out := make([]int, 0, len(fds))
	for _, fd := range fds {
		if d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 10); err == nil {
			out = append(out, d)
		}
	}
	return out
}

// reserve takes the task's id. An ended task of the same id is dropped: the
// engine starts it again. Its mount namespace must be gone first, since one
// overlay upper directory cannot serve two mounts.
func (k *Keeper) reserve(t *task) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.tasks[t.id]; old != nil {
		if old.exit == nil {
			return &Failure{Msg: fmt.Sprintf("task %s is running", t.id), Kind: KindState}
		}
		if old.mountNS >= 0 {
			_ = unix.Close(old.mountNS)
			old.mountNS = -1
		}
	}
	k.tasks[t.id] = t
	return nil
}

// filter returns the compiled seccomp filter that f names.
func (k *Keeper) filter(f *Filter) ([]byte, uint, error) {
	if f == nil {
		return nil, 0, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(f.Code) > 0 {
		k.filters[f.Key] = f
	}
	have := k.filters[f.Key]
	if have == nil {
		return nil, 0, &Failure{Msg: "the seccomp filter is not known", Kind: KindFilter}
	}
	return have.Code, have.Flags, nil
}

// open makes the descriptors of a new process. The child's ends are the
// caller's to close; with a terminal all three are its slave.
//
// The outputs are opened for reading too on the process's side: so a pipe has a
// reader even while no keeper and no engine run, and writing to it never
// raises SIGPIPE; the process waits when it is full.
func (s *stdio) open(dev *runtime.DevTree, stdin bool, pr *specs.Process) (child [3]int, console string, err error) {
	child = [3]int{-1, -1, -1}
	defer func() {
		if err != nil {
			closeAll(child[:])
		}
	}()
	if s.term {
		master, slave, name, err := dev.OpenTerminal()
		if err != nil {
			return child, "", err
		}
		s.terminal(master, slave, pr, nil)
		child[0] = slave
		for i := 1; i < 3; i++ {
			if child[i], err = unix.FcntlInt(uintptr(slave), unix.F_DUPFD_CLOEXEC, 10); err != nil {
				return child, "", err
			}
		}
		return child, name, nil
	}
	if stdin {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return child, "", err
		}
		_ = unix.SetNonblock(p[1], true)
		child[0] = p[0]
		s.in = &source{fd: p[1], stream: streamStdin, io: s}
	} else if child[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return child, "", err
	}
	for i := 1; i < 3; i++ {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return child, "", err
		}
		_ = unix.SetNonblock(p[0], true)
		s.out[i] = &source{fd: p[0], stream: byte(i), io: s}
		rw, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p[1]), unix.O_RDWR|unix.O_CLOEXEC, 0)
		_ = unix.Close(p[1])
		if err != nil {
			return child, "", err
		}
		child[i] = rw
		if uid, gid := s.owner(pr); uid != 0 || gid != 0 {
			_ = unix.Fchown(rw, uid, gid) // so that the process may open /dev/stdout
		}
	}
	s.loop.mu.Lock()
	defer s.loop.mu.Unlock()
	for _, src := range []*source{s.in, s.out[1], s.out[2]} {
		if src != nil {
			s.loop.add(src)
		}
	}
	s.interest()
	return child, "", nil
}

// owner is whose the streams of a process are, in the host's ids.
func (s *stdio) owner(pr *specs.Process) (uid, gid int) {
	if s.ids != nil {
		return int(s.ids.UID), int(s.ids.GID)
	}
	return int(pr.User.UID), int(pr.User.GID)
}

// terminal takes a new terminal's master.
func (s *stdio) terminal(master, slave int, pr *specs.Process, attach func()) {
	src := &source{fd: master, stream: streamStdout, io: s}
	s.out[1], s.in = src, src
	if b := pr.ConsoleSize; b != nil && b.Height > 0 && b.Width > 0 {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(b.Height), Col: uint16(b.Width)})
	}
	if uid, _ := s.owner(pr); uid != 0 {
		_ = unix.Fchown(slave, uid, -1)
	}
	// The slave is held by nobody until the process runs: an end of file seen
	// before that would be wrong, so the caller closes its copies only later.
	s.loop.mu.Lock()
	defer s.loop.mu.Unlock()
	s.loop.add(src)
	if attach != nil {
		attach() // before the first byte is read
	}
	s.interest()
}

// startExec starts one more process in a task.
func (k *Keeper) startExec(r *ExecRequest, fds []int) (*StartReply, error) {
	keep := map[int]bool{}
	defer func() {
		for i, fd := range fds {
			if !keep[i] {
				_ = unix.Close(fd)
			}
		}
	}()
	if r.Process == nil {
		return nil, errors.New("an exec needs a process")
	}
	t, err := k.running(r.ID)
	if err != nil {
		return nil, err
	}
	code, flags, err := k.filter(r.Filter)
	if err != nil {
		return nil, err
	}
	k.slots <- struct{}{}
	defer func() { <-k.slots }()
	var u undo.Stack
	defer u.Run()
	ex := &execution{id: r.ExecID, task: t, term: r.Process.Terminal, pidFD: -1}
	ex.io = &stdio{loop: k.loop, term: ex.term, once: true, ids: r.IDs}
	if t.oci != nil {
		return foreign{k}.startForeignExec(r, t, ex, fds, keep)
	}
	var dev *runtime.DevTree
	if ex.term {
		if dev, err = terminalsOf(t.pid); err != nil {
			return nil, err
		}
		defer dev.Close()
	}
	child, _, err := ex.io.open(dev, r.Stdin, r.Process)
	if err != nil {
		return nil, err
	}
	defer closeAll(child[:])
	u.Add(func() { k.loop.mu.Lock(); ex.io.abandon(); k.loop.mu.Unlock() })
	for _, a := range r.Attach {
		if a.FD >= 0 && a.FD < len(fds) {
			keep[a.FD] = true
			k.loop.mu.Lock()
			ex.io.attach(fds[a.FD], a)
			k.loop.mu.Unlock()
		}
	}
	spec := &specs.Spec{Process: r.Process, Linux: &specs.Linux{Namespaces: namespacesOf(t.nsFlags)}}
	l := &runtime.Launch{
		Spec: spec, Stdio: child, Seccomp: code, SeccompFlags: flags, CgroupV1: t.cgroup.V1, CgroupV2: -1, CgroupView: -1,
		Join: t.pidFD, JoinPid: t.nsFlags&unix.CLONE_NEWPID != 0, StartFD: -1,
	}
	if t.cgroup.V2 != "" {
		if l.CgroupV2, err = unix.Open(t.cgroup.V2, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
		defer unix.Close(l.CgroupV2)
	}
	p, err := k.rt.Exec(l)
	if err != nil {
		return nil, err
	}
	u.Release()
	ex.pid, ex.pidFD = p.Pid, p.PidFD
	return k.registerExec(t, ex), nil
}

// registerExec makes a process that has been started an exec of t, and watches it.
func (k *Keeper) registerExec(t *task, ex *execution) *StartReply {
	k.mu.Lock()
	if t.exec == nil {
		t.exec = map[string]*execution{}
	}
	t.exec[ex.id] = ex
	k.mu.Unlock()
	k.loop.mu.Lock()
	ex.src = &source{fd: ex.pidFD, ex: ex}
	k.loop.add(ex.src)
	k.loop.want(ex.src, unix.EPOLLIN)
	k.loop.mu.Unlock()
	return &StartReply{Pid: ex.pid, At: time.Now()}
}

func namespacesOf(flags uint64) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	for typ, bit := range nsBits {
		if flags&bit != 0 {
			out = append(out, specs.LinuxNamespace{Type: typ})
		}
	}
	return out
}

// terminalsOf opens the devpts of a running container by way of its root. No
// link is followed, and what is found must be a devpts.
func terminalsOf(pid int) (*runtime.DevTree, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	pts, err := unix.Openat2(root, "/dev/pts", &how)
	if err != nil {
		return nil, fmt.Errorf("cannot open the container's /dev/pts: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(pts, &st); err != nil || st.Type != unix.DEVPTS_SUPER_MAGIC {
		_ = unix.Close(pts)
		return nil, fmt.Errorf("the container's /dev/pts is no devpts")
	}
	return &runtime.DevTree{Root: -1, Pts: pts, Shm: -1, Null: -1}, nil
}

// zombieStatus is field 52 of /proc/PID/stat, the wait status of a process that
// nobody has reaped yet.
func zombieStatus(pid int, start uint64) (unix.WaitStatus, bool) {
	f := statFields(pid)
	if len(f) < 50 || f[0] != "Z" || f[19] != strconv.FormatUint(start, 10) {
		return 0, false
	}
	n, err := strconv.ParseUint(f[49], 10, 32)
	return unix.WaitStatus(n), err == nil
}

// statFields are the fields of /proc/PID/stat from the third, the state, on.
func statFields(pid int) []string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	s := string(raw)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
}

// startTime is field 22 of /proc/PID/stat: with the pid it names a process for ever.
func startTime(pid int) uint64 {
	f := statFields(pid)
	if len(f) < 20 {
		return 0
	}
	n, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
