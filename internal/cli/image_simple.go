package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

func imagePath(ref, rest string) string { return "/images/" + ref + rest }

const platformHelp = `Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`

func tagCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, args []string) error {
		if _, _, err := parseAnyRef(args[0]); err != nil {
			return fmt.Errorf("Error parsing reference: %q is not a valid repository/tag: %w", args[0], err) //nolint:staticcheck // Docker's words
		}
		repo, tag, err := splitRepoTag(args[1])
		if err != nil {
			if strings.HasPrefix(err.Error(), "refusing") {
				return err
			}
			return fmt.Errorf("Error parsing reference: %q is not a valid repository/tag: %w", args[1], err) //nolint:staticcheck // Docker's words
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		return cl.Call(c.Context(), http.MethodPost, imagePath(args[0], "/tag"), url.Values{"repo": {repo}, "tag": {tag}})
	}
}

func rmiCmd(cli *CLI, c *cobra.Command) {
	var force, noPrune bool
	var platforms []string
	f := c.Flags()
	f.BoolVarP(&force, "force", "f", false, "Force removal of the image")
	f.BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents")
	f.StringSliceVar(&platforms, "platform", nil, "Remove only the given platform variant. "+platformHelp)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{}
		if force {
			q.Set("force", "1")
		}
		if noPrune {
			q.Set("noprune", "1")
		}
		for _, p := range platforms {
			j, err := platformJSON(p)
			if err != nil {
				return err
			}
			q.Add("platforms", j)
		}
		var errs []error
		fatal := false
		for _, ref := range args {
			var gone []image.DeleteResponse
			err := cl.JSON(c.Context(), client.Request{Method: http.MethodDelete, Path: imagePath(ref, ""), Query: q}, &gone)
			if err != nil {
				fatal = fatal || !client.IsNotFound(err)
				errs = append(errs, err)
				continue
			}
			for _, d := range gone {
				if d.Deleted != "" {
					fmt.Fprintln(cli.Out, "Deleted:", d.Deleted)
				} else {
					fmt.Fprintln(cli.Out, "Untagged:", d.Untagged)
				}
			}
		}
		err = errors.Join(errs...)
		if err != nil && force && !fatal {
			fmt.Fprintln(cli.Err, err)
			return nil
		}
		return err
	}
}

