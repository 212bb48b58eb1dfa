package httpapi

import (
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	engine "berth.dev/berth/internal/system"
)

// legacyInfo is the engine's information as it was until 1.51.
type legacyInfo struct {
	*system.Info
	KernelMemoryTCP   bool  `json:",omitempty"`
	BridgeNfIptables  *bool `json:",omitempty"` // until 1.49
	BridgeNfIp6tables *bool `json:",omitempty"` //nolint:revive // the wire's name; until 1.49

	ContainerdCommit legacyCommit
	RuncCommit       legacyCommit
	InitCommit       legacyCommit
	RegistryConfig   *legacyRegistry

	CDISpecDirs     *[]string `json:",omitempty"` // since 1.44
	ExecutionDriver string    `json:",omitempty"` // until 1.24
}

type legacyCommit struct {
	ID       string
	Expected string `json:",omitempty"` // until 1.48
}

type legacyRegistry struct {
	*registry.ServiceConfig
	// until 1.48
	AllowNondistributableArtifactsCIDRs     *[]string `json:",omitempty"`
	AllowNondistributableArtifactsHostnames *[]string `json:",omitempty"`
}

// infoFor gives i the shape that it has in version v.
func infoFor(v Version, i *system.Info) any {
	if v < 53 {
		i.NRI = nil
	}
	if v >= 52 {
		return i
	}
	old := legacyInfo{
		Info:             i,
		ContainerdCommit: legacyCommit{ID: i.ContainerdCommit.ID},
		RuncCommit:       legacyCommit{ID: i.RuncCommit.ID},
		InitCommit:       legacyCommit{ID: i.InitCommit.ID},
	}
	if i.RegistryConfig != nil {
		old.RegistryConfig = &legacyRegistry{ServiceConfig: i.RegistryConfig}
	}
	if v < 50 {
		i.DiscoveredDevices = nil
		old.BridgeNfIptables, old.BridgeNfIp6tables = new(bool), new(bool)
	}
	if v < 49 {
		i.FirewallBackend = nil
		old.ContainerdCommit.Expected, old.RuncCommit.Expected, old.InitCommit.Expected = i.ContainerdCommit.ID, i.RuncCommit.ID, i.InitCommit.ID
		if old.RegistryConfig != nil {
			old.RegistryConfig.AllowNondistributableArtifactsCIDRs = new([]string)
			old.RegistryConfig.AllowNondistributableArtifactsHostnames = new([]string)
		}
	}
	if v < 46 {
		i.Containerd = nil
	}
	if v >= 44 {
		old.CDISpecDirs = &i.CDISpecDirs
	}
	if v < 25 {
		old.ExecutionDriver = "<not supported>"
		names := make([]string, 0, len(i.SecurityOptions))
		for _, o := range i.SecurityOptions {
			name, _, _ := strings.Cut(strings.TrimPrefix(o, "name="), ",")
			names = append(names, name)
		}
		i.SecurityOptions = names
	}
	return old
}

// legacyDiskUsage has the fields of until 1.51; 1.52 sent both.
type legacyDiskUsage struct {
	*system.DiskUsage
	LayersSize  int64
	Images      any
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []build.CacheRecord
	BuilderSize *int64 `json:",omitempty"` // until 1.41
}

// diskUsageFor gives du the shape that it has in version v.
func diskUsageFor(v Version, verbose bool, o engine.DiskUsageOptions, du *system.DiskUsage) any {
	var old *legacyDiskUsage
	if v < 52 || v == 52 && !verbose {
		old = &legacyDiskUsage{}
		if i := du.ImageUsage; i != nil && o.Images {
			old.LayersSize, old.Images = i.TotalSize, imagesFor(v, i.Items, true, true)
		}
		if c := du.ContainerUsage; c != nil && o.Containers {
			old.Containers = append([]container.Summary{}, c.Items...)
			for i := range old.Containers {
				fixSummary(v, &old.Containers[i])
			}
		}
		if vol := du.VolumeUsage; vol != nil && o.Volumes {
			old.Volumes = append([]volume.Volume{}, vol.Items...)
		}
		if b := du.BuildCacheUsage; b != nil && o.BuildCache {
			old.BuildCache = append([]build.CacheRecord{}, b.Items...)
		}
		if v < 42 {
			old.BuilderSize = new(int64)
			if b := du.BuildCacheUsage; b != nil {
				*old.BuilderSize = b.TotalSize
			}
		}
	}
	if v < 52 {
		return old
	}
	if du.ImageUsage != nil {
		du.ImageUsage.Items = dropUnless(verbose, du.ImageUsage.Items)
	}
	if du.ContainerUsage != nil {
		du.ContainerUsage.Items = dropUnless(verbose, du.ContainerUsage.Items)
		for i := range du.ContainerUsage.Items {
			fixSummary(v, &du.ContainerUsage.Items[i])
		}
	}
	if du.VolumeUsage != nil {
		du.VolumeUsage.Items = dropUnless(verbose, du.VolumeUsage.Items)
	}
	if du.BuildCacheUsage != nil {
		du.BuildCacheUsage.Items = dropUnless(verbose, du.BuildCacheUsage.Items)
	}
	if old != nil {
		old.DiskUsage = du
		return old
	}
	return du
}

func dropUnless[T any](keep bool, items []T) []T {
	if keep {
		return items
	}
	return nil
}
