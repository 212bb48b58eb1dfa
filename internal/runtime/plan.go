package runtime

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// The descriptors that the child finds at fixed numbers, after 0 to 4.
const (
	fdRoot  = 5 // the root filesystem, a detached mount
	fdDev   = 6 // the /dev tmpfs, detached
	fdPts   = 7 // its devpts, detached
	fdShm   = 8 // its shm, detached
	fdNull  = 9 // /dev/null (char 1:3, checked by the parent), O_PATH
	fdFirst = 10

	// With StartFD, from leaveOldRoot on.
	fdStart = 5
	fdLate  = 6
)

// plan is a launch turned into a table and the descriptors that it names.
type plan struct {
	*table
	l     *Launch
	extra []int // parent's descriptors for fdFirst and on
	dev   bool  // the /dev tree of the launch is used

	keepAt uint64 // where descriptors to preserve wait

	handoff uint64 // the address that reports the number of the container's process, with a user namespace made ahead
	made    int    // that number, once reported

	sources map[string]int // path → the operation that cloned it, see openSources
}

const (
	fdEmpty = 400 // a free number, so that it can stand in a string
	fdMount = 402 // the mount that is being attached; fdEmpty+1 is the old root
)

// pass hands a descriptor of the parent to the child and returns its number there.
func (p *plan) pass(fd int) uint64 {
	p.extra = append(p.extra, fd)
	return uint64(fdFirst + len(p.extra) - 1)
}

// newPlan compiles the start of a container. It reads nothing but l and what
// host says of this machine, so the result can be tested as data.
func newPlan(l *Launch, host *Host) (*plan, error) {
	p := &plan{table: newTable(), l: l}
	s := l.Spec
	if s.Process == nil || len(s.Process.Args) == 0 {
		return nil, &StartError{Stage: StageExec, Errno: unix.EINVAL, Msg: "no command specified"}
	}
	for k := range s.Linux.Sysctl {
		if !plainPath(SysctlPath(k)) { // it could lead out of what a namespace holds
			return nil, &StartError{Stage: StageSysctl, Errno: unix.EINVAL, Path: k, Msg: fmt.Sprintf("sysctl %q is not in a separate kernel namespace", k)}
		}
	}
	p.cgroups()
	if l.joinsUser() {
		p.enterUser(host, l.newFlags())
	} else {
		p.namespaces()
	}
	p.session()
	p.openSources(host)
	p.pivot()
	if err := p.mounts(host); err != nil {
		return nil, err
	}
	p.names() // sysctls, before /proc/sys turns read-only
	p.masks(host)
	walk{p}.workDir()
	p.leaveOldRoot()
	if err := p.limits(host); err != nil {
		return nil, err
	}
	if err := p.process(s.Process, host); err != nil {
		return nil, err
	}
	return p, nil
}

// cgroups joins the v1 hierarchies. Writing 0 to "tasks" from the only thread
// of the child skips the lock, and the grace period, that "cgroup.procs" takes.
// A v2 cgroup is joined by the clone itself.
func (p *plan) cgroups() {
	p.stage = StageCgroup
	zero := p.str("0")
	for _, dir := range p.l.CgroupV1 {
		f := dir + "/tasks"
		fd := p.call(f, unix.SYS_OPENAT, atFDCWD, p.str(f), unix.O_WRONLY|unix.O_CLOEXEC)
		w := p.call(f, unix.SYS_WRITE, 0, zero, 1)
		p.feed(fd, w, 0)
	}
}

