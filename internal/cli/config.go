package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/berth/internal/client"
)

// configFile is the part of ~/.docker/config.json that we read. The whole file
// is kept in raw, so that writing one key back loses nothing.
type configFile struct {
	path string
	raw  map[string]json.RawMessage

	CurrentContext     string                       `json:"currentContext"`
	PsFormat           string                       `json:"psFormat"`
	ImagesFormat       string                       `json:"imagesFormat"`
	NetworksFormat     string                       `json:"networksFormat"`
	VolumesFormat      string                       `json:"volumesFormat"`
	StatsFormat        string                       `json:"statsFormat"`
	DetachKeys         string                       `json:"detachKeys"`
	HTTPHeaders        map[string]string            `json:"HttpHeaders"`
	PruneFilters       []string                     `json:"pruneFilters"`
	Proxies            map[string]map[string]string `json:"proxies"`
	Auths              map[string]authEntry         `json:"auths"`
	CredsStore         string                       `json:"credsStore"`
	CredHelpers        map[string]string            `json:"credHelpers"`
	CredentialsChanged bool                         `json:"-"`
}

type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

// configDir returns the directory of client configuration.
func (cli *CLI) configDir() string {
	if cli.opts.configDir != "" {
		return cli.opts.configDir
	}
	if d := cli.getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return filepath.Join(home, ".docker")
}

// Config reads the configuration file once. A broken file is a warning.
func (cli *CLI) Config() *configFile {
	if cli.config != nil {
		return cli.config
	}
	c := &configFile{path: filepath.Join(cli.configDir(), "config.json")}
	cli.config = c
	b, err := os.ReadFile(c.path)
	if err == nil && len(bytes.TrimSpace(b)) > 0 {
		if err = json.Unmarshal(b, &c.raw); err == nil {
			err = json.Unmarshal(b, c)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(cli.Err, "WARNING: Error parsing config file (%s): %v\n", c.path, err)
	}
	return c
}

// set writes one key of the file back; a nil value removes it.
func (c *configFile) set(key string, value any) error {
	if c.raw == nil {
		c.raw = map[string]json.RawMessage{}
	}
	if value == nil {
		delete(c.raw, key)
	} else {
		b, err := json.Marshal(value)
		if err != nil {
			return err
		}
		c.raw[key] = b
	}
	b, err := json.MarshalIndent(c.raw, "", "\t")
	if err != nil {
		return err
	}
	path := c.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	mode := os.FileMode(0o600)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "config.json")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Chmod(tmp.Name(), mode); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// proxyEnv returns the proxy variables that containers get for host.
func (c *configFile) proxyEnv(host string) []string {
	p, ok := c.Proxies[host]
	if !ok {
		p = c.Proxies["default"]
	}
	var env []string
	for _, k := range [][2]string{
		{"httpProxy", "HTTP_PROXY"},
		{"httpsProxy", "HTTPS_PROXY"},
		{"ftpProxy", "FTP_PROXY"},
		{"noProxy", "NO_PROXY"},
		{"allProxy", "ALL_PROXY"},
	} {
		if v := p[k[0]]; v != "" {
			env = append(env, k[1]+"="+v, strings.ToLower(k[1])+"="+v)
		}
	}
	return env
}

// defaultSocket is where the engine listens.
const defaultSocket = "/run/berth.sock"

// endpoint is what a context or the environment says about the connection.
type endpoint struct {
	host     string
	tls      *client.TLSFiles
	standard bool // our own default socket: may be started
}

// currentContext returns the name of the context in use.
func (cli *CLI) currentContext() string {
	switch {
	case cli.opts.context != "":
		return cli.opts.context
	case len(cli.opts.hosts) > 0, cli.getenv("BERTH_HOST") != "", cli.getenv("DOCKER_HOST") != "":
		return defaultContext
	case cli.getenv("DOCKER_CONTEXT") != "":
		return cli.getenv("DOCKER_CONTEXT")
	case cli.Config().CurrentContext != "":
		return cli.Config().CurrentContext
	}
	return defaultContext
}

// envHost returns the host of the flags or the environment.
func (cli *CLI) envHost() string {
	if len(cli.opts.hosts) > 0 {
		return cli.opts.hosts[0]
	}
	if h := cli.getenv("BERTH_HOST"); h != "" {
		return h
	}
	return cli.getenv("DOCKER_HOST")
}

// endpoint decides where to connect.
func (cli *CLI) endpoint() (endpoint, error) {
	if len(cli.opts.hosts) > 1 {
		return endpoint{}, errors.New("Failed to initialize: unable to resolve " + program + " endpoint: Specify only one -H") //nolint:staticcheck // Docker's words
	}
	if len(cli.opts.hosts) > 0 && cli.opts.context != "" {
		return endpoint{}, errors.New("conflicting options: cannot specify both --host and --context")
	}
	name := cli.currentContext()
	if name != defaultContext {
		ep, err := cli.contextStore().endpoint(name)
		if err == nil && ep.tls != nil && cli.opts.tlsVerify {
			ep.tls.SkipVerify = false
		}
		return ep, err
	}
	return cli.defaultEndpoint()
}

func (cli *CLI) defaultEndpoint() (endpoint, error) {
	tls := cli.tlsFiles()
	host, err := parseHost(cli.envHost(), tls != nil)
	if err != nil {
		return endpoint{}, err
	}
	ep := endpoint{host: host, tls: tls, standard: host == "unix://"+defaultSocket}
	if strings.HasPrefix(host, "unix://") || strings.HasPrefix(host, "ssh://") {
		ep.tls = nil
	}
	return ep, nil
}

// tlsFiles returns what --tls, --tlsverify and their environment ask for, or nil.
func (cli *CLI) tlsFiles() *client.TLSFiles {
	o := cli.opts
	verify := o.tlsVerify
	if !o.tlsSet && cli.getenv("DOCKER_TLS_VERIFY") != "" {
		verify = true
	}
	if !verify && !o.tls && cli.getenv("DOCKER_TLS") == "" {
		return nil
	}
	dir := cli.getenv("DOCKER_CERT_PATH")
	if dir == "" {
		dir = cli.configDir()
	}
	file := func(set, name string) string {
		if set != "" {
			return set
		}
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err != nil && (name != "ca.pem" || !verify) {
			return ""
		}
		return p
	}
	return &client.TLSFiles{
		CA: file(o.ca, "ca.pem"), Cert: file(o.cert, "cert.pem"), Key: file(o.key, "key.pem"), SkipVerify: !verify,
	}
}

// parseHost completes a host as it is given by the user.
func parseHost(s string, tls bool) (string, error) {
	s = strings.TrimSpace(s)
	proto, rest, ok := strings.Cut(s, "://")
	switch {
	case s == "":
		if tls {
			return "tcp://localhost:2376", nil
		}
		return "unix://" + defaultSocket, nil
	case !ok:
		proto, rest = "tcp", s
	}
	switch proto {
	case "unix":
		if rest == "" {
			rest = defaultSocket
		}
		return "unix://" + rest, nil
	case "tcp":
		if rest == "" || strings.HasPrefix(rest, ":") {
			rest = "localhost" + rest
		}
		host, path, _ := strings.Cut(rest, "/")
		if i := strings.LastIndexByte(host, ':'); i < 0 || strings.HasSuffix(host, "]") {
			port := "2375"
			if tls {
				port = "2376"
			}
			host += ":" + port
		}
		if path != "" {
			host += "/" + path
		}
		return "tcp://" + host, nil
	case "http", "https", "ssh":
		return proto + "://" + rest, nil
	}
	return "", fmt.Errorf("invalid bind address format: %s", s)
}
