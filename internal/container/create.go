package container

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/image"
	netsvc "berth.dev/berth/internal/network"
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
	ShallowReadOnly  bool // a read-only -v does not hold for what is mounted below it
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
	if req.ShallowReadOnly {
		shallow(r.Mounts)
	}

	var u undo.Stack
	defer u.Run()
	if r.Name, err = s.reserve(req.Name, r.ID); err != nil {
		return none, err
	}
	u.Add(func() { s.release(r.Name, r.ID) })
	vols := volumes{s}
	if len(r.Mounts) > 0 {
		u.Add(func() { s.o.Volumes.Abandon(context.WithoutCancel(ctx), string(r.ID), r.volumes()) })
		if err := vols.hold(ctx, r); err != nil {
			return none, err
		}
	}
	if err := s.o.Snapshots.Prepare(ctx, string(r.ID), img.Top()); err != nil {
		return none, err
	}
	u.Add(func() { s.removeFiles(r.ID, false) })
	if err := s.spares.makeDir(s.dir(r.ID)); err != nil {
		return none, err
	}
	c := &Container{execs: map[string]*Exec{}}
	if vols.wantFill(r) {
		root, err := s.prepareRoot(ctx, r)
		if err != nil {
			return none, err
		}
		c.keepWarm(root)
		if err := vols.fill(ctx, r, root); err != nil {
			c.dropWarm()
			return none, err
		}
	} else {
		s.warmUp(c, r)
	}
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
		if err := vols.commit(tx, r); err != nil {
			return err
		}
		return tx.Put("ref", image.RefKey(r.Image, string(r.ID)), "container")
	})
	if err != nil {
		c.dropWarm()
		return none, err
	}
	s.o.Volumes.Committed(r.volumes())
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
		fd, err := s.prepareRoot(context.Background(), r)
		if err != nil {
			fd = -1 // the start tries again and reports
		}
		ch <- fd
		time.AfterFunc(warmTime, c.dropWarm)
	}()
}

// prepareRoot attaches the root filesystem of a new container, with all in it that a
// start needs.
func (s *Service) prepareRoot(ctx context.Context, r *Record) (int, error) {
	fd, err := roots{s}.attachFor(ctx, r)
	if err == nil {
		if err = (roots{s}).makeWorkingDir(ctx, r, fd); err == nil {
			err = launcher{s}.writeNetFiles(r)
		}
	}
	if err != nil && fd >= 0 {
		_ = unix.Close(fd)
	}
	return fd, err
}

// keepWarm is warmUp with a root that is there already.
func (c *Container) keepWarm(fd int) {
	ch := make(chan int, 1)
	ch <- fd
	c.warm.Store(&ch)
	time.AfterFunc(warmTime, c.dropWarm)
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
	if !hc.NetworkMode.IsHost() && !hc.NetworkMode.IsNone() && !hc.NetworkMode.IsContainer() && !netsvc.Forwards() {
		warnings = append(warnings, "IPv4 forwarding is disabled. Networking will not work.")
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
