package runtime

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is what the runtime must know of this machine. It is read once.
type Host struct {
	LastCap        int
	Caps           uint64 // those that this process can give, as a bit set
	OOMScoreAdj    int    // of this process
	IgnoredSignals []int  // dispositions that a child would inherit

	CgroupV2    bool        // one unified hierarchy holds all controllers
	Hierarchies []Hierarchy // what is mounted below /sys/fs/cgroup

	mu    sync.Mutex
	kinds map[string]pathKind // of paths below /proc and /sys: the same for every container
}

// Hierarchy is one mounted cgroup file system.
type Hierarchy struct {
	Name        string   // its directory below /sys/fs/cgroup: "memory", "cpu,cpuacct", "unified"
	Path        string   // where it is mounted
	Controllers []string // "cpu", "cpuacct"; "name=systemd" for a named one
	Options     string   // what mount(2) takes to mount it again
	Aliases     []string // other names: "cpu" and "cpuacct"
	Unified     bool     // version 2
	Self        string   // the cgroup of this process in it, "/" for the root
}

// Has reports whether the hierarchy holds controller c.
func (h *Hierarchy) Has(c string) bool { return slices.Contains(h.Controllers, c) }

type pathKind uint8

const (
	kindUnknown pathKind = iota
	kindMissing
	kindFile
	kindDir
)

// ReadHost looks at the machine.
func ReadHost() (*Host, error) {
	h := &Host{kinds: map[string]pathKind{}}
	raw, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, err
	}
	if h.LastCap, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
		return nil, err
	}
	if raw, err = os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		h.OOMScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			h.Caps, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
		if v, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			mask, _ := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			for ; mask != 0; mask &= mask - 1 {
				h.IgnoredSignals = append(h.IgnoredSignals, bits.TrailingZeros64(mask)+1)
			}
		}
	}
	return h, h.readCgroups()
}

// readCgroups finds the hierarchies in /proc/self/mountinfo and this process's
// place in them in /proc/self/cgroup.
func (h *Host) readCgroups() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return fmt.Errorf("cannot find the cgroup file systems: %w", err)
	}
	h.CgroupV2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(info)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		pre, post := strings.Fields(before), strings.Fields(after)
		if !ok || len(pre) < 5 || len(post) < 3 || post[0] != "cgroup" && post[0] != "cgroup2" || seen[pre[4]] {
			continue
		}
		if !strings.HasPrefix(pre[4], "/sys/fs/cgroup") {
			continue
		}
		seen[pre[4]] = true
		y := Hierarchy{Name: filepath.Base(pre[4]), Path: pre[4], Unified: post[0] == "cgroup2", Self: "/"}
		if y.Unified {
			raw, err := os.ReadFile(filepath.Join(pre[4], "cgroup.controllers"))
			if err != nil {
				return err
			}
			y.Controllers = strings.Fields(string(raw))
		} else {
			var opts []string
			for _, o := range strings.Split(post[2], ",") {
				switch o {
				case "rw", "ro", "xattr", "clone_children", "noprefix", "release_agent":
				default:
					if !strings.HasPrefix(o, "release_agent=") {
						opts = append(opts, o)
					}
				}
			}
			y.Controllers, y.Options = opts, strings.Join(opts, ",")
			if len(opts) == 1 && strings.HasPrefix(opts[0], "name=") {
				y.Options = "none," + opts[0]
			}
			if len(opts) > 1 {
				y.Aliases = opts
			}
		}
		h.Hierarchies = append(h.Hierarchies, y)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(self)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for i := range h.Hierarchies {
			y := &h.Hierarchies[i]
			if f[1] == "" && y.Unified || f[1] != "" && !y.Unified && strings.Join(y.Controllers, ",") == f[1] {
				y.Self = f[2]
			}
		}
	}
	return nil
}

// Hierarchy returns the hierarchy that holds a controller, or nil.
func (h *Host) Hierarchy(controller string) *Hierarchy {
	for i := range h.Hierarchies {
		if h.Hierarchies[i].Has(controller) {
			return &h.Hierarchies[i]
		}
	}
	return nil
}

// kind tells what a path below /proc or /sys is. Elsewhere the container's
// root filesystem decides, so nothing is known.
func (h *Host) kind(p string) pathKind {
	p = filepath.Clean(p)
	if !within(p, "/proc") && !within(p, "/sys") || strings.HasPrefix(p, "/proc/self") {
		return kindUnknown
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if k, ok := h.kinds[p]; ok {
		return k
	}
	k := kindUnknown
	var st unix.Stat_t
	switch err := unix.Lstat(p, &st); {
	case err == unix.ENOENT: //nolint:errorlint // a bare errno
		k = kindMissing
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		k = kindDir
	case err == nil:
		k = kindFile
	}
	h.kinds[p] = k
	return k
}

// Prime looks at the paths that are masked by default, while the whole of
// /proc and /sys can be seen.
func (h *Host) Prime() error {
	for _, p := range append(DefaultMaskedPaths(), DefaultReadonlyPaths()...) {
		h.kind(p)
	}
	return nil
}
