package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
	"berth.dev/berth/internal/stdmux"
)

func logsCmd(cli *CLI, c *cobra.Command) {
	var follow, stamps, details bool
	var since, until, tail string
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "Follow log output")
	f.StringVar(&since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	f.StringVar(&until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	f.BoolVarP(&stamps, "timestamps", "t", false, "Show timestamps")
	f.BoolVar(&details, "details", false, "Show extra details provided to logs")
	f.StringVarP(&tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
		for k, v := range map[string]bool{"follow": follow, "timestamps": stamps, "details": details} {
			if v {
				q.Set(k, "1")
			}
		}
		for k, v := range map[string]string{"since": since, "until": until} {
			t, err := timestamp(v)
			if err != nil {
				return fmt.Errorf("invalid value for %q: %w", k, err)
			}
			if t != "" {
				q.Set(k, t)
			}
		}
		if err := checkRef(args[0]); err != nil {
			return err
		}
		info, err := inspectContainer(c.Context(), cl, args[0])
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), client.Request{Method: http.MethodGet, Path: containerPath(info.ID, "/logs"), Query: q})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if info.Config != nil && info.Config.Tty {
			_, err = io.Copy(cli.Out, res.Body)
			return err
		}
		return stdmux.Copy(cli.Out, cli.Err, res.Body)
	}
}
