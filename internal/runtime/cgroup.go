package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is a container's place in every hierarchy: the same relative path in
// each. On v2 (and for the unified hierarchy beside v1) it is one directory.
type Cgroup struct {
	Rel  string   // below the hierarchies' mount points, starts with "/"
	V1   []string // one directory for each v1 hierarchy
	V2   string   // the v2 directory, "" for none
	V2FD int      // its descriptor while the cgroup waits for its process, -1 otherwise
	View int      // detached mount of what a container sees of v1 at /sys/fs/cgroup, -1 for none
}

// Cgroups makes, limits and removes cgroups.
type Cgroups struct {
	host    *Host
	mu      sync.Mutex
	parents map[string]bool // relative paths made ready
	noView  atomic.Bool     // this kernel cannot mount onto a detached tree

	unrestricted string // the parent that RestrictDevices could not restrict
	devices      int    // v2: the program of the default device rules, 0 while not loaded
}

// NewCgroups returns the manager of this machine's cgroups.
func NewCgroups(h *Host) *Cgroups { return &Cgroups{host: h, parents: map[string]bool{}} }

// Make makes the cgroup rel ("/parent/name") in every hierarchy.
func (c *Cgroups) Make(rel string) (*Cgroup, error) {
	rel = filepath.Join("/", rel)
	if err := c.prepareParent(filepath.Dir(rel)); err != nil {
		return nil, err
	}
	g := &Cgroup{Rel: rel, V2FD: -1, View: -1}
	for i := range c.host.Hierarchies {
		h := &c.host.Hierarchies[i]
		dir := h.Path + rel
		err := unix.Mkdir(dir, 0o755)
		for again := 0; err == unix.ENOENT && again < 3; again++ { //nolint:errorlint // a bare errno
			// Somebody has removed the parent since it was made ready.
			c.mu.Lock()
			delete(c.parents, filepath.Dir(rel))
			c.mu.Unlock()
			if perr := c.prepareParent(filepath.Dir(rel)); perr != nil {
				_ = c.Remove(g)
				return nil, perr
			}
			err = unix.Mkdir(dir, 0o755)
		}
		if err != nil && err != unix.EEXIST { //nolint:errorlint // a bare errno
			_ = c.Remove(g)
			return nil, fmt.Errorf("cannot make the cgroup %s: %w", dir, err)
		}
		if !h.Unified && strings.LastIndexByte(rel, '/') == 0 && h.Has("cpuset") {
			inheritCpuset(dir) // below the root of the hierarchy, which hands nothing down
		}
		if h.Unified {
			fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				_ = c.Remove(g)
				return nil, err
			}
			g.V2, g.V2FD = dir, fd
		} else {
			g.V1 = append(g.V1, dir)
		}
	}
	return g, nil
}

// Enter returns the cgroup rel that somebody else, systemd, has made. On v1 it
// makes it in the hierarchies where they did not.
func (c *Cgroups) Enter(rel string) (*Cgroup, error) {
	if !c.host.CgroupV2 {
		return c.Make(rel)
	}
	g := &Cgroup{Rel: rel, V2: c.host.Hierarchies[0].Path + rel, V2FD: -1, View: -1}
	fd, err := unix.Open(g.V2, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: g.V2, Err: err}
	}
	g.V2FD = fd
	return g, nil
}

