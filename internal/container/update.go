package container

import (
	"context"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/state"
)

// Update changes limits and the restart policy, also while the container runs.
func (s Edits) Update(ctx context.Context, ref string, u container.UpdateConfig) (container.UpdateResponse, error) {
	none := container.UpdateResponse{}
	c, err := s.Get(ref)
	if err != nil {
		return none, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	hc := *r.HostConfig
	if u.RestartPolicy.Name != "" {
		if hc.AutoRemove && !u.RestartPolicy.IsNone() {
			return none, errs.New(errs.Invalid, "Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		hc.RestartPolicy = u.RestartPolicy
	}
	mergeLimits(&hc.Resources, &u.Resources)
	if hc.Memory > 0 && hc.MemorySwap > 0 && hc.MemorySwap < hc.Memory {
		if u.MemorySwap == 0 {
			return none, errs.New(errs.Conflict, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
		}
		return none, errs.New(errs.Invalid, "Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	cfg := *r.Config
	warnings, err := creator(s).validate(&cfg, &hc)
	if err != nil {
		return none, err
	}
	if c.Status().Phase.Running() {
		lr := &specs.LinuxResources{}
		lr.Memory, lr.CPU, lr.Pids, lr.BlockIO = resources(&hc.Resources)
		if err := s.keeper.Update(ctx, &keeper.Target{ID: string(r.ID), Limits: lr}); err != nil {
			return none, errs.Wrap(errs.Internal, err, "Cannot update container "+string(r.ID))
		}
	}
	r.HostConfig = &hc
	if err := s.o.DB.Update(state.Sync, func(tx *state.Tx) error { return putRecord(tx, &r) }); err != nil {
		return none, err
	}
	c.rec.Store(&r)
	s.event(c, events.ActionUpdate)
	if warnings == nil {
		warnings = []string{}
	}
	return container.UpdateResponse{Warnings: warnings}, nil
}

// mergeLimits puts what u sets over what is.
func mergeLimits(to, u *container.Resources) {
	set := func(dst *int64, v int64) {
		if v != 0 {
			*dst = v
		}
	}
	set(&to.Memory, u.Memory)
	set(&to.MemorySwap, u.MemorySwap)
	set(&to.MemoryReservation, u.MemoryReservation)
	set(&to.CPUShares, u.CPUShares)
	set(&to.CPURealtimePeriod, u.CPURealtimePeriod)
	set(&to.CPURealtimeRuntime, u.CPURealtimeRuntime)
	if u.NanoCPUs != 0 {
		to.NanoCPUs, to.CPUPeriod, to.CPUQuota = u.NanoCPUs, 0, 0
	}
	if u.CPUPeriod != 0 || u.CPUQuota != 0 {
		to.NanoCPUs = 0
	}
	set(&to.CPUPeriod, u.CPUPeriod)
	set(&to.CPUQuota, u.CPUQuota)
	if u.BlkioWeight != 0 {
		to.BlkioWeight = u.BlkioWeight
	}
	if u.CpusetCpus != "" {
		to.CpusetCpus = u.CpusetCpus
	}
	if u.CpusetMems != "" {
		to.CpusetMems = u.CpusetMems
	}
	if u.PidsLimit != nil {
		to.PidsLimit = u.PidsLimit
	}
}

// Prune removes every container that does not run and that the filters leave.
func (s Edits) Prune(ctx context.Context, f filter.Args) (container.PruneReport, error) {
	out := container.PruneReport{}
	if err := f.Validate("label", "label!", "until"); err != nil {
		return out, err
	}
	until, err := f.Until()
	if err != nil {
		return out, err
	}
	for _, c := range s.all() {
		r, st := c.Record(), c.Status()
		if st.Phase.Running() || st.Phase == Restarting || st.Phase == Removing || !until.IsZero() && !r.Created.Before(until) {
			continue
		}
		if !f.Labels("label", r.Config.Labels) || f.Has("label!") && f.Labels("label!", r.Config.Labels) {
			continue
		}
		size, _ := s.size(ctx, r)
		if err := s.Remove(ctx, string(r.ID), RemoveOptions{}); err != nil {
			s.o.Log.Warn("failed to prune a container", "id", r.ID, "error", err)
			continue
		}
		out.ContainersDeleted = append(out.ContainersDeleted, string(r.ID))
		out.SpaceReclaimed += uint64(size)
	}
	s.o.Events.Log(eventType, events.ActionPrune, "", map[string]string{"reclaimed": itoa(int(out.SpaceReclaimed))})
	return out, nil
}
