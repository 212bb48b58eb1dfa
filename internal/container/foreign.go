package container

import (
	"os/exec"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/keeper"
)

// Runtime is another OCI runtime that containers may ask for by name.
type Runtime struct {
	Path string // of the program, or its name
	Args []string
}

// ownRuntimes are the names that mean the engine's own runtime: what Docker's
// clients and older records know it by.
var ownRuntimes = map[string]bool{"": true, "berth": true, "runc": true, "io.containerd.runc.v2": true, "io.containerd.runtime.v1.linux": true}

// foreign returns the other runtime that name asks for, nil for the engine's own.
func (d *Defaults) foreign(name string) (*Runtime, error) {
	if r, ok := d.Runtimes[name]; ok {
		return &r, nil
	}
	if ownRuntimes[name] {
		return nil, nil
	}
	return nil, errs.New(errs.Invalid, "unknown or invalid runtime name: %s", name)
}

// useForeign prepares a start by another runtime, which gets the rules of the
// filter instead of its code. It returns whether one is asked for.
func (s launcher) useForeign(r *Record, req *keeper.StartRequest, give func(int) int) (bool, error) {
	d := s.def.Load()
	rt, err := d.foreign(r.HostConfig.Runtime)
	if rt == nil || err != nil {
		return false, err
	}
	if req.OCI, err = rt.forKeeper(give); err != nil {
		return false, err
	}
	text, none, err := seccompText(r, d.Seccomp)
	if none || err != nil {
		return true, err
	}
	rules, err := seccompRules(text, req.Spec)
	if rules != nil {
		// The runtime's library tells the architectures apart; names without a
		// number on this machine are left out as by the engine's own.
		req.Spec.Linux.Seccomp = rules
	}
	return true, err
}

func (rt *Runtime) forKeeper(give func(int) int) (*keeper.OCIRuntime, error) {
	path, err := exec.LookPath(rt.Path)
	if err != nil {
		return nil, errs.New(errs.Invalid, "cannot find the runtime %s: %v", rt.Path, err)
	}
	fd, err := hostMounts()
	if err != nil {
		return nil, err
	}
	return &keeper.OCIRuntime{Path: path, Args: rt.Args, Host: give(fd)}, nil
}

// hostMounts opens the mount namespace that this process, and the runtime's
// program, are in.
func hostMounts() (int, error) {
	return unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
