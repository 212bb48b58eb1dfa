package container

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/runtime"
)

func defaultMasked() []string   { return runtime.DefaultMaskedPaths() }
func defaultReadonly() []string { return runtime.DefaultReadonlyPaths() }

// defaultCaps are the capabilities of a container that asks for none (Docker's list).
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// specInput is what a specification depends on besides the record.
type specInput struct {
	user     identity
	defaults Defaults
	cgroupV2 bool
	dir      string   // where hosts, hostname and resolv.conf are
	caps     []string // all that the kernel knows
}

// buildSpec makes the OCI specification. It does no I/O, except that privileged
// containers list the host's devices.
func buildSpec(r *Record, in specInput) (*specs.Spec, error) {
	hc, cfg := r.HostConfig, r.Config
	s := &specs.Spec{Version: specs.Version, Root: &specs.Root{Path: "rootfs", Readonly: hc.ReadonlyRootfs}, Annotations: hc.Annotations, Linux: &specs.Linux{}}
	var err error
	if s.Process, err = buildProcess(r, in); err != nil {
		return nil, err
	}
	if !hc.UTSMode.IsHost() {
		s.Hostname, s.Domainname = cfg.Hostname, cfg.Domainname
	}
	addNamespaces(s, r)
	addMounts(s, r, in)
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = hc.MaskedPaths, hc.ReadonlyPaths
	s.Linux.Sysctl = hc.Sysctls
	if err := addDevices(s, hc); err != nil {
		return nil, err
	}
	s.Linux.Resources.Memory, s.Linux.Resources.CPU, s.Linux.Resources.Pids, s.Linux.Resources.BlockIO = resources(&hc.Resources)
	return s, nil
}

