package container

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/systemd"
)

// scopeName is the unit of a container where systemd makes the cgroups.
func scopeName(id ID) string { return "berth-" + string(id) + ".scope" }

// scope has systemd make the cgroup of a container that is about to start.
func (s launcher) scope(ctx context.Context, r *Record, limits *specs.LinuxResources) (*systemd.Unit, error) {
	slice := r.HostConfig.CgroupParent
	if slice == "" {
		slice = s.o.Slice
	}
	u, err := s.o.Systemd.Start(ctx, systemd.Scope{Name: scopeName(r.ID), Description: "berth container " + string(r.ID), Slice: slice, Limits: limits})
	if err != nil {
		return nil, errs.Wrap(errs.Internal, &failedStart{code: 128, msg: startText("run", "unable to apply cgroup configuration: "+err.Error())}, "")
	}
	return u, nil
}
