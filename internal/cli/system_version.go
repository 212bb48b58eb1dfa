package cli

import (
	"context"
	"fmt"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// clientVersion is the client's half of version.
type clientVersion struct {
	Platform          *system.PlatformInfo `json:",omitempty"`
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string `json:"DefaultAPIVersion,omitempty"`
	GitCommit         string
	GoVersion         string
	Os                string
	Arch              string
	BuildTime         string `json:",omitempty"`
	Context           string
}

type versionInfo struct {
	Client clientVersion
	Server *system.VersionResponse
}

// ServerOK reports whether the engine answered.
func (v versionInfo) ServerOK() bool { return v.Server != nil }

func (cli *CLI) clientVersion(api string) clientVersion {
	return clientVersion{
		Version: version, APIVersion: api, DefaultAPIVersion: client.MaxVersion, GitCommit: gitCommit, GoVersion: runtime.Version(),
		Os: runtime.GOOS, Arch: runtime.GOARCH, BuildTime: reformatTime(buildTime), Context: cli.currentContext(),
	}
}

func reformatTime(s string) string {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.Format(time.ANSIC)
	}
	return s
}

func versionCmd(cli *CLI, c *cobra.Command) {
	var format string
	inspectFormatFlag(c, &format)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var tmpl func(any) error
		if format != "" {
			t, err := parseTemplate(format)
			if err != nil {
				return err
			}
			tmpl = func(v any) error {
				err := t.Execute(cli.Out, v)
				fmt.Fprintln(cli.Out)
				return err
			}
		}
		v, serverErr := cli.versions(c.Context())
		var err error
		if tmpl != nil {
			err = tmpl(v)
		} else {
			err = printVersion(cli, v)
		}
		if err == nil {
			err = serverErr
		}
		return err
	}
}

func (cli *CLI) versions(ctx context.Context) (versionInfo, error) {
	v := versionInfo{Client: cli.clientVersion(client.MaxVersion)}
	cl, err := cli.Client()
	if err != nil {
		return v, err
	}
	s, err := client.Get[system.VersionResponse](ctx, cl, "/version", nil)
	if err == nil {
		if s.Components == nil { // engines before 18.09
			s.Components = []system.ComponentVersion{{Name: "Engine", Version: s.Version, Details: map[string]string{
				"ApiVersion": s.APIVersion, "MinAPIVersion": s.MinAPIVersion, "GitCommit": s.GitCommit, "GoVersion": s.GoVersion,
				"Os": s.Os, "Arch": s.Arch, "BuildTime": s.BuildTime, "Experimental": fmt.Sprint(s.Experimental),
			}}}
		}
		for _, comp := range s.Components {
			if t, ok := comp.Details["BuildTime"]; ok {
				comp.Details["BuildTime"] = reformatTime(t)
			}
		}
		v.Server = &s
	}
	v.Client.APIVersion = cl.CurrentVersion()
	return v, err
}

func printVersion(cli *CLI, v versionInfo) error {
	w := tabwriter.NewWriter(cli.Out, 20, 1, 1, ' ', 0)
	cv := v.Client
	api := cv.APIVersion
	if api != cv.DefaultAPIVersion {
		api += " (downgraded from " + cv.DefaultAPIVersion + ")"
	}
	fmt.Fprintf(w, "Client:\n Version:\t%s\n API version:\t%s\n Go version:\t%s\n Git commit:\t%s\n Built:\t%s\n OS/Arch:\t%s/%s\n Context:\t%s\n",
		cv.Version, api, cv.GoVersion, cv.GitCommit, cv.BuildTime, cv.Os, cv.Arch, cv.Context)
	if s := v.Server; s != nil {
		title := "Server:"
		if s.Platform.Name != "" {
			title += " " + s.Platform.Name
		}
		fmt.Fprintf(w, "\n%s\n", title)
		for _, comp := range s.Components {
			fmt.Fprintf(w, " %s:\n", comp.Name)
			d := comp.Details
			if comp.Name == "Engine" {
				fmt.Fprintf(w, "  Version:\t%s\n  API version:\t%s (minimum version %s)\n  Go version:\t%s\n  Git commit:\t%s\n  Built:\t%s\n  OS/Arch:\t%s/%s\n  Experimental:\t%s\n",
					comp.Version, d["ApiVersion"], d["MinAPIVersion"], d["GoVersion"], d["GitCommit"], d["BuildTime"], d["Os"], d["Arch"], d["Experimental"])
				continue
			}
			fmt.Fprintf(w, "  Version:\t%s\n", comp.Version)
			for _, k := range sortedKeys(d) {
				fmt.Fprintf(w, "  %s:\t%s\n", k, d[k])
			}
		}
	}
	return w.Flush()
}