func buildProcess(r *Record, in specInput) (*specs.Process, error) {
	hc, cfg := r.HostConfig, r.Config
	caps, err := capabilities(hc, in.caps)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal: cfg.Tty, User: in.user.User, Args: append([]string{r.Path}, r.Args...), Env: environment(cfg, in.user.home),
		Cwd: cfg.WorkingDir, Capabilities: capSet(caps, in.user.UID), NoNewPrivileges: in.defaults.NoNewPrivs,
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if cs := hc.ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	for _, o := range hc.SecurityOpt {
		if k, v, ok := strings.Cut(strings.Replace(o, ":", "=", 1), "="); k == "no-new-privileges" {
			p.NoNewPrivileges = !ok || v == "true" || v == "1"
		}
	}
	adj := hc.OomScoreAdj
	p.OOMScoreAdj = &adj
	limits := map[string]*container.Ulimit{}
	for _, u := range append(slices.Clone(in.defaults.Ulimits), hc.Ulimits...) {
		limits[u.Name] = u
	}
	for _, name := range sortedNames(limits) {
		u := limits[name]
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return p, nil
}

func sortedNames[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// environment is PATH, HOSTNAME, TERM for a terminal and HOME before what the
// image and the user set; a name without "=" is left out.
func environment(cfg *container.Config, home string) []string {
	env := make([]string, 0, len(cfg.Env)+4)
	has := func(name string) bool {
		return slices.ContainsFunc(cfg.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	if !has("PATH") {
		env = append(env, defaultPath)
	}
	if !has("HOSTNAME") {
		env = append(env, "HOSTNAME="+cfg.Hostname)
	}
	if cfg.Tty && !has("TERM") {
		env = append(env, "TERM=xterm")
	}
	for _, e := range cfg.Env {
		if strings.Contains(e, "=") {
			env = append(env, e)
		}
	}
	if !has("HOME") {
		env = append(env, "HOME="+home)
	}
	return env
}

// capabilities applies --cap-add, --cap-drop and --privileged to the default list.
func capabilities(hc *container.HostConfig, all []string) ([]string, error) {
	if hc.Privileged {
		return all, nil
	}
	norm := func(list []string) ([]string, bool, error) {
		var out []string
		every := false
		for _, c := range list {
			c = strings.ToUpper(c)
			if c == "ALL" {
				every = true
				continue
			}
			if !strings.HasPrefix(c, "CAP_") {
				c = "CAP_" + c
			}
			if !slices.Contains(all, c) {
				return nil, false, errs.New(errs.Invalid, "invalid capability: %q", c)
			}
			out = append(out, c)
		}
		return out, every, nil
	}
	add, addAll, err := norm(hc.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := norm(hc.CapDrop)
	if err != nil {
		return nil, err
	}
	base := defaultCaps
	switch {
	case addAll:
		base = all
	case dropAll:
		base = nil
	}
	var out []string
	for _, c := range base {
		if !slices.Contains(drop, c) {
			out = append(out, c)
		}
	}
	for _, c := range add {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out, nil
}

// capSet gives a user other than root the bounding set only, as execve would.
func capSet(caps []string, uid uint32) *specs.LinuxCapabilities {
	set := &specs.LinuxCapabilities{Bounding: caps}
	if uid == 0 {
		set.Effective, set.Permitted = caps, caps
	}
	return set
}

func addNamespaces(s *specs.Spec, r *Record) {
	hc := r.HostConfig
	add := func(t specs.LinuxNamespaceType) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	add(specs.MountNamespace)
	if !hc.NetworkMode.IsHost() {
		add(specs.NetworkNamespace)
	}
	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace)
	}
	if !hc.PidMode.IsHost() {
		add(specs.PIDNamespace)
	}
	if !hc.IpcMode.IsHost() {
		add(specs.IPCNamespace)
	}
	if hc.CgroupnsMode.IsPrivate() {
		add(specs.CgroupNamespace)
	}
}

func addMounts(s *specs.Spec, r *Record, in specInput) {
	hc := r.HostConfig
	sys, cg := "ro", "ro"
	if hc.Privileged {
		sys, cg = "rw", "rw"
	}
	if slices.Contains(hc.SecurityOpt, "writable-cgroups=true") {
		cg = "rw"
	}
	covered := func(dest string) bool {
		return slices.ContainsFunc(r.Mounts, func(m Mount) bool { return m.Destination == dest })
	}
	add := func(dest, typ, src string, opts ...string) {
		if !covered(dest) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: typ, Source: src, Options: opts})
		}
	}
	add("/proc", "proc", "proc", "nosuid", "noexec", "nodev")
	add("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k")
	add("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
	add("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", sys)
	add("/sys/fs/cgroup", "cgroup", "cgroup", cg, "nosuid", "noexec", "nodev")
	switch {
	case hc.IpcMode.IsHost():
		add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev") // of the same ipc namespace
		add("/dev/shm", "bind", "/dev/shm", "rbind", "nosuid", "noexec", "nodev")
	default:
		add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev")
		if !hc.IpcMode.IsNone() {
			add("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size="+strconv.FormatInt(hc.ShmSize, 10))
		}
	}
	dir := in.dir
	for _, f := range []string{"resolv.conf", "hostname", "hosts"} {
		add("/etc/"+f, "bind", filepath.Join(dir, f), "rbind", "rprivate")
	}
	for _, m := range r.Mounts {
		switch m.Type {
		case mount.TypeTmpfs:
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
		default:
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: m.Options})
		}
	}
}

// addDevices lists the nodes of --device, or with --privileged all of the
// host's, and the rules that allow them.
func addDevices(s *specs.Spec, hc *container.HostConfig) error {
	s.Linux.Resources = &specs.LinuxResources{}
	res := s.Linux.Resources
	if hc.Privileged {
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}
		s.Linux.Devices = hostDevices()
	}
	for _, d := range hc.Devices {
		list, err := devicesAt(d.PathOnHost, d.PathInContainer)
		if err != nil {
			return err
		}
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, dev := range list {
			major, minor := dev.Major, dev.Minor
			s.Linux.Devices = append(s.Linux.Devices, dev)
			res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &major, Minor: &minor, Access: access})
		}
	}
	for _, rule := range hc.DeviceCgroupRules {
		r, err := parseDeviceRule(rule)
		if err != nil {
			return err
		}
		res.Devices = append(res.Devices, r)
	}
	return nil
}

