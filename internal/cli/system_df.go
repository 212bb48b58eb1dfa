package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// diskUsage is the answer of /system/df in the form of all versions: lists up
// to API 1.51, sums (and lists on demand) from 1.52 on.
type diskUsage struct {
	LayersSize int64
	Images     []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
	system.DiskUsage
}

// dfRow is one line of system df.
type dfRow struct {
	row
	kind              string
	total, active     int
	size, reclaimable int64
}

func (r dfRow) Type() string       { return r.kind }
func (r dfRow) TotalCount() string { return strconv.Itoa(r.total) }
func (r dfRow) Active() string     { return strconv.Itoa(r.active) }
func (r dfRow) Size() string       { return humanSize(float64(r.size)) }

// Reclaimable is a size and, but for the build cache, its share of the whole.
func (r dfRow) Reclaimable() string {
	if r.kind == "Build Cache" || r.size <= 0 {
		return humanSize(float64(max(r.reclaimable, 0)))
	}
	return fmt.Sprintf("%s (%v%%)", humanSize(float64(r.reclaimable)), r.reclaimable*100/r.size)
}

func (u *diskUsage) rows() []dfRow {
	images := dfRow{kind: "Images", total: len(u.Images), size: u.LayersSize}
	var used int64
	for _, i := range u.Images {
		if i.Containers > 0 {
			images.active++
			if i.Size != -1 && i.SharedSize != -1 {
				used += i.Size - i.SharedSize
			}
		}
	}
	images.reclaimable = images.size - used
	containers := dfRow{kind: "Containers", total: len(u.Containers)}
	for _, c := range u.Containers {
		containers.size += c.SizeRw
		if c.State == "running" || c.State == "paused" || c.State == "restarting" {
			containers.active++
		} else {
			containers.reclaimable += c.SizeRw
		}
	}
	volumes := dfRow{kind: "Local Volumes", total: len(u.Volumes)}
	for _, v := range u.Volumes {
		if v.UsageData == nil {
			continue
		}
		if v.UsageData.RefCount > 0 {
			volumes.active++
		}
		if v.UsageData.Size != -1 {
			volumes.size += v.UsageData.Size
			if v.UsageData.RefCount == 0 {
				volumes.reclaimable += v.UsageData.Size
			}
		}
	}
	cache := dfRow{kind: "Build Cache", total: len(u.BuildCache)}
	for _, b := range u.BuildCache {
		if !b.Shared {
			cache.size += b.Size
			if !b.InUse {
				cache.reclaimable += b.Size
			}
		}
		if b.InUse {
			cache.active++
		}
	}
	if v := u.ImageUsage; v != nil {
		images.total, images.active, images.size, images.reclaimable = int(v.TotalCount), int(v.ActiveCount), v.TotalSize, v.Reclaimable
	}
	if v := u.ContainerUsage; v != nil {
		containers.total, containers.active, containers.size, containers.reclaimable = int(v.TotalCount), int(v.ActiveCount), v.TotalSize, v.Reclaimable
	}
	if v := u.VolumeUsage; v != nil {
		volumes.total, volumes.active, volumes.size, volumes.reclaimable = int(v.TotalCount), int(v.ActiveCount), v.TotalSize, v.Reclaimable
	}
	if v := u.BuildCacheUsage; v != nil {
		cache.total, cache.active, cache.size, cache.reclaimable = int(v.TotalCount), int(v.ActiveCount), v.TotalSize, v.Reclaimable
	}
	return []dfRow{images, containers, volumes, cache}
}

func fetchDiskUsage(ctx context.Context, cl *client.Client, verbose bool) (diskUsage, error) {
	q := url.Values{}
	if verbose && cl.AtLeast(ctx, "1.52") {
		q.Set("verbose", "1")
	}
	u, err := client.Get[diskUsage](ctx, cl, "/system/df", q)
	if u.ImageUsage != nil {
		u.Images, u.LayersSize = u.ImageUsage.Items, u.ImageUsage.TotalSize
	}
	if u.ContainerUsage != nil {
		u.Containers = u.ContainerUsage.Items
	}
	if u.VolumeUsage != nil {
		u.Volumes = u.VolumeUsage.Items
	}
	if u.BuildCacheUsage != nil {
		u.BuildCache = u.BuildCacheUsage.Items
	}
	return u, err
}

func dfCmd(cli *CLI, c *cobra.Command) {
	var verbose bool
	var format string
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	formatFlag(c, &format)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		u, err := fetchDiskUsage(c.Context(), cl, verbose)
		if err != nil {
			return err
		}
		if verbose {
			return dfVerbose(cli, &u, format)
		}
		return render(cli.Out, format, "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}", header{
			"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
		}, u.rows())
	}
}

// dfImageRow, dfVolumeRow and dfCacheRow are the lines of system df -v.
type dfImageRow struct {
	imageRow
}

func (r dfImageRow) SharedSize() string { return sizeOrNA(r.s.SharedSize) }

