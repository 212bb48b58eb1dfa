package httpapi

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// legacyContainer is a container as it was inspected until 1.51. Its own
// fields hide those of today's type.
type legacyContainer struct {
	*container.InspectResponse
	Config          *legacyConfig
	NetworkSettings *legacyNetworkSettings
}

type legacyConfig struct {
	*container.Config
	OnBuild    []string // written when empty, too
	MacAddress string   `json:",omitempty"` // until 1.43: that of the main network
}

// legacyNetworkSettings has the fields that repeat the bridge network's endpoint.
type legacyNetworkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  network.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{}
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
	Networks               map[string]*network.EndpointSettings
}

// containerFor gives c the shape that it has in version v.
func containerFor(v Version, c *container.InspectResponse) any {
	if v >= 52 {
		return c
	}
	c.Storage = nil
	if v < 48 {
		c.ImageManifestDescriptor = nil
	}
	old := legacyContainer{InspectResponse: c}
	if c.Config != nil {
		old.Config = &legacyConfig{Config: c.Config, OnBuild: c.Config.OnBuild}
	}
	ns := c.NetworkSettings
	if ns == nil {
		return old
	}
	o := &legacyNetworkSettings{SandboxID: ns.SandboxID, SandboxKey: ns.SandboxKey, Ports: ns.Ports, Networks: ns.Networks}
	old.NetworkSettings = o
	if ep := ns.Networks[network.NetworkBridge]; ep != nil {
		o.EndpointID, o.Gateway, o.IPAddress, o.IPPrefixLen = ep.EndpointID, ep.Gateway, ep.IPAddress, ep.IPPrefixLen
		o.GlobalIPv6Address, o.GlobalIPv6PrefixLen, o.IPv6Gateway = ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen, ep.IPv6Gateway
		o.MacAddress = ep.MacAddress
	}
	if v < 45 {
		o.Networks = withShortID(c, ns.Networks)
	}
	// From 1.44 on it is the one that was asked for: known apart while nothing runs.
	if (v < 44 || c.State != nil && !c.State.Running) && old.Config != nil && c.HostConfig != nil {
		if ep := ns.Networks[string(c.HostConfig.NetworkMode)]; ep != nil && len(ep.MacAddress) > 0 {
			old.Config.MacAddress = ep.MacAddress.String()
		}
	}
	return old
}

// withShortID adds the container's short id to the aliases on user-defined
// networks, where it stood until 1.44.
func withShortID(c *container.InspectResponse, nets map[string]*network.EndpointSettings) map[string]*network.EndpointSettings {
	nets = maps.Clone(nets)
	for name, ep := range nets {
		if ep == nil || !container.NetworkMode(name).IsUserDefined() || len(c.ID) < 12 {
			continue
		}
		if ep = ep.Copy(); !slices.Contains(ep.Aliases, c.ID[:12]) {
			ep.Aliases = append(ep.Aliases, c.ID[:12])
		}
		nets[name] = ep
	}
	return nets
}
