package container

import (
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/cdi"
	"berth.dev/berth/internal/errs"
)

// gpuKinds are the vendors' classes of CDI that --gpus stands for, by driver,
// in the order in which they are tried when none is named.
var gpuKinds = []struct{ driver, kind string }{{"nvidia", "nvidia.com/gpu"}, {"amd", "amd.com/gpu"}}

// addRequested edits a specification so that the container has the devices of
// --gpus and of --device vendor.com/class=name.
func addRequested(s *specs.Spec, reg *cdi.Registry, requests []container.DeviceRequest) error {
	for i := range requests {
		r := &requests[i]
		names, err := requested(reg, r)
		if err != nil {
			return err
		}
		if err := reg.Inject(s, names...); err != nil {
			return errs.New(errs.Invalid, "CDI device injection failed: %w", err)
		}
	}
	if h := s.Hooks; h != nil && len(h.StartContainer)+len(h.Poststop) > 0 {
		return errs.New(errs.NotImplemented, "CDI device injection failed: hooks of the kinds startContainer and poststop are not supported by this engine")
	}
	return nil
}

// requested turns a request into the full names of CDI devices.
func requested(reg *cdi.Registry, r *container.DeviceRequest) ([]string, error) {
	if r.Driver == "cdi" && reg != nil {
		switch {
		case r.Count != 0:
			return nil, errs.New(errs.Invalid, "unexpected count in CDI device request")
		case len(r.Options) > 0:
			return nil, errs.New(errs.Invalid, "unexpected options in CDI device request")
		}
		return r.DeviceIDs, nil
	}
	gpu := slices.ContainsFunc(r.Capabilities, func(c []string) bool { return slices.Contains(c, "gpu") })
	for _, k := range gpuKinds {
		if !gpu || reg == nil || r.Driver != "" && r.Driver != k.driver {
			continue
		}
		if have := reg.OfKind(k.kind); len(have) > 0 {
			return gpus(k.kind, have, r)
		}
	}
	caps := make([]string, 0, len(r.Capabilities))
	for _, c := range r.Capabilities {
		caps = append(caps, "["+strings.Join(c, " ")+"]")
	}
	return nil, errs.New(errs.Invalid, "could not select device driver %q with capabilities: [%s]", r.Driver, strings.Join(caps, " "))
}

// gpus picks from the devices of a kind: those with the ids asked for, all, or a number of them.
func gpus(kind string, have []string, r *container.DeviceRequest) ([]string, error) {
	full := func(names []string) []string {
		out := make([]string, len(names))
		for i, n := range names {
			out[i] = kind + "=" + n
		}
		return out
	}
	switch {
	case len(r.DeviceIDs) > 0 && r.Count != 0:
		return nil, errs.New(errs.Invalid, "cannot set both Count and DeviceIDs on device request")
	case len(r.DeviceIDs) > 0:
		return full(r.DeviceIDs), nil
	case r.Count < 0 && slices.Contains(have, "all"):
		return full([]string{"all"}), nil
	}
	// The vendors' tools name a device by its number, and once more by its uuid.
	var numbered []string
	for n := 0; slices.Contains(have, strconv.Itoa(n)); n++ {
		numbered = append(numbered, strconv.Itoa(n))
	}
	switch {
	case r.Count < 0 && len(numbered) > 0:
		return full(numbered), nil
	case r.Count < 0:
		return full(have), nil
	case r.Count > len(numbered):
		return nil, errs.New(errs.Invalid, "%d devices of %s were requested, there are %d", r.Count, kind, len(numbered))
	}
	return full(numbered[:r.Count]), nil
}
