package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// hubServer is the key of Docker Hub in the stores of credentials.
const hubServer = "https://index.docker.io/v1/"

// serverKey is the key of a registry's domain.
func serverKey(domain string) string {
	if domain == "docker.io" || domain == "index.docker.io" {
		return hubServer
	}
	return domain
}

// registryAuth returns the X-Registry-Auth header for a registry.
func (cli *CLI) registryAuth(domain string) (string, error) {
	a, err := cli.credentials(serverKey(domain))
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(a)
	if err != nil {
		return "", err
	}
	return base64.URLEncoding.EncodeToString(b), nil
}

// helper returns the program that keeps a server's credentials, or "".
func (c *configFile) helper(server string) string {
	if h, ok := c.CredHelpers[server]; ok {
		return h
	}
	return c.CredsStore
}

// credentials returns what is stored for a server; nothing stored is no error.
func (cli *CLI) credentials(server string) (registry.AuthConfig, error) {
	c := cli.Config()
	if h := c.helper(server); h != "" {
		out, err := runHelper(h, "get", server)
		if err != nil {
			return registry.AuthConfig{}, err
		}
		var got struct{ Username, Secret string }
		if len(out) == 0 || json.Unmarshal(out, &got) != nil {
			return registry.AuthConfig{}, nil
		}
		if got.Username == "<token>" {
			return registry.AuthConfig{IdentityToken: got.Secret, ServerAddress: server}, nil
		}
		return registry.AuthConfig{Username: got.Username, Password: got.Secret, ServerAddress: server}, nil
	}
	for key, e := range c.Auths {
		if key != server && plainServer(key) != plainServer(server) {
			continue
		}
		a := registry.AuthConfig{IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken, ServerAddress: key}
		if e.Auth != "" {
			b, err := base64.StdEncoding.DecodeString(e.Auth)
			if err != nil {
				return a, err
			}
			user, pass, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
			if !ok || user == "" {
				return a, errors.New("invalid auth configuration file")
			}
			a.Username, a.Password = user, pass
		}
		return a, nil
	}
	return registry.AuthConfig{}, nil
}

func plainServer(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	return s
}

// runHelper speaks the protocol of docker-credential-* programs.
func runHelper(name, verb, input string) ([]byte, error) {
	cmd := exec.Command("docker-credential-"+name, verb)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	msg := strings.TrimSpace(string(out))
	if strings.Contains(msg, "credentials not found") {
		return nil, nil
	}
	if msg == "" {
		msg = err.Error()
	}
	return nil, fmt.Errorf("error getting credentials - err: %w, out: `%s`", err, msg)
}

func storeCredentials(cli *CLI, server string, a registry.AuthConfig) error {
	c := cli.Config()
	if h := c.helper(server); h != "" {
		secret, user := a.Password, a.Username
		if a.IdentityToken != "" {
			secret, user = a.IdentityToken, "<token>"
		}
		b, err := json.Marshal(map[string]string{"ServerURL": server, "Username": user, "Secret": secret})
		if err != nil {
			return err
		}
		if _, err := runHelper(h, "store", string(b)); err != nil {
			return err
		}
		return setAuth(cli, server, &authEntry{})
	}
	fmt.Fprintf(cli.Err, "\nWARNING! Your credentials are stored unencrypted in '%s'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n\n", c.path)
	e := &authEntry{IdentityToken: a.IdentityToken}
	if a.Username != "" && a.IdentityToken == "" {
		e.Auth = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
	}
	return setAuth(cli, server, e)
}

// setAuth writes one entry of auths, keeping what we do not know of the others.
func setAuth(cli *CLI, server string, e *authEntry) error {
	c := cli.Config()
	auths := map[string]any{}
	if raw, ok := c.raw["auths"]; ok {
		if err := json.Unmarshal(raw, &auths); err != nil {
			return err
		}
	}
	delete(auths, server)
	if e != nil {
		auths[server] = e
	}
	return c.set("auths", auths)
}

