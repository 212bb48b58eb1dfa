package container

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/runtime"
)

// security is what --security-opt says. Labels and AppArmor profiles are
// accepted as Docker does on a host without SELinux and AppArmor: nothing
// applies them.
type security struct {
	seccomp         string // "", "builtin", "unconfined", or a profile's text
	noNewPrivileges *bool
	writableCgroups *bool
	unmasked        bool // systempaths=unconfined
}

// parseSecurity reads the options in both of their forms, key=value and the old key:value.
func parseSecurity(opts []string) (s security, err error) {
	yes := true
	for _, o := range opts {
		switch o {
		case "no-new-privileges":
			s.noNewPrivileges = &yes
			continue
		case "writable-cgroups":
			s.writableCgroups = &yes
			continue
		case "disable": // of labels
			continue
		}
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":")
		}
		if !ok {
			return s, errs.New(errs.Invalid, "invalid --security-opt 1: %q", o)
		}
		bad := errs.New(errs.Invalid, "invalid --security-opt 2: %q", o)
		switch k {
		case "label", "apparmor":
		case "seccomp":
			s.seccomp = v
		case "no-new-privileges", "writable-cgroups":
			b, perr := strconv.ParseBool(v)
			if perr != nil {
				return s, bad
			}
			if k == "no-new-privileges" {
				s.noNewPrivileges = &b
			} else {
				s.writableCgroups = &b
			}
		case "systempaths":
			if v != "unconfined" {
				return s, bad
			}
			s.unmasked = true
		default:
			return s, bad
		}
	}
	return s, nil
}

// securityOf is what the options of a container say that were checked at its create.
func securityOf(hc *container.HostConfig) security {
	if len(hc.SecurityOpt) == 0 {
		return security{}
	}
	s, _ := parseSecurity(hc.SecurityOpt)
	return s
}

// capabilityNames brings the names of --cap-add or --cap-drop to their long
// form. all are those that can be given here.
func capabilityNames(what string, list, all []string) (names []string, every bool, err error) {
	for _, c := range list {
		c = strings.ToUpper(c)
		if c == "ALL" || c == "CAP_ALL" {
			every = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		switch {
		case slices.Contains(all, c):
		case runtime.IsCapability(c):
			if what == "CapDrop" {
				continue // nobody has it
			}
			return nil, false, errs.New(errs.Invalid, "invalid %s: capability not supported by your kernel or not available in the current environment: %q", what, c)
		default:
			return nil, false, errs.New(errs.Invalid, "invalid %s: unknown capability: %q", what, c)
		}
		names = append(names, c)
	}
	return names, every, nil
}

// checkProcess refuses what a process cannot be given.
func (s creator) checkProcess(cfg *container.Config, hc *container.HostConfig) error {
	if hc.UTSMode.IsHost() && cfg.Hostname != "" {
		return errs.New(errs.Invalid, "conflicting options: hostname and the UTS mode")
	}
	if len(hc.CapAdd)+len(hc.CapDrop) > 0 {
		if _, err := capabilities(hc, s.caps()); err != nil {
			return err
		}
	}
	if _, ok := hc.Annotations[""]; ok {
		return errs.New(errs.Invalid, "invalid Annotations: the empty string is not permitted as an annotation key")
	}
	for dest, opts := range hc.Tmpfs {
		if path.Clean(dest) == "/" {
			return errs.New(errs.Invalid, "invalid specification: destination can't be '/'")
		}
		if _, err := tmpfsOptions(opts); err != nil {
			return err
		}
	}
	for _, u := range hc.Ulimits {
		if !runtime.IsRlimit(u.Name) {
			return errs.New(errs.Invalid, "invalid ulimit type: %s", u.Name)
		}
	}
	sec, err := parseSecurity(hc.SecurityOpt)
	if err != nil {
		return err
	}
	if wc := sec.writableCgroups; wc != nil {
		switch {
		case hc.Privileged && !*wc:
			return errs.New(errs.Invalid, "option 'writable-cgroups' conflicts with privileged mode")
		case *wc && s.userns.holds(hc):
			return errs.New(errs.Invalid, "option 'writable-cgroups' conflicts with user namespaces")
		}
	}
	if err := s.nameDonors(hc); err != nil {
		return err
	}
	return s.checkUserns(hc)
}

// nameDonors replaces the names of containers whose namespaces are to be
// joined by their ids: they may be renamed. That one for the network is missing is
// told by the start.
func (s creator) nameDonors(hc *container.HostConfig) error {
	for _, donor := range []string{hc.PidMode.Container(), hc.IpcMode.Container()} {
		if donor == "" {
			continue
		}
		if _, err := s.Get(donor); err != nil {
			return errs.New(errs.Invalid, "%v", err)
		}
	}
	id := func(ref string) string {
		if c, err := s.Get(ref); err == nil {
			return "container:" + string(c.Record().ID)
		}
		return "container:" + ref // the start tells what is wrong
	}
	if hc.PidMode.IsContainer() {
		hc.PidMode = container.PidMode(id(hc.PidMode.Container()))
	}
	if hc.IpcMode.IsContainer() {
		hc.IpcMode = container.IpcMode(id(hc.IpcMode.Container()))
	}
	if hc.NetworkMode.IsContainer() && hc.NetworkMode.ConnectedContainer() != "" {
		hc.NetworkMode = container.NetworkMode(id(hc.NetworkMode.ConnectedContainer()))
	}
	return nil
}

// checkSysctls refuses settings that would reach out of the container: those
// that no namespace of its own holds. The words are those of Docker's runtime.
func checkSysctls(hc *container.HostConfig, remapped bool) error {
	for _, k := range sortedNames(hc.Sysctls) {
		name := strings.ReplaceAll(runtime.SysctlPath(k), "/", ".")
		why := ""
		switch {
		case strings.Contains(name, "..") || strings.HasPrefix(name, ".") || strings.HasSuffix(name, "."): // an element that is no name
			why = "sysctl %q is not in a separate kernel namespace"
		case strings.HasPrefix(name, "net."):
			if hc.NetworkMode.IsHost() {
				why = "sysctl %q not allowed in host network namespace"
			}
		case strings.HasPrefix(name, "fs.mqueue."), ipcSysctls[name]:
			if hc.IpcMode.IsHost() {
				why = "sysctl %q is not allowed in the hosts ipc namespace"
			}
		case name == "kernel.domainname":
			if hc.UTSMode.IsHost() {
				why = "sysctl %q is not in a separate kernel namespace"
			}
		case name == "kernel.hostname":
			why = "sysctl %q is not allowed as it conflicts with the OCI \"hostname\" field"
			if hc.UTSMode.IsHost() {
				why = "sysctl %q is not in a separate kernel namespace"
			}
		case strings.HasPrefix(name, "user.") && remapped:
		default:
			why = "sysctl %q is not in a separate kernel namespace"
		}
		if why != "" {
			return errs.New(errs.Invalid, "%s", createText(fmt.Sprintf(why, k)))
		}
	}
	return nil
}

var ipcSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true,
	"kernel.shmall": true, "kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}