func (r dfImageRow) UniqueSize() string {
	if r.s.Size == -1 || r.s.SharedSize == -1 {
		return "N/A"
	}
	return humanSize(float64(r.s.Size - r.s.SharedSize))
}

func sizeOrNA(n int64) string {
	if n == -1 {
		return "N/A"
	}
	return humanSize(float64(n))
}

type dfCacheRow struct {
	row
	r build.CacheRecord
}

func (c dfCacheRow) ID() string {
	id := c.r.ID
	if len(id) > 12 {
		id = id[:12]
	}
	if c.r.InUse {
		id += "*"
	}
	return id
}
func (c dfCacheRow) Parent() string       { return strings.Join(c.r.Parents, ", ") }
func (c dfCacheRow) CacheType() string    { return c.r.Type }
func (c dfCacheRow) Description() string  { return c.r.Description }
func (c dfCacheRow) Size() string         { return size3(float64(c.r.Size)) }
func (c dfCacheRow) CreatedAt() string    { return c.r.CreatedAt.String() }
func (c dfCacheRow) CreatedSince() string { return ago(c.r.CreatedAt) }
func (c dfCacheRow) UsageCount() string   { return strconv.Itoa(c.r.UsageCount) }
func (c dfCacheRow) InUse() string        { return strconv.FormatBool(c.r.InUse) }
func (c dfCacheRow) Shared() string       { return strconv.FormatBool(c.r.Shared) }

func (c dfCacheRow) LastUsedAt() string {
	if c.r.LastUsedAt == nil {
		return ""
	}
	return c.r.LastUsedAt.String()
}

func (c dfCacheRow) LastUsedSince() string {
	if c.r.LastUsedAt == nil {
		return ""
	}
	return units.HumanDuration(time.Since(*c.r.LastUsedAt)) + " ago"
}

func dfVerbose(cli *CLI, u *diskUsage, format string) error {
	var images []dfImageRow
	for _, s := range u.Images {
		r := imageRow{s: s, repo: none, tag: none, digest: none} // the first name stands for all
		if len(s.RepoTags) > 0 {
			r = imageRows(s, false, false, false)[0]
		}
		images = append(images, dfImageRow{r})
	}
	containers := make([]psRow, 0, len(u.Containers))
	for _, s := range u.Containers {
		s.SizeRootFs = 0 // the image's part is counted with the images
		containers = append(containers, psRow{s: s})
	}
	volumes := make([]volumeRow, 0, len(u.Volumes))
	for _, v := range u.Volumes {
		volumes = append(volumes, volumeRow{v: v})
	}
	caches := make([]dfCacheRow, 0, len(u.BuildCache))
	var cacheSize int64
	for _, b := range u.BuildCache {
		caches = append(caches, dfCacheRow{r: b})
		if !b.Shared {
			cacheSize += b.Size
		}
	}
	if format != "" && format != "table" {
		t, err := parseTemplate(format)
		if err != nil {
			return err
		}
		v := map[string]any{"Images": images, "Containers": containers, "Volumes": volumes, "BuildCache": caches}
		if format == "json" {
			return dfVerboseJSON(cli, images, containers, volumes, caches)
		}
		if err := t.Execute(cli.Out, v); err != nil {
			return err
		}
		fmt.Fprintln(cli.Out)
		return nil
	}
	fmt.Fprint(cli.Out, "Images space usage:\n\n")
	h := header{"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "Containers": "CONTAINERS"}
	if err := render(cli.Out, "", "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", h, images); err != nil {
		return err
	}
	fmt.Fprint(cli.Out, "\nContainers space usage:\n\n")
	if err := render(cli.Out, "", "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", psHeader, containers); err != nil {
		return err
	}
	fmt.Fprint(cli.Out, "\nLocal Volumes space usage:\n\n")
	if err := render(cli.Out, "", "{{.Name}}\t{{.Links}}\t{{.Size}}", volumeHeader, volumes); err != nil {
		return err
	}
	fmt.Fprintf(cli.Out, "\nBuild cache usage: %s\n\n", humanSize(float64(cacheSize)))
	return render(cli.Out, "", "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}", header{
		"ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED", "UsageCount": "USAGE", "Shared": "SHARED",
	}, caches)
}

func dfVerboseJSON(cli *CLI, images []dfImageRow, containers []psRow, volumes []volumeRow, caches []dfCacheRow) error {
	var b strings.Builder
	b.WriteByte('{')
	for i, part := range []struct {
		name string
		json string
	}{
		{"BuildCache", jsonRows(caches)}, {"Containers", jsonRows(containers)}, {"Images", jsonRows(images)}, {"Volumes", jsonRows(volumes)},
	} {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", part.name, part.json)
	}
	_, err := fmt.Fprintln(cli.Out, b.String()+"}")
	return err
}

func jsonRows[T any](rows []T) string {
	out := make([]string, len(rows))
	for i, r := range rows {
		j, _ := marshalRow(r)
		out[i] = string(j)
	}
	return "[" + strings.Join(out, ",") + "]"
}
