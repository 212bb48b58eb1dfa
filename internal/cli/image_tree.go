package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sort"
	"text/tabwriter"

	"github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/client"
)

func checkTreeFlags(quiet, noTrunc, digests bool, format string) error {
	switch {
	case quiet:
		return errors.New("--quiet is not yet supported with --tree")
	case noTrunc:
		return errors.New("--no-trunc is not yet supported with --tree")
	case digests:
		return errors.New("--show-digest is not yet supported with --tree")
	case format != "":
		return errors.New("--format is not yet supported with --tree")
	}
	return nil
}

// imageTree lists images with the manifest of each platform below them.
func imageTree(cli *CLI, ctx context.Context, cl *client.Client, q url.Values) error {
	if !cl.AtLeast(ctx, "1.47") {
		return errors.New("--tree requires API version 1.47")
	}
	q.Set("manifests", "1")
	list, err := client.Get[[]image.Summary](ctx, cl, "/images/json", q)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(cli.Out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tDISK USAGE\tCONTENT SIZE\tEXTRA")
	sort.SliceStable(list, func(i, j int) bool { return list[i].Created > list[j].Created })
	for _, s := range list {
		var content int64
		type child struct {
			name, id      string
			size, content int64
			used          bool
		}
		var children []child
		used := s.Containers > 0
		for _, m := range s.Manifests {
			if m.Available {
				content += m.Size.Content
			}
			if m.Kind != image.ManifestKindImage || m.ImageData == nil {
				continue
			}
			u := len(m.ImageData.Containers) > 0
			used = used || u
			children = append(children, child{platformName(m.ImageData.Platform), shortID(m.ID), m.Size.Total, m.Size.Content, u})
		}
		names := s.RepoTags
		if len(names) == 0 {
			names = []string{"<untagged>"}
		}
		for _, n := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n, shortID(s.ID), size3(float64(s.Size)), size3(float64(content)), inUse(used))
		}
		for i, c := range children {
			branch := "├─ "
			if i == len(children)-1 {
				branch = "└─ "
			}
			fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%s\n", branch, c.name, c.id, size3(float64(c.size)), size3(float64(c.content)), inUse(c.used))
		}
	}
	return w.Flush()
}

func inUse(used bool) string {
	if used {
		return "U"
	}
	return ""
}

func platformName(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" && (p.Architecture != "arm64" || p.Variant != "v8") {
		s += "/" + p.Variant
	}
	return s
}
