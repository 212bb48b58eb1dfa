package cli

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"
)

const contextEndpointHelp = `

Docker endpoint config:

NAME                DESCRIPTION
from                Copy named context's Docker endpoint configuration
host                Docker endpoint on which to connect
ca                  Trust certs signed only by this CA
cert                Path to TLS certificate file
key                 Path to TLS key file
skip-tls-verify     Skip TLS certificate validation

Example:

$ ` + program + ` context %s my-context --description "some description" --docker "host=tcp://myserver:2376,ca=~/ca-file,cert=~/cert-file,key=~/key-file"
`

// defaultMeta is the context made of the flags and the environment.
func defaultMeta(cli *CLI) *contextMeta {
	ep, err := cli.defaultEndpoint()
	e := contextEndpoint{Host: ep.host}
	if err != nil {
		e.Host = cli.envHost()
	}
	if ep.tls != nil {
		e.SkipTLSVerify = ep.tls.SkipVerify
	}
	return &contextMeta{Name: defaultContext, Metadata: map[string]any{}, Endpoints: map[string]contextEndpoint{"docker": e}}
}

func findContext(cli *CLI, name string) (*contextMeta, error) {
	if name == defaultContext {
		return defaultMeta(cli), nil
	}
	return cli.contextStore().get(name)
}

// contextRow is one context of context ls.
type contextRow struct {
	row
	name, description, endpoint, err string
	current                          bool
}

func (r contextRow) Current() bool          { return r.current }
func (r contextRow) Name() string           { return r.name }
func (r contextRow) Description() string    { return r.description }
func (r contextRow) DockerEndpoint() string { return r.endpoint }
func (r contextRow) Error() string          { return r.err }

func contextLsCmd(cli *CLI, c *cobra.Command) {
	var quiet bool
	var format string
	formatFlag(c, &format)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only show context names")
	c.RunE = func(*cobra.Command, []string) error {
		current := cli.currentContext()
		list, err := cli.contextStore().list()
		if err != nil {
			return err
		}
		found := current == defaultContext
		rows := []contextRow{{
			name: defaultContext, description: "Current DOCKER_HOST based configuration",
			endpoint: defaultMeta(cli).Endpoints["docker"].Host, current: current == defaultContext,
		}}
		for _, m := range list {
			found = found || m.Name == current
			rows = append(rows, contextRow{name: m.Name, description: m.description(), endpoint: m.Endpoints["docker"].Host, current: m.Name == current})
		}
		if !found {
			_, err := findContext(cli, current)
			rows = append(rows, contextRow{name: current, current: true, err: fmt.Sprint(err)})
		}
		sortRows(rows, contextRow.Name)
		if quiet {
			format = "{{.Name}}"
		}
		err = render(cli.Out, format, "{{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}", header{
			"Name": "NAME", "Description": "DESCRIPTION", "DockerEndpoint": "DOCKER ENDPOINT", "Error": "ERROR",
		}, rows)
		if err == nil && cli.getenv("DOCKER_HOST") != "" {
			fmt.Fprint(cli.Err, "Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the global --context flag, or unset DOCKER_HOST environment variable.\n")
		}
		return err
	}
}

func contextShowCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(*cobra.Command, []string) error {
		fmt.Fprintln(cli.Out, cli.currentContext())
		return nil
	}
}

func contextUseCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(_ *cobra.Command, args []string) error {
		name := args[0]
		var value any
		if name != defaultContext {
			if err := checkContextName(name); err != nil {
				return err
			}
			if _, err := cli.contextStore().get(name); err != nil {
				return err
			}
			value = name
		}
		if err := cli.Config().set("currentContext", value); err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, name)
		fmt.Fprintf(cli.Err, "Current context is now %q\n", name)
		if name != defaultContext && cli.getenv("DOCKER_HOST") != "" {
			fmt.Fprintf(cli.Err, "Warning: DOCKER_HOST environment variable overrides the active context. To use %q, either set the global --context flag, or unset DOCKER_HOST environment variable.\n", name)
		}
		return nil
	}
}

