package container

import (
	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

// remapped reports whether a container runs in a user namespace.
func (s *Service) remapped(hc *container.HostConfig) bool {
	return s.o.IDMap != nil && !hc.UsernsMode.IsHost()
}

// checkUserns refuses what a container in a user namespace cannot have.
func (s creator) checkUserns(hc *container.HostConfig) error {
	if !s.remapped(hc) {
		return nil
	}
	switch {
	case hc.Privileged:
		return errs.New(errs.Invalid, "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
	case hc.NetworkMode.IsHost():
		return errs.New(errs.Invalid, "cannot share the host's network namespace when user namespaces are enabled")
	case hc.PidMode.IsHost():
		return errs.New(errs.Invalid, "cannot share the host PID namespace when user namespaces are enabled")
	}
	return nil
}
