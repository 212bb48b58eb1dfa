package runtime

import (
	"path"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// walk adds the operations that go through the container's tree by descriptor,
// for places where somebody else may have a say: what is mounted already may
// belong to other containers too, which swap its directories for links meanwhile.
// No step is taken by name twice, and none through a magic link of a procfs, which
// could lead out of the root.
type walk struct{ p *plan }

// put attaches the detached mount fd at dest, the target of mount i.
func (w walk) put(i int, dest string, fd uint64) {
	if w.p.l.targets[i] == targetThere {
		w.p.moveMount(fd, dest, dest)
		return
	}
	empty := w.p.str("")
	to := w.reach(i, dest)
	w.p.feed(to, w.p.call(dest, unix.SYS_MOVE_MOUNT, fd, empty, 0, empty, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH), 2)
}

// reach opens the mount point of mount i, which it makes when the parent has not
// seen it.
func (w walk) reach(i int, dest string) int {
	switch w.p.l.targets[i] {
	case targetLinked:
	case targetFile:
		w.makeDir(path.Dir(dest))
		parent, name := path.Split(dest)
		fd := w.openDir(parent)
		w.p.last().flags, w.p.last().skipErr = initprog.FlagIgnore, 1
		w.p.feed(fd, w.p.call(dest, unix.SYS_MKNODAT, 0, w.p.str(name), unix.S_IFREG|0o755, 0), 0)
		w.p.last().flags = initprog.FlagIgnore // there already, or the opening says what is wrong
	default:
		w.makeDir(dest)
	}
	return w.open(dest, 0)
}

// makeDir makes a directory and its parents; what is there already stays. A
// failure shows when it is opened.
func (w walk) makeDir(dir string) {
	for i := 2; i <= len(dir); i++ {
		if i == len(dir) || dir[i] == '/' {
			parent, name := path.Split(dir[:i])
			fd := w.openDir(parent)
			w.p.last().flags, w.p.last().skipErr = initprog.FlagIgnore, 1
			w.p.feed(fd, w.p.call(dir[:i], unix.SYS_MKDIRAT, 0, w.p.str(name), 0o755), 0)
			w.p.last().flags = initprog.FlagIgnore
		}
	}
}

// workDir makes a working directory that is missing. The container's processes
// have no say yet, but its image and volumes have: each step is opened without
// following a magic link of any procfs, which could lead out.
func (w walk) workDir() {
	w.p.stage = StageCwd
	cwd := w.p.l.Spec.Process.Cwd
	if cwd == "" || cwd == "/" || isKernelPath(cwd) {
		return
	}
	w.makeDir(path.Clean("/" + cwd))
}

// openDir opens a directory as the container would see it: no link and no
// ".." leads out of the root, and no magic link is followed. The working
// directory must be the root.
func (w walk) openDir(dir string) int { return w.open(dir, unix.O_DIRECTORY) }

// open is openDir for what need not be a directory.
func (w walk) open(name string, flags uint64) int {
	how := w.p.words(unix.O_PATH|unix.O_CLOEXEC|flags, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	return w.p.call(name, unix.SYS_OPENAT2, atFDCWD, w.p.str(name), how, 24)
}

// ours reports whether every mount above dest is one that the engine fills: no
// container can have put a link there. With dev, /dev is the tree of the launch.
func (l *Launch) ours(dest string, dev bool) bool {
	for i := range l.Spec.Mounts {
		m := &l.Spec.Mounts[i]
		above := path.Clean("/" + m.Destination)
		if above == dest || !within(dest, above) {
			continue
		}
		switch m.Type {
		case "proc", "sysfs", "devpts", "cgroup", "cgroup2":
		case "tmpfs":
			if above != "/dev" || !dev {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// foreignDev reports whether something is mounted on or below /dev or /sys that
// the engine does not fill.
func (l *Launch) foreignDev() bool {
	for i := range l.Spec.Mounts {
		m := &l.Spec.Mounts[i]
		if mountPass(m.Destination) != passKernel || m.Type != "bind" && m.Type != "tmpfs" {
			continue
		}
		switch path.Clean(m.Destination) {
		case "/dev", "/dev/shm":
			if m.Type == "tmpfs" {
				continue
			}
		}
		return true
	}
	return false
}
