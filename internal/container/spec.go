package container

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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
	remapped bool     // it runs in a user namespace
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
	addNamespaces(s, r, in.remapped)
	addMounts(s, r, in)
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = hc.MaskedPaths, hc.ReadonlyPaths
	if s.Linux.Sysctl = hc.Sysctls; len(hc.Sysctls) > 0 {
		if err := checkSysctls(hc, in.remapped); err != nil {
			return nil, err
		}
	}
	if err := addDevices(s, hc); err != nil {
		return nil, err
	}
	if err := resources(&hc.Resources, s.Linux.Resources); err != nil {
		return nil, err
	}
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
	p.User.Umask = hc.Umask
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if cs := hc.ConsoleSize; cs[0] > 0 && cs[1] > 0 {
		p.ConsoleSize = &specs.Box{Height: cs[0], Width: cs[1]}
	}
	if sec := securityOf(hc); sec.noNewPrivileges != nil {
		p.NoNewPrivileges = *sec.noNewPrivileges
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

// environment is PATH, HOSTNAME and TERM for a terminal, each changed in its
// place by what the image and the user set, then the rest of that, and HOME. A
// name without "=" takes a variable away.
func environment(cfg *container.Config, home string) []string {
	env := make([]string, 0, len(cfg.Env)+4)
	env = append(env, defaultPath, "HOSTNAME="+cfg.Hostname)
	if cfg.Tty {
		env = append(env, "TERM=xterm")
	}
	env = mergeEnv(env, cfg.Env)
	if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }); i < 0 {
		env = append(env, "HOME="+home)
	} else if env[i] == "HOME=" { // an empty one counts as none
		env[i] += home
	}
	return env
}

// capabilities applies --cap-add, --cap-drop and --privileged to the default list.
func capabilities(hc *container.HostConfig, all []string) ([]string, error) {
	add, addAll, err := capabilityNames("CapAdd", hc.CapAdd, all)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capabilityNames("CapDrop", hc.CapDrop, all)
	if err != nil {
		return nil, err
	}
	base := defaultCaps
	switch {
	case hc.Privileged:
		return all, nil
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

func addNamespaces(s *specs.Spec, r *Record, remapped bool) {
	hc := r.HostConfig
	add := func(t specs.LinuxNamespaceType) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	if remapped {
		add(specs.UserNamespace)
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
	if sec := securityOf(hc); sec.writableCgroups != nil && *sec.writableCgroups {
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
	case hc.IpcMode.IsHost() && in.remapped: // the host's queues are not the container's to mount
		if unix.Access("/dev/mqueue", unix.F_OK) == nil {
			add("/dev/mqueue", "bind", "/dev/mqueue", "bind", "nosuid", "noexec", "nodev")
		}
		add("/dev/shm", "bind", "/dev/shm", "rbind", "nosuid", "noexec", "nodev")
	case hc.IpcMode.IsHost():
		add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev") // of the same ipc namespace
		add("/dev/shm", "bind", "/dev/shm", "rbind", "nosuid", "noexec", "nodev")
	case hc.IpcMode.IsContainer():
		add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev")
		add("/dev/shm", "bind", donorShmSource, "bind", "nosuid", "noexec", "nodev")
	default:
		add("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev")
		if !hc.IpcMode.IsNone() {
			add("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size="+strconv.FormatInt(hc.ShmSize, 10))
		}
	}
	for _, m := range r.Mounts {
		switch m.Type {
		case mount.TypeTmpfs:
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
		default:
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: m.Options})
		}
	}
	// Also over a volume at /etc.
	dir := in.dir
	for _, f := range []string{"resolv.conf", "hostname", "hosts"} {
		opts := []string{"rbind", "rprivate"}
		if hc.ReadonlyRootfs { // they are part of what is not to be written
			opts = append(opts, "ro")
		}
		add("/etc/"+f, "bind", filepath.Join(dir, f), opts...)
	}
}
