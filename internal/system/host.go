package system

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is what the engine's host is and can do: the part that does not change.
type host struct {
	kernel, arch      string
	os, osVersion     string
	memTotal          int64
	cgroup            string // "1" or "2"
	cgroupNS          bool
	seccomp, apparmor bool
	caps              cgroupCaps
}

// cgroupCaps are the limits that the cgroup hierarchies can set.
type cgroupCaps struct {
	memory, swap, oomKillDisable bool
	cfsPeriod, cfsQuota, shares  bool
	cpuset, pids                 bool
	weight, weightDevice         bool
	readBps, writeBps            bool
	readIOps, writeIOps          bool
}

func lookAtHost() host {
	h := host{arch: "unknown"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.kernel, h.arch = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	h.os, h.osVersion = distribution("/etc/os-release", "/usr/lib/os-release")
	h.memTotal = memTotal("/proc/meminfo")
	h.cgroup, h.caps = cgroups("/sys/fs/cgroup")
	h.cgroupNS = exists("/proc/self/ns/cgroup")
	h.seccomp = exists("/proc/sys/kernel/seccomp/actions_avail") || unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0) != unix.EINVAL
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && bytes.HasPrefix(b, []byte("Y")) {
		h.apparmor = exists("/sys/kernel/security/apparmor")
	}
	return h
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// distribution reads os-release(5): the name that users see, and the version.
func distribution(paths ...string) (name, version string) {
	name = "Linux"
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
			if !ok {
				continue
			}
			switch value = unquote(value); key {
			case "PRETTY_NAME":
				name = value
			case "VERSION_ID":
				version = value
			}
		}
		return name, version
	}
	return name, version
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, `$`, "\\`", "`").Replace(s)
}

// memTotal returns the host's memory in bytes.
func memTotal(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), "MemTotal:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// cgroups tells the hierarchy's version and what its controllers can limit.
func cgroups(root string) (version string, c cgroupCaps) {
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		return "2", unified(root, strings.Fields(string(b)))
	}
	have := func(controller, file string) bool { return exists(filepath.Join(root, controller, file)) }
	return "1", cgroupCaps{
		memory:         have("memory", "memory.limit_in_bytes"),
		swap:           have("memory", "memory.memsw.limit_in_bytes"),
		oomKillDisable: have("memory", "memory.oom_control"),
		cfsPeriod:      have("cpu", "cpu.cfs_period_us"),
		cfsQuota:       have("cpu", "cpu.cfs_quota_us"),
		shares:         have("cpu", "cpu.shares"),
		cpuset:         have("cpuset", "cpuset.cpus"),
		pids:           have("pids", "cgroup.procs"),
		weight:         have("blkio", "blkio.weight"),
		weightDevice:   have("blkio", "blkio.weight_device"),
		readBps:        have("blkio", "blkio.throttle.read_bps_device"),
		writeBps:       have("blkio", "blkio.throttle.write_bps_device"),
		readIOps:       have("blkio", "blkio.throttle.read_iops_device"),
		writeIOps:      have("blkio", "blkio.throttle.write_iops_device"),
	}
}

// unified is the version 2 hierarchy with the given controllers.
func unified(root string, controllers []string) (c cgroupCaps) {
	for _, name := range controllers {
		switch name {
		case "memory":
			c.memory = true
			// The root has no such file, any group below it has one if the
			// kernel accounts swap.
			if m, _ := filepath.Glob(filepath.Join(root, "*", "memory.swap.max")); len(m) > 0 {
				c.swap = true
			}
		case "cpu":
			c.cfsPeriod, c.cfsQuota, c.shares = true, true, true
		case "cpuset":
			c.cpuset = true
		case "pids":
			c.pids = true
		case "io":
			c.readBps, c.writeBps, c.readIOps, c.writeIOps = true, true, true, true
			m, _ := filepath.Glob(filepath.Join(root, "*", "io.weight"))
			c.weight = len(m) > 0
			c.weightDevice = c.weight
		}
	}
	return c
}
