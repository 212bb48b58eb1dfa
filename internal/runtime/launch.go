package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// Launch is one process about to be started: the first of a container, or one
// more inside it (Join set). Descriptors stay the caller's.
type Launch struct {
	Spec  *specs.Spec
	Stdio [3]int

	RootFD  int         // detached mount of the root filesystem
	MountFD map[int]int // by index in Spec.Mounts: detached clones of bind sources
	NSFD    map[specs.LinuxNamespaceType]int
	Dev     *DevTree
	Owner   Owner // of what is made in the root filesystem

	Seccomp      []byte // compiled filter, struct sock_filter after another
	SeccompFlags uint

	CgroupV1 []string // directories to join, one for each v1 hierarchy
	CgroupV2 int      // descriptor of the v2 directory to be born in, -1 for none

	CgroupView int // Cgroup.View, -1 for none

	Base          string // a directory to stack the root filesystem on before pivot_root
	Empty         string // an empty read-only directory, for masks
	InOrder       bool   // mounts that were made ahead are made again in their turn, so that mountinfo shows the order of the specification
	PrivateMounts bool   // the present mount namespace is not private: make the copy so
	ConsolePath   string // "/dev/pts/N" for /dev/console
	Init          bool   // run an init as process 1
	StartFD       int    // holds the process before execve until a byte can be read, -1 for none: Start returns when it waits
	LateFD        int    // with StartFD: what gets the reports of failed execves after that

	Preserve []int // the process gets them as descriptors 3 and up

	// Hooks is called when the namespaces are made and the root filesystem is
	// stacked on Base, before it becomes the root: the process waits meanwhile.
	Hooks func(pid int) error

	// Join is the pidfd of the process whose namespaces an exec joins, -1 for a start.
	Join    int
	JoinPid bool // its pid namespace is not this process's

	targets    map[int]targetKind
	kernelDirs bool
	lastCap    int
	caps       uint64
	hooks      [2]int // a pipe: a byte ends the wait for Hooks
}

// Process is a started one. The caller closes PidFD and MountNS.
type Process struct {
	Pid     int
	PidFD   int
	MountNS int // holds the mount namespace past the exit, so that its end is not on the exit path; -1 for none
}

type targetKind uint8

const (
	targetMissing targetKind = iota // make a directory
	targetThere                     // no link leads to it: its name will do
	targetFile                      // make a file
	targetLinked                    // there, over links or deeper than plainTarget looks
)

// StartError says at which stage a start failed, on what, and why.
type StartError struct {
	Stage Stage
	Errno unix.Errno
	Path  string
	Msg   string // set when the reason is not an errno
}

func (e *StartError) Error() string {
	switch {
	case e.Msg != "":
		return e.Msg
	case e.Stage == StageExec:
		if e.Errno == unix.ENOENT && !strings.Contains(e.Path, "/") {
			return fmt.Sprintf("exec: %q: executable file not found in $PATH", e.Path)
		}
		if e.Errno == unix.ENOENT {
			return fmt.Sprintf("exec: %q: stat %s: no such file or directory", e.Path, e.Path)
		}
		if e.Errno == unix.ENOEXEC {
			return fmt.Sprintf("exec %s: exec format error", e.Path)
		}
		return fmt.Sprintf("exec: %q: %v", e.Path, e.Errno)
	case e.Stage == StageCwd:
		return fmt.Sprintf("chdir to cwd (%q) set in config.json failed: %v", e.Path, e.Errno)
	case e.Stage == StageRlimit:
		return fmt.Sprintf("error setting rlimits for ready process: error setting rlimit type %s: %v", e.Path, e.Errno)
	default:
		return fmt.Sprintf("%s: cannot set up %q: %v", e.Stage, e.Path, e.Errno)
	}
}

