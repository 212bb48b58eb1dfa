package system

import (
	"context"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// DiskUsageOptions selects the kinds of objects to measure.
type DiskUsageOptions struct{ Containers, Images, Volumes, BuildCache bool }

// DiskUsage tells what each kind of object occupies and what a prune would
// free, in bytes, with all objects as items.
func (s *Service) DiskUsage(ctx context.Context, o DiskUsageOptions) (system.DiskUsage, error) {
	var du system.DiskUsage
	if o.Containers {
		var items []container.Summary
		if s.src.Containers != nil {
			var err error
			if items, err = s.src.Containers(ctx); err != nil {
				return du, err
			}
		}
		du.ContainerUsage = containerUsage(items)
	}
	if o.Images {
		du.ImageUsage = &image.DiskUsage{}
		if s.src.Images != nil {
			u, err := s.src.Images(ctx, true)
			if err != nil {
				return du, err
			}
			du.ImageUsage = &u
		}
	}
	if o.Volumes {
		var items []volume.Volume
		if s.src.Volumes != nil {
			var err error
			if items, err = s.src.Volumes(ctx); err != nil {
				return du, err
			}
		}
		du.VolumeUsage = volumeUsage(items)
	}
	if o.BuildCache {
		var items []build.CacheRecord
		if s.src.BuildCache != nil {
			var err error
			if items, err = s.src.BuildCache(ctx); err != nil {
				return du, err
			}
		}
		du.BuildCacheUsage = buildCacheUsage(items)
	}
	return du, nil
}

func containerUsage(items []container.Summary) *container.DiskUsage {
	u := &container.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for i := range items {
		u.TotalSize += items[i].SizeRw
		switch items[i].State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			u.ActiveCount++
		default:
			u.Reclaimable += items[i].SizeRw
		}
	}
	return u
}

func volumeUsage(items []volume.Volume) *volume.DiskUsage {
	u := &volume.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for i := range items {
		d := items[i].UsageData
		if d == nil || d.Size < 0 {
			continue
		}
		u.TotalSize += d.Size
		if d.RefCount > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += d.Size
		}
	}
	return u
}

func buildCacheUsage(items []build.CacheRecord) *build.DiskUsage {
	u := &build.DiskUsage{Items: items, TotalCount: int64(len(items))}
	for i := range items {
		if items[i].InUse {
			u.ActiveCount++
		}
		if items[i].Shared {
			continue
		}
		u.TotalSize += items[i].Size
		if !items[i].InUse {
			u.Reclaimable += items[i].Size
		}
	}
	return u
}