// CloseFDs gives up what only a start needs.
func (g *Cgroup) CloseFDs() {
	for _, fd := range []*int{&g.V2FD, &g.View} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

// MakeView makes, ahead of a start, the tree that a container without a cgroup
// namespace of its own sees at /sys/fs/cgroup: a tmpfs with its own directory of
// each v1 hierarchy. Mounting onto a detached tree needs Linux 6.15; on an
// older kernel View stays -1 and the start mounts them one by one.
func (c *Cgroups) MakeView(g *Cgroup) {
	if c.host.CgroupV2 || c.noView.Load() {
		return
	}
	root, err := fsMount("tmpfs", 0, [2]string{"mode", "755"}, [2]string{"source", "tmpfs"})
	if err != nil {
		return
	}
	ok := false
	defer func() {
		if !ok {
			c.noView.Store(true)
			_ = unix.Close(root)
		}
	}()
	for i := range c.host.Hierarchies {
		h := &c.host.Hierarchies[i]
		if unix.Mkdirat(root, h.Name, 0o755) != nil {
			return
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, h.Path+g.Rel, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return
		}
		err = unix.MoveMount(fd, "", root, h.Name, unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = unix.Close(fd)
		if err != nil {
			return
		}
		for _, alias := range h.Aliases {
			if unix.Symlinkat(h.Name, root, alias) != nil {
				return
			}
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if unix.MountSetattr(root, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr) != nil {
		return
	}
	g.View, ok = root, true
}

// Find returns the cgroup rel as it stands, to adopt it after a restart.
func (c *Cgroups) Find(rel string) *Cgroup {
	g := &Cgroup{Rel: rel, V2FD: -1, View: -1}
	for i := range c.host.Hierarchies {
		h := &c.host.Hierarchies[i]
		dir := h.Path + rel
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if h.Unified {
			g.V2 = dir
		} else {
			g.V1 = append(g.V1, dir)
		}
	}
	return g
}

// prepareParent makes the parents of a cgroup once: controllers are delegated
// on v2, and cpuset children start with their parent's processors on v1.
func (c *Cgroups) prepareParent(rel string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parents[rel] {
		return nil
	}
	for i := range c.host.Hierarchies {
		h := &c.host.Hierarchies[i]
		at := h.Path
		parts := strings.Split(strings.Trim(rel, "/"), "/")
		for j := 0; j <= len(parts); j++ {
			if h.Unified {
				c.delegate(at)
			} else if h.Has("cpuset") && j > 0 {
				_ = os.WriteFile(at+"/cgroup.clone_children", []byte("1"), 0o644)
			} else if h.Has("memory") && j > 0 {
				_ = os.WriteFile(at+"/memory.use_hierarchy", []byte("1"), 0o644) // always so on newer kernels
			}
			if j == len(parts) || parts[j] == "" {
				break
			}
			at = filepath.Join(at, parts[j])
			if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("cannot make the cgroup %s: %w", at, err)
			}
			if h.Has("cpuset") && !h.Unified {
				inheritCpuset(at)
			}
		}
	}
	c.parents[rel] = true
	return nil
}

// inheritCpuset gives a v1 cgroup the processors and memory of its parent, where
// it has none: no process could join it.
func inheritCpuset(dir string) {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if v, err := os.ReadFile(dir + "/" + f); err == nil && strings.TrimSpace(string(v)) == "" {
			if v, err = os.ReadFile(filepath.Dir(dir) + "/" + f); err == nil {
				_ = os.WriteFile(dir+"/"+f, v, 0o644)
			}
		}
	}
}

// delegate enables every controller that the directory has for its children.
// One that cannot be delegated does not hold the others back.
func (c *Cgroups) delegate(dir string) {
	raw, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return
	}
	for _, ctrl := range strings.Fields(string(raw)) {
		_ = os.WriteFile(dir+"/cgroup.subtree_control", []byte("+"+ctrl), 0o644)
	}
}

// dirFor returns the v1 directory of g in the hierarchy of a controller.
func (c *Cgroups) dirFor(g *Cgroup, controller string) string {
	h := c.host.Hierarchy(controller)
	if h == nil || h.Unified {
		return ""
	}
	return h.Path + g.Rel
}

// Freeze stops or resumes every process of the cgroup and waits until it is so.
func (c *Cgroups) Freeze(g *Cgroup, frozen bool) error {
	if c.host.CgroupV2 {
		v, want := "0", "frozen 0"
		if frozen {
			v, want = "1", "frozen 1"
		}
		if err := writeCgroup(g.V2, "cgroup.freeze", v); err != nil {
			return err
		}
		return waitFor(g.V2+"/cgroup.events", func(s string) bool { return strings.Contains(s, want) })
	}
	dir, v := c.dirFor(g, "freezer"), "THAWED"
	if frozen {
		v = "FROZEN"
	}
	if dir == "" {
		return errors.New("the cgroup controller \"freezer\" is not available on this machine")
	}
	if err := writeCgroup(dir, "freezer.state", v); err != nil {
		return err
	}
	return waitFor(dir+"/freezer.state", func(s string) bool { return strings.TrimSpace(s) == v })
}

// Frozen reports whether the cgroup's processes are stopped.
func (c *Cgroups) Frozen(g *Cgroup) bool {
	if c.host.CgroupV2 {
		raw, _ := os.ReadFile(g.V2 + "/cgroup.events")
		return strings.Contains(string(raw), "frozen 1")
	}
	raw, _ := os.ReadFile(c.dirFor(g, "freezer") + "/freezer.state")
	return strings.TrimSpace(string(raw)) == "FROZEN"
}

func waitFor(file string, ok func(string) bool) error {
	for d := 100 * time.Microsecond; d < 4*time.Second; d += d / 2 {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if ok(string(raw)) {
			return nil
		}
		time.Sleep(d)
	}
	return fmt.Errorf("%s did not change in time", file)
}

// Pids lists the processes of the cgroup and those below it.
func (c *Cgroups) Pids(g *Cgroup) ([]int, error) {
	root := g.V2
	if !c.host.CgroupV2 {
		root = c.dirFor(g, "pids")
		if root == "" && len(g.V1) > 0 {
			root = g.V1[0]
		}
	}
	var pids []int
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup that went away holds no process
		}
		raw, _ := os.ReadFile(p + "/cgroup.procs")
		for _, f := range strings.Fields(string(raw)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
		return nil
	})
	return pids, err
}

