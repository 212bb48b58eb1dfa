package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// mountOption is what one word of fstab-style options means to mount(2) and to
// mount_setattr(2).
type mountOption struct {
	clear bool
	flag  uintptr // MS_*
	attr  uint64  // MOUNT_ATTR_*, for bind mounts
	prop  uintptr // MS_PRIVATE and the like
	rec   bool
}

var mountOptions = map[string]mountOption{
	"bind": {flag: unix.MS_BIND}, "rbind": {flag: unix.MS_BIND | unix.MS_REC},
	"ro": {flag: unix.MS_RDONLY, attr: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: true, flag: unix.MS_RDONLY, attr: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {flag: unix.MS_NOSUID, attr: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: true, flag: unix.MS_NOSUID, attr: unix.MOUNT_ATTR_NOSUID},
	"nodev": {flag: unix.MS_NODEV, attr: unix.MOUNT_ATTR_NODEV}, "dev": {clear: true, flag: unix.MS_NODEV, attr: unix.MOUNT_ATTR_NODEV},
	"noexec": {flag: unix.MS_NOEXEC, attr: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: true, flag: unix.MS_NOEXEC, attr: unix.MOUNT_ATTR_NOEXEC},
	"noatime": {flag: unix.MS_NOATIME, attr: unix.MOUNT_ATTR_NOATIME}, "atime": {clear: true, flag: unix.MS_NOATIME},
	"nodiratime": {flag: unix.MS_NODIRATIME, attr: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: true, flag: unix.MS_NODIRATIME, attr: unix.MOUNT_ATTR_NODIRATIME},
	"relatime": {flag: unix.MS_RELATIME}, "norelatime": {clear: true, flag: unix.MS_RELATIME},
	"strictatime": {flag: unix.MS_STRICTATIME, attr: unix.MOUNT_ATTR_STRICTATIME}, "nostrictatime": {clear: true, flag: unix.MS_STRICTATIME},
	"sync": {flag: unix.MS_SYNCHRONOUS}, "async": {clear: true, flag: unix.MS_SYNCHRONOUS},
	"dirsync": {flag: unix.MS_DIRSYNC}, "mand": {flag: unix.MS_MANDLOCK}, "nomand": {clear: true, flag: unix.MS_MANDLOCK},
	"silent": {flag: unix.MS_SILENT}, "loud": {clear: true, flag: unix.MS_SILENT},
	"iversion": {flag: unix.MS_I_VERSION}, "noiversion": {clear: true, flag: unix.MS_I_VERSION},
	"nosymfollow": {attr: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"rro":         {attr: unix.MOUNT_ATTR_RDONLY, rec: true}, "rrw": {clear: true, attr: unix.MOUNT_ATTR_RDONLY, rec: true},
	"rnosuid": {attr: unix.MOUNT_ATTR_NOSUID, rec: true}, "rnodev": {attr: unix.MOUNT_ATTR_NODEV, rec: true}, "rnoexec": {attr: unix.MOUNT_ATTR_NOEXEC, rec: true},
	"private": {prop: unix.MS_PRIVATE}, "rprivate": {prop: unix.MS_PRIVATE | unix.MS_REC},
	"slave": {prop: unix.MS_SLAVE}, "rslave": {prop: unix.MS_SLAVE | unix.MS_REC},
	"shared": {prop: unix.MS_SHARED}, "rshared": {prop: unix.MS_SHARED | unix.MS_REC},
	"unbindable": {prop: unix.MS_UNBINDABLE}, "runbindable": {prop: unix.MS_UNBINDABLE | unix.MS_REC},
	"defaults": {},
}

// parsed is the sum of a mount's options.
type parsed struct {
	flags      uintptr
	data       []string
	set, clr   uint64
	rset, rclr uint64
	prop       []uintptr
	recursive  bool // rbind
	copyUp     bool // tmpcopyup: fill a tmpfs from what it covers
}

func isAtime(word string) bool {
	return word == "noatime" || word == "relatime" || word == "strictatime"
}

func parseOptions(opts []string) parsed {
	var r parsed
	for _, w := range opts {
		if w == "tmpcopyup" {
			r.copyUp = true
			continue
		}
		o, ok := mountOptions[w]
		if !ok {
			r.data = append(r.data, w)
			continue
		}
		if o.flag&unix.MS_REC != 0 {
			r.recursive = true
		}
		if isAtime(w) { // one of several kinds: the kernel wants the others cleared
			r.set, r.clr = r.set&^unix.MOUNT_ATTR__ATIME|o.attr, r.clr|unix.MOUNT_ATTR__ATIME
			r.flags &^= unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
			r.flags |= o.flag
			continue
		}
		switch {
		case o.prop != 0:
			r.prop = append(r.prop, o.prop)
		case o.rec && o.clear:
			r.rclr |= o.attr
		case o.rec:
			r.rset |= o.attr
		case o.clear:
			r.flags &^= o.flag
			r.set &^= o.attr
			r.clr |= o.attr
		default:
			r.flags |= o.flag
			r.set |= o.attr
			r.clr &^= o.attr
		}
	}
	return r
}

// mounts adds the mounts of the specification in passes: first those in the root
// filesystem proper, then what belongs to /proc, /sys and /dev. So a symbolic
// link in a volume can lead a mount only to a place that the later pass covers, and
// procfs is the engine's own when it is written to. Where others have a say below
// /dev or /sys too, procfs waits for a third pass.
func (p *plan) mounts(host *Host) error {
	last := passKernel
	if p.l.foreignDev() {
		last = passProc
	}
	for pass := passRoot; pass <= last; pass++ {
		for i := range p.l.Spec.Mounts {
			m := &p.l.Spec.Mounts[i]
			if min(mountPass(m.Destination), last) != pass {
				continue
			}
			p.stage = StageMount
			if err := p.mount(i, m, host); err != nil {
				return err
			}
		}
		if pass != last {
			continue
		}
		if t := p.l.Spec.Process; t.Terminal && p.l.ConsolePath != "" && p.dev {
			p.stage = StageDevice
			p.call("/dev/console", unix.SYS_MOUNT, p.str(p.l.ConsolePath), p.str("/dev/console"), 0, unix.MS_BIND, 0)
		}
	}
	return nil
}

const (
	passRoot = iota
	passKernel
	passProc
)

func mountPass(dest string) int {
	switch {
	case within(dest, "/proc"):
		return passProc
	case isKernelPath(dest):
		return passKernel
	}
	return passRoot
}

var defaultShmOption = fmt.Sprintf("size=%d", DefaultShmSize)

func isKernelPath(dest string) bool {
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if within(dest, d) {
			return true
		}
	}
	return false
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	p = path.Clean(p)
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

func (p *plan) mount(i int, m *specs.Mount, host *Host) error {
	dest := path.Clean("/" + m.Destination)
	if dest == "/proc" && m.Type != "proc" || dest != "/proc" && within(dest, "/proc") && !slices.Contains(procBinds, dest) && m.Type != "proc" {
		return &StartError{Stage: StageMount, Errno: unix.EPERM, Path: dest, Msg: fmt.Sprintf("%q cannot be mounted because it is inside /proc", dest)}
	}
	opt := parseOptions(m.Options)
	switch {
	case m.Type == "cgroup" || m.Type == "cgroup2":
		p.cgroupMount(dest, opt, host)
		return nil
	case dest == "/dev" && m.Type == "tmpfs" && p.l.Dev != nil:
		p.dev = true
		p.realDir(dest)
		p.attach(fdDev, dest)
		if !slices.ContainsFunc(p.l.Spec.Mounts, func(m specs.Mount) bool { return within(m.Destination, "/dev/shm") }) {
			p.call("/dev/shm", unix.SYS_UNLINKAT, atFDCWD, p.str("/dev/shm"), unix.AT_REMOVEDIR)
			p.last().flags = initprog.FlagIgnore
		}
		return nil
	case dest == "/dev/pts" && m.Type == "devpts" && p.dev && p.l.Dev.Pts >= 0:
		p.attach(fdPts, dest)
		return nil
	case dest == "/dev/shm" && m.Type == "tmpfs" && p.dev && p.l.Dev.Shm >= 0 && slices.Contains(m.Options, defaultShmOption):
		p.attach(fdShm, dest)
		return nil
	case m.Type == "bind" || opt.flags&unix.MS_BIND != 0:
		p.bind(i, m, dest, opt)
		return nil
	case opt.copyUp && p.isMade(i):
		walk{p}.put(i, dest, p.pass(p.l.MountFD[i]))
	default:
		target := dest
		switch {
		case dest == "/proc" || dest == "/sys" || dest == "/dev":
			p.realDir(dest)
		case p.l.targets[i] == targetThere || p.l.ours(dest, p.dev):
			p.makeDir(dest)
		default:
			p.feed(walk{p}.reach(i, dest), p.call(dest, unix.SYS_FCHDIR, 0), 0)
			target = "."
		}
		src := m.Source
		if src == "" {
			src = m.Type
		}
		data := uint64(0)
		if len(opt.data) > 0 {
			data = p.str(strings.Join(opt.data, ","))
		}
		p.call(dest, unix.SYS_MOUNT, p.str(src), p.str(target), p.str(m.Type), uint64(opt.flags&^(unix.MS_BIND|unix.MS_REC)), data)
		if target != dest {
			p.call("/", unix.SYS_CHDIR, p.str("/"))
		}
	}
	for _, prop := range opt.prop {
		p.setAttr(dest, 0, uint64(prop&^unix.MS_REC), prop&unix.MS_REC != 0)
	}
	return nil
}

// isMade reports whether the mount was made ahead, by copyUp.
func (p *plan) isMade(i int) bool { _, ok := p.l.MountFD[i]; return ok }

// attach attaches a mount that was made ahead. Mounts are listed by their age:
// with InOrder a copy made now takes its place in the order.
func (p *plan) attach(fd uint64, dest string) {
	if !p.l.InOrder {
		p.moveMount(fd, dest, dest)
		return
	}
	c := p.call(dest, unix.SYS_OPEN_TREE, fd, p.str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	p.feed(c, p.moveMount(0, dest, dest), 0)
}

// procBinds are the files below /proc that a container may cover (lxcfs and the like).
var procBinds = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps",
	"/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

// bind attaches a detached clone of the source: one that the caller made, or
// one that the child clones from its old root. From there on it is known by its
// descriptor: what its target's name leads to may change at any moment.
func (p *plan) bind(i int, m *specs.Mount, dest string, opt parsed) {
	fd := uint64(fdMount)
	if given, ok := p.l.MountFD[i]; ok {
		fd = p.pass(given)
	} else {
		p.feed(p.sources[m.Source], p.call(dest, unix.SYS_DUP3, 0, fdMount, unix.O_CLOEXEC), 0)
	}
	walk{p}.put(i, dest, fd)
	if opt.set|opt.clr != 0 {
		p.mountSetAttr(fd, "", dest, opt.set, opt.clr, 0, false)
	}
	if opt.rset|opt.rclr != 0 {
		p.mountSetAttr(fd, "", dest, opt.rset, opt.rclr, 0, true)
	}
	for _, prop := range opt.prop {
		p.mountSetAttr(fd, "", dest, 0, 0, uint64(prop&^unix.MS_REC), prop&unix.MS_REC != 0)
	}
}

// makeDir makes a directory and its parents; what is there already stays. A
// failure shows in the mount that follows.
func (p *plan) makeDir(dir string) {
	if dir == "/" {
		return
	}
	if !p.l.ours(dir, p.dev) {
		walk{p}.makeDir(dir)
		return
	}
	for i := 1; i <= len(dir); i++ {
		if i == len(dir) || dir[i] == '/' {
			p.call(dir[:i], unix.SYS_MKDIRAT, atFDCWD, p.str(dir[:i]), 0o755)
			p.last().flags = initprog.FlagIgnore
		}
	}
}

// realDir makes dir and fails unless it is a directory and no symbolic link.
func (p *plan) realDir(dir string) {
	if !p.l.kernelDirs {
		p.makeDir(dir)
	}
	p.call(dir, unix.SYS_OPENAT, atFDCWD, p.str(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

// cgroupMount shows the container its cgroups: on v2 the one file system, on
// v1 a tmpfs with one directory for each hierarchy.
func (p *plan) cgroupMount(dest string, opt parsed, host *Host) {
	flags := uint64(opt.flags &^ (unix.MS_BIND | unix.MS_REC))
	private := p.ownCgroupNS()
	if host.CgroupV2 {
		if private {
			p.makeDir(dest)
			p.call(dest, unix.SYS_MOUNT, p.str("cgroup"), p.str(dest), p.str("cgroup2"), flags, 0)
			return
		}
		p.makeDir(dest)
		p.cgroupBind("/sys/fs/cgroup", dest, opt)
		return
	}
	if p.useView(opt) {
		p.moveMount(p.pass(p.l.CgroupView), dest, dest)
		return
	}
	p.makeDir(dest)
	p.call(dest, unix.SYS_MOUNT, p.str("tmpfs"), p.str(dest), p.str("tmpfs"), flags&^unix.MS_RDONLY, p.str("mode=755"))
	for _, h := range host.Hierarchies {
		sub := path.Join(dest, h.Name)
		p.call(sub, unix.SYS_MKDIRAT, atFDCWD, p.str(sub), 0o755)
		if private {
			data, typ := uint64(0), "cgroup2"
			if !h.Unified {
				typ, data = "cgroup", p.str(h.Options)
			}
			p.call(sub, unix.SYS_MOUNT, p.str("cgroup"), p.str(sub), p.str(typ), flags, data)
		} else {
			p.cgroupBind(p.l.cgroupDir(h), sub, opt)
		}
		for _, alias := range h.Aliases {
			link := path.Join(dest, alias)
			p.call(link, unix.SYS_SYMLINKAT, p.str(h.Name), atFDCWD, p.str(link))
			p.last().allow = unix.EEXIST
		}
	}
	if flags&unix.MS_RDONLY != 0 {
		p.setAttr(dest, unix.MOUNT_ATTR_RDONLY, 0, false)
	}
}

func (p *plan) cgroupBind(src, dest string, opt parsed) {
	p.feed(p.sources[src], p.moveMount(0, dest, dest), 0)
	if opt.set != 0 {
		p.setAttr(dest, opt.set, 0, false)
	}
}

// useView reports whether the tree made ahead is what the container is to see.
func (p *plan) useView(opt parsed) bool {
	const usual = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	return p.l.CgroupView >= 0 && opt.set == usual && !p.ownCgroupNS()
}

// openSources clones, while the old root is still the root, what later
// operations attach by path: bind sources that came without a descriptor, and
// the cgroup directories.
func (p *plan) openSources(host *Host) {
	p.stage = StageMount
	p.sources = map[string]int{}
	clone := func(src string, recursive bool) {
		flags := uint64(unix.OPEN_TREE_CLONE)
		if recursive {
			flags |= unix.AT_RECURSIVE
		}
		p.sources[src] = p.call(src, unix.SYS_OPEN_TREE, atFDCWD, p.str(src), flags)
	}
	for i, m := range p.l.Spec.Mounts {
		opt := parseOptions(m.Options)
		switch {
		case m.Type == "cgroup" || m.Type == "cgroup2":
			if p.ownCgroupNS() || p.useView(opt) {
				continue
			}
			if host.CgroupV2 {
				clone("/sys/fs/cgroup", false)
				continue
			}
			for _, h := range host.Hierarchies {
				clone(p.l.cgroupDir(h), false)
			}
		case m.Type == "bind" || opt.flags&unix.MS_BIND != 0:
			if _, given := p.l.MountFD[i]; !given {
				clone(m.Source, opt.recursive)
			}
		}
	}
}

// newNamespace reports whether the container gets a namespace of its own of type t.
func (p *plan) ownCgroupNS() bool { return p.l.newNamespace(specs.CgroupNamespace) }

// MountOptions returns the words that mean something to this package; others
// go to the file system.
func MountOptions() []string { return sortedKeys(mountOptions) }
