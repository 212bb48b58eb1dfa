package container

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
)

// ListOptions choose containers.
type ListOptions struct {
	All, Size bool
	Limit     int // the newest ones; 0 for no limit
	Filters   filter.Args
}

var listFilters = []string{
	"ancestor", "annotation", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish",
	"since", "status", "volume",
}

// List returns containers, the newest first. It takes no lock that a start or a
// stop holds.
func (s Views) List(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	f := o.Filters
	if err := f.Validate(listFilters...); err != nil {
		return nil, err
	}
	var exits []int
	for _, v := range f["exited"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errs.New(errs.Invalid, "strconv.Atoi: parsing %q: invalid syntax", v)
		}
		exits = append(exits, n)
	}
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter 'status=%s'", v)
		}
	}
	for _, v := range f["health"] {
		if !slices.Contains([]string{"starting", "healthy", "unhealthy", "none"}, v) {
			return nil, errs.New(errs.Invalid, "invalid filter 'health=%s'", v)
		}
	}
	var before, since *Container
	var err error
	if f.Has("before") {
		if before, err = s.Get(f["before"][0]); err != nil {
			return nil, err
		}
	}
	if f.Has("since") {
		if since, err = s.Get(f["since"][0]); err != nil {
			return nil, err
		}
	}
	ports, err := portsOf(f)
	if err != nil {
		return nil, err
	}
	ancestors := s.ancestors(ctx, f)
	list := s.all()
	slices.SortFunc(list, func(a, b *Container) int { return b.Record().Created.Compare(a.Record().Created) })
	out := []container.Summary{}
	aliases := Nets(s).aliases(list)
	for _, c := range list {
		r, st := c.Record(), c.Status()
		if !o.All && o.Limit <= 0 && !st.Phase.Running() && st.Phase != Restarting && !f.Has("status") && !f.Has("exited") {
			continue
		}
		if before != nil && !r.Created.Before(before.Record().Created) || since != nil && !r.Created.After(since.Record().Created) {
			continue
		}
		if len(exits) > 0 && (!slices.Contains(exits, st.ExitCode) || st.Phase.Running() || st.StartedAt.IsZero()) {
			continue
		}
		if ancestors != nil && !ancestors[string(r.Image)] {
			continue
		}
		if !matches(f, r, st) || f.Has("network") && !Nets(s).isOn(r, f["network"]) {
			continue
		}
		sum := s.summary(r, st, aliases[r.ID])
		if !ports.matches(r, sum.Ports) {
			continue
		}
		sum.Health = &container.HealthSummary{Status: st.healthStatus()}
		if h := c.health.Load(); h != nil && st.Health != "" {
			sum.Health.FailingStreak = h.FailingStreak
		}
		if o.Size {
			sum.SizeRw, sum.SizeRootFs = s.size(ctx, r)
		}
		out = append(out, sum)
		if o.Limit > 0 && len(out) == o.Limit {
			break
		}
	}
	return out, nil
}

// ancestors are the image ids that the filter names; nil for no filter.
func (s Views) ancestors(ctx context.Context, f filter.Args) map[string]bool {
	if !f.Has("ancestor") {
		return nil
	}
	out := map[string]bool{}
	for _, a := range f["ancestor"] {
		if img, err := s.o.Images.Resolve(ctx, a); err == nil {
			out[string(img.ID)] = true
		}
	}
	return out
}

func matches(f filter.Args, r *Record, st *Status) bool {
	if !f.Exact("status", string(st.Phase)) || !f.Labels("label", r.Config.Labels) || !f.Fuzzy("id", string(r.ID)) {
		return false
	}
	if f.Has("annotation") && !f.Labels("annotation", r.HostConfig.Annotations) {
		return false
	}
	if !f.Exact("health", string(st.healthStatus())) {
		return false
	}
	if !f.Match("name", r.Name) && !f.Match("name", "/"+r.Name) {
		return false
	}
	if f.Has("is-task") && f["is-task"][0] == "true" {
		return false
	}
	if f.Has("volume") && !slices.ContainsFunc(r.Mounts, func(m Mount) bool {
		return slices.Contains(f["volume"], m.Name) || slices.Contains(f["volume"], m.Source) || slices.Contains(f["volume"], m.Destination)
	}) {
		return false
	}
	return true
}

// portFilter is what the filters "expose" and "publish" let through: one of the
// container's ports, or of the host's ports that lead to it. The zero value is no filter.
type portFilter struct{ exposed, published []network.PortRange }