// KillAll ends every process in the cgroup and waits a moment for it to empty.
func (c *Cgroups) KillAll(g *Cgroup) {
	if g.V2 != "" && c.host.CgroupV2 && writeCgroup(g.V2, "cgroup.kill", "1") == nil {
		return
	}
	for range 50 {
		pids, _ := c.Pids(g)
		if len(pids) == 0 {
			return
		}
		_ = c.Signal(g, pids, unix.SIGKILL)
		time.Sleep(time.Millisecond)
	}
}

// Signal sends a signal to those of the processes that are in the cgroup. A number
// that was read there may have been given to another process since: what a pidfd
// stands for gets the signal only if its number is still in the list afterwards.
// The first error is returned; that a process is gone is none.
func (c *Cgroups) Signal(g *Cgroup, pids []int, sig unix.Signal) (first error) {
	for some := range slices.Chunk(pids, 64) {
		fds := make(map[int]int, len(some))
		for _, pid := range some {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				fds[pid] = fd
			}
		}
		members, _ := c.Pids(g)
		for pid, fd := range fds {
			if slices.Contains(members, pid) {
				if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH && first == nil { //nolint:errorlint // a bare errno
					first = err
				}
			}
			_ = unix.Close(fd)
		}
	}
	return first
}

// Remove removes the cgroup and what the container made below it. It tries for
// a while, since a cgroup is busy until its last process is reaped.
func (c *Cgroups) Remove(g *Cgroup) error {
	g.CloseFDs()
	dirs := g.V1
	if g.V2 != "" {
		dirs = append(dirs[:len(dirs):len(dirs)], g.V2)
	}
	var first error
	for _, d := range dirs {
		if err := removeCgroup(d); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func removeCgroup(dir string) error {
	for d := time.Millisecond; ; d *= 2 {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT { //nolint:errorlint // a bare errno
			return nil
		}
		if d > 300*time.Millisecond {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		if entries, rerr := os.ReadDir(dir); rerr == nil {
			for _, e := range entries {
				if e.IsDir() {
					_ = removeCgroup(filepath.Join(dir, e.Name()))
				}
			}
		}
		if unix.Rmdir(dir) == nil {
			return nil
		}
		time.Sleep(d)
	}
}

func readInt(file string) (int64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

// RemoveParent removes an empty parent of cgroups.
func (c *Cgroups) RemoveParent(rel string) {
	for i := range c.host.Hierarchies {
		_ = unix.Rmdir(c.host.Hierarchies[i].Path + rel) // in use by others: it stays
	}
	c.mu.Lock()
	delete(c.parents, rel)
	c.mu.Unlock()
}