// Unwrap gives the errno.
func (e *StartError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

func (l *Launch) newNamespace(t specs.LinuxNamespaceType) bool {
	if _, joined := l.NSFD[t]; joined {
		return false
	}
	return slices.ContainsFunc(l.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
}

// newFlags are the namespaces that a clone makes. A new cgroup namespace is
// made later, when the cgroups are joined: it roots itself at them.
func (l *Launch) newFlags() uintptr {
	var flags uintptr
	for _, ns := range l.Spec.Linux.Namespaces {
		if _, joined := l.NSFD[ns.Type]; !joined && ns.Type != specs.CgroupNamespace {
			flags |= nsFlags[ns.Type]
		}
	}
	return flags
}

func (l *Launch) userNS() bool { return l.newNamespace(specs.UserNamespace) }

// cgroupDir is the container's directory in a v1 hierarchy, or the hierarchy
// itself where it has none.
func (l *Launch) cgroupDir(h Hierarchy) string {
	for _, d := range l.CgroupV1 {
		if within(d, h.Path) {
			return d
		}
	}
	return h.Path
}

// Runtime starts processes. It is safe for use by several goroutines.
type Runtime struct {
	Host *Host
	fd   int // the sealed init program
}

// New prepares the init program and reads the host.
func New() (*Runtime, error) {
	h, err := ReadHost()
	if err != nil {
		return nil, err
	}
	elf, err := initprog.ELF(goruntime.GOARCH)
	if err != nil {
		return nil, err
	}
	fd, err := sealed("berth-init", elf)
	if err != nil {
		return nil, fmt.Errorf("cannot make the init program: %w", err)
	}
	return &Runtime{Host: h, fd: fd}, nil
}

// sealed returns a memory file that nobody can change any more.
func sealed(name string, data []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { //nolint:errorlint // kernels before 6.3 do not know MFD_EXEC
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	if _, err = unix.Write(fd, data); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Start starts the first process of a container.
func (r *Runtime) Start(l *Launch) (*Process, error) {
	l.lastCap, l.caps = r.Host.LastCap, r.Host.Caps
	drop, err := l.copyUp()
	if err != nil {
		return nil, err
	}
	defer drop()
	if err := l.lookAtTargets(); err != nil {
		return nil, err
	}
	if l.Hooks != nil {
		if err := unix.Pipe2(l.hooks[:], unix.O_CLOEXEC); err != nil {
			return nil, err
		}
		defer func() { _, _ = unix.Close(l.hooks[0]), unix.Close(l.hooks[1]) }()
	}
	p, err := newPlan(l, r.Host)
	if err != nil {
		return nil, err
	}
	flags := l.newFlags()
	if p.handoff != 0 {
		flags = 0 // they are made by the second clone
	}
	files := []int{l.Stdio[0], l.Stdio[1], l.Stdio[2], -1, -1, l.RootFD, -1, -1, -1, -1}
	if l.Dev != nil {
		copy(files[fdDev:], []int{l.Dev.Root, l.Dev.Pts, l.Dev.Shm, l.Dev.Null})
	}
	attr := &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		attr.UidMappings, attr.GidMappings = idMap(l.Spec.Linux.UIDMappings), idMap(l.Spec.Linux.GIDMappings)
		attr.GidMappingsEnableSetgroups = true
	}
	pidNS := -1
	if fd, ok := l.NSFD[specs.PIDNamespace]; ok && p.handoff == 0 {
		pidNS = fd
	}
	return r.run(p, append(files, p.extra...), attr, pidNS)
}

// Exec starts one more process in a running container: it joins the namespaces
// of l.Join, then is what l.Spec.Process says.
func (r *Runtime) Exec(l *Launch) (*Process, error) {
	l.lastCap, l.caps = r.Host.LastCap, r.Host.Caps
	p := &plan{table: newTable(), l: l}
	p.stage = StageProcess
	p.call("dumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	p.cgroups()
	mapped := l.userNS()
	if mapped { // inside there is no power to raise limits, nor to lower the score
		if err := p.limits(r.Host); err != nil {
			return nil, err
		}
	}
	p.stage = StageNamespace
	var flags uintptr
	for _, ns := range l.Spec.Linux.Namespaces {
		if ns.Type != specs.PIDNamespace && ns.Type != specs.UserNamespace {
			flags |= nsFlags[ns.Type]
		}
	}
	p.call("namespaces", unix.SYS_SETNS, fdRoot, uint64(flags))
	if mapped { // last: some of them may belong to another user namespace
		p.call("user", unix.SYS_SETNS, fdRoot, unix.CLONE_NEWUSER)
	}
	p.session()
	p.closeRest(initprog.FDReport + 1)
	if !mapped {
		if err := p.limits(r.Host); err != nil {
			return nil, err
		}
	}
	if err := p.process(l.Spec.Process, r.Host); err != nil {
		return nil, err
	}
	pidNS := -1
	if l.JoinPid {
		pidNS = l.Join
	}
	files := []int{l.Stdio[0], l.Stdio[1], l.Stdio[2], -1, -1, l.Join, -1, -1, -1, -1}
	return r.run(p, append(files, p.extra...), &syscall.SysProcAttr{}, pidNS)
}

func idMap(ms []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(ms))
	for _, m := range ms {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// run writes the table, starts the init program with it and waits until the
// program has been replaced or has failed.
func (r *Runtime) run(p *plan, files []int, attr *syscall.SysProcAttr, pidNS int) (*Process, error) {
	defer p.release()
	ops, data, err := p.encode()
	if err != nil {
		return nil, &StartError{Stage: StageExec, Errno: unix.E2BIG, Path: p.l.Spec.Process.Args[0]}
	}
	mem, err := unix.MemfdCreate("table", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { //nolint:errorlint // a bare errno; before 6.3
		mem, err = unix.MemfdCreate("table", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(mem)
	if _, err = unix.Pwrite(mem, ops, 0); err == nil {
		_, err = unix.Pwrite(mem, data, dataOffset)
	}
	if err != nil {
		return nil, err
	}
	var report [2]int
	if err := unix.Pipe2(report[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	defer unix.Close(report[0])
	files[initprog.FDTable], files[initprog.FDReport] = mem, report[1]
	// The init program goes along at a number of its own: ForkExec moves
	// descriptors about in the child, and may put one on any other number.
	prog := "/proc/self/fd/" + strconv.Itoa(len(files))
	files = append(files, r.fd)
	fds := make([]uintptr, len(files))
	for i, fd := range files {
		fds[i] = uintptr(fd)
		if fd < 0 {
			fds[i] = ^uintptr(0)
		}
	}
	pidFD := -1
	attr.PidFD = &pidFD
	if p.l.CgroupV2 >= 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, p.l.CgroupV2
	}
	pid, err := forkIn(pidNS, prog, &syscall.ProcAttr{Files: fds, Sys: attr, Dir: "", Env: []string{}})
	_ = unix.Close(report[1])
	if err != nil {
		return nil, &StartError{Stage: StageNamespace, Path: "clone", Errno: errnoOf(err)}
	}
	proc := &Process{Pid: pid, PidFD: pidFD, MountNS: -1}
	if p.l.Join < 0 && p.handoff == 0 {
		proc.MountNS = mountNSOf(pidFD)
	}
	err = p.result(report[0], pid)
	if p.handoff != 0 {
		err = p.takeOver(proc, err)
	}
	if err != nil {
		_ = unix.PidfdSendSignal(proc.PidFD, unix.SIGKILL, nil, 0)
		_ = unix.Waitid(unix.P_PIDFD, proc.PidFD, nil, unix.WEXITED, nil)
		_ = unix.Close(proc.PidFD)
		if proc.MountNS >= 0 {
			_ = unix.Close(proc.MountNS)
		}
		return nil, err
	}
	return proc, nil
}

// takeOver puts the process that the first child has made, if it came so far,
// in the first child's place, which is reaped.
func (p *plan) takeOver(proc *Process, err error) error {
	if p.made == 0 {
		if err == nil {
			err = errors.New("berth-init made no process")
		}
		return err
	}
	// A child of this process, and nobody else reaps it: the number is its own.
	fd, operr := unix.PidfdOpen(p.made, 0)
	if operr != nil {
		return errors.Join(err, operr)
	}
	_ = unix.Waitid(unix.P_PIDFD, proc.PidFD, nil, unix.WEXITED, nil)
	_ = unix.Close(proc.PidFD)
	proc.Pid, proc.PidFD, proc.MountNS = p.made, fd, mountNSOf(fd)
	return err
}

// pidNSMu keeps threads that visit another pid namespace apart from nothing
// but themselves; it bounds their number.
var pidNSMu sync.Mutex

// forkIn is ForkExec, with the child in the pid namespace of pidNS (a pidfd or
// namespace descriptor) when that is not negative.
func forkIn(pidNS int, prog string, attr *syscall.ProcAttr) (int, error) {
	argv := []string{"berth-init"}
	if pidNS < 0 {
		return syscall.ForkExec(prog, argv, attr)
	}
	pidNSMu.Lock()
	defer pidNSMu.Unlock()
	goruntime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		goruntime.UnlockOSThread()
		return 0, err
	}
	defer unix.Close(own)
	if err := unix.Setns(pidNS, unix.CLONE_NEWPID); err != nil {
		goruntime.UnlockOSThread()
		return 0, err
	}
	pid, err := syscall.ForkExec(prog, argv, attr)
	if serr := unix.Setns(own, unix.CLONE_NEWPID); serr == nil {
		goruntime.UnlockOSThread() // else the thread ends with this goroutine
	}
	return pid, err
}

const pidfdGetMntNamespace = 0xff03 // _IO(PIDFS_IOCTL_MAGIC, 3), linux/pidfd.h, since 6.11

func mountNSOf(pidFD int) int {
	fd, err := unix.IoctlRetInt(pidFD, pidfdGetMntNamespace)
	if err != nil {
		return -1 // an older kernel, or already gone
	}
	return fd
}

// result reads the report pipe to its end. Failures of single execve attempts
// count only when the last one failed too.
func (p *plan) result(fd, pid int) error {
	var buf [16]byte
	hooks := p.l.Hooks
	var exec *StartError
	for {
		n, err := readFull(fd, buf[:])
		if err != nil {
			return err
		}
		if n < len(buf) {
			break
		}
		addr := binary.LittleEndian.Uint64(buf[:])
		if addr == p.handoff && addr != 0 {
			p.made = int(binary.LittleEndian.Uint64(buf[8:]))
			continue
		}
		o, ok := p.failed(addr)
		if !ok {
			return errors.New("berth-init sent a report that makes no sense")
		}
		if binary.LittleEndian.Uint64(buf[8:]) == 0 {
			if hooks == nil { // it waits for its start
				return nil
			}
			if p.made != 0 {
				pid = p.made
			}
			if err := hooks(pid); err != nil {
				return err
			}
			hooks = nil
			if _, err := unix.Write(p.l.hooks[1], []byte{0}); err != nil {
				return err
			}
			continue
		}
		e := &StartError{Stage: o.stage, Path: o.path, Errno: unix.Errno(binary.LittleEndian.Uint64(buf[8:]))}
		e.Msg = o.failure(e.Errno)
		if o.stage != StageExec || o.flags&initprog.FlagContinue == 0 {
			return e
		}
		e.Path = p.l.Spec.Process.Args[0]
		last := o.path == p.ops[len(p.ops)-2].path
		if !strings.Contains(e.Path, "/") && (e.Errno == unix.ELOOP || e.Errno == unix.ENAMETOOLONG) {
			e.Errno = unix.ENOENT // not the file that PATH was searched for
		}
		if exec == nil || e.Errno == unix.EACCES || exec.Errno == unix.ENOENT && e.Errno != unix.ENOTDIR {
			exec = e
		}
		if last {
			if exec.Errno == unix.ENOTDIR && !strings.Contains(exec.Path, "/") {
				exec.Errno = unix.ENOENT
			}
			return p.explain(exec)
		}
	}
	if len(Candidates(p.l.Spec.Process)) == 0 {
		return &StartError{Stage: StageExec, Errno: unix.ENOENT, Path: p.l.Spec.Process.Args[0]}
	}
	return nil
}

// explain looks at the file that could not be run, for a better reason.
func (p *plan) explain(e *StartError) error {
	if e.Errno != unix.EACCES || p.l.Join >= 0 {
		return e
	}
	for _, c := range Candidates(p.l.Spec.Process) {
		var st unix.Stat_t
		fd, err := openInRoot(p.l.RootFD, c, unix.O_PATH)
		if err != nil {
			continue
		}
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && strings.Contains(e.Path, "/") {
			e.Errno = unix.EISDIR
		}
		_ = unix.Close(fd)
	}
	return e
}

// failure tells of a file of the kernel, or a mount, what went wrong, in the
// words of Docker's runtime; "" leaves it to the stage.
func (o op) failure(errno unix.Errno) string {
	switch {
	case strings.HasPrefix(o.path, "/proc/") && o.nr == unix.SYS_OPENAT:
		return fmt.Sprintf("open %s: %v", o.path, errno)
	case strings.HasPrefix(o.path, "/proc/") && o.nr == unix.SYS_WRITE:
		return fmt.Sprintf("write %s: %v", o.path, errno)
	case o.stage == StageMount && o.nr == unix.SYS_MOUNT:
		return fmt.Sprintf("error mounting to rootfs at %q: %v", o.path, errno)
	case o.stage == StageHostname && o.nr == unix.SYS_SETHOSTNAME:
		return fmt.Sprintf("sethostname: %v", errno)
	}
	return ""
}

func readFull(fd int, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

func errnoOf(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// openInRoot opens p below root; no link leads out of it.
func openInRoot(root int, p string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 32 { // EAGAIN: a rename went on at the same time
		fd, err := unix.Openat2(root, p, &how)
		if err != unix.EAGAIN && err != unix.EINTR { //nolint:errorlint // bare errnos
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// lookAtTargets finds, through the root's descriptor, which mount points are
// there already, so that the child makes only what is missing, and makes in the
// root those whose way leads over symbolic links.
func (l *Launch) lookAtTargets() error {
	l.targets = make(map[int]targetKind, len(l.Spec.Mounts))
	l.kernelDirs = true
	dests := make([]string, len(l.Spec.Mounts))
	for i, m := range l.Spec.Mounts {
		dests[i] = path.Clean("/" + m.Destination)
	}
	for i, m := range l.Spec.Mounts {
		dest := dests[i]
		nested := false
		for j, other := range dests {
			if j != i && len(dest) > len(other) && dest[len(other)] == '/' && dest[:len(other)] == other {
				nested = true
			}
		}
		file := false
		if fd, ok := l.MountFD[i]; ok {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			file = st.Mode&unix.S_IFMT != unix.S_IFDIR
		} else if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			st, err := os.Stat(m.Source)
			if err != nil {
				return &StartError{Stage: StageMount, Path: m.Source, Errno: errnoOf(err)}
			}
			file = !st.IsDir()
		}
		if file {
			l.targets[i] = targetFile
		}
		if nested {
			continue
		}
		if l.plainTarget(dest, file) {
			l.targets[i] = targetThere
			continue
		}
		fd, err := openInRoot(l.RootFD, dest, unix.O_PATH)
		if err != nil {
			if fd, err = makeInRoot(l.RootFD, dest, file, l.Owner); err != nil {
				return &StartError{Stage: StageMount, Path: dest, Errno: errnoOf(err)}
			}
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; isDir == file {
			return &StartError{Stage: StageMount, Path: dest, Errno: unix.ENOTDIR, Msg: fmt.Sprintf(
				"error mounting %q to rootfs at %q: not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type", m.Source, dest)}
		}
		l.targets[i] = targetLinked
	}
	return nil
}

// plainTarget reports whether dest, of one or two names, is there without a
// link on the way, and of the kind that is mounted: the usual case, for little.
func (l *Launch) plainTarget(dest string, file bool) bool {
	dir, name, two := strings.Cut(dest[1:], "/")
	if two && strings.Contains(name, "/") {
		return false
	}
	isDir := func(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
	var st unix.Stat_t
	if unix.Fstatat(l.RootFD, dir, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	if !two {
		return isDir(&st) == !file && st.Mode&unix.S_IFMT != unix.S_IFLNK
	}
	if !isDir(&st) || unix.Fstatat(l.RootFD, dest[1:], &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	return isDir(&st) == !file && st.Mode&unix.S_IFMT != unix.S_IFLNK
}

// MakeDir makes a directory of a container and its parents, as makeInRoot does.
func MakeDir(root int, p string, own Owner) error {
	fd, err := makeInRoot(root, p, false, own)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// makeInRoot makes the directories of p below root, and p itself as a file if
// asked, following links that stay inside.
func makeInRoot(root int, p string, file bool, own Owner) (int, error) {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	todo, links := parts, 0
	cur := "" // resolved so far, free of links
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			cur = strings.TrimSuffix(path.Dir("/"+cur), "/")
			cur = strings.TrimPrefix(cur, "/")
			continue
		}
		dir, err := openInRoot(root, "/"+cur, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT { //nolint:errorlint // a bare errno
			if len(todo) == 0 && file {
				err = unix.Mknodat(dir, name, unix.S_IFREG|0o755, 0)
			} else {
				err = unix.Mkdirat(dir, name, 0o755)
			}
			if err == nil && (own.UID != 0 || own.GID != 0) {
				err = unix.Fchownat(dir, name, int(own.UID), int(own.GID), unix.AT_SYMLINK_NOFOLLOW)
			}
			if err == unix.EEXIST { //nolint:errorlint // a bare errno
				err = nil
			}
		} else if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			if links++; links > 40 {
				_ = unix.Close(dir)
				return -1, unix.ELOOP
			}
			buf := make([]byte, 4096)
			n, rerr := unix.Readlinkat(dir, name, buf)
			_ = unix.Close(dir)
			if rerr != nil {
				return -1, rerr
			}
			target := string(buf[:n])
			if strings.HasPrefix(target, "/") {
				cur = ""
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		_ = unix.Close(dir)
		if err != nil {
			return -1, err
		}
		cur = path.Join(cur, name)
	}
	return openInRoot(root, "/"+cur, unix.O_PATH)
}
