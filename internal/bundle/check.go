package bundle

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// check refuses what this program cannot do, and fills what the configuration
// may leave out. Paths are made absolute by the bundle's.
func check(s *specs.Spec, bundle string) error {
	if s.Linux == nil {
		return errors.New("config.json: the property linux is missing")
	}
	if err := checkProcess(s.Process); err != nil {
		return err
	}
	if s.Root == nil || s.Root.Path == "" {
		return errors.New("config.json: the property root.path is missing")
	}
	if !filepath.IsAbs(s.Root.Path) {
		s.Root.Path = filepath.Join(bundle, s.Root.Path)
	}
	no := func(what string, set bool) error {
		if set {
			return fmt.Errorf("config.json: %s is not supported by this runtime", what)
		}
		return nil
	}
	l := s.Linux
	return errors.Join(
		checkNamespaces(l),
		checkMounts(s, bundle),
		no("linux.intelRdt", l.IntelRdt != nil),
		no("linux.mountLabel", l.MountLabel != ""),
		no("linux.personality", l.Personality != nil && l.Personality.Domain != "" && l.Personality.Domain != specs.PerLinux),
		no("linux.timeOffsets", len(l.TimeOffsets) > 0),
		no("linux.netDevices", len(l.NetDevices) > 0),
		no("linux.seccomp.listenerPath", l.Seccomp != nil && l.Seccomp.ListenerPath != ""),
	)
}

func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("config.json: the property process is missing")
	case len(p.Args) == 0:
		return errors.New("config.json: process.args must not be empty")
	case p.Cwd == "":
		return errors.New("config.json: process.cwd must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return errors.New("Cwd must be an absolute path") //nolint:staticcheck // runc's text
	case p.SelinuxLabel != "":
		return errors.New("config.json: process.selinuxLabel is not supported by this runtime")
	case p.Scheduler != nil || p.IOPriority != nil:
		return errors.New("config.json: process.scheduler and process.ioPriority are not supported by this runtime")
	}
	return nil
}

func checkNamespaces(l *specs.Linux) error {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		if seen[ns.Type] {
			return fmt.Errorf("config.json: the namespace %s stands twice", ns.Type)
		}
		seen[ns.Type] = true
		if ns.Path != "" && ns.Type == specs.MountNamespace {
			return fmt.Errorf("config.json: joining a %s namespace by its path is not supported by this runtime", ns.Type)
		}
		if ns.Path != "" && !filepath.IsAbs(ns.Path) {
			return fmt.Errorf("config.json: the path of the %s namespace is not absolute", ns.Type)
		}
		if ns.Type == specs.UserNamespace && ns.Path == "" && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
			return errors.New("config.json: a user namespace needs uidMappings and gidMappings")
		}
	}
	if !seen[specs.MountNamespace] {
		return errors.New("config.json: a container without a mount namespace of its own is not supported by this runtime")
	}
	return nil
}

func checkMounts(s *specs.Spec, bundle string) error {
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			return fmt.Errorf("config.json: the mount %s: ID mappings are not supported by this runtime", m.Destination)
		}
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "notmpcopyup" })
		if !isBind(m) {
			continue
		}
		if !filepath.IsAbs(m.Source) {
			m.Source = filepath.Join(bundle, m.Source)
		}
		if !slices.ContainsFunc(m.Options, isPropagation) {
			m.Options = append(m.Options, "rprivate")
		}
	}
	return nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func isPropagation(o string) bool {
	switch strings.TrimPrefix(o, "r") {
	case "private", "shared", "slave", "unbindable":
		return true
	}
	return false
}

const defaultParent = "/berth-runtime" // of cgroups, where the configuration names none

// cgroupPath is the place of the container's cgroup. A path in systemd's form
// "slice:prefix:name" becomes a plain one: this program talks to no systemd.
func cgroupPath(s *specs.Spec, id string) (string, error) {
	p := s.Linux.CgroupsPath
	if p == "" {
		return defaultParent + "/" + id, nil
	}
	if f := strings.Split(p, ":"); len(f) == 3 && !strings.HasPrefix(p, "/") {
		slice := f[0]
		if slice == "" {
			slice = "system.slice"
		}
		p = slice + "/" + f[1] + "-" + f[2] + ".scope"
	}
	p = filepath.Join("/", p)
	if p == "/" {
		return "", errors.New("config.json: linux.cgroupsPath is the root of the hierarchy")
	}
	return p, nil
}
