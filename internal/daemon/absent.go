package daemon

import (
	"context"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/volume"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
)

// noVolumes answers for an engine on which no volume can be made yet, so that
// clients that list and prune all kinds of objects work.
type noVolumes struct{}

func (noVolumes) List(_ context.Context, f filter.Args) (volume.ListResponse, error) {
	return volume.ListResponse{}, f.Validate("dangling", "driver", "label", "name")
}

func (noVolumes) Inspect(_ context.Context, name string) (volume.Volume, error) {
	return volume.Volume{}, errs.New(errs.NotFound, "get %s: no such volume", name)
}

func (noVolumes) Remove(_ context.Context, name string, force bool) error {
	if force {
		return nil
	}
	return errs.New(errs.NotFound, "get %s: no such volume", name)
}

func (noVolumes) Prune(_ context.Context, f filter.Args) (volume.PruneReport, error) {
	return volume.PruneReport{}, f.Validate("all", "label", "label!")
}

// noBuildCache answers for an engine that builds nothing yet.
type noBuildCache struct{}

func (noBuildCache) Prune(_ context.Context, f filter.Args) (build.CachePruneReport, error) {
	return build.CachePruneReport{}, f.Validate("until", "id", "label", "label!", "parent", "type", "description", "inuse", "shared", "private", "unused-for")
}
