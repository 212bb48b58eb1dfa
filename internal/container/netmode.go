package container

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
)

// check refuses what a network mode cannot be combined with, and links and ports
// that mean nothing. The order is Docker's: of several faults the first is told.
func (s Nets) check(cfg *container.Config, hc *container.HostConfig) error {
	for port, list := range hc.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return errs.New(errs.Invalid, "invalid port specification: %q", port.String())
		}
		for _, b := range list {
			if b.HostPort == "" {
				continue // any that is free
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return errs.New(errs.Invalid, "invalid port specification: %q", b.HostPort)
			}
		}
	}
	m := hc.NetworkMode
	if m == "" || m.IsDefault() {
		hc.NetworkMode = "default"
	}
	if m == "container" || m.IsContainer() {
		conflict := ""
		switch {
		case m.ConnectedContainer() == "":
			return errs.New(errs.Invalid, "invalid network mode: invalid container format container:<name|id>")
		case cfg.Hostname != "":
			conflict = "hostname and the network mode"
		case len(hc.Links) > 0:
			conflict = "container type network can't be used with links. This would result in undefined behavior"
		case len(hc.DNS) > 0:
			conflict = "dns and the network mode"
		case len(hc.ExtraHosts) > 0:
			conflict = "custom host-to-IP mapping and the network mode"
		case len(hc.PortBindings) > 0 || hc.PublishAllPorts:
			conflict = "port publishing and the container type network mode"
		case len(cfg.ExposedPorts) > 0:
			conflict = "port exposing and the container type network mode"
		}
		if conflict != "" {
			return errs.New(errs.Invalid, "conflicting options: %s", conflict)
		}
	}
	if len(hc.Links) == 0 {
		return nil
	}
	if m.IsHost() {
		return errs.New(errs.Invalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if m.IsUserDefined() {
		return nil // an alias there, whose target may come and go
	}
	list, err := s.bindLinks(hc)
	if err == nil {
		hc.Links = list
	}
	return err
}