func contextInspectCmd(cli *CLI, c *cobra.Command) {
	var format string
	inspectFormatFlag(c, &format)
	c.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			args = []string{cli.currentContext()}
		}
		store := cli.contextStore()
		return inspectOut(cli.Out, args, format, func(name string) ([]byte, error) {
			m, err := findContext(cli, name)
			if err != nil {
				return nil, err
			}
			material := map[string][]string{}
			storage := map[string]string{"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}
			if name != defaultContext {
				storage["MetadataPath"], storage["TLSPath"] = store.metaDir(name), store.tlsDir(name)
				for ep, files := range store.tlsFiles(name) {
					material[ep] = sortedKeys(files)
				}
			}
			return json.Marshal(struct {
				Name        string
				Metadata    map[string]any
				Endpoints   map[string]contextEndpoint
				TLSMaterial map[string][]string
				Storage     map[string]string
			}{m.Name, m.Metadata, m.Endpoints, material, storage})
		})
	}
}

// applyEndpoint sets the endpoint of m from key=value settings.
func applyEndpoint(cli *CLI, m *contextMeta, set map[string]string) error {
	for k := range set {
		switch k {
		case "from", "host", "ca", "cert", "key", "skip-tls-verify":
		default:
			return fmt.Errorf("unable to create docker endpoint config: unrecognized config key: %s", k)
		}
	}
	store := cli.contextStore()
	if from := set["from"]; from != "" {
		src, err := findContext(cli, from)
		if err != nil {
			return err
		}
		m.Endpoints["docker"] = src.Endpoints["docker"]
		for file, data := range store.tlsFiles(from)["docker"] {
			if err := store.putTLS(m.Name, "docker", file, data); err != nil {
				return err
			}
		}
		return nil
	}
	skip := false
	if s := set["skip-tls-verify"]; s != "" {
		switch s {
		case "true", "1", "t", "TRUE", "True":
			skip = true
		case "false", "0", "f", "FALSE", "False":
		default:
			return fmt.Errorf("unable to create docker endpoint config: skip-tls-verify: parsing %q: invalid syntax", s)
		}
	}
	if h := set["host"]; h != "" && !strings.Contains(h, "://") {
		return fmt.Errorf("unable to create docker endpoint config: unable to parse docker host `%s`", h)
	}
	_ = os.RemoveAll(store.tlsDir(m.Name))
	for _, k := range []string{"ca", "cert", "key"} {
		if set[k] == "" {
			continue
		}
		b, err := os.ReadFile(set[k])
		if err != nil {
			return fmt.Errorf("unable to create docker endpoint config: %w", err)
		}
		if err := store.putTLS(m.Name, "docker", k+".pem", b); err != nil {
			return err
		}
	}
	m.Endpoints["docker"] = contextEndpoint{Host: set["host"], SkipTLSVerify: skip}
	return nil
}

func contextCreateCmd(cli *CLI, c *cobra.Command) {
	var description, from string
	var docker map[string]string
	c.Long = c.Short + fmt.Sprintf(contextEndpointHelp, "create")
	f := c.Flags()
	f.StringVar(&description, "description", "", "Description of the context")
	f.StringToStringVar(&docker, "docker", nil, "set the docker endpoint")
	f.StringVar(&from, "from", "", "create context from a named context")
	c.RunE = func(_ *cobra.Command, args []string) error {
		name := args[0]
		store := cli.contextStore()
		if err := checkContextName(name); err != nil {
			return err
		}
		if store.exists(name) {
			return fmt.Errorf("context %q already exists", name)
		}
		m := &contextMeta{Name: name, Metadata: map[string]any{}, Endpoints: map[string]contextEndpoint{}}
		switch {
		case docker != nil:
		case from != "":
			src, err := findContext(cli, from)
			if err != nil {
				return err
			}
			for k, v := range src.Metadata {
				m.Metadata[k] = v
			}
			docker = map[string]string{"from": from}
		default:
			docker = map[string]string{"from": cli.currentContext()}
		}
		if description != "" {
			m.Metadata["Description"] = description
		}
		if err := applyEndpoint(cli, m, docker); err != nil {
			return err
		}
		if err := store.put(m); err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, name)
		fmt.Fprintf(cli.Err, "Successfully created context %q\n", name)
		return nil
	}
}

func contextUpdateCmd(cli *CLI, c *cobra.Command) {
	var description string
	var docker map[string]string
	c.Long = c.Short + fmt.Sprintf(contextEndpointHelp, "update")
	f := c.Flags()
	f.StringVar(&description, "description", "", "Description of the context")
	f.StringToStringVar(&docker, "docker", nil, "set the docker endpoint")
	c.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkContextName(args[0]); err != nil {
			return err
		}
		store := cli.contextStore()
		m, err := store.get(args[0])
		if err != nil {
			return err
		}
		if description != "" {
			m.Metadata["Description"] = description
		}
		if docker != nil {
			if err := applyEndpoint(cli, m, docker); err != nil {
				return err
			}
		}
		if err := store.put(m); err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, args[0])
		fmt.Fprintf(cli.Err, "Successfully updated context %q\n", args[0])
		return nil
	}
}

