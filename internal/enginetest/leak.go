package enginetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// snapshot is what an engine holds at one moment.
type snapshot struct {
	images  []string // ids
	files   []string // below the data root
	daemon  int      // open descriptors of berthd
	keeper  int      // and of the keeper
	threads int      // goroutines of berthd
}

// Pools are refilled and connections closed behind the reply: an engine may hold this
// much more than in the beginning. Pools are not full then; full ones hold about so
// many descriptors: cgroups and device trees in the keeper, network namespaces in berthd.
const (
	slack       = 12
	keeperPools = 330
	daemonPools = 160
)

func (e *Engine) snapshot() snapshot {
	s := snapshot{daemon: descriptors(e.DaemonPID()), files: e.files(), threads: e.Goroutines()}
	if pids := e.KeeperPIDs(); len(pids) == 1 {
		s.keeper = descriptors(pids[0])
	}
	for _, i := range e.list("/images/json") {
		s.images = append(s.images, i.ID)
	}
	return s
}

type listed struct {
	ID string `json:"Id"`
}

func (e *Engine) list(path string) []listed {
	var l []listed
	if status, body := e.Call(http.MethodGet, path, nil, &l); status != http.StatusOK {
		e.t.Errorf("GET %s: %d %s", path, status, body)
	}
	return l
}

// files lists what is in the data root down to the directories of single things;
// what changes in normal use is left out.
func (e *Engine) files() []string {
	var names []string
	for _, pattern := range []string{"*", "containers/*", "snapshots/*/*", "snapshots/*/*/*", "tmp/*", "volumes/*", "blobs/*/*", "images/*"} {
		found, _ := filepath.Glob(filepath.Join(e.DataRoot, pattern))
		for _, f := range found {
			rel, _ := filepath.Rel(e.DataRoot, f)
			names = append(names, rel)
		}
	}
	slices.Sort(names)
	return names
}

// The engine keeps directories of removed containers for new ones: so many at most.
const maxSpare = 128

func isSpare(name string) bool {
	return strings.HasPrefix(name, "containers/spare-") || strings.HasPrefix(name, "snapshots/overlay/spare/")
}

// checkLeaks removes all containers and all new images, and compares.
func (e *Engine) checkLeaks() {
	t := e.t
	t.Helper()
	for _, c := range e.list("/containers/json?all=1") {
		if status, body := e.Call(http.MethodDelete, "/containers/"+c.ID+"?force=1&v=1", nil, nil); status >= 300 && status != http.StatusNotFound {
			t.Errorf("remove %s: %d %s", c.ID, status, body)
		}
	}
	for _, i := range e.list("/images/json?all=1") {
		if !slices.Contains(e.base.images, i.ID) {
			_, _ = e.Call(http.MethodDelete, "/images/"+i.ID+"?force=1", nil, nil)
		}
	}
	e.HTTP.CloseIdleConnections()
	var found []string
	for deadline := time.Now().Add(8 * time.Second); ; time.Sleep(25 * time.Millisecond) {
		if found = e.leaked(); len(found) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("left behind after all containers were removed:\n  %s", strings.Join(found, "\n  "))
}

// Leaked tells what is there that was not there in the beginning.
func (e *Engine) leaked() (found []string) {
	add := func(format string, a ...any) { found = append(found, fmt.Sprintf(format, a...)) }
	for _, m := range mountsBelow(e.Dir) {
		add("mount %s", m)
	}
	for _, pid := range e.containerPIDs() {
		add("process %d in a cgroup of the engine: %q", pid, cmdline(pid))
	}
	var nets []struct{ Name string }
	if status, _ := e.Call(http.MethodGet, `/networks?filters={"type":["custom"]}`, nil, &nets); status == http.StatusOK {
		for _, n := range nets {
			add("network %s", n.Name)
		}
	}
	keepers := e.KeeperPIDs()
	if len(keepers) > 1 {
		add("%d keepers", len(keepers))
	}
	for _, k := range keepers {
		for _, pid := range children(k) {
			add("child %d of the keeper: %q %s", pid, cmdline(pid), state(pid))
		}
		if n := descriptors(k); e.base.keeper > 0 && n > max(e.base.keeper, keeperPools)+slack {
			add("the keeper has %d descriptors, %d in the beginning: %s", n, e.base.keeper, describeFDs(k))
		}
	}
	for _, pid := range children(e.DaemonPID()) {
		if !slices.Contains(keepers, pid) {
			add("child %d of berthd: %q %s", pid, cmdline(pid), state(pid))
		}
	}
	if n := descriptors(e.DaemonPID()); n > max(e.base.daemon, daemonPools)+slack {
		add("berthd has %d descriptors, %d in the beginning: %s", n, e.base.daemon, describeFDs(e.DaemonPID()))
	}
	if n := e.cgroupCount(); n > 100 {
		add("%d cgroups", n)
	}
	spare := 0
	for _, f := range e.files() {
		switch {
		case isSpare(f):
			spare++
		case !slices.Contains(e.base.files, f):
			add("file %s", filepath.Join(e.DataRoot, f))
		}
	}
	if spare > maxSpare {
		add("%d spare directories", spare)
	}
	if len(found) == 0 {
		if n := e.Goroutines(); n > e.base.threads+slack {
			add("berthd has %d goroutines, %d in the beginning (stacks in %s)", n, e.base.threads, e.ExecRoot)
		}
	}
	return found
}

// Goroutines counts those of berthd, from the stacks that it writes on SIGUSR1.
func (e *Engine) Goroutines() int {
	pattern := filepath.Join(e.ExecRoot, "goroutine-stacks-*.log")
	old, _ := filepath.Glob(pattern)
	for _, f := range old {
		_ = os.Remove(f)
	}
	_ = syscall.Kill(e.DaemonPID(), syscall.SIGUSR1)
	for range 200 {
		time.Sleep(5 * time.Millisecond)
		if new, _ := filepath.Glob(pattern); len(new) > 0 {
			time.Sleep(5 * time.Millisecond)
			b, err := os.ReadFile(new[0])
			if n := bytes.Count(b, []byte("\ngoroutine ")) + 1; err == nil && len(b) > 0 {
				return n
			}
		}
	}
	return 0
}

// cgroupParent is where this engine's containers are.
func (e *Engine) cgroupParent() string {
	for i, a := range e.args {
		if v, ok := strings.CutPrefix(a, "--cgroup-parent="); ok {
			return "/" + strings.Trim(v, "/")
		}
		if a == "--cgroup-parent" && i+1 < len(e.args) {
			return "/" + strings.Trim(e.args[i+1], "/")
		}
	}
	sum := sha256.Sum256([]byte(e.ExecRoot))
	return "/berth-" + hex.EncodeToString(sum[:4])
}

// CgroupDirs are the directories of the engine's cgroups in all hierarchies.
func (e *Engine) CgroupDirs() []string {
	var dirs []string
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, kind := range []string{"", "-devices"} { // those that wait with a device list are kept apart
			found, _ := filepath.Glob(top + e.cgroupParent() + kind)
			dirs = append(dirs, found...)
		}
	}
	return dirs
}

