package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// fetchRaw returns the JSON of one object as the engine sent it.
func fetchRaw(ctx context.Context, cl *client.Client, path string, q url.Values) ([]byte, error) {
	var raw []byte
	err := cl.JSON(ctx, client.Request{Method: "GET", Path: path, Query: q}, &raw)
	return raw, err
}

// inspectGroup makes the inspect command of one kind of object.
func inspectGroup(cli *CLI, c *cobra.Command, query func() url.Values, path func(ref string) string) {
	var format string
	inspectFormatFlag(c, &format)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		var q url.Values
		if query != nil {
			q = query()
		}
		return inspectOut(cli.Out, args, format, func(ref string) ([]byte, error) {
			return fetchRaw(c.Context(), cl, path(ref), q)
		})
	}
}

func containerInspectCmd(cli *CLI, c *cobra.Command) {
	var size bool
	c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
	inspectGroup(cli, c, func() url.Values {
		if size {
			return url.Values{"size": {"1"}}
		}
		return nil
	}, func(ref string) string { return containerPath(ref, "/json") })
}

// inspectKinds are the kinds that inspect tries, in this order.
var inspectKinds = []struct {
	name string
	path func(ref string) string
}{
	{"container", func(r string) string { return containerPath(r, "/json") }},
	{"image", func(r string) string { return "/images/" + r + "/json" }},
	{"network", func(r string) string { return "/networks/" + r }},
	{"volume", func(r string) string { return "/volumes/" + r }},
	{"service", func(r string) string { return "/services/" + r }},
	{"task", func(r string) string { return "/tasks/" + r }},
	{"node", func(r string) string { return "/nodes/" + r }},
	{"plugin", func(r string) string { return "/plugins/" + r + "/json" }},
	{"secret", func(r string) string { return "/secrets/" + r }},
	{"config", func(r string) string { return "/configs/" + r }},
}

func inspectCmd(cli *CLI, c *cobra.Command) {
	var format, kind string
	var size bool
	inspectFormatFlag(c, &format)
	f := c.Flags()
	f.StringVar(&kind, "type", "", "Only inspect objects of the given type")
	f.BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.Changed("type") && kind == "" {
			return errors.New(`type is empty: must be one of "config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume"`)
		}
		known := kind == ""
		for _, k := range inspectKinds {
			known = known || k.name == kind
		}
		if !known {
			return fmt.Errorf(`unknown type: %q: must be one of "config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume"`, kind)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		return inspectOut(cli.Out, args, format, func(ref string) ([]byte, error) {
			return inspectAny(c.Context(), cl, ref, kind, size)
		})
	}
}

func inspectAny(ctx context.Context, cl *client.Client, ref, kind string, size bool) ([]byte, error) {
	for _, k := range inspectKinds {
		if kind != "" && k.name != kind {
			continue
		}
		var q url.Values
		if size && k.name == "container" {
			q = url.Values{"size": {"1"}}
		}
		raw, err := fetchRaw(ctx, cl, k.path(ref), q)
		if err == nil {
			return raw, nil
		}
		var e *client.Error
		if kind != "" || !errors.As(err, &e) {
			return nil, err
		}
		switch { // of another kind, or a kind that this engine has not
		case e.Status == 404, e.Status == 501, e.Status == 503, e.Status == 406:
		case e.Status == 400 && k.name != "container" && k.name != "image":
		case e.Status == 405:
		default:
			return nil, err
		}
	}
	if kind != "" {
		return nil, fmt.Errorf("Error: No such %s: %s", kind, ref) //nolint:staticcheck // Docker's words
	}
	return nil, fmt.Errorf("Error: No such object: %s", ref) //nolint:staticcheck // Docker's words
}
