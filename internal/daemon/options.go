package daemon

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// option is one row of the table.
type option struct {
	name, short string
	key         string // in the file; "" is name, "-" is not allowed there
	value       value
	usage       string
	hidden      bool
	merges      bool // flag and file may both be given
	reload      bool // SIGHUP takes a new value from the file
}

// defaults returns the configuration that nothing has touched.
func defaults(program string) *Config {
	dockerish := program == "dockerd"
	c := &Config{
		Program: program, ConfigFile: DefaultConfigFile, DataRoot: DefaultDataRoot, ExecRoot: DefaultExecRoot,
		Log:     LogConfig{Level: "info", Format: "text"},
		API:     APIConfig{Group: "docker"},
		Default: ContainerDefaults{LogDriver: "json-file", ShmSize: 64 << 20, IpcMode: "private"},
		Runtime: RuntimeConfig{Default: "berth", CgroupDriver: "cgroupfs"},
		Network: NetworkConfig{
			ICC: true, IPTables: true, IP6Tables: true, IPForward: true, IPMasq: true, UserlandProxy: true,
		},
		Image:           ImageConfig{MaxConcurrentDownloads: 3, MaxConcurrentUploads: 5, MaxDownloadAttempts: 5},
		ShutdownTimeout: 15 * time.Second,
	}
	if dockerish {
		c.ConfigFile = DockerConfigFile
	}
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		if dir = os.Getenv("DOCKER_CONFIG"); dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				home = "/root"
			}
			dir = filepath.Join(home, ".docker")
		}
	}
	c.API.CACert, c.API.Cert, c.API.Key = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c.API.TLSVerify = os.Getenv("DOCKER_TLS_VERIFY") != ""
	return c
}