func contextRmCmd(cli *CLI, c *cobra.Command) {
	var force bool
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of a context in use")
	c.RunE = func(_ *cobra.Command, args []string) error {
		current := cli.currentContext()
		store := cli.contextStore()
		var errs []error
		for _, name := range args {
			switch {
			case name == defaultContext:
				errs = append(errs, errors.New(`context "default" cannot be removed`))
			case !force && !store.exists(name):
				errs = append(errs, fmt.Errorf("context %q does not exist", name))
			case name == current && !force:
				errs = append(errs, fmt.Errorf("context %q is in use, set -f flag to force remove", name))
			default:
				if name == current {
					if err := cli.Config().set("currentContext", nil); err != nil {
						errs = append(errs, err)
						continue
					}
				}
				if err := store.remove(name); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(cli.Out, name)
			}
		}
		return errors.Join(errs...)
	}
}

func contextExportCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(_ *cobra.Command, args []string) error {
		name := args[0]
		if err := checkContextName(name); err != nil && name != defaultContext {
			return err
		}
		m, err := findContext(cli, name)
		if err != nil {
			return err
		}
		meta, err := json.Marshal(m)
		if err != nil {
			return err
		}
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		put := func(name string, mode int64, data []byte) error {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
				return err
			}
			_, err := w.Write(data)
			return err
		}
		if err := put("meta.json", 0o644, meta); err != nil {
			return err
		}
		for ep, files := range cli.contextStore().tlsFiles(name) {
			for file, data := range files {
				if err := put(path.Join("tls", ep, file), 0o600, data); err != nil {
					return err
				}
			}
		}
		if err := w.Close(); err != nil {
			return err
		}
		dest := name + ".dockercontext"
		if len(args) == 2 {
			dest = args[1]
		}
		if dest == "-" {
			if cli.Out.IsTerminal() {
				return errors.New("cowardly refusing to export to a terminal, specify a file path")
			}
			_, err := cli.Out.Write(buf.Bytes())
			return err
		}
		f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if _, err := f.Write(buf.Bytes()); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		fmt.Fprintf(cli.Err, "Written file %q\n", dest)
		return nil
	}
}

// maxContext bounds what an import reads.
const maxContext = 10 << 20

func contextImportCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(_ *cobra.Command, args []string) error {
		name := args[0]
		if err := checkContextName(name); err != nil {
			return err
		}
		if cli.contextStore().exists(name) {
			return fmt.Errorf("context %q already exists", name)
		}
		var r io.Reader = cli.In
		if args[1] != "-" {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			r = f
		}
		data, err := io.ReadAll(io.LimitReader(r, maxContext+1))
		if err != nil {
			return err
		}
		if len(data) > maxContext {
			return errors.New("read exceeds the defined limit")
		}
		if err := importContext(cli, name, data); err != nil {
			_ = cli.contextStore().remove(name)
			return err
		}
		fmt.Fprintln(cli.Out, name)
		fmt.Fprintf(cli.Err, "Successfully imported context %q\n", name)
		return nil
	}
}

func importContext(cli *CLI, name string, data []byte) error {
	store := cli.contextStore()
	found := false
	entry := func(file string, r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxContext))
		if err != nil {
			return err
		}
		file = path.Clean(file)
		switch parts := strings.Split(file, "/"); {
		case file == "meta.json":
			var m contextMeta
			if err := json.Unmarshal(b, &m); err != nil {
				return err
			}
			m.Name, found = name, true
			return store.put(&m)
		case parts[0] == "tls" && len(parts) == 3:
			return store.putTLS(name, parts[1], parts[2], b)
		case strings.HasPrefix(file, ".."), path.IsAbs(file):
			return errors.New("unexpected context file")
		}
		return nil
	}
	if z, err := zip.NewReader(bytes.NewReader(data), int64(len(data))); err == nil {
		for _, f := range z.File {
			if f.FileInfo().IsDir() {
				continue
			}
			r, err := f.Open()
			if err != nil {
				return err
			}
			err = entry(f.Name, r)
			r.Close()
			if err != nil {
				return err
			}
		}
	} else {
		tr := tar.NewReader(bytes.NewReader(data))
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			if err := entry(h.Name, tr); err != nil {
				return err
			}
		}
	}
	if !found {
		return errors.New("invalid context: no metadata found")
	}
	return nil
}