func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	bad := errs.New(errs.Invalid, "invalid device cgroup rule format: '%s'", rule)
	f := strings.Fields(rule)
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("abc", f[0]) || strings.Trim(f[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok {
		return r, bad
	}
	for _, p := range []struct {
		text string
		to   **int64
	}{{major, &r.Major}, {minor, &r.Minor}} {
		if p.text == "*" {
			continue
		}
		n, err := strconv.ParseInt(p.text, 10, 64)
		if err != nil {
			return r, bad
		}
		*p.to = &n
	}
	return r, nil
}

func deviceOf(path, name string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	d := specs.LinuxDevice{Path: name, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false
	}
	return d, true
}

// devicesAt returns the device at a path of the host, or those in a directory.
func devicesAt(host, inside string) ([]specs.LinuxDevice, error) {
	if inside == "" {
		inside = host
	}
	if d, ok := deviceOf(host, inside); ok {
		return []specs.LinuxDevice{d}, nil
	}
	var list []specs.LinuxDevice
	err := filepath.WalkDir(host, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d, ok := deviceOf(p, inside+strings.TrimPrefix(p, host)); ok && !e.IsDir() {
			list = append(list, d)
		}
		return nil
	})
	if err != nil {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: no such file or directory", host)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: not a device node", host)
	}
	return list, nil
}

// hostDevices are the nodes below /dev, but for those that belong to a
// terminal, shared memory and message queues.
func hostDevices() []specs.LinuxDevice {
	var list []specs.LinuxDevice
	_ = filepath.WalkDir("/dev", func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is not passed on
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Name() == "console" || e.Name() == "ptmx" || e.Type()&os.ModeSymlink != 0 {
			return nil
		}
		if d, ok := deviceOf(p, p); ok {
			list = append(list, d)
		}
		return nil
	})
	return list
}

// resources turns the API's limits into the specification's.
func resources(r *container.Resources) (*specs.LinuxMemory, *specs.LinuxCPU, *specs.LinuxPids, *specs.LinuxBlockIO) {
	mem := &specs.LinuxMemory{}
	if r.Memory > 0 {
		mem.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		mem.Reservation = &r.MemoryReservation
	}
	if r.MemorySwap != 0 {
		mem.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		v := uint64(*r.MemorySwappiness)
		mem.Swappiness = &v
	}
	mem.DisableOOMKiller = r.OomKillDisable
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		v := uint64(r.CPUShares)
		cpu.Shares = &v
	}
	period, quota := uint64(r.CPUPeriod), r.CPUQuota
	if r.NanoCPUs > 0 {
		period = 100000
		quota = r.NanoCPUs * int64(period) / 1e9
	}
	if period != 0 {
		cpu.Period = &period
	}
	if quota != 0 {
		cpu.Quota = &quota
	}
	if r.CPURealtimePeriod != 0 {
		v := uint64(r.CPURealtimePeriod)
		cpu.RealtimePeriod = &v
	}
	if r.CPURealtimeRuntime != 0 {
		cpu.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	var pids *specs.LinuxPids
	if r.PidsLimit != nil && *r.PidsLimit != 0 {
		n := *r.PidsLimit
		if n < 0 {
			n = math.MaxInt64
		}
		if n == math.MaxInt64 {
			n = -1
		}
		pids = &specs.LinuxPids{Limit: &n}
	}
	io := &specs.LinuxBlockIO{}
	if r.BlkioWeight > 0 {
		io.Weight = &r.BlkioWeight
	}
	io.ThrottleReadBpsDevice, io.ThrottleWriteBpsDevice = throttle(r.BlkioDeviceReadBps), throttle(r.BlkioDeviceWriteBps)
	io.ThrottleReadIOPSDevice, io.ThrottleWriteIOPSDevice = throttle(r.BlkioDeviceReadIOps), throttle(r.BlkioDeviceWriteIOps)
	return mem, cpu, pids, io
}

func throttle(list []*blkiodev.ThrottleDevice) []specs.LinuxThrottleDevice {
	var out []specs.LinuxThrottleDevice
	for _, d := range list {
		var st unix.Stat_t
		if unix.Stat(d.Path, &st) != nil {
			continue
		}
		t := specs.LinuxThrottleDevice{Rate: d.Rate}
		t.Major, t.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		out = append(out, t)
	}
	return out
}