var nsFlags = map[specs.LinuxNamespaceType]uintptr{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// namespaces joins what is not made by the clone. A new cgroup namespace is
// made only here, when the cgroups are joined: it roots itself at them.
func (p *plan) namespaces() {
	p.stage = StageNamespace
	for _, ns := range p.l.Spec.Linux.Namespaces {
		fd, given := p.l.NSFD[ns.Type]
		switch {
		case given && ns.Type != specs.PIDNamespace:
			p.call(string(ns.Type), unix.SYS_SETNS, p.pass(fd), uint64(nsFlags[ns.Type]))
		case !given && ns.Type == specs.CgroupNamespace:
			p.call("cgroup", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		}
	}
}

// session detaches from the parent's session, takes the terminal, and gets a
// keyring of its own.
func (p *plan) session() {
	p.stage = StageProcess
	p.call("setsid", unix.SYS_SETSID)
	if p.l.Spec.Process.Terminal {
		p.call("terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	p.call("keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, p.str("_ses"))
	p.last().flags = initprog.FlagIgnore // kernels without keyrings, and full quotas
	p.call("umask", unix.SYS_UMASK, 0)
}

// pivot makes the container's root filesystem the root. The old root stays
// stacked below until leaveOldRoot: procfs in a user namespace needs it visible.
func (p *plan) pivot() {
	p.stage = StageRootfs
	if p.l.Empty != "" {
		fd := p.call(p.l.Empty, unix.SYS_OPENAT, atFDCWD, p.str(p.l.Empty), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
		dup := p.call("empty", unix.SYS_DUP3, 0, fdEmpty, unix.O_CLOEXEC)
		p.feed(fd, dup, 0)
	}
	old := p.call("/", unix.SYS_OPENAT, atFDCWD, p.str("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	d := p.call("old root", unix.SYS_DUP3, 0, fdEmpty+1, unix.O_CLOEXEC)
	p.feed(old, d, 0)
	if p.l.PrivateMounts {
		p.call("/", unix.SYS_MOUNT, 0, p.str("/"), 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	}
	p.moveMount(fdRoot, p.l.Base, "rootfs")
	if p.l.Hooks != nil {
		p.waitHooks()
	}
	p.call("rootfs", unix.SYS_FCHDIR, fdRoot)
	dot := p.str(".")
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("/", unix.SYS_CHDIR, p.str("/"))
}

// waitHooks blocks the process until the parent has run its hooks.
func (p *plan) waitHooks() {
	here := initprog.TableAddr + initprog.HeaderSize + uint64(len(p.ops))*initprog.OpSize
	p.call("hooks", unix.SYS_WRITE, initprog.FDReport, p.words(here, 0), 16)
	p.call("hooks", unix.SYS_READ, p.pass(p.l.hooks[0]), p.bytes(make([]byte, 8)), 1)
}

// moveMount attaches the detached mount fd at target.
func (p *plan) moveMount(fd uint64, target, what string) int {
	return p.call(what, unix.SYS_MOVE_MOUNT, fd, p.str(""), atFDCWD, p.str(target), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

func (p *plan) leaveOldRoot() {
	p.stage = StageRootfs
	p.call("old root", unix.SYS_FCHDIR, fdEmpty+1)
	dot := p.str(".")
	p.call("old root", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	if p.l.Spec.Root != nil && p.l.Spec.Root.Readonly {
		p.setAttr("/", unix.MOUNT_ATTR_RDONLY, 0, false)
	}
	// The root is a private mount: it can be made shared or unbindable, and is
	// already what a slave of nothing would be.
	if o := mountOptions[p.l.Spec.Linux.RootfsPropagation]; o.prop&(unix.MS_SHARED|unix.MS_UNBINDABLE) != 0 {
		p.setAttr("/", 0, uint64(o.prop&^unix.MS_REC), o.prop&unix.MS_REC != 0)
	}
	p.call("/", unix.SYS_CHDIR, p.str("/"))
	// No descriptor from outside may be reachable from here on, least of all by
	// a working directory below /proc/self/fd.
	keep := uint64(initprog.FDReport + 1)
	if p.l.StartFD >= 0 {
		p.call("start", unix.SYS_DUP3, p.pass(p.l.StartFD), fdStart, unix.O_CLOEXEC)
		p.call("start", unix.SYS_DUP3, p.pass(p.l.LateFD), fdLate, unix.O_CLOEXEC)
		keep = fdLate + 1
	}
	p.closeRest(keep)
}

// closeRest closes the descriptors from keep on, but for those to preserve:
// they wait above all numbers that they will get, and above those that the
// parent passed.
func (p *plan) closeRest(keep uint64) {
	n := uint64(len(p.l.Preserve))
	if n == 0 {
		p.call("descriptors", unix.SYS_CLOSE_RANGE, keep, 0xffffffff, 0)
		return
	}
	p.keepAt = fdFirst + uint64(len(p.extra)) + 2*n
	from := p.keepAt
	for i, fd := range p.l.Preserve {
		p.call("descriptors", unix.SYS_DUP3, p.pass(fd), from+uint64(i), unix.O_CLOEXEC)
	}
	p.call("descriptors", unix.SYS_CLOSE_RANGE, keep, from-1, 0)
	p.call("descriptors", unix.SYS_CLOSE_RANGE, from+n, 0xffffffff, 0)
}

// waitStart blocks the process, which is complete but for its execve, until
// the start descriptor is written. A report with errno 0 tells the parent that
// it may go; what fails afterwards is reported to LateFD.
func (p *plan) waitStart(files []string) {
	for i, file := range files { // what surely cannot be run is told now
		p.call(file, unix.SYS_FACCESSAT, atFDCWD, p.str(file), unix.X_OK)
		p.last().flags, p.last().skipOK = initprog.FlagContinue, uint8(min(255, len(files)-i))
	}
	p.call("exit", unix.SYS_EXIT_GROUP, 254)
	here := initprog.TableAddr + initprog.HeaderSize + uint64(len(p.ops))*initprog.OpSize
	p.call("ready", unix.SYS_WRITE, initprog.FDReport, p.words(here, 0), 16)
	p.call("start", unix.SYS_READ, fdStart, p.bytes(make([]byte, 8)), 1)
	p.call("start", unix.SYS_DUP3, fdLate, initprog.FDReport, unix.O_CLOEXEC)
}

// setAttr sets attributes and the propagation of the mount at target.
func (p *plan) setAttr(target string, set, propagation uint64, recursive bool) {
	p.mountSetAttr(atFDCWD, target, target, set, 0, propagation, recursive)
}

// mountSetAttr is setAttr for a path below a descriptor; "" is the mount that the descriptor is.
func (p *plan) mountSetAttr(fd uint64, target, what string, set, clr, propagation uint64, recursive bool) {
	attr := p.words(set, clr, propagation, 0)
	flags := uint64(0)
	if target == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	p.call(what, unix.SYS_MOUNT_SETATTR, fd, p.str(target), flags, attr, 32)
}

func (p *plan) names() {
	s := p.l.Spec
	p.stage = StageHostname
	if s.Hostname != "" {
		p.call(s.Hostname, unix.SYS_SETHOSTNAME, p.str(s.Hostname), uint64(len(s.Hostname)))
	}
	if s.Domainname != "" {
		p.call(s.Domainname, unix.SYS_SETDOMAINNAME, p.str(s.Domainname), uint64(len(s.Domainname)))
	}
	p.stage = StageSysctl
	for _, k := range sortedKeys(s.Linux.Sysctl) {
		file := "/proc/sys/" + SysctlPath(k)
		p.writeFile(file, s.Linux.Sysctl[k])
	}
}

// SysctlPath turns net.ipv4.ip_forward into net/ipv4/ip_forward. As sysctl(8)
// has it, a name whose first separator is a slash keeps its dots.
func SysctlPath(k string) string {
	if i := strings.IndexAny(k, "./"); i >= 0 && k[i] == '/' {
		return k
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(k)
}

// plainPath reports whether every element of a relative path is a plain name.
func plainPath(p string) bool {
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

func (p *plan) writeFile(file, value string) {
	fd := p.call(file, unix.SYS_OPENAT, atFDCWD, p.str(file), unix.O_WRONLY|unix.O_CLOEXEC)
	w := p.call(file, unix.SYS_WRITE, 0, p.str(value), uint64(len(value)))
	p.feed(fd, w, 0)
}

func (p *plan) limits(host *Host) error {
	s := p.l.Spec
	p.stage = StageProcess
	if adj := s.Process.OOMScoreAdj; adj != nil && *adj != host.OOMScoreAdj && p.handoff == 0 {
		p.writeFile("/proc/self/oom_score_adj", fmt.Sprint(*adj))
	}
	return p.rlimits(s.Process.Rlimits)
}

// masks hides MaskedPaths behind /dev/null or an empty directory, and makes
// ReadonlyPaths read-only.
func (p *plan) masks(host *Host) {
	p.stage = StageMask
	null, empty := p.str(fmt.Sprintf("/proc/self/fd/%d", fdNull)), p.str(fmt.Sprintf("/proc/self/fd/%d", fdEmpty))
	for _, m := range p.l.Spec.Linux.MaskedPaths {
		kind := host.kind(m)
		if kind == kindMissing {
			continue
		}
		target := p.str(m)
		if kind == kindFile || kind == kindUnknown {
			p.call(m, unix.SYS_MOUNT, null, target, 0, unix.MS_BIND, 0)
			if kind == kindUnknown { // a directory answers ENOTDIR, what is not there ENOENT
				p.last().flags = initprog.FlagIgnore
				p.last().skipOK = 1
			}
		}
		if kind == kindDir || kind == kindUnknown {
			p.call(m, unix.SYS_MOUNT, empty, target, 0, unix.MS_BIND, 0)
			p.last().allow = unix.ENOENT
		}
	}
	for _, r := range p.l.Spec.Linux.ReadonlyPaths {
		if host.kind(r) == kindMissing {
			continue
		}
		target := p.str(r)
		p.call(r, unix.SYS_MOUNT, target, target, 0, unix.MS_BIND|unix.MS_REC, 0)
		p.last().allow = unix.ENOENT
		p.last().skipErr = 1
		p.setAttr(r, unix.MOUNT_ATTR_RDONLY, 0, false)
	}
}

// process is the last part, shared by the first process and by exec: who it is,
// what it may do, and execve.
func (p *plan) process(pr *specs.Process, host *Host) error {
	p.stage = StageCwd
	cwd := pr.Cwd
	if cwd == "" {
		cwd = "/"
	}
	// All capabilities are still there, and /proc may show processes of the
	// host: a plain chdir could be led out by /proc/1/root.
	p.call("/", unix.SYS_CHDIR, p.str("/"))
	fd := walk{p}.openDir(cwd)
	p.feed(fd, p.call(cwd, unix.SYS_FCHDIR, 0), 0)
	// Before the filter, which may not know this call. What is opened from here on closes itself.
	p.call("descriptors", unix.SYS_CLOSE_RANGE, 3, 0xffffffff, unix.CLOSE_RANGE_CLOEXEC)
	if len(p.l.Seccomp) > 0 && !pr.NoNewPrivileges {
		p.seccomp() // needs CAP_SYS_ADMIN, so before the capabilities go
	}
	if err := p.credentials(pr); err != nil {
		return err
	}
	p.stage = StageProcess
	umask := uint64(0o022)
	if pr.User.Umask != nil {
		umask = uint64(*pr.User.Umask)
	}
	p.call("umask", unix.SYS_UMASK, umask)
	for _, sig := range host.IgnoredSignals {
		p.call("sigaction", unix.SYS_RT_SIGACTION, uint64(sig), p.bytes(make([]byte, 32)), 0, 8)
	}
	if p.l.Init {
		p.reaper(pr)
	}
	if pr.ApparmorProfile != "" {
		p.writeFile("/proc/self/attr/apparmor/exec", "exec "+pr.ApparmorProfile)
	}
	if len(p.l.Seccomp) > 0 && pr.NoNewPrivileges {
		p.call("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
		p.seccomp()
	} else if pr.NoNewPrivileges {
		p.call("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	p.stage = StageExec
	if p.l.Join < 0 && p.l.StartFD >= 0 {
		p.waitStart(Candidates(pr))
	}
	for i := range p.l.Preserve {
		p.call("descriptors", unix.SYS_DUP3, p.keepAt+uint64(i), 3+uint64(i), 0)
	}
	argv, envp := p.strv(pr.Args), p.strv(pr.Env)
	list := Candidates(pr)
	for i, file := range list {
		p.call(file, unix.SYS_EXECVE, p.str(file), argv, envp)
		p.last().flags = initprog.FlagContinue
		if i < len(list)-1 {
			p.last().allow = unix.ENOENT // no news: the last one tells
		}
	}
	p.call("exit", unix.SYS_EXIT_GROUP, 254)
	return nil
}

// reaper makes this process the init of the container and goes on in a child.
// The empty set of signals is set again in the child.
func (p *plan) reaper(pr *specs.Process) {
	all, none := p.words(^uint64(0)), p.words(0)
	p.call("name", unix.SYS_PRCTL, unix.PR_SET_NAME, p.str("docker-init"))
	p.call("sigmask", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, all, 0, 8)
	// The child's program may run for a moment before this process has closed
	// its descriptors: it finds none of them but the report pipe, and may not look.
	p.call("dumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	p.call("table", unix.SYS_CLOSE, initprog.FDTable)
	if p.l.StartFD < 0 {
		p.call("descriptors", unix.SYS_CLOSE_RANGE, initprog.FDReport+1, 0xffffffff, 0)
		p.last().flags = initprog.FlagIgnore // a filter that does not know it: one O_PATH stays open here
	}
	c := p.call("clone", unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|uint64(unix.SIGCHLD), 0, 0, 0, 0)
	r := p.call("reap", initprog.OpReap, 0, all, p.bytes(make([]byte, 128)))
	p.feed(c, r, 0)
	p.call("setpgid", unix.SYS_SETPGID, 0, 0)
	if pr.Terminal { // the foreground group; SIGTTOU is still blocked
		pid := p.call("getpid", unix.SYS_GETPID)
		pgrp := p.words(0)
		p.ops[pid].store = pgrp
		p.call("terminal", unix.SYS_IOCTL, 0, unix.TIOCSPGRP, pgrp)
	}
	p.call("sigmask", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, none, 0, 8)
}

// seccomp installs the compiled filter.
func (p *plan) seccomp() {
	p.stage = StageSeccomp
	prog := p.words(uint64(len(p.l.Seccomp)/8), p.bytes(p.l.Seccomp)) // struct sock_fprog: u16 len, pointer
	p.call("seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uint64(p.l.SeccompFlags), prog)
}

// Candidates are the files that execve tries: the command itself when it holds
// a slash, else one for each directory of the container's PATH.
func Candidates(pr *specs.Process) []string {
	name := pr.Args[0]
	if name == "" {
		return nil
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, e := range pr.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = list[:0] // the last one counts, as in execvpe
			for _, dir := range strings.Split(v, ":") {
				if dir == "" {
					dir = "."
				}
				list = append(list, path.Join(dir, name))
			}
		}
	}
	return list
}
