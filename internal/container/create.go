package container

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/state"
	"berth.dev/berth/internal/undo"
)

// CreateRequest is what a container is made of.
type CreateRequest struct {
	Name             string
	Platform         string // "os/arch[/variant]", "" for the host's
	Config           *container.Config
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// Create makes a container, which does not run yet. The steps are: validate,
// find the image, take the name, prepare the snapshot, write the record.
func (s *Service) Create(ctx context.Context, req CreateRequest) (container.CreateResponse, error) {
	var none container.CreateResponse
	if req.Config == nil {
		return none, errs.New(errs.Invalid, "config cannot be empty in order to create a container")
	}
	cfg, hc := *req.Config, container.HostConfig{}
	if req.HostConfig != nil {
		hc = *req.HostConfig
	}
	warnings, err := creator{s}.validate(&cfg, &hc)
	if err != nil {
		return none, err
	}
	if req.NetworkingConfig != nil {
		for name, e := range req.NetworkingConfig.EndpointsConfig {
			if err := s.o.Networks.CheckSettings(name, e, false); err != nil {
				return none, errs.New(errs.Invalid, "invalid config for network %s: %w", name, err)
			}
		}
	}
	img, err := s.o.Images.Resolve(ctx, cfg.Image)
	if err != nil {
		return none, err
	}
	if req.Platform != "" && !platformMatches(img, req.Platform) {
		return none, errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", cfg.Image, req.Platform)
	}
	merge(&cfg, img)
	if len(cfg.Entrypoint) == 0 && len(cfg.Cmd) == 0 {
		return none, errs.New(errs.Invalid, "no command specified")
	}
	r := &Record{
		ID: newID(), Created: time.Now().UTC(), Image: img.ID, Platform: img.Config.OS, Config: &cfg, HostConfig: &hc,
		Networks: req.NetworkingConfig, Driver: s.o.Snapshots.Name,
	}
	if r.Platform == "" {
		r.Platform = "linux"
	}
	if cfg.Hostname == "" {
		cfg.Hostname = r.ID.Short()
		if hc.NetworkMode.IsHost() || hc.UTSMode.IsHost() {
			if cfg.Hostname, err = os.Hostname(); err != nil {
				return none, err
			}
		} else if hc.NetworkMode.IsContainer() {
			cfg.Hostname = ""
		}
	}
	argv := slices.Concat(cfg.Entrypoint, cfg.Cmd)
	r.Path, r.Args = argv[0], argv[1:]
	if r.Mounts, err = (creator{s}).resolveMounts(r); err != nil {
		return none, err
	}

	var u undo.Stack
	defer u.Run()
	if r.Name, err = s.reserve(req.Name, r.ID); err != nil {
		return none, err
	}
	u.Add(func() { s.release(r.Name, r.ID) })
	if err := s.o.Snapshots.Prepare(ctx, string(r.ID), img.Top()); err != nil {
		return none, err
	}
	u.Add(func() { s.removeFiles(r.ID, false) })
	if err := s.spares.makeDir(s.dir(r.ID)); err != nil {
		return none, err
	}
	c := &Container{execs: map[string]*Exec{}}
	s.warmUp(c, r)
	st := &Status{Phase: Created}
	// On disk some milliseconds from now. A container that is removed by
	// itself need not outlive a power cut at all.
	durable := state.Soon
	if hc.AutoRemove {
		durable = state.Async
	}
	err = s.o.DB.Update(durable, func(tx *state.Tx) error {
		if err := putRecord(tx, r); err != nil {
			return err
		}
		if err := tx.Put("status", string(r.ID), st); err != nil {
			return err
		}
		if err := tx.Put("name", r.Name, r.ID); err != nil {
			return err
		}
		return tx.Put("ref", image.RefKey(r.Image, string(r.ID)), "container")
	})
	if err != nil {
		c.dropWarm()
		return none, err
	}
	u.Release()
	c.rec.Store(r)
	c.st.Store(st)
	if len(r.HostConfig.Links) > 0 {
		s.linked.Store(true)
	}
	s.mu.Lock()
	s.byID[r.ID] = c
	s.mu.Unlock()
	s.event(c, events.ActionCreate)
	return container.CreateResponse{ID: string(r.ID), Warnings: warnings}, nil
}

// warmTime is how long a root made at create waits for its start.
const warmTime = 2 * time.Second

// warmUp attaches the root filesystem and writes the network files while the client is still reading the
// answer: the start that mostly follows finds it done, or waits for it. There is
// never a second mount beside it: one upper directory serves one.
func (s *Service) warmUp(c *Container, r *Record) {
	ch := make(chan int, 1)
	c.warm.Store(&ch)
	go func() {
		fd, err := roots{s}.attachFor(context.Background(), r)
		if err == nil {
			if err = (roots{s}).makeWorkingDir(context.Background(), r, fd); err == nil {
				err = launcher{s}.writeNetFiles(r)
			}
		}
		if err != nil {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
			fd = -1 // the start tries again and reports
		}
		ch <- fd
		time.AfterFunc(warmTime, c.dropWarm)
	}()
}

// takeWarm returns the root made at create, -1 when there is none any more.
func (c *Container) takeWarm() int {
	if ch := c.warm.Swap(nil); ch != nil {
		return <-*ch
	}
	return -1
}

// settle waits until the files of a container are as create leaves them.
func (c *Container) settle() {
	if !c.Status().Phase.Running() {
		c.dropWarm()
	}
}

func (c *Container) dropWarm() {
	if fd := c.takeWarm(); fd >= 0 {
		_ = unix.Close(fd)
	}
}

// skeletonDir is a layer below all others of every container: the mount points
// that a start needs and that many images lack. So starting changes nothing in
// the container's own layer, and diff and commit have nothing to leave out.
func skeletonDir(dataRoot string) string { return filepath.Join(dataRoot, "mountpoints") }

func makeSkeleton(dataRoot string) error {
	root := skeletonDir(dataRoot)
	for _, d := range []string{"proc", "sys", "dev/pts", "dev/shm", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf"} {
		fd, err := os.OpenFile(filepath.Join(root, f), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		_ = fd.Close()
	}
	return nil
}

func platformMatches(img *image.Image, platform string) bool {
	f := strings.Split(strings.ToLower(platform), "/")
	if f[0] != img.Config.OS && img.Config.OS != "" {
		return false
	}
	return len(f) < 2 || f[1] == img.Config.Architecture || img.Config.Architecture == ""
}

// merge fills cfg with what the image says and the request does not.
func merge(cfg *container.Config, img *image.Image) {
	ic := img.Config.Config
	if cfg.User == "" {
		cfg.User = ic.User
	}
	if len(ic.ExposedPorts) > 0 {
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts = network.PortSet{}
		}
		for p := range ic.ExposedPorts {
			if port, err := network.ParsePort(p); err == nil {
				cfg.ExposedPorts[port] = struct{}{}
			}
		}
	}
	have := map[string]bool{}
	for _, e := range cfg.Env {
		k, _, _ := strings.Cut(e, "=")
		have[k] = true
	}
	for _, e := range ic.Env {
		if k, _, _ := strings.Cut(e, "="); !have[k] {
			cfg.Env = append(cfg.Env, e)
		}
	}
	if cfg.Labels == nil {
		cfg.Labels = map[string]string{}
	}
	for k, v := range ic.Labels {
		if _, ok := cfg.Labels[k]; !ok {
			cfg.Labels[k] = v
		}
	}
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = ic.Cmd
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = ic.Entrypoint
		}
	}
	// The CLI's --entrypoint "" comes as one empty string: no entrypoint at all.
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil
	}
	if cfg.Healthcheck == nil {
		cfg.Healthcheck = ic.Healthcheck
	} else if hc := ic.Healthcheck; hc != nil {
		own := *cfg.Healthcheck
		if len(own.Test) == 0 {
			own.Test = hc.Test
		}
		if own.Interval == 0 {
			own.Interval = hc.Interval
		}
		if own.Timeout == 0 {
			own.Timeout = hc.Timeout
		}
		if own.StartPeriod == 0 {
			own.StartPeriod = hc.StartPeriod
		}
		if own.StartInterval == 0 {
			own.StartInterval = hc.StartInterval
		}
		if own.Retries == 0 {
			own.Retries = hc.Retries
		}
		cfg.Healthcheck = &own
	}
	if cfg.WorkingDir == "" {
		cfg.WorkingDir = ic.WorkingDir
	}
	if len(cfg.Volumes) == 0 {
		cfg.Volumes = nil // as it is shown
	}
	for v := range ic.Volumes {
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		cfg.Volumes[v] = struct{}{}
	}
	if cfg.StopSignal == "" {
		cfg.StopSignal = ic.StopSignal
	}
	if len(cfg.Shell) == 0 {
		cfg.Shell = ic.Shell
	}
}