func (e *Engine) cgroupCount() (most int) {
	for _, top := range e.CgroupDirs() {
		n := 0
		_ = filepath.WalkDir(top, func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				n++
			}
			return nil
		})
		most = max(most, n)
	}
	return most
}

// containerPIDs are the processes in the engine's cgroups.
func (e *Engine) containerPIDs() []int {
	parent := e.cgroupParent() + "/"
	self := e.DaemonPID()
	keepers := e.KeeperPIDs()
	return processes(func(pid int, _ []string) bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return err == nil && state(pid) != "Z" && pid != self && !slices.Contains(keepers, pid) && strings.Contains(string(b), ":"+parent)
	})
}

func (e *Engine) removeCgroups() {
	for range 20 {
		for _, top := range e.CgroupDirs() {
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs)
			for _, d := range dirs {
				_ = unix.Rmdir(d)
			}
		}
		if len(e.CgroupDirs()) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.t.Errorf("cgroups are left: %v", e.CgroupDirs())
}

// mountsBelow are the mount points below a directory that this process sees.
func mountsBelow(dir string) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	return points
}

func processes(want func(pid int, args []string) bool) []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, d := range entries {
		if pid, err := strconv.Atoi(d.Name()); err == nil && want(pid, cmdline(pid)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func cmdline(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// stat returns the fields of /proc/PID/stat behind the name.
func stat(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.Fields(rest)
}

func state(pid int) string {
	if f := stat(pid); len(f) > 0 {
		return f[0]
	}
	return "gone"
}

func children(parent int) []int {
	p := strconv.Itoa(parent)
	return processes(func(pid int, _ []string) bool {
		f := stat(pid)
		return len(f) > 1 && f[1] == p
	})
}

func descriptors(pid int) int {
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries)
}

// describeFDs counts descriptors by kind.
func describeFDs(pid int) string {
	kinds := map[string]int{}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	for _, d := range entries {
		to, _ := os.Readlink(filepath.Join(dir, d.Name()))
		if kind, _, ok := strings.Cut(to, ":["); ok {
			to = kind
		}
		kinds[to]++
	}
	b, _ := json.Marshal(kinds) // a map of numbers
	return string(b)
}

func contains(args []string, s string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == s || strings.HasSuffix(a, "="+s) })
}

// kill9 kills a process and waits until it is gone.
func kill9(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
}
