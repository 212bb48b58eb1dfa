package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// pruneKind is one kind of object that can be pruned: where, the question, and how the result reads.
type pruneKind struct {
	noun, warning string
	call          func(ctx context.Context, cl *client.Client, q url.Values) (text string, reclaimed uint64, err error)
}

func pruneAt[T any](path string, show func(T) (string, uint64)) func(context.Context, *client.Client, url.Values) (string, uint64, error) {
	return func(ctx context.Context, cl *client.Client, q url.Values) (string, uint64, error) {
		v, err := client.Post[T](ctx, cl, path, q, nil)
		if err != nil {
			return "", 0, err
		}
		text, n := show(v)
		return text, n, nil
	}
}

func titled(title string, lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return title + "\n" + strings.Join(lines, "\n") + "\n"
}

var (
	pruneContainers = pruneAt("/containers/prune", func(r container.PruneReport) (string, uint64) {
		return titled("Deleted Containers:", r.ContainersDeleted), r.SpaceReclaimed
	})
	pruneNetworks = pruneAt("/networks/prune", func(r network.PruneReport) (string, uint64) {
		return titled("Deleted Networks:", r.NetworksDeleted), 0
	})
	pruneVolumes = pruneAt("/volumes/prune", func(r volume.PruneReport) (string, uint64) {
		return titled("Deleted Volumes:", r.VolumesDeleted), r.SpaceReclaimed
	})
	pruneImages = pruneAt("/images/prune", func(r image.PruneReport) (string, uint64) {
		var lines []string
		for _, d := range r.ImagesDeleted {
			if d.Untagged != "" {
				lines = append(lines, "untagged: "+d.Untagged)
			} else {
				lines = append(lines, "deleted: "+d.Deleted)
			}
		}
		return titled("Deleted Images:", lines), r.SpaceReclaimed
	})
	pruneBuildCache = pruneAt("/build/prune", func(r build.CachePruneReport) (string, uint64) {
		return titled("Deleted build cache objects:", r.CachesDeleted), r.SpaceReclaimed
	})
)

const sure = "Are you sure you want to continue?"

// withConfigFilters adds the label filters of the configuration.
func (cli *CLI) withConfigFilters(f filterValue) filterValue {
	out := filterValue{args: map[string]map[string]bool{}}
	for k, vs := range f.args {
		for v := range vs {
			out.add(k, v)
		}
	}
	for _, s := range cli.Config().PruneFilters {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "label" && f.args["label!"][v] || k == "label!" && f.args["label"][v] {
			continue
		}
		out.add(k, v)
	}
	return out
}

// prune runs one kind of prune.
func (cli *CLI) prune(ctx context.Context, k pruneKind, force bool, f filterValue) error {
	if !force && !cli.confirm(k.warning+"\n"+sure) {
		return errors.New(k.noun + " prune has been cancelled")
	}
	q := url.Values{}
	f.query(q)
	cl, err := cli.Client()
	if err != nil {
		return err
	}
	text, n, err := k.call(ctx, cl, q)
	if err != nil {
		return err
	}
	if text != "" {
		fmt.Fprintln(cli.Out, text)
	}
	if k.noun != "network" {
		fmt.Fprintln(cli.Out, "Total reclaimed space:", humanSize(float64(n)))
	}
	return nil
}

func pruneFlags(c *cobra.Command, force *bool, filters *filterValue, example string) {
	c.Flags().BoolVarP(force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().Var(filters, "filter", `Provide filter values (e.g. "`+example+`")`)
}

func containerPruneCmd(cli *CLI, c *cobra.Command) {
	var force bool
	var filters filterValue
	pruneFlags(c, &force, &filters, "until=<timestamp>")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return cli.prune(c.Context(), pruneKind{"container", "WARNING! This will remove all stopped containers.", pruneContainers}, force, cli.withConfigFilters(filters))
	}
}

func networkPruneCmd(cli *CLI, c *cobra.Command) {
	var force bool
	var filters filterValue
	pruneFlags(c, &force, &filters, "until=<timestamp>")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return cli.prune(c.Context(), pruneKind{"network", "WARNING! This will remove all custom networks not used by at least one container.", pruneNetworks}, force, cli.withConfigFilters(filters))
	}
}

