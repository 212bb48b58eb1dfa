package network

import (
	"errors"
	"net/netip"
	"strings"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
)

// The gateway modes of a bridge network, for each family. Without one it is nat.
const (
	modeNAT         = "nat"             // published ports are led to containers, which speak by the host's address
	modeUnprotected = "nat-unprotected" // so too, and others reach all ports at the containers' own addresses
	modeRouted      = "routed"          // no translation: published ports are open at the containers' own addresses
	modeIsolated    = "isolated"        // the host has no address on the bridge
)

const (
	optMode4   = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6   = "com.docker.network.bridge.gateway_mode_ipv6"
	optInhibit = "com.docker.network.bridge.inhibit_ipv4"
	optTrusted = "com.docker.network.bridge.trusted_host_interfaces" // "eth0:eth1"
	optSource4 = "com.docker.network.host_ipv4"
	optSource6 = "com.docker.network.host_ipv6"
)

// mode is the gateway mode of an address's family.
func (n *Network) mode(a netip.Addr) string {
	m := n.Mode4
	if a.Is6() {
		m = n.Mode6
	}
	if m == "" {
		return modeNAT
	}
	return m
}

func readMode(v string) (string, error) {
	switch v {
	case "", modeNAT, modeUnprotected, modeRouted, modeIsolated:
		return v, nil
	}
	return "", errors.New("unknown gateway mode " + v)
}

// readTrusted reads names of interfaces.
func readTrusted(v string) ([]string, error) {
	list := strings.Split(v, ":")
	for _, name := range list {
		if !bridge.ValidName(name) {
			return nil, errors.New("invalid interface name " + name)
		}
	}
	return list, nil
}

// checkModes refuses what modes cannot be.
func (n *Network) checkModes() error {
	if (n.Mode4 == modeIsolated || n.Mode6 == modeIsolated) && !n.Internal {
		return errs.New(errs.Invalid, "gateway mode 'isolated' can only be used for an internal network")
	}
	return nil
}

// onBridge reports whether the host has its address of that family on the bridge.
func (n *Network) onBridge(gateway netip.Addr) bool {
	return n.mode(gateway) != modeIsolated && !(gateway.Is4() && n.Inhibit)
}

// direct reports whether what is published of a container is to be reached at its own
// address, too: by whom is for the firewall to say.
func (s publisher) direct(n *Network, a netip.Addr) bool {
	switch n.mode(a) {
	case modeRouted:
		return true
	case modeNAT:
		return s.o.Config.AllowDirect || len(n.Trusted) > 0
	}
	return false
}