func imageInspectCmd(cli *CLI, c *cobra.Command) {
	var platform string
	c.Flags().StringVar(&platform, "platform", "", `Inspect a specific platform of the multi-platform image.
If the image or the server is not multi-platform capable, the command will error out if the platform does not match.
'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	inspectGroup(cli, c, func() url.Values {
		if platform == "" {
			return nil
		}
		j, err := platformJSON(platform)
		if err != nil {
			j = platform // the engine says what is wrong with it
		}
		return url.Values{"platform": {j}}
	}, func(ref string) string { return imagePath(ref, "/json") })
}

// historyRow is one step of an image's history.
type historyRow struct {
	row
	h           image.HistoryResponseItem
	full, human bool
}

func (r historyRow) ID() string {
	if r.full {
		return r.h.ID
	}
	return shortID(r.h.ID)
}

func (r historyRow) CreatedAt() string {
	return time.Unix(r.h.Created, 0).Format(time.RFC3339)
}

func (r historyRow) CreatedSince() string {
	if !r.human {
		return r.CreatedAt()
	}
	if r.h.Created <= 0 {
		return "N/A"
	}
	return ago(time.Unix(r.h.Created, 0))
}

func (r historyRow) CreatedBy() string {
	s := strings.ReplaceAll(r.h.CreatedBy, "\t", " ")
	if r.full {
		return s
	}
	return ellipsis(s, 45)
}

func (r historyRow) Size() string {
	if r.human {
		return size3(float64(r.h.Size))
	}
	return strconv.FormatInt(r.h.Size, 10)
}
func (r historyRow) Comment() string { return r.h.Comment }

func historyCmd(cli *CLI, c *cobra.Command) {
	var human, quiet, noTrunc bool
	var format, platform string
	f := c.Flags()
	f.BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	f.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	formatFlag(c, &format)
	f.StringVar(&platform, "platform", "", "Show history for the given platform. "+platformHelp)
	c.RunE = func(c *cobra.Command, args []string) error {
		q := url.Values{}
		if platform != "" {
			j, err := platformJSON(platform)
			if err != nil {
				return err
			}
			q.Set("platform", j)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		list, err := client.Get[[]image.HistoryResponseItem](c.Context(), cl, imagePath(args[0], "/history"), q)
		if err != nil {
			return err
		}
		if quiet && (format == "" || format == "table") {
			format = "{{.ID}}"
		}
		def := "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
		h := header{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}
		if !human {
			def = strings.Replace(def, ".CreatedSince", ".CreatedAt", 1)
		}
		rows := make([]historyRow, len(list))
		for i, item := range list {
			rows[i] = historyRow{h: item, full: noTrunc, human: human}
		}
		return render(cli.Out, format, def, h, rows)
	}
}

func saveCmd(cli *CLI, c *cobra.Command) {
	var output, platform string
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	f.StringVar(&platform, "platform", "", "Save only the given platform variant. "+platformHelp)
	c.RunE = func(c *cobra.Command, args []string) error {
		q := url.Values{"names": args}
		if platform != "" {
			j, err := platformJSON(platform)
			if err != nil {
				return err
			}
			q.Set("platform", j)
		}
		if output == "" && cli.Out.IsTerminal() {
			return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
		}
		if err := checkOutput(output); err != nil {
			return fmt.Errorf("failed to save image: %w", err)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), client.Request{Method: http.MethodGet, Path: "/images/get", Query: q})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return cli.saveStream(output, res.Body)
	}
}

func loadCmd(cli *CLI, c *cobra.Command) {
	var input, platform string
	var quiet bool
	f := c.Flags()
	f.StringVarP(&input, "input", "i", "", "Read from tar archive file, instead of STDIN")
	f.BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	f.StringVar(&platform, "platform", "", "Load only the given platform variant. "+platformHelp)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var in io.Reader = cli.In
		switch {
		case input != "":
			file, err := os.Open(input)
			if err != nil {
				return err
			}
			defer file.Close()
			in = file
		case cli.In.tty:
			return errors.New("requested load from stdin, but stdin is empty")
		}
		q := url.Values{"quiet": {"0"}}
		if quiet || !cli.Out.IsTerminal() {
			q.Set("quiet", "1")
		}
		if platform != "" {
			j, err := platformJSON(platform)
			if err != nil {
				return err
			}
			q.Set("platform", j)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), client.Request{Method: http.MethodPost, Path: "/images/load", Query: q, Stream: in, ContentType: "application/x-tar"})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.Header.Get("Content-Type") == "application/json" {
			return newProgress(cli.Out).show(res.Body, nil)
		}
		_, err = io.Copy(cli.Out, res.Body)
		return err
	}
}

func importCmd(cli *CLI, c *cobra.Command) {
	var message, platform string
	changes := list(nil)
	f := c.Flags()
	f.VarP(changes, "change", "c", "Apply Dockerfile instruction to the created image")
	f.StringVarP(&message, "message", "m", "", "Set commit message for imported image")
	f.StringVar(&platform, "platform", cli.getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	c.RunE = func(c *cobra.Command, args []string) error {
		q := url.Values{"fromSrc": {"-"}}
		req := client.Request{Method: http.MethodPost, Path: "/images/create", Query: q}
		switch src := args[0]; {
		case src == "-":
			req.Stream, req.ContentType = cli.In, "text/plain"
		case strings.HasPrefix(src, "http://"), strings.HasPrefix(src, "https://"):
			q.Set("fromSrc", src)
		default:
			if u, err := url.Parse(src); err == nil && u.Scheme != "" {
				q.Set("fromSrc", src)
				break
			}
			file, err := os.Open(src)
			if err != nil {
				return err
			}
			defer file.Close()
			req.Stream, req.ContentType = file, "text/plain"
		}
		if len(args) > 1 && args[1] != "" {
			if _, err := parseRef(args[1]); err != nil {
				return err
			}
			q.Set("repo", args[1])
		}
		if message != "" {
			q.Set("message", message)
		}
		if platform != "" {
			q.Set("platform", strings.ToLower(platform))
		}
		for _, ch := range changes.values {
			q.Add("changes", ch)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return newProgress(cli.Out).show(res.Body, nil)
	}
}

type pullOptions struct {
	platform   string
	quiet, all bool
	out        *Out
}

// pullImage pulls and shows the progress on o.out.
func (cli *CLI) pullImage(ctx context.Context, name string, o pullOptions) error {
	named, err := parseRef(name)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {named.fullName()}}
	if !o.all {
		if named = named.withDefaultTag(); named.digest != "" {
			q.Set("tag", named.digest)
		} else {
			q.Set("tag", named.tag)
		}
	}
	if o.platform != "" {
		q.Set("platform", strings.ToLower(o.platform))
	}
	cl, err := cli.Client()
	if err != nil {
		return err
	}
	h := http.Header{}
	auth, err := cli.registryAuth(named.domain)
	if err != nil {
		return err
	}
	h.Set("X-Registry-Auth", auth)
	res, err := cl.Do(ctx, client.Request{Method: http.MethodPost, Path: "/images/create", Query: q, Header: h})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if o.quiet {
		return client.Messages(res.Body, func(jsonstream.Message) error { return nil })
	}
	return newProgress(o.out).show(res.Body, nil)
}

func pullCmd(cli *CLI, c *cobra.Command) {
	o := pullOptions{out: cli.Out}
	f := c.Flags()
	f.BoolVarP(&o.all, "all-tags", "a", false, "Download all tagged images in the repository")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress verbose output")
	f.StringVar(&o.platform, "platform", cli.getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	contentTrustFlag(f, "Skip image verification")
	c.RunE = func(c *cobra.Command, args []string) error {
		named, err := parseRef(args[0])
		switch {
		case err != nil:
			return err
		case o.all && !named.nameOnly():
			return errors.New("tag can't be used with --all-tags/-a")
		case !o.all && named.nameOnly():
			if named = named.withDefaultTag(); !o.quiet {
				fmt.Fprintf(cli.Out, "Using default tag: %s\n", named.tag)
			}
		}
		if err := cli.pullImage(c.Context(), args[0], o); err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, named.String())
		return nil
	}
}

func pushCmd(cli *CLI, c *cobra.Command) {
	var all, quiet bool
	var platform string
	f := c.Flags()
	f.BoolVarP(&all, "all-tags", "a", false, "Push all tags of an image to the repository")
	f.BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	contentTrustFlag(f, "Skip image signing")
	f.StringVar(&platform, "platform", "", `Push a platform-specific manifest as a single-platform image to the registry.
Image index won't be pushed, meaning that other manifests, including attestations won't be preserved.
'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	c.RunE = func(c *cobra.Command, args []string) error {
		named, err := parseRef(args[0])
		if err != nil {
			return err
		}
		q := url.Values{}
		switch {
		case all && !named.nameOnly():
			return errors.New("tag can't be used with --all-tags/-a")
		case !all && named.nameOnly():
			if named = named.withDefaultTag(); !quiet {
				fmt.Fprintf(cli.Out, "Using default tag: %s\n", named.tag)
			}
		}
		if named.digest != "" {
			return errors.New("cannot push a digest reference")
		}
		if named.tag != "" && !all {
			q.Set("tag", named.tag)
		}
		if platform != "" {
			j, err := platformJSON(platform)
			if err != nil {
				return err
			}
			q.Set("platform", j)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		auth, err := cli.registryAuth(named.domain)
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), client.Request{
			Method: http.MethodPost, Path: imagePath(named.familiarName(), "/push"), Query: q,
			Header: http.Header{"X-Registry-Auth": {auth}},
		})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if quiet {
			err := client.Messages(res.Body, func(jsonstream.Message) error { return nil })
			if err == nil {
				fmt.Fprintln(cli.Out, named.String())
			}
			return err
		}
		var notes []string
		err = newProgress(cli.Out).show(res.Body, func(aux json.RawMessage) {
			var n struct{ ManifestPushedInsteadOfIndex bool }
			if json.Unmarshal(aux, &n) == nil && n.ManifestPushedInsteadOfIndex {
				notes = append(notes, "Not all multiplatform-content is present and only the available single-platform image was pushed")
			}
		})
		for _, n := range notes {
			fmt.Fprintln(cli.Out, "\n"+cli.Out.infoMark()+n)
		}
		return err
	}
}