func loginCmd(cli *CLI, c *cobra.Command) {
	var user, password string
	var fromStdin bool
	f := c.Flags()
	f.StringVarP(&user, "username", "u", "", "Username")
	f.StringVarP(&password, "password", "p", "", "Password or Personal Access Token (PAT)")
	f.BoolVar(&fromStdin, "password-stdin", false, "Take the Password or Personal Access Token (PAT) from stdin")
	c.Long = "Authenticate to a registry.\nDefaults to Docker Hub if no server is specified."
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.Changed("password") {
			fmt.Fprintln(cli.Err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
			if fromStdin {
				return errors.New("conflicting options: cannot specify both --password and --password-stdin")
			}
		}
		if fromStdin {
			if user == "" {
				return errors.New("the --password-stdin option requires --username to be set")
			}
			b, err := io.ReadAll(cli.In)
			if err != nil {
				return err
			}
			password = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
		}
		server := hubServer
		if len(args) > 0 && args[0] != "docker.io" && args[0] != "index.docker.io" {
			server = args[0]
			if server != hubServer {
				server = plainServer(server)
			}
		}
		a := registry.AuthConfig{Username: user, Password: password, ServerAddress: server}
		if user == "" && password == "" {
			if stored, err := cli.credentials(server); err == nil && (stored.Username != "" || stored.IdentityToken != "") {
				fmt.Fprintf(cli.Out, "Authenticating with existing credentials...")
				if _, status, err := checkLogin(cli, c.Context(), stored); err == nil { // what is stored stays
					fmt.Fprintf(cli.Out, " [Username: %s]\n\n%sTo login with a different account, run '%s logout' followed by '%s login'\n\n\n%s\n", stored.Username, cli.Out.infoMark(), program, program, status)
					return nil
				}
				fmt.Fprintln(cli.Err, "Login did not succeed, error: existing credentials were refused")
			}
		}
		if err := promptLogin(cli, &a); err != nil {
			return err
		}
		status, err := tryLogin(cli, c.Context(), a, server)
		if err != nil {
			return err
		}
		if status != "" {
			fmt.Fprintln(cli.Out, status)
		}
		return nil
	}
}

func promptLogin(cli *CLI, a *registry.AuthConfig) error {
	if (a.Username == "" || a.Password == "") && !cli.In.tty {
		return errors.New("Error: Cannot perform an interactive login from a non TTY device") //nolint:staticcheck // Docker's words
	}
	if a.Username == "" {
		fmt.Fprint(cli.Out, "Username: ")
		s, err := readLine(cli.In)
		if err != nil {
			return err
		}
		if a.Username = strings.TrimSpace(s); a.Username == "" {
			return errors.New("error: username is required")
		}
	}
	if a.Password == "" {
		fmt.Fprint(cli.Out, "Password: ")
		state, err := term.SaveState(cli.In.fd)
		if err != nil {
			return err
		}
		if err := term.DisableEcho(cli.In.fd, state); err != nil {
			return err
		}
		s, err := readLine(cli.In)
		_ = term.RestoreTerminal(cli.In.fd, state)
		fmt.Fprintln(cli.Out)
		if err != nil {
			return err
		}
		if a.Password = s; s == "" {
			return errors.New("error: password is required")
		}
	}
	return nil
}

func readLine(r io.Reader) (string, error) {
	var b []byte
	one := make([]byte, 1)
	for {
		n, err := r.Read(one)
		if n == 1 {
			if one[0] == '\n' {
				return strings.TrimSuffix(string(b), "\r"), nil
			}
			b = append(b, one[0])
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 {
				return string(b), nil
			}
			return "", err
		}
	}
}

// checkLogin asks the engine to log in. The result is what to store.
func checkLogin(cli *CLI, ctx context.Context, a registry.AuthConfig) (registry.AuthConfig, string, error) {
	cl, err := cli.Client()
	if err != nil {
		return a, "", err
	}
	res, err := client.Post[registry.AuthResponse](ctx, cl, "/auth", nil, a)
	if err != nil {
		return a, "", err
	}
	if res.IdentityToken != "" {
		a.Password, a.IdentityToken = "", res.IdentityToken
	}
	return a, res.Status, nil
}

// tryLogin asks the engine to log in, and stores what worked.
func tryLogin(cli *CLI, ctx context.Context, a registry.AuthConfig, server string) (string, error) {
	a, status, err := checkLogin(cli, ctx, a)
	if err != nil {
		return "", err
	}
	if err := storeCredentials(cli, server, a); err != nil {
		return "", fmt.Errorf("error saving credentials: %w", err)
	}
	return status, nil
}