func portsOf(f filter.Args) (portFilter, error) {
	var out portFilter
	for key, list := range map[string]*[]network.PortRange{"expose": &out.exposed, "publish": &out.published} {
		for _, v := range f[key] {
			if strings.Contains(v, ":") {
				return out, errs.New(errs.Invalid, "filter for '%s' should not contain ':': %s", key, v)
			}
			r, err := network.ParsePortRange(v)
			if err != nil {
				return out, errs.New(errs.Invalid, "error while looking up for %s %s: %v", key, v, err)
			}
			*list = append(*list, r)
		}
	}
	return out, nil
}

func (p portFilter) matches(r *Record, ports []container.PortSummary) bool {
	in := func(list []network.PortRange, num uint16, proto string) bool {
		return slices.ContainsFunc(list, func(r network.PortRange) bool {
			return string(r.Proto()) == proto && r.Start() <= num && num <= r.End()
		})
	}
	for port := range r.Config.ExposedPorts {
		if in(p.exposed, port.Num(), string(port.Proto())) {
			return true
		}
	}
	for _, s := range ports {
		if in(p.published, s.PublicPort, s.Type) || in(p.exposed, s.PrivatePort, s.Type) {
			return true
		}
	}
	return len(p.exposed)+len(p.published) == 0
}

// networkName is the network that a container is on, as a user calls it, for
// those that have none of their own.
func networkName(r *Record) string {
	switch m := r.HostConfig.NetworkMode; {
	case m.IsHost():
		return "host"
	case m.IsContainer():
		return string(m)
	default:
		return "none"
	}
}

func (s Views) summary(r *Record, st *Status, aliases []string) container.Summary {
	sum := container.Summary{
		ID: string(r.ID), Names: shownNames(r, aliases), Image: s.imageName(r), ImageID: string(r.Image),
		Command: command(r), Created: r.Created.Unix(), Ports: Nets(s).ports(r, st), Labels: r.Config.Labels,
		State: st.Phase.api(), Status: statusText(st), Mounts: mountPoints(r),
	}
	sum.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	sum.HostConfig.Annotations = r.HostConfig.Annotations
	sum.NetworkSettings = &container.NetworkSettingsSummary{Networks: Nets(s).endpoints(r, st)}
	if sum.Labels == nil {
		sum.Labels = map[string]string{}
	}
	return sum
}

// imageName is the name that the container was made from, unless it has moved
// on to another image since: then the id.
func (s Views) imageName(r *Record) string {
	name := r.Config.Image
	if img, err := s.o.Images.Resolve(context.Background(), name); err == nil && img.ID == r.Image {
		return name
	}
	return string(r.Image)
}

func command(r *Record) string {
	if len(r.Args) == 0 {
		return r.Path
	}
	args := make([]string, 0, len(r.Args))
	for _, a := range r.Args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		args = append(args, a)
	}
	return r.Path + " " + strings.Join(args, " ")
}

func mountPoints(r *Record) []container.MountPoint {
	out := make([]container.MountPoint, 0, len(r.Mounts))
	for _, m := range r.Mounts {
		if _, ok := r.HostConfig.Tmpfs[m.Destination]; !ok {
			out = append(out, m.MountPoint)
		}
	}
	return out
}

// statusText is the STATUS column of ps.
func statusText(st *Status) string {
	switch st.Phase {
	case Running:
		up := "Up " + units.HumanDuration(time.Since(st.StartedAt))
		switch st.Health {
		case "", container.NoHealthcheck:
			return up
		case container.Starting:
			return up + " (health: starting)"
		default:
			return up + " (" + string(st.Health) + ")"
		}
	case Paused:
		return "Up " + units.HumanDuration(time.Since(st.StartedAt)) + " (Paused)"
	case Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, units.HumanDuration(time.Since(st.FinishedAt)))
	case Removing:
		return "Removal In Progress"
	case Dead:
		return "Dead"
	case Created:
		return "Created"
	default:
		if st.FinishedAt.IsZero() {
			return "Created"
		}
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(time.Since(st.FinishedAt)))
	}
}

// size is the container's own bytes, and those with its image.
func (s *Service) size(ctx context.Context, r *Record) (rw, root int64) {
	rw, err := s.o.Snapshots.Usage(ctx, string(r.ID))
	if err != nil {
		return 0, 0
	}
	root = rw
	if img, err := s.o.Images.Resolve(ctx, string(r.Image)); err == nil {
		root += img.Size
	}
	return rw, root
}

// Counts tells how many containers there are, run and are paused.
func (s *Service) Counts() (total, running, paused int) {
	for _, c := range s.all() {
		total++
		switch c.Status().Phase {
		case Running:
			running++
		case Paused:
			paused++
		}
	}
	return total, running, paused
}