// options returns the table over c.
func options(c *Config) []option {
	net, def := &c.Network, &c.Default
	opts := []option{
		{name: "add-runtime", key: "runtimes", value: runtimes{&c.Runtime.Runtimes}, usage: "Register an additional OCI compatible runtime", merges: true, reload: true},
		{name: "bridge-accept-fwmark", value: text(&net.AcceptFwMark), usage: "In bridge networks, accept packets with this firewall mark/mask"},
		{name: "allow-direct-routing", value: boolean(&net.AllowDirect), usage: "Allow remote access to published ports on container IP addresses"},
		{name: "authorization-plugin", key: "authorization-plugins", value: texts(&c.AuthPlugins, nil), usage: "Authorization plugins to load", reload: true},
		{name: "bip", value: text(&net.BridgeIP), usage: "IPv4 address for the default bridge"},
		{name: "bip6", value: text(&net.BridgeIP6), usage: "IPv6 address for the default bridge"},
		{name: "bridge", short: "b", value: text(&net.Bridge), usage: "Attach containers to a network bridge"},
		{name: "cdi-spec-dir", key: "cdi-spec-dirs", value: texts(&c.CDISpecDirs, nil), usage: "CDI specification directories to use"},
		{name: "cgroup-parent", value: text(&def.CgroupParent), usage: "Set parent cgroup for all containers"},
		{name: "config-file", key: "-", value: text(&c.ConfigFile), usage: "Daemon configuration file"},
		{name: "cpu-rt-period", value: long(&c.Runtime.CPURtPeriod), usage: "Limit the CPU real-time period in microseconds for the parent cgroup for all containers (not supported with cgroups v2)"},
		{name: "cpu-rt-runtime", value: long(&c.Runtime.CPURtRuntime), usage: "Limit the CPU real-time runtime in microseconds for the parent cgroup for all containers (not supported with cgroups v2)"},
		{name: "data-root", value: text(&c.DataRoot), usage: "Root directory of persistent state"},
		{name: "debug", short: "D", value: boolean(&c.Debug), usage: "Enable debug mode", reload: true},
		{name: "default-address-pool", key: "default-address-pools", value: pools{&net.AddressPools}, usage: "Default address pools for node specific local networks"},
		{name: "default-cgroupns-mode", value: text(&def.CgroupnsMode), usage: `Default mode for containers cgroup namespace ("host" | "private")`, reload: true},
		{name: "default-gateway", value: addr(&net.Gateway), usage: "Default gateway IPv4 address for the default bridge network"},
		{name: "default-gateway-v6", value: addr(&net.Gateway6), usage: "Default gateway IPv6 address for the default bridge network"},
		{name: "default-ipc-mode", value: text(&def.IpcMode), usage: `Default mode for containers ipc ("shareable" | "private")`, reload: true},
		{name: "default-network-opt", key: "default-network-opts", value: netOpts{&net.DefaultNetworkOpt}, usage: "Default network options"},
		{name: "default-runtime", value: text(&c.Runtime.Default), usage: "Default OCI runtime for containers", reload: true},
		{name: "default-shm-size", value: size(&def.ShmSize), usage: "Default shm size for containers", reload: true},
		{name: "default-ulimit", key: "default-ulimits", value: ulimits{&def.Ulimits}, usage: "Default ulimits for containers"},
		{name: "dns", value: addrs{&net.DNS}, usage: "DNS server to use"},
		{name: "dns-opt", key: "dns-opts", value: texts(&net.DNSOptions, nil), usage: "DNS options to use"},
		{name: "dns-search", value: texts(&net.DNSSearch, nil), usage: "DNS search domains to use"},
		{name: "exec-opt", key: "exec-opts", value: texts(&c.Runtime.ExecOptions, nil), usage: "Runtime execution options"},
		{name: "exec-root", value: text(&c.ExecRoot), usage: "Root directory for execution state files"},
		{name: "experimental", value: boolean(&c.Experimental), usage: "Enable experimental features"},
		{name: "feature", key: "features", value: flagsMap{&c.Features}, usage: "Enable feature in the daemon", reload: true},
		{name: "firewall-backend", value: text(&net.FirewallBackend), usage: "Firewall backend to use"},
		{name: "fixed-cidr", value: text(&net.FixedCIDR), usage: "IPv4 subnet for the default bridge network"},
		{name: "fixed-cidr-v6", value: text(&net.FixedCIDR6), usage: "IPv6 subnet for the default bridge network"},
		{name: "group", short: "G", value: text(&c.API.Group), usage: "Group for the unix socket"},
		{name: "host", short: "H", key: "hosts", value: texts(&c.API.Hosts, nil), usage: "Daemon socket(s) to connect to"},
		{name: "host-gateway-ip", key: "host-gateway-ips", value: addrs{&net.HostGatewayIPs}, usage: "IP addresses that the special 'host-gateway' string in --add-host resolves to. Defaults to the IP addresses of the default bridge"},
		{name: "http-proxy", value: text(&c.Proxy.HTTP), usage: "HTTP proxy URL to use for outgoing traffic"},
		{name: "https-proxy", value: text(&c.Proxy.HTTPS), usage: "HTTPS proxy URL to use for outgoing traffic"},
		{name: "icc", value: boolean(&net.ICC), usage: "Enable inter-container communication for the default bridge network"},
		{name: "init", value: boolean(&def.Init), usage: "Run an init in the container to forward signals and reap processes"},
		{name: "init-path", value: text(&def.InitPath), usage: "Path to the docker-init binary"},
		{name: "insecure-registry", key: "insecure-registries", value: texts(&c.Image.InsecureRegistries, nil), usage: "Enable insecure registry communication", reload: true},
		{name: "ip", value: addr(&net.IP), usage: "Host IP for port publishing from the default bridge network"},
		{name: "ip-forward", value: boolean(&net.IPForward), usage: "Enable IP forwarding in system configuration"},
		{name: "ip-forward-no-drop", value: boolean(&net.IPForwardNoDrop), usage: "Do not set the filter-FORWARD policy to DROP when enabling IP forwarding"},
		{name: "ip-masq", value: boolean(&net.IPMasq), usage: "Enable IP masquerading for the default bridge network"},
		{name: "ip6tables", value: boolean(&net.IP6Tables), usage: "Enable addition of ip6tables rules"},
		{name: "iptables", value: boolean(&net.IPTables), usage: "Enable addition of iptables rules"},
		{name: "ipv6", value: boolean(&net.IPv6), usage: "Enable IPv6 networking for the default bridge network"},
		{name: "label", key: "labels", value: texts(&c.Labels, checkLabel), usage: "Set key=value labels to the daemon", reload: true},
		{name: "live-restore", value: boolean(&c.LiveRestore), usage: "Enable live restore of docker when containers are still running", reload: true},
		{name: "log-driver", value: text(&def.LogDriver), usage: "Default driver for container logs"},
		{name: "log-format", value: text(&c.Log.Format), usage: `Set the logging format ("text"|"json")`},
		{name: "log-level", short: "l", value: text(&c.Log.Level), usage: `Set the logging level ("debug"|"info"|"warn"|"error"|"fatal")`},
		{name: "log-opt", key: "log-opts", value: dict{&def.LogOptions}, usage: "Default log driver options for containers"},
		{name: "max-concurrent-downloads", value: integer(&c.Image.MaxConcurrentDownloads), usage: "Set the max concurrent downloads", reload: true},
		{name: "max-concurrent-uploads", value: integer(&c.Image.MaxConcurrentUploads), usage: "Set the max concurrent uploads", reload: true},
		{name: "max-download-attempts", value: integer(&c.Image.MaxDownloadAttempts), usage: "Set the max download attempts for each pull", reload: true},
		{name: "mtu", value: integer(&net.MTU), usage: "Set the MTU for the default bridge network"},
		{name: "no-new-privileges", value: boolean(&def.NoNewPrivs), usage: "Set no-new-privileges by default for new containers"},
		{name: "no-proxy", value: text(&c.Proxy.No), usage: "Comma-separated list of hosts or IP addresses for which the proxy is skipped"},
		{name: "oom-score-adjust", value: integer(&c.OOMScoreAdjust), usage: "Set the oom_score_adj for the daemon"},
		{name: "pidfile", short: "p", value: text(&c.PidFile), usage: "Path to use for daemon PID file"},
		{name: "raw-logs", value: boolean(&c.Log.Raw), usage: "Full timestamps without ANSI coloring"},
		{name: "registry-mirror", key: "registry-mirrors", value: texts(&c.Image.Mirrors, checkMirror), usage: "Preferred registry mirror", reload: true},
		{name: "respect-host-firewall", value: boolean(&net.HostRules), usage: "Let the host's own firewall rules for input decide who reaches published ports"},
		{name: "rootless", value: boolean(&c.Rootless), usage: "Enable rootless mode; typically used with RootlessKit"},
		{name: "seccomp-profile", value: text(&def.SeccompProfile), usage: `Path to seccomp profile. Set to "unconfined" to disable the default seccomp profile`},
		{name: "selinux-enabled", value: boolean(&c.SELinux), usage: "Enable selinux support"},
		{name: "shutdown-timeout", value: secondsValue(&c.ShutdownTimeout), usage: "Set the default shutdown timeout", reload: true},
		{name: "storage-driver", short: "s", value: text(&c.Storage.Driver), usage: "Storage driver to use"},
		{name: "storage-opt", key: "storage-opts", value: texts(&c.Storage.Options, nil), usage: "Storage driver options"},
		{name: "tls", value: boolean(&c.API.TLS), usage: "Use TLS; implied by --tlsverify"},
		{name: "tlscacert", value: text(&c.API.CACert), usage: "Trust certs signed only by this CA"},
		{name: "tlscert", value: text(&c.API.Cert), usage: "Path to TLS certificate file"},
		{name: "tlskey", value: text(&c.API.Key), usage: "Path to TLS key file"},
		{name: "tlsverify", value: boolean(&c.API.TLSVerify), usage: "Use TLS and verify the remote"},
		{name: "userland-proxy", value: boolean(&net.UserlandProxy), usage: "Use userland proxy for loopback traffic"},
		{name: "userns-remap", value: text(&c.UsernsRemap), usage: "User/Group setting for user namespaces"},
		{name: "validate", key: "-", value: boolean(&c.Validate), usage: "Validate daemon configuration and exit"},
	}
	return append(opts, foreign()...)
}

