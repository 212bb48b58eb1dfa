package system

import (
	"context"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"berth.dev/berth/internal/network"
)

// DefaultRuntime is the name of the engine's own runtime.
const DefaultRuntime = "berth"

// Info tells what the engine and its host are and can do.
func (s *Service) Info(context.Context) (system.Info, error) {
	cfg, h := s.cfg.Load(), s.host()
	i := system.Info{
		ID:                 cfg.ID,
		Plugins:            cfg.Plugins,
		MemoryLimit:        h.caps.memory,
		SwapLimit:          h.caps.swap,
		CPUCfsPeriod:       h.caps.cfsPeriod,
		CPUCfsQuota:        h.caps.cfsQuota,
		CPUShares:          h.caps.shares,
		CPUSet:             h.caps.cpuset,
		PidsLimit:          h.caps.pids,
		OomKillDisable:     h.caps.oomKillDisable,
		IPv4Forwarding:     network.Forwards(),
		Debug:              cfg.Debug,
		NFd:                openFiles(),
		NGoroutines:        runtime.NumGoroutine(),
		SystemTime:         time.Now().Format(time.RFC3339Nano),
		LoggingDriver:      cfg.LogDriver,
		CgroupDriver:       cfg.CgroupDriver,
		CgroupVersion:      h.cgroup,
		KernelVersion:      h.kernel,
		OperatingSystem:    h.os,
		OSVersion:          h.osVersion,
		OSType:             "linux",
		Architecture:       h.arch,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryConfig(cfg.Registry),
		NCPU:               runtime.NumCPU(),
		MemTotal:           h.memTotal,
		GenericResources:   nil,
		DockerRootDir:      cfg.Root,
		HTTPProxy:          maskPassword(cfg.Proxy.HTTP),
		HTTPSProxy:         maskPassword(cfg.Proxy.HTTPS),
		NoProxy:            cfg.Proxy.No,
		Name:               cfg.Name,
		Labels:             cfg.Labels,
		ExperimentalBuild:  cfg.Experimental,
		ServerVersion:      cfg.Build.Version,
		Runtimes:           cfg.Runtimes,
		DefaultRuntime:     cfg.DefaultRuntime,
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: cfg.LiveRestore,
		InitBinary:         cfg.InitBinary,
		RuncCommit:         system.Commit{ID: cfg.Build.GitCommit},
		InitCommit:         system.Commit{ID: cfg.Build.GitCommit},
		SecurityOptions:    securityOptions(cfg, &h),
		FirewallBackend:    cfg.Firewall,
		CDISpecDirs:        cfg.CDISpecDirs,
		Warnings:           warnings(cfg, &h),
	}
	i.DefaultAddressPools = cfg.AddressPools
	if i.Name == "" {
		i.Name, _ = os.Hostname()
	}
	if i.DefaultRuntime == "" {
		i.DefaultRuntime = DefaultRuntime
	}
	if i.Runtimes == nil {
		i.Runtimes = map[string]system.RuntimeWithStatus{DefaultRuntime: {}}
	}
	if i.Labels == nil {
		i.Labels = []string{}
	}
	if i.CDISpecDirs == nil {
		i.CDISpecDirs = []string{}
	}
	if s.src.Counts != nil {
		c := s.src.Counts()
		i.ContainersRunning, i.ContainersPaused, i.ContainersStopped = c.Running, c.Paused, c.Stopped
		i.Containers = c.Running + c.Paused + c.Stopped
	}
	if s.src.ImageCount != nil {
		i.Images = s.src.ImageCount()
	}
	if s.src.Driver != nil {
		i.Driver, i.DriverStatus = s.src.Driver()
	}
	if s.src.Devices != nil {
		for _, d := range s.src.Devices() {
			i.DiscoveredDevices = append(i.DiscoveredDevices, system.DeviceInfo{Source: "cdi", ID: d})
		}
	}
	if s.src.VolumeDrivers != nil {
		i.Plugins.Volume = s.src.VolumeDrivers()
	}
	if s.src.Listeners != nil {
		i.NEventsListener = s.src.Listeners()
	}
	if !i.IPv4Forwarding {
		i.Warnings = append(i.Warnings, "WARNING: IPv4 forwarding is disabled")
	}
	return i, nil
}

func securityOptions(cfg *Config, h *host) []string {
	opts := []string{}
	if h.apparmor {
		opts = append(opts, "name=apparmor")
	}
	if h.seccomp {
		profile := cfg.SeccompProfile
		if profile == "" {
			profile = "builtin"
		}
		opts = append(opts, "name=seccomp,profile="+profile)
	}
	if cfg.SELinux {
		opts = append(opts, "name=selinux")
	}
	if cfg.UserNS {
		opts = append(opts, "name=userns")
	}
	if h.cgroupNS {
		opts = append(opts, "name=cgroupns")
	}
	if cfg.NoNewPrivileges {
		opts = append(opts, "name=no-new-privileges")
	}
	return opts
}

// warnings are in Docker's words; the CLI prints them as they are.
func warnings(cfg *Config, h *host) []string {
	var w []string
	need := func(have bool, text string) {
		if !have {
			w = append(w, "WARNING: "+text)
		}
	}
	const surface = ".\n         Access to the remote API is equivalent to root access on the host. Refer\n" +
		"         to the 'Docker daemon attack surface' section in the documentation for\n" +
		"         more information: https://docs.docker.com/go/attack-surface/"
	for _, addr := range cfg.InsecureHosts {
		need(false, "API is accessible on http://"+addr+" without encryption"+surface)
	}
	for _, addr := range cfg.UnauthedHosts {
		need(false, "API is accessible on https://"+addr+" without TLS client verification"+surface)
	}
	c := &h.caps
	need(c.memory, "No memory limit support")
	need(c.swap, "No swap limit support")
	need(c.oomKillDisable || h.cgroup != "1", "No oom kill disable support")
	need(c.cfsQuota, "No cpu cfs quota support")
	need(c.cfsPeriod, "No cpu cfs period support")
	need(c.shares, "No cpu shares support")
	need(c.cpuset, "No cpuset support")
	if h.cgroup == "2" {
		need(c.weight, "No io.weight support")
		need(c.weightDevice, "No io.weight (per device) support")
		need(c.readBps, "No io.max (rbps) support")
		need(c.writeBps, "No io.max (wbps) support")
		need(c.readIOps, "No io.max (riops) support")
		need(c.writeIOps, "No io.max (wiops) support")
	} else {
		need(c.readBps, "No blkio throttle.read_bps_device support")
		need(c.writeBps, "No blkio throttle.write_bps_device support")
		need(c.readIOps, "No blkio throttle.read_iops_device support")
		need(c.writeIOps, "No blkio throttle.write_iops_device support")
	}
	return append(w, cfg.ConfigWarnings...)
}

func registryConfig(c *registry.ServiceConfig) *registry.ServiceConfig {
	if c != nil {
		return c
	}
	return &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs:          map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
		Mirrors:               []string{},
	}
}

func openFiles() int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return -1
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return -1
	}
	return len(names) - 1
}

// maskPassword hides the credentials in a proxy's URL.
func maskPassword(proxy string) string {
	u, err := url.Parse(proxy)
	if err != nil || u.User == nil {
		return proxy
	}
	u.User = url.UserPassword("xxxxx", "xxxxx")
	return u.String()
}