func imagePruneCmd(cli *CLI, c *cobra.Command) {
	var force, all bool
	var filters filterValue
	pruneFlags(c, &force, &filters, "until=<timestamp>")
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images, not just dangling ones")
	c.RunE = func(c *cobra.Command, _ []string) error {
		f := cli.withConfigFilters(filters)
		warning := "WARNING! This will remove all dangling images."
		if all {
			warning = "WARNING! This will remove all images without at least one container associated to them."
		}
		f.add("dangling", fmt.Sprint(!all))
		return cli.prune(c.Context(), pruneKind{"image", warning, pruneImages}, force, f)
	}
}

func volumePruneCmd(cli *CLI, c *cobra.Command) {
	var force, all bool
	var filters filterValue
	pruneFlags(c, &force, &filters, "label=<label>")
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused volumes, not just anonymous ones")
	c.RunE = func(c *cobra.Command, _ []string) error {
		f := cli.withConfigFilters(filters)
		warning := "WARNING! This will remove anonymous local volumes not used by at least one container."
		if all {
			if f.has("all") {
				return errors.New("conflicting options: cannot specify both --all and --filter all=1")
			}
			f.add("all", "true")
			warning = "WARNING! This will remove all local volumes not used by at least one container."
		}
		return cli.prune(c.Context(), pruneKind{"volume", warning, pruneVolumes}, force, f)
	}
}

func systemPruneCmd(cli *CLI, c *cobra.Command) {
	var force, all, volumes bool
	var filters filterValue
	pruneFlags(c, &force, &filters, "label=<key>=<value>")
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images not just dangling ones")
	c.Flags().BoolVar(&volumes, "volumes", false, "Prune anonymous volumes")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if volumes && filters.has("until") {
			return errors.New(`ERROR: The "until" filter is not supported with "--volumes"`)
		}
		f := cli.withConfigFilters(filters)
		if !force && !cli.confirm(systemPruneQuestion(all, volumes, &f)) {
			return errors.New("system prune has been cancelled")
		}
		return cli.systemPrune(c.Context(), all, volumes, f)
	}
}

func systemPruneQuestion(all, volumes bool, f *filterValue) string {
	lines := []string{"all stopped containers", "all networks not used by at least one container"}
	if volumes {
		lines = append(lines, "all anonymous volumes not used by at least one container")
	}
	if all {
		lines = append(lines, "all images without at least one container associated to them", "all build cache")
	} else {
		lines = append(lines, "all dangling images", "unused build cache")
	}
	var b strings.Builder
	b.WriteString("WARNING! This will remove:\n")
	for _, l := range lines {
		b.WriteString("  - " + l + "\n")
	}
	if len(f.args) > 0 {
		b.WriteString("\n  Items to be pruned will be filtered with:\n")
		for _, k := range sortedKeys(f.args) {
			for _, v := range sortedKeys(f.args[k]) {
				b.WriteString("  - " + k + "=" + v + "\n")
			}
		}
	}
	return b.String() + "\n" + sure
}

func (cli *CLI) systemPrune(ctx context.Context, all, volumes bool, f filterValue) error {
	cl, err := cli.Client()
	if err != nil {
		return err
	}
	with := func(k, v string) filterValue {
		out := filterValue{}
		for key, vs := range f.args {
			for val := range vs {
				out.add(key, val)
			}
		}
		if k != "" {
			out.add(k, v)
		}
		return out
	}
	type step struct {
		call   func(context.Context, *client.Client, url.Values) (string, uint64, error)
		filter filterValue
		extra  url.Values
	}
	steps := []step{{pruneContainers, with("", ""), nil}, {pruneNetworks, with("", ""), nil}}
	if volumes {
		steps = append(steps, step{pruneVolumes, with("", ""), nil})
	}
	steps = append(steps, step{pruneImages, with("dangling", fmt.Sprint(!all)), nil})
	cache := url.Values{}
	if all {
		cache.Set("all", "1")
	}
	steps = append(steps, step{pruneBuildCache, with("", ""), cache})
	var total uint64
	for i, s := range steps {
		q := url.Values{}
		s.filter.query(q)
		for k, v := range s.extra {
			q[k] = v
		}
		text, n, err := s.call(ctx, cl, q)
		var e *client.Error
		if i == len(steps)-1 && errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusNotImplemented) {
			continue // an engine without a builder has no build cache
		}
		if err != nil {
			return err
		}
		if text != "" {
			fmt.Fprintln(cli.Out, text)
		}
		total += n
	}
	fmt.Fprintln(cli.Out, "Total reclaimed space:", humanSize(float64(total)))
	return nil
}