// foreign are dockerd's options that have no meaning for this engine: it has
// no containerd, no proxy processes and no swarm manager. They are accepted so
// that an existing configuration works.
func foreign() []option {
	var opts []option
	for _, f := range []struct {
		name, key string
		isBool    bool
	}{
		{name: "containerd"},
		{name: "containerd-namespace"},
		{name: "containerd-plugins-namespace", key: "containerd-plugin-namespace"},
		{name: "cri-containerd", isBool: true},
		{name: "userland-proxy-path"},
		{name: "swarm-default-advertise-addr"},
		{name: "network-control-plane-mtu"},
		{name: "network-diagnostic-port"},
		{name: "metrics-addr"},
		{name: "node-generic-resource", key: "node-generic-resources"},
		{name: "api-cors-header"},
		{name: "allow-nondistributable-artifacts"},
		{name: "builder"},
		{name: "nri-opt", key: "nri-opts"},
		{name: "deprecated-key-path"},
		{name: "cluster-store"},
		{name: "cluster-advertise"},
		{name: "graph"},
		{name: "disable-legacy-registry", isBool: true},
		{name: "minimum-api-version"},
	} {
		opts = append(opts, option{name: f.name, key: f.key, value: &ignored{isBool: f.isBool}, usage: "Accepted for compatibility; has no effect", hidden: true})
	}
	return opts
}

