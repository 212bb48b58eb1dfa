// Package system tells about the engine as a whole: what it is (Version), what
// it and its host can do (Info), and what it occupies (DiskUsage).
//
// What cannot change while the engine runs (the kernel, the distribution, the
// cgroup controllers) is looked up once, at the first question, so that it
// costs the start nothing. What the services know is asked of them through
// Sources, a struct of functions of which each may be nil.
package system

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// Config is what the engine was configured with, as far as it is told.
type Config struct {
	Root         string
	Name         string // of the host; "" asks the kernel
	ID           string // of the engine, see EngineID
	Labels       []string
	Debug        bool
	Experimental bool
	LiveRestore  bool
	Build        Build

	LogDriver       string
	CgroupDriver    string // "cgroupfs" or "systemd"
	DefaultRuntime  string // "" is "berth"
	Runtimes        map[string]system.RuntimeWithStatus
	InitBinary      string
	SeccompProfile  string // "", "builtin", "unconfined" or a path
	NoNewPrivileges bool
	UserNS          bool // containers run in a user namespace
	SELinux         bool

	Plugins        system.PluginsInfo
	Firewall       *system.FirewallInfo
	AddressPools   []system.NetworkAddressPool
	Registry       *registry.ServiceConfig // nil: no mirrors, loopback insecure
	CDISpecDirs    []string
	Proxy          Proxy
	InsecureHosts  []string // tcp addresses that are served without TLS
	UnauthedHosts  []string // … with TLS that does not verify its clients
	ConfigWarnings []string
}

// Build says which engine this is.
type Build struct {
	Version, GitCommit, Time string
	APIVersion, MinAPI       string
}

// Proxy is the engine's own proxy configuration.
type Proxy struct{ HTTP, HTTPS, No string }

// Counts are the numbers of containers by phase.
type Counts struct{ Running, Paused, Stopped int }

// Sources are where the changing facts come from. Each may be nil.
type Sources struct {
	Counts     func() Counts
	ImageCount func() int
	Driver     func() (name string, status [][2]string)
	Listeners  func() int      // of events
	Devices    func() []string // those of CDI, by their full names

	Containers func(ctx context.Context) ([]container.Summary, error) // all, with sizes
	Images     func(ctx context.Context, verbose bool) (image.DiskUsage, error)
	Volumes    func(ctx context.Context) ([]volume.Volume, error) // with usage data

	VolumeDrivers func() []string

	BuildCache func(ctx context.Context) ([]build.CacheRecord, error)
}

// Service answers the questions. Its methods may be called from any goroutine.
type Service struct {
	cfg  atomic.Pointer[Config]
	src  Sources
	host func() host
}

// New returns the service.
func New(cfg Config, src Sources) *Service {
	s := &Service{src: src, host: sync.OnceValue(lookAtHost)}
	s.Reload(cfg)
	return s
}

// Reload replaces the configuration.
func (s *Service) Reload(cfg Config) { s.cfg.Store(&cfg) }
