package daemon

import (
	"cmp"
	"maps"
	"net/netip"
	"os"
	"strings"

	"github.com/moby/moby/api/types/registry"
	apisystem "github.com/moby/moby/api/types/system"

	"berth.dev/berth/internal/httpapi"
	"berth.dev/berth/internal/logs/drivers"
	"berth.dev/berth/internal/system"
)

// Version, GitCommit and BuildTime are set by the linker.
var (
	Version   = "0.1.0-dev"
	GitCommit = "unknown"
	BuildTime = ""
)

// APIOptions is what the API tells about an engine with the configuration c.
func APIOptions(c *Config) httpapi.Options {
	o := httpapi.Options{ServerVersion: Version, Experimental: c.Experimental, CgroupV2: cgroupV2()}
	if c.Network.Bridge == "none" {
		o.DefaultNetwork = "none"
	}
	return o
}

// SystemConfig is c as the system service tells it; id is the engine's.
func SystemConfig(c *Config, id string) system.Config {
	s := system.Config{
		Root: c.DataRoot, ID: id, Labels: c.Labels, Debug: c.Debug, Experimental: c.Experimental, LiveRestore: true,
		Build:          system.Build{Version: Version, GitCommit: GitCommit, Time: BuildTime, APIVersion: httpapi.MaxVersion.String(), MinAPI: httpapi.MinVersion.String()},
		LogDriver:      c.Default.LogDriver,
		CgroupDriver:   c.Runtime.CgroupDriver,
		DefaultRuntime: c.Runtime.Default,
		Runtimes:       map[string]apisystem.RuntimeWithStatus{system.DefaultRuntime: {}},
		InitBinary:     "berth-init",
		SeccompProfile: c.Default.SeccompProfile, NoNewPrivileges: c.Default.NoNewPrivs,
		UserNS:      c.UsernsRemap != "",
		Plugins:     apisystem.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "ipvlan", "macvlan", "null"}, Authorization: c.AuthPlugins, Log: drivers.Names()},
		Registry:    registryInfo(&c.Image),
		CDISpecDirs: c.CDISpecDirs,
		Firewall:    &apisystem.FirewallInfo{Driver: cmp.Or(c.Network.FirewallBackend, "nftables")},
		Proxy:       system.Proxy{HTTP: proxy(c.Proxy.HTTP, "HTTP_PROXY"), HTTPS: proxy(c.Proxy.HTTPS, "HTTPS_PROXY"), No: proxy(c.Proxy.No, "NO_PROXY")},
	}
	if c.Default.InitPath != "" {
		s.InitBinary = c.Default.InitPath
	}
	for name, r := range c.Runtime.Runtimes {
		s.Runtimes[name] = apisystem.RuntimeWithStatus{Runtime: r}
	}
	for _, p := range c.Network.AddressPools {
		s.AddressPools = append(s.AddressPools, apisystem.NetworkAddressPool{Base: p.Base, Size: p.Size})
	}
	for _, h := range c.API.Hosts {
		addr, ok := strings.CutPrefix(h, "tcp://")
		switch {
		case !ok || c.API.TLSVerify:
		case c.API.TLS:
			s.UnauthedHosts = append(s.UnauthedHosts, addr)
		default:
			s.InsecureHosts = append(s.InsecureHosts, addr)
		}
	}
	return s
}

func proxy(configured, env string) string {
	if configured != "" {
		return configured
	}
	if v := os.Getenv(env); v != "" {
		return v
	}
	return os.Getenv(strings.ToLower(env))
}

// registryInfo is the registry configuration as the API shows it.
func registryInfo(c *ImageConfig) *registry.ServiceConfig {
	index := map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: c.Mirrors, Secure: true, Official: true}}
	if index["docker.io"].Mirrors == nil {
		index["docker.io"].Mirrors = []string{}
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")}
	extra := map[string]*registry.IndexInfo{}
	for _, r := range c.InsecureRegistries {
		r = strings.TrimPrefix(strings.TrimPrefix(r, "https://"), "http://")
		if p, err := netip.ParsePrefix(r); err == nil {
			cidrs = append(cidrs, p)
			continue
		}
		extra[r] = &registry.IndexInfo{Name: r, Mirrors: []string{}}
	}
	maps.Copy(index, extra)
	return &registry.ServiceConfig{InsecureRegistryCIDRs: cidrs, IndexConfigs: index, Mirrors: index["docker.io"].Mirrors}
}
