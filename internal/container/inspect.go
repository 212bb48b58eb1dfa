package container

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/storage"

	"berth.dev/berth/internal/snapshot"
)

const zeroTime = "0001-01-01T00:00:00Z"

func apiTime(t time.Time) string {
	if t.IsZero() {
		return zeroTime
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// Inspect tells everything about a container.
func (s Views) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	c, err := s.Get(ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	r, st := c.Record(), c.Status()
	hc := *r.HostConfig
	hc.Links = Nets(s).shownLinks(r)
	out := container.InspectResponse{
		ID: string(r.ID), Created: apiTime(r.Created), Path: r.Path, Args: append([]string{}, r.Args...), Image: string(r.Image),
		Name: "/" + r.Name, RestartCount: st.RestartCount, Driver: r.Driver, Platform: r.Platform,
		HostConfig: &hc, Mounts: mountPoints(r), Config: r.Config,
		State: &container.State{
			Status: st.Phase.api(), Running: st.Phase.Running() || st.Phase == Restarting, Paused: st.Phase == Paused,
			Restarting: st.Phase == Restarting, OOMKilled: st.OOMKilled, Dead: st.Phase == Dead, Pid: st.Pid, ExitCode: st.ExitCode,
			Error: st.Error, StartedAt: apiTime(st.StartedAt), FinishedAt: apiTime(st.FinishedAt), Health: c.healthOf(st),
		},
		NetworkSettings: &container.NetworkSettings{Ports: Nets(s).portMap(r, st), Networks: Nets(s).endpoints(r, st)},
	}
	if !st.StartedAt.IsZero() {
		net := s.netDir(r)
		out.ResolvConfPath, out.HostnamePath, out.HostsPath = filepath.Join(net, "resolv.conf"), filepath.Join(net, "hostname"), filepath.Join(net, "hosts")
		if hc.LogConfig.Type == "json-file" {
			_, out.LogPath = r.logFile(s.dir(r.ID))
		}
	}
	if st.Phase.Running() {
		out.NetworkSettings.SandboxID = string(r.ID)
		if !hc.NetworkMode.IsContainer() {
			out.NetworkSettings.SandboxKey = "/proc/" + itoa(st.Pid) + "/ns/net"
		}
	}
	c.io.Lock()
	if len(c.execs) > 0 {
		out.ExecIDs = slices.Sorted(maps.Keys(c.execs))
	}
	c.io.Unlock()
	out.GraphDriver = s.graphDriver(ctx, r)
	if size {
		rw, root := s.size(ctx, r)
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

// graphDriver tells where the container's layers are.
func (s Views) graphDriver(ctx context.Context, r *Record) *storage.DriverData {
	out := &storage.DriverData{Name: r.Driver}
	if d, ok := s.o.Snapshots.Driver.(snapshot.Describer); ok {
		if data, err := d.Describe(ctx, string(r.ID)); err == nil {
			data["ID"] = string(r.ID)
			out.Data = data
		}
	}
	return out
}
