package cli

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

var imagesHeader = header{
	"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
	"Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}

func imagesCmd(cli *CLI, c *cobra.Command) {
	var all, digests, noTrunc, quiet, tree bool
	var format string
	var filters filterValue
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	f.BoolVarP(&all, "all", "a", false, "Show all images (default hides intermediate images)")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.BoolVar(&digests, "digests", false, "Show digests")
	formatFlag(c, &format)
	f.VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	f.BoolVar(&tree, "tree", false, "List multi-platform images as a tree (EXPERIMENTAL)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			filters.add("reference", args[0])
		}
		q := url.Values{}
		filters.query(q)
		if all {
			q.Set("all", "1")
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		if tree {
			if err := checkTreeFlags(quiet, noTrunc, digests, format); err != nil {
				return err
			}
			return imageTree(cli, c.Context(), cl, q)
		}
		list, err := client.Get[[]image.Summary](c.Context(), cl, "/images/json", q)
		if err != nil {
			return err
		}
		if format == "" && !quiet {
			format = cli.Config().ImagesFormat
		}
		if quiet && (format == "" || format == "table") {
			format = "{{.ID}}"
		}
		def := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
		if digests {
			def = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
		}
		if format == "raw" {
			format = "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n"
			if digests {
				format = "repository: {{.Repository}}\ntag: {{.Tag}}\ndigest: {{.Digest}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n"
			}
		}
		var rows []imageRow
		for _, s := range list {
			rows = append(rows, imageRows(s, noTrunc, digests, digests || strings.Contains(format, "{{.Digest}}"))...)
		}
		return render(cli.Out, format, def, imagesHeader, rows)
	}
}

// imageRow is one name of an image.
type imageRow struct {
	row
	s                 image.Summary
	full              bool
	repo, tag, digest string
}

const none = "<none>"

// imageRows returns a row for each name, and with digests for each name and digest.
// asked says that --digests was given; a template may want digests without it.
func imageRows(s image.Summary, full, asked, digests bool) []imageRow {
	base := imageRow{s: s, full: full, repo: none, tag: none, digest: none}
	tags, digs := map[string][]string{}, map[string][]string{}
	var repos []string
	add := func(m map[string][]string, repo, v string) {
		if tags[repo] == nil && digs[repo] == nil {
			repos = append(repos, repo)
		}
		m[repo] = append(m[repo], v)
	}
	for _, ref := range s.RepoTags {
		if n, err := parseRef(ref); err == nil && n.tag != "" {
			add(tags, n.familiarName(), n.tag)
		}
	}
	for _, ref := range s.RepoDigests {
		if n, err := parseRef(ref); err == nil && n.digest != "" {
			add(digs, n.familiarName(), n.digest)
		}
	}
	if len(repos) == 0 {
		return []imageRow{base}
	}
	var out []imageRow
	for _, repo := range repos {
		r := base
		r.repo = repo
		d := digs[repo]
		if !digests || len(d) == 0 {
			d = []string{none}
		}
		t := tags[repo]
		if len(t) == 0 {
			t = []string{none}
			if !asked {
				d = []string{""} // as Docker has it: a name without a tag shows no digest unasked
			}
		}
		for _, tag := range t {
			for _, dig := range d {
				r.tag, r.digest = tag, dig
				out = append(out, r)
			}
		}
	}
	return out
}

func (r imageRow) ID() string {
	if r.full {
		return r.s.ID
	}
	return shortID(r.s.ID)
}
func (r imageRow) Repository() string   { return r.repo }
func (r imageRow) Tag() string          { return r.tag }
func (r imageRow) Digest() string       { return r.digest }
func (r imageRow) CreatedSince() string { return sinceOrNA(r.s.Created) }
func (r imageRow) CreatedAt() string    { return time.Unix(r.s.Created, 0).String() }
func (r imageRow) Size() string         { return size3(float64(r.s.Size)) }
func (r imageRow) VirtualSize() string  { return humanSize(float64(r.s.Size)) }

// SharedSize is the part that other images use too.
func (r imageRow) SharedSize() string { return sizeOrNA(r.s.SharedSize) }

// UniqueSize is the part that no other image uses.
func (r imageRow) UniqueSize() string {
	if r.s.Size == -1 || r.s.SharedSize == -1 {
		return "N/A"
	}
	return size3(float64(r.s.Size - r.s.SharedSize))
}

func (r imageRow) Containers() string {
	if r.s.Containers == -1 {
		return "N/A"
	}
	return strconv.FormatInt(r.s.Containers, 10)
}

func sinceOrNA(unix int64) string {
	t := time.Unix(unix, 0)
	if t.Before(time.Unix(0, 0)) || unix == 0 && t.IsZero() {
		return "N/A"
	}
	return ago(t)
}
