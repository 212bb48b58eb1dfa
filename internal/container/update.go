package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/blkiodev"
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
	warnings, err := creator(s).validateLimits(&u.Resources, true)
	if err == nil {
		err = validateRestart(u.RestartPolicy)
	}
	if err != nil {
		return none, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	cannot := func(kind errs.Kind, err error) (container.UpdateResponse, error) {
		return none, errs.Wrap(kind, err, "Cannot update container "+string(r.ID))
	}
	if p := c.Status().Phase; p == Removing || p == Dead {
		return cannot(errs.Conflict, errors.New(`container is marked for removal and cannot be "update"`))
	}
	hc := *r.HostConfig
	if err := mergeLimits(&hc.Resources, &u.Resources); err != nil {
		return cannot(errs.Conflict, err)
	}
	if u.RestartPolicy.Name != "" {
		if hc.AutoRemove && !u.RestartPolicy.IsNone() {
			return cannot(errs.Conflict, errors.New("Restart policy cannot be updated because AutoRemove is enabled for the container")) //nolint:staticcheck // Docker's words
		}
		hc.RestartPolicy = u.RestartPolicy
	}
	if c.Status().Phase.Running() {
		lr := &specs.LinuxResources{}
		if err := resources(&hc.Resources, lr); err != nil {
			return cannot(errs.Invalid, err)
		}
		if s.o.Systemd != nil {
			if err := s.o.Systemd.Update(ctx, scopeName(r.ID), lr); err != nil {
				return cannot(errs.Internal, err)
			}
		}
		// One that has just ended, whose exit waits for this, gets them with its next start.
		if err := s.keeper.Update(ctx, &keeper.Target{ID: string(r.ID), Limits: lr}); err != nil && !hasEnded(err) {
			return cannot(errs.Internal, fmt.Errorf("runc did not terminate successfully: exit status 1: %w: unknown", err))
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

// hasEnded reports whether the keeper says that a process is over.
func hasEnded(err error) bool {
	var f *keeper.Failure
	return errors.As(err, &f) && (f.Kind == keeper.KindState || f.Kind == keeper.KindNotFound)
}

// mergeLimits puts what u sets over what is. Two ways to say the same of the
// processors exclude each other, as at create.
func mergeLimits(to, u *container.Resources) error {
	conflict := func(text string) error { return errors.New("Conflicting options: " + text + " has already been set") } //nolint:staticcheck // Docker's words
	switch {
	case u.NanoCPUs > 0 && to.CPUPeriod > 0:
		return conflict("Nano CPUs cannot be updated as CPU Period")
	case u.NanoCPUs > 0 && to.CPUQuota > 0:
		return conflict("Nano CPUs cannot be updated as CPU Quota")
	case u.CPUPeriod > 0 && to.NanoCPUs > 0:
		return conflict("CPU Period cannot be updated as NanoCPUs")
	case u.CPUQuota > 0 && to.NanoCPUs > 0:
		return conflict("CPU Quota cannot be updated as NanoCPUs")
	case u.Memory != 0 && u.Memory > to.MemorySwap && u.MemorySwap == 0:
		return errors.New("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time") //nolint:staticcheck // Docker's words
	}
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
	set(&to.NanoCPUs, u.NanoCPUs)
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
		n := max(*u.PidsLimit, 0) // all that is not a limit takes it away, and is shown as 0
		to.PidsLimit = &n
	}
	if len(u.BlkioWeightDevice) > 0 {
		to.BlkioWeightDevice = u.BlkioWeightDevice
	}
	for _, x := range []struct{ to, u *[]*blkiodev.ThrottleDevice }{
		{&to.BlkioDeviceReadBps, &u.BlkioDeviceReadBps},
		{&to.BlkioDeviceWriteBps, &u.BlkioDeviceWriteBps},
		{&to.BlkioDeviceReadIOps, &u.BlkioDeviceReadIOps},
		{&to.BlkioDeviceWriteIOps, &u.BlkioDeviceWriteIOps},
	} {
		if len(*x.u) > 0 {
			*x.to = *x.u
		}
	}
	if to.MemorySwap > 0 && to.MemorySwap < to.Memory {
		return errors.New("Minimum memoryswap limit should be larger than memory limit, see usage") //nolint:staticcheck // Docker's words
	}
	return nil
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
