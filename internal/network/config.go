package network

import (
	"maps"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/state"
)

// A configuration network holds options and addresses for others that are made from it.
// It has no interface, and no container is on it.

const (
	optEnable4 = "com.docker.network.enable_ipv4"
	optEnable6 = "com.docker.network.enable_ipv6"
)

// checkConfig refuses what configuration networks, and those that are made from one, cannot have.
func checkConfig(r *network.CreateRequest) error {
	from := r.ConfigFrom != nil && r.ConfigFrom.Network != ""
	switch {
	case r.ConfigOnly && (r.Internal || r.Attachable || r.Ingress || r.Scope != ""):
		return errs.New(errs.Forbidden, "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.")
	case r.ConfigOnly && from:
		return errs.New(errs.Forbidden, "a configuration network cannot depend on another configuration network")
	case !from:
		return nil
	case r.EnableIPv4 != nil && !*r.EnableIPv4, r.EnableIPv6 != nil && *r.EnableIPv6, len(r.Labels) > 0,
		r.IPAM != nil && (len(r.IPAM.Config) > 0 || len(r.IPAM.Options) > 0 || r.IPAM.Driver != "" && r.IPAM.Driver != "default"):
		return errs.New(errs.Forbidden, "user-specified configurations are not supported if the network depends on a configuration network")
	case len(r.Options) > 0:
		return errs.New(errs.Forbidden, "network driver options are not supported if the network depends on a configuration network")
	}
	return nil
}

// configured is a request with what its configuration network says.
func (s publisher) configured(r network.CreateRequest) (network.CreateRequest, error) {
	if r.ConfigFrom == nil || r.ConfigFrom.Network == "" {
		return r, nil
	}
	s.mu.RLock()
	c := s.byName[r.ConfigFrom.Network]
	s.mu.RUnlock()
	if c == nil || !c.ConfigOnly {
		return r, errs.New(errs.NotFound, "configuration network %q does not exist", r.ConfigFrom.Network)
	}
	r.EnableIPv4, r.EnableIPv6 = &c.EnableIPv4, &c.EnableIPv6
	r.Options, r.Labels = maps.Clone(c.Options), maps.Clone(c.Labels)
	r.IPAM = &network.IPAM{Driver: "default", Options: maps.Clone(c.IPAM.Options), Config: slices.Clone(c.IPAM.Config)}
	return r, nil
}

// configures reports whether networks are made from a configuration network.
func (s publisher) configures(n *Network) bool {
	return n.ConfigOnly && slices.ContainsFunc(s.all(), func(o *Network) bool { return o.ConfigFrom.Network == n.Name })
}

// defaults gives a request the options that the daemon has for its driver, where it does
// not set them itself.
func (s publisher) defaults(r *network.CreateRequest) {
	driver := r.Driver
	if driver == "" || driver == "default" {
		driver = "bridge"
	}
	opts := s.o.Config.Defaults[driver]
	if len(opts) == 0 || r.ConfigFrom != nil && r.ConfigFrom.Network != "" {
		return
	}
	r.Options = maps.Clone(r.Options)
	if r.Options == nil {
		r.Options = map[string]string{}
	}
	for k, v := range opts {
		if k == optEnable4 && r.EnableIPv4 != nil || k == optEnable6 && r.EnableIPv6 != nil {
			continue
		}
		if _, own := r.Options[k]; !own {
			r.Options[k] = v
		}
	}
}

// enabled tells whether a family is wanted: by the request, by an option, by default.
func enabled(asked *bool, options map[string]string, key string, otherwise bool) (bool, error) {
	if asked != nil {
		return *asked, nil
	}
	v, ok := options[key]
	if !ok {
		return otherwise, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, errs.New(errs.Invalid, "failed to parse %s value: %q (%v)", key, v, err)
	}
	return on, nil
}

// createConfig records a configuration network.
func (s publisher) createConfig(n *Network, r *network.CreateRequest) (id, warning string, err error) {
	n.ConfigOnly, n.Driver = true, "null"
	n.EnableIPv4 = r.EnableIPv4 == nil || *r.EnableIPv4
	n.EnableIPv6 = r.EnableIPv6 != nil && *r.EnableIPv6
	n.IPAM.Driver = "default"
	if r.IPAM != nil {
		n.IPAM.Options, n.IPAM.Config = r.IPAM.Options, slices.Clone(r.IPAM.Config)
	}
	s.mu.Lock()
	if _, taken := s.byName[n.Name]; taken {
		s.mu.Unlock()
		return "", "", errs.New(errs.Conflict, "network with name %s already exists", n.Name)
	}
	s.add(n)
	s.mu.Unlock()
	if err := s.o.DB.Update(state.Soon, func(tx *state.Tx) error { return tx.Put(bucket, "n/"+n.ID, n) }); err != nil {
		_ = s.remove(n)
		return "", "", err
	}
	s.o.Event(events.ActionCreate, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return n.ID, "", nil
}
