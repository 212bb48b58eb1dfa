// Package cdi gives containers the devices that vendors describe on this host,
// by the Container Device Interface.
//
// A vendor's tool writes specification files, YAML or JSON, into a few known
// directories. Each names devices ("vendor.com/class=name") and what a container
// needs to use one: device nodes, mounts, environment, hooks. A name that a user
// gives is looked up and the edits are made to the container's OCI
// specification:
//
//	reg := cdi.New([]string{"/etc/cdi", "/var/run/cdi"})
//	err := reg.Inject(spec, "vendor.com/net=nic0")
//
// The directories are read when a device is asked for, and not watched: a
// container without such devices costs nothing, and one with them sees what is
// there now.
package cdi

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Registry knows the directories of specifications. A nil Registry has no device.
type Registry struct{ dirs []string }

// New returns the registry of some directories; later ones win over earlier
// ones. Without any it returns nil: CDI is off.
func New(dirs []string) *Registry {
	if len(dirs) == 0 {
		return nil
	}
	return &Registry{slices.Clone(dirs)}
}

// read reads all specification files. What is wrong with some of them is no
// error of the others.
func (r *Registry) read() (*cdi.Cache, error) {
	if r == nil {
		return nil, errors.New("CDI is not enabled")
	}
	return cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(r.dirs...))
}

// Devices lists the names of all devices, sorted.
func (r *Registry) Devices() []string {
	c, err := r.read()
	if err != nil {
		return nil
	}
	return c.ListDevices()
}

// OfKind lists the devices of a vendor's class, "nvidia.com/gpu", by their
// names alone.
func (r *Registry) OfKind(kind string) []string {
	var out []string
	for _, d := range r.Devices() {
		if k, name, ok := strings.Cut(d, "="); ok && k == kind {
			out = append(out, name)
		}
	}
	return out
}

// Qualified reports whether s is the full name of a device, not a path.
func Qualified(s string) bool { return parser.IsQualifiedName(s) }

// Inject edits a container's specification so that it has the devices. An error
// names those that are not known, and the files that could not be read.
func (r *Registry) Inject(s *specs.Spec, devices ...string) error {
	c, err := r.read()
	if err != nil {
		return err
	}
	if _, err := c.InjectDevices(s, devices...); err != nil {
		for file, list := range c.GetErrors() {
			err = fmt.Errorf("%w (%s: %w)", err, file, errors.Join(list...))
		}
		return err
	}
	// Most files leave the type of a bind mount out.
	for i := range s.Mounts {
		if m := &s.Mounts[i]; m.Type == "" && (slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")) {
			m.Type = "bind"
		}
	}
	return nil
}