// validate refuses what cannot work, and fills the host configuration with the
// daemon's defaults.
func (s creator) validate(cfg *container.Config, hc *container.HostConfig) (warnings []string, err error) {
	bad := func(format string, args ...any) ([]string, error) {
		return nil, errs.New(errs.Invalid, format, args...)
	}
	if cfg.WorkingDir != "" {
		cfg.WorkingDir = path.Clean(cfg.WorkingDir)
		if !path.IsAbs(cfg.WorkingDir) {
			return bad("the working directory '%s' is invalid, it needs to be an absolute path", cfg.WorkingDir)
		}
	}
	if err := validateHealth(cfg.Healthcheck); err != nil {
		return nil, err
	}
	if cfg.StopSignal != "" {
		if _, err := parseSignal(cfg.StopSignal); err != nil {
			return nil, err
		}
	}
	for _, e := range cfg.Env {
		if e == "" || e[0] == '=' {
			return bad("invalid environment variable: %s", e)
		}
	}
	if len(cfg.Hostname) > 64 {
		return bad("invalid hostname: %s: a hostname has at most 64 characters", cfg.Hostname)
	}
	if warnings, err = s.validateLimits(&hc.Resources, false); err != nil {
		return nil, err
	}
	if hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000 {
		return bad("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	}
	if hc.ShmSize < 0 {
		return bad("SHM size can not be less than 0")
	}
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return bad("can't create 'AutoRemove' container with restart policy")
	}
	if err := validateRestart(hc.RestartPolicy); err != nil {
		return nil, err
	}
	if !hc.IpcMode.Valid() {
		return bad("invalid IPC mode: %s", hc.IpcMode)
	}
	if !hc.PidMode.Valid() {
		return bad("invalid PID mode: %s", hc.PidMode)
	}
	if !hc.UTSMode.Valid() {
		return bad("invalid UTS mode: %s", hc.UTSMode)
	}
	if !hc.UsernsMode.Valid() {
		return bad("invalid USER mode: %s", hc.UsernsMode)
	}
	if !hc.CgroupnsMode.Valid() {
		return bad("invalid cgroup namespace mode: %s", hc.CgroupnsMode)
	}
	if _, err := s.def.Load().foreign(hc.Runtime); err != nil {
		return nil, err
	}
	if err := Nets(s).check(cfg, hc); err != nil {
		return nil, err
	}
	if hc.Isolation != "" && !hc.Isolation.IsDefault() {
		return bad("invalid isolation (%s): linux only supports 'default'", hc.Isolation)
	}
	if len(hc.StorageOpt) > 0 {
		return bad("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	}
	if hc.NetworkMode.IsHost() && (len(hc.PortBindings) > 0 || hc.PublishAllPorts) {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if err := s.def.Load().logConfig(&hc.LogConfig); err != nil {
		return nil, err
	}
	s.fillDefaults(hc)
	if err := s.checkProcess(cfg, hc); err != nil {
		return nil, err
	}
	return warnings, nil
}

// fillDefaults writes what Docker's inspect shows for what was not asked for.
func (s creator) fillDefaults(hc *container.HostConfig) {
	d := s.def.Load()
	if hc.ShmSize == 0 {
		hc.ShmSize = d.ShmSize
		if hc.ShmSize == 0 {
			hc.ShmSize = 64 << 20
		}
	}
	if hc.IpcMode == "" {
		hc.IpcMode = d.IPC
		if hc.IpcMode == "" {
			hc.IpcMode = container.IPCModePrivate
		}
	}
	if hc.CgroupnsMode == "" {
		hc.CgroupnsMode = d.CgroupNS
		if hc.Privileged && d.CgroupNS == container.CgroupnsModePrivate && !s.v2() {
			hc.CgroupnsMode = container.CgroupnsModeHost
		}
	}
	if hc.RestartPolicy.Name == "" {
		hc.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if hc.Runtime == "" {
		hc.Runtime = d.Runtime
	}
	if !hc.Privileged {
		if hc.MaskedPaths == nil {
			hc.MaskedPaths = defaultMasked()
		}
		if hc.ReadonlyPaths == nil {
			hc.ReadonlyPaths = defaultReadonly()
		}
		if securityOf(hc).unmasked {
			hc.MaskedPaths, hc.ReadonlyPaths = []string{}, []string{}
		}
	}
}

// resolveMounts turns binds, mounts and tmpfs into one list, sorted so that a
// mount comes after those it lies in.
func (s creator) resolveMounts(r *Record) ([]Mount, error) {
	hc := r.HostConfig
	var list []Mount
	seen := map[string]bool{}
	add := func(m Mount) error {
		m.Destination = path.Clean(m.Destination)
		if m.Destination == "/" {
			return errs.New(errs.Invalid, "invalid volume specification: '%s': invalid mount config for type %q: invalid specification: destination can't be '/'", m.Source+":"+m.Destination, m.Type)
		}
		if seen[m.Destination] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", m.Destination)
		}
		seen[m.Destination] = true
		list = append(list, m)
		return nil
	}
	inherited, err := s.volumesFrom(hc.VolumesFrom)
	if err != nil {
		return nil, err
	}
	for _, b := range hc.Binds {
		m, err := parseBind(b)
		if err != nil {
			return nil, err
		}
		if err := s.ownRoot(&m, strings.Contains(m.Mode, string(m.Propagation))); err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, m := range hc.Mounts {
		x, err := fromMount(m)
		if err != nil {
			return nil, err
		}
		if err := s.ownRoot(&x, m.BindOptions != nil && m.BindOptions.Propagation != ""); err != nil {
			return nil, err
		}
		if err := add(x); err != nil {
			return nil, err
		}
	}
	for dest, opts := range hc.Tmpfs {
		if !path.IsAbs(dest) {
			return nil, errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", dest)
		}
		o, err := tmpfsOptions(opts)
		if err != nil {
			return nil, err
		}
		if err := add(Mount{MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: dest, RW: true}, Options: o}); err != nil {
			return nil, err
		}
	}
	for _, m := range inherited {
		if !seen[m.Destination] { // an own mount there wins
			seen[m.Destination] = true
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return list, nil
}

// ownRoot makes a bind that shows the engine's own directory, or part of it, a
// slave unless a propagation was asked for: what the engine unmounts there must
// not live on in the container. A private copy, which would keep it, is refused.
func (s creator) ownRoot(m *Mount, asked bool) error {
	if m.Type != mount.TypeBind || !within(s.o.DataRoot, m.Source) && !within(m.Source, s.o.DataRoot) {
		return nil
	}
	if asked {
		if m.Propagation == mount.PropagationRSlave || m.Propagation == mount.PropagationRShared {
			return nil
		}
		return errs.New(errs.Invalid, "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon root, daemon root: %q, bind mount source: %q, propagation: %q",
			s.o.DataRoot, m.Source, m.Propagation)
	}
	for i, o := range m.Options {
		if o == string(m.Propagation) {
			m.Options[i] = string(mount.PropagationRSlave)
		}
	}
	m.Propagation = mount.PropagationRSlave
	return nil
}

func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// volumesFrom returns the mounts of other containers, "name[:ro|:rw]" each; of
// two at one place the later container's counts.
func (s creator) volumesFrom(specs []string) ([]Mount, error) {
	var list []Mount
	for _, spec := range specs {
		name, mode, hasMode := strings.Cut(spec, ":")
		if name == "" {
			return nil, errs.New(errs.Invalid, "invalid volumes-from specification: %s", spec)
		}
		readOnly := false
		for _, w := range strings.Split(mode, ",") {
			switch w {
			case "ro":
				readOnly = true
			case "rw", "z", "Z", "nocopy":
			default:
				if hasMode {
					return nil, errs.New(errs.Invalid, "invalid mode: %s", mode)
				}
			}
		}
		other, err := s.Get(name)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%v", err) // not as "not found": that would be the image
		}
		for _, m := range other.Record().Mounts {
			if _, tmpfs := other.Record().HostConfig.Tmpfs[m.Destination]; tmpfs {
				continue
			}
			if hasMode {
				m.Mode = mode
			}
			if readOnly && m.RW {
				m.RW, m.Options = false, append(slices.Clone(m.Options), roOption(slices.Contains(m.Options, "rbind")))
			}
			list = slices.DeleteFunc(list, func(o Mount) bool { return o.Destination == m.Destination })
			list = append(list, m)
		}
	}
	return list, nil
}

// parseBind reads "source:destination[:options]".
func parseBind(spec string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid volume specification: '%s'%s", spec, why)
	}
	f := strings.Split(spec, ":")
	if len(f) < 2 || len(f) > 3 || f[0] == "" || f[1] == "" {
		return bad("")
	}
	m := Mount{MountPoint: container.MountPoint{Type: mount.TypeBind, Source: f[0], Destination: f[1], RW: true}, MakeHost: true}
	if !path.IsAbs(f[1]) {
		return bad(fmt.Sprintf(": invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", f[1]))
	}
	if !path.IsAbs(f[0]) {
		if strings.Contains(f[0], "/") {
			return bad(fmt.Sprintf(": %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", f[0]))
		}
		return Mount{}, errs.New(errs.NotImplemented, "volume %s: this engine has no named volumes yet; use a host directory by its absolute path", f[0])
	}
	m.Source = path.Clean(f[0])
	prop := mount.PropagationRPrivate
	rec := "rbind"
	if len(f) == 3 {
		m.Mode = f[2]
		for _, o := range strings.Split(f[2], ",") {
			switch o {
			case "ro":
				m.RW = false
			case "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated", "":
			case "rprivate", "private", "rshared", "shared", "rslave", "slave":
				prop = mount.Propagation(o)
			case "bind":
				rec = "bind"
			case "rbind":
			default:
				return bad(fmt.Sprintf(": invalid mode: %s", f[2]))
			}
		}
	}
	m.Propagation = prop
	m.Options = []string{rec, string(prop)}
	if !m.RW {
		m.Options = append(m.Options, roOption(rec == "rbind"))
	}
	return m, nil
}

// roOption is the option for a mount that cannot be written: with all that is
// mounted below it, or alone.
func roOption(recursive bool) string {
	if recursive {
		return "rro"
	}
	return "ro"
}

// fromMount reads one --mount.
func fromMount(m mount.Mount) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Target == "" {
		return bad("field Target must not be empty")
	}
	if !path.IsAbs(m.Target) {
		return bad("invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	out := Mount{MountPoint: container.MountPoint{Type: m.Type, Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if !path.IsAbs(m.Source) {
			return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		prop, rec, all := mount.PropagationRPrivate, "rbind", true
		if b := m.BindOptions; b != nil {
			switch {
			case b.ReadOnlyNonRecursive && b.ReadOnlyForceRecursive:
				return Mount{}, errs.New(errs.Invalid, "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
			case b.ReadOnlyForceRecursive && !m.ReadOnly:
				return Mount{}, errs.New(errs.Invalid, "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
			}
			all = !b.ReadOnlyNonRecursive
			if b.Propagation != "" {
				prop = b.Propagation
			}
			if b.NonRecursive {
				rec = "bind"
			}
			out.MakeHost = b.CreateMountpoint
		}
		if _, err := os.Stat(m.Source); err != nil && !out.MakeHost {
			return bad("bind source path does not exist: %s", m.Source)
		}
		out.Propagation = prop
		out.Options = []string{rec, string(prop)}
		if m.ReadOnly {
			out.Options = append(out.Options, roOption(all && rec == "rbind"))
		}
	case mount.TypeTmpfs:
		if m.Source != "" {
			return bad("field Source must not be specified")
		}
		out.Options = []string{"nosuid", "nodev", "noexec"}
		if t := m.TmpfsOptions; t != nil {
			if t.SizeBytes > 0 {
				out.Options = append(out.Options, "size="+strconv.FormatInt(t.SizeBytes, 10))
			}
			if t.Mode != 0 {
				out.Options = append(out.Options, fmt.Sprintf("mode=%o", t.Mode))
			}
		}
		if m.ReadOnly {
			out.Options = append(out.Options, "ro")
		}
	case mount.TypeVolume:
		return Mount{}, errs.New(errs.NotImplemented, "volume %s: this engine has no named volumes yet; use a bind mount", m.Source)
	default:
		return bad("mount type unknown")
	}
	return out, nil
}

// tmpfsOptions checks the words of --tmpfs and adds Docker's defaults.
func tmpfsOptions(opts string) ([]string, error) {
	out := []string{"noexec", "nosuid", "nodev"}
	for _, o := range strings.Split(opts, ",") {
		key, _, hasValue := strings.Cut(o, "=")
		switch key {
		case "":
			continue
		case "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol":
			if !hasValue {
				return nil, errs.New(errs.Invalid, "invalid tmpfs option %q", o)
			}
		case "exec", "noexec", "suid", "nosuid", "dev", "nodev", "ro", "rw", "sync", "async", "atime", "noatime", "diratime",
			"nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "remount", "private", "rprivate", "shared",
			"rshared", "slave", "rslave", "unbindable", "runbindable", "defaults", "bind", "rbind", "dirsync", "mand", "nomand":
		default:
			return nil, errs.New(errs.Invalid, "invalid tmpfs option %q", o)
		}
		out = append(out, o)
	}
	return out, nil
}