func logoutCmd(cli *CLI, c *cobra.Command) {
	c.Long = "Log out from a registry.\nIf no server is specified, the default is defined by the daemon."
	c.RunE = func(_ *cobra.Command, args []string) error {
		server := hubServer
		if len(args) > 0 && args[0] != "docker.io" && args[0] != "index.docker.io" {
			server = plainServer(args[0])
		}
		cfg := cli.Config()
		fmt.Fprintf(cli.Out, "Removing login credentials for %s\n", server)
		if h := cfg.helper(server); h != "" {
			if _, err := runHelper(h, "erase", server); err != nil {
				fmt.Fprintf(cli.Err, "WARNING: could not erase credentials:\n%s: %v\n", server, err)
			}
		}
		for key := range cfg.Auths {
			if key == server || plainServer(key) == plainServer(server) {
				return setAuth(cli, key, nil)
			}
		}
		return nil
	}
}

// searchRow is one image that the registry found.
type searchRow struct {
	row
	r    registry.SearchResult
	full bool
}

func (r searchRow) Name() string      { return r.r.Name }
func (r searchRow) StarCount() string { return fmt.Sprint(r.r.StarCount) }
func (r searchRow) IsOfficial() string {
	if r.r.IsOfficial {
		return "[OK]"
	}
	return ""
}
func (r searchRow) IsAutomated() string { return "" }
func (r searchRow) Description() string {
	s := strings.ReplaceAll(strings.ReplaceAll(r.r.Description, "\n", " "), "\r", " ")
	if r.full {
		return s
	}
	return ellipsis(s, 45)
}

func searchCmd(cli *CLI, c *cobra.Command) {
	var format string
	var limit int
	var noTrunc bool
	var filters filterValue
	f := c.Flags()
	f.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	f.VarP(&filters, "filter", "f", "Filter output based on conditions provided")
	f.IntVar(&limit, "limit", 0, "Max number of search results")
	f.StringVar(&format, "format", "", "Pretty-print search using a Go template")
	c.RunE = func(c *cobra.Command, args []string) error {
		if filters.has("is-automated") {
			fmt.Fprintln(cli.Err, `WARNING: the "is-automated" filter is deprecated, and searching for "is-automated=true" will not yield any results in future.`)
		}
		q := url.Values{"term": {args[0]}}
		if limit > 0 {
			q.Set("limit", fmt.Sprint(limit))
		}
		filters.query(q)
		domain := "docker.io"
		if host, _, ok := strings.Cut(args[0], "/"); ok && strings.ContainsAny(host, ".:") {
			domain = host
		}
		auth, err := cli.registryAuth(domain)
		if err != nil {
			return err
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		var found []registry.SearchResult
		if err := cl.JSON(c.Context(), client.Request{Method: http.MethodGet, Path: "/images/search", Query: q, Header: http.Header{"X-Registry-Auth": {auth}}}, &found); err != nil {
			return err
		}
		rows := make([]searchRow, len(found))
		for i, r := range found {
			rows[i] = searchRow{r: r, full: noTrunc}
		}
		return render(cli.Out, format, "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}",
			header{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL", "IsAutomated": "AUTOMATED"}, rows)
	}
}

// Where --use-api-socket puts the engine's socket and the user's credentials.
const (
	apiSocketTarget = "/var/run/docker.sock"
	apiSecretDir    = "/run/secrets/docker"
)

// useAPISocket mounts the engine's socket and points DOCKER_CONFIG to the credentials.
func useAPISocket(req *container.CreateRequest) {
	req.HostConfig.Mounts = append(req.HostConfig.Mounts, mount.Mount{
		Type: mount.TypeBind, Source: defaultSocket, Target: apiSocketTarget, BindOptions: &mount.BindOptions{},
	})
	for _, e := range req.Config.Env {
		if strings.HasPrefix(e, "DOCKER_CONFIG=") {
			return
		}
	}
	req.Config.Env = append(req.Config.Env, "DOCKER_CONFIG="+apiSecretDir)
}

// copyCredentials puts the stored credentials into a created container.
func copyCredentials(cli *CLI, ctx context.Context, cl *client.Client, id string) error {
	auths := map[string]authEntry{}
	for server := range cli.Config().Auths {
		a, err := cli.credentials(server)
		if err != nil {
			return fmt.Errorf("resolving credentials failed: %w", err)
		}
		e := authEntry{IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Username != "" {
			e.Auth = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
		}
		auths[server] = e
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	name := strings.TrimPrefix(apiSecretDir, "/") + "/config.json"
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return cl.JSON(ctx, client.Request{
		Method: http.MethodPut, Path: containerPath(id, "/archive"), Query: url.Values{"path": {"/"}, "noOverwriteDirNonDir": {"true"}},
		Stream: &buf, ContentType: "application/x-tar",
	}, nil)
}
