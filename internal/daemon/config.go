// Package daemon is the engine as a process: its configuration, its sockets and
// its signals, from start to end. It builds the services (services.go) and
// holds no request's logic.
//
// # Configuration
//
// Options come from flags and from a JSON file, by dockerd's names; each is one
// row of the table in options.go. The two together make a Config, which is
// never changed again: a reload (SIGHUP) reads the file once more and makes a
// new one, in which only the options that can change take new values.
//
// # Start
//
//  1. configuration, log, pid file
//  2. sockets: opened first, so that clients wait in the backlog from then on
//  3. services
//  4. serve; READY=1 to systemd
//
// The end is the reverse. Containers are not touched: they belong to the keeper.
package daemon

import (
	"net/netip"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/system"
)

// Where things are unless told otherwise.
const (
	DefaultDataRoot   = "/var/lib/berth"
	DefaultExecRoot   = "/run/berth"
	DefaultSocket     = "/run/berth.sock"
	DockerSocket      = "/var/run/docker.sock"
	DefaultConfigFile = "/etc/berth/daemon.json"
	DockerConfigFile  = "/etc/docker/daemon.json"
	DefaultTLSPort    = 2376
	DefaultPort       = 2375
)

// Config is the engine's whole configuration, an immutable snapshot.
type Config struct {
	Program    string // the name it was started under, for messages
	ConfigFile string
	Validate   bool // only look whether the configuration is right

	DataRoot string
	ExecRoot string
	PidFile  string

	Log     LogConfig
	Debug   bool
	API     APIConfig
	Labels  []string
	Storage StorageConfig
	Default ContainerDefaults
	Runtime RuntimeConfig
	Network NetworkConfig
	Image   ImageConfig

	Experimental    bool
	LiveRestore     bool // always true in effect; kept to be told
	ShutdownTimeout time.Duration
	OOMScoreAdjust  int
	UsernsRemap     string
	Rootless        bool
	SELinux         bool
	AuthPlugins     []string
	CDISpecDirs     []string
	Features        map[string]bool
	Proxy           ProxyConfig

	flags map[string]string // the flags that were given, for a reload

	listening []netip.AddrPort // where the API is served by TCP
	args      []string         // the command line, for a reload
}

// LogConfig is the engine's own log.
type LogConfig struct {
	Level  string // debug, info, warn, error, fatal
	Format string // text or json
	Raw    bool   // plain lines on a terminal, too
}

// APIConfig is how the API is served.
type APIConfig struct {
	Hosts     []string // unix://…, tcp://…, fd://…; the default sockets are not among them
	Default   bool     // no host was given
	Group     string
	TLS       bool
	TLSVerify bool
	CACert    string
	Cert      string
	Key       string
}

// StorageConfig is where images and containers are kept.
type StorageConfig struct {
	Driver  string // "" chooses
	Options []string
}

// ContainerDefaults is what a new container gets when it asks for nothing.
type ContainerDefaults struct {
	LogDriver      string
	LogOptions     map[string]string
	Ulimits        map[string]*units.Ulimit
	ShmSize        int64 // bytes
	CgroupnsMode   string
	IpcMode        string
	CgroupParent   string
	Init           bool
	InitPath       string
	SeccompProfile string // "", "builtin", "unconfined" or a path
	NoNewPrivs     bool
}

// RuntimeConfig is how containers are run.
type RuntimeConfig struct {
	Default      string
	Runtimes     map[string]system.Runtime // beside the engine's own
	CgroupDriver string                    // "cgroupfs" or "systemd"
	ExecOptions  []string
	CPURtPeriod  int64
	CPURtRuntime int64
}

// NetworkConfig is how containers reach the world.
type NetworkConfig struct {
	Bridge            string // "" is the default bridge, "none" none
	BridgeIP          string // CIDR of the default bridge
	BridgeIP6         string
	FixedCIDR         string
	FixedCIDR6        string
	Gateway           netip.Addr
	Gateway6          netip.Addr
	HostGatewayIPs    []netip.Addr
	IP                netip.Addr // ports are published on it by default
	MTU               int        // 0 is that of the default route
	ICC               bool
	IPTables          bool
	IP6Tables         bool
	IPForward         bool
	IPForwardNoDrop   bool
	IPMasq            bool
	IPv6              bool
	UserlandProxy     bool
	AllowDirect       bool
	AcceptFwMark      string // mark, or mark/mask
	FirewallBackend   string
	HostRules         bool // published ports are subject to the host's rules for input
	DNS               []netip.Addr
	DNSOptions        []string
	DNSSearch         []string
	AddressPools      []AddressPool
	DefaultNetworkOpt map[string]map[string]string
}

// AddressPool is where subnets for networks are cut from.
type AddressPool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"`
}

// ImageConfig is how images move.
type ImageConfig struct {
	InsecureRegistries     []string
	Mirrors                []string
	MaxConcurrentDownloads int
	MaxConcurrentUploads   int
	MaxDownloadAttempts    int
}

// ProxyConfig is the proxy that the engine itself uses.
type ProxyConfig struct{ HTTP, HTTPS, No string }
