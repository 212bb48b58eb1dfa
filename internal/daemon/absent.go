package daemon

import (
	"context"

	"github.com/moby/moby/api/types/build"

	"berth.dev/berth/internal/filter"
)

// noBuildCache answers for an engine that builds nothing yet.
type noBuildCache struct{}

func (noBuildCache) Prune(_ context.Context, f filter.Args) (build.CachePruneReport, error) {
	return build.CachePruneReport{}, f.Validate("until", "id", "label", "label!", "parent", "type", "description", "inuse", "shared", "private", "unused-for")
}