func (o *option) fileKey() string {
	if o.key == "" {
		return o.name
	}
	return o.key
}

func secondsValue(p *time.Duration) value {
	return &secs{scalar[time.Duration]{p, "int", func(s string) (time.Duration, error) {
		var n int
		if _, err := fmt.Sscanf(s, "%d", &n); err != nil {
			return 0, fmt.Errorf("invalid number of seconds: %q", s)
		}
		return time.Duration(n) * time.Second, nil
	}}}
}

// secs is a duration that is written as a whole number of seconds.
type secs struct{ scalar[time.Duration] }

func (v *secs) String() string                    { return fmt.Sprint(int(v.p.Seconds())) }
func (v *secs) SetJSON(raw json.RawMessage) error { return v.Set(strings.Trim(string(raw), `" `)) }

func checkLabel(s string) (string, error) {
	key, _, ok := strings.Cut(s, "=")
	if key = strings.TrimSpace(key); key == "" {
		return "", fmt.Errorf("invalid label '%s': empty name", s)
	}
	if !ok {
		return "", fmt.Errorf("bad attribute format: %s", s)
	}
	if strings.HasPrefix(key, "com.docker.") || strings.HasPrefix(key, "io.docker.") || strings.HasPrefix(key, "org.dockerproject.") {
		return "", fmt.Errorf("label %s is not allowed: the namespaces com.docker.*, io.docker.*, and org.dockerproject.* are reserved for internal use", s)
	}
	return s, nil
}

func checkMirror(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("invalid mirror: %q is not a valid URI: %w", s, err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("invalid mirror: no scheme specified for %q: must use either 'https://' or 'http://'", s)
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("invalid mirror: query or fragment at end of the URI %q", s)
	case u.User != nil:
		return "", fmt.Errorf("invalid mirror: username/password not allowed in URI %q", u.Redacted())
	}
	return strings.TrimSuffix(s, "/") + "/", nil
}
