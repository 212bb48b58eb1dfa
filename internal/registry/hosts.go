package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"berth.dev/berth/internal/errs"
)

const maxHostsFile = 1 << 20

// hostsFile is containerd's hosts.toml: where a domain is served, in the order of the
// file, and at last its server.
type hostsFile struct {
	Server string `toml:"server"`
	hostEntry
	Host map[string]hostEntry `toml:"host"`
}

// hostEntry is one place. CA and Client are a path, a list of paths, or for Client a
// list of pairs of certificate and key.
type hostEntry struct {
	Capabilities []string       `toml:"capabilities"` // pull, resolve, push; none named: all
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	OverridePath bool           `toml:"override_path"` // the address has its own path instead of /v2
	Header       map[string]any `toml:"header"`
}

func (h *hostEntry) can(push bool) bool {
	if len(h.Capabilities) == 0 {
		return true
	}
	if push {
		return slices.Contains(h.Capabilities, "push")
	}
	return slices.Contains(h.Capabilities, "pull") && slices.Contains(h.Capabilities, "resolve")
}

// hostsOf reads the first hosts.toml that there is for a domain, and returns its places.
// found tells that there is one; the registry itself is the last place then.
func (c *Client) hostsOf(cfg *Config, domain string, push bool) (list [][]*endpoint, found bool, err error) {
	for _, dir := range cfg.CertDirs {
		dir = filepath.Join(dir, domain)
		path := filepath.Join(dir, "hosts.toml")
		st, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, true, err
		}
		if !st.Mode().IsRegular() || st.Size() > maxHostsFile {
			return nil, true, errs.New(errs.Internal, "%s: no regular file of at most %d bytes", path, maxHostsFile)
		}
		var f hostsFile
		meta, err := toml.DecodeFile(path, &f)
		if err != nil {
			return nil, true, errs.New(errs.Internal, "cannot read %s: %w", path, err)
		}
		seen := map[string]bool{}
		for _, key := range meta.Keys() { // in the order of the file
			if len(key) < 2 || key[0] != "host" || seen[key[1]] {
				continue
			}
			seen[key[1]] = true
			if h := f.Host[key[1]]; h.can(push) {
				e, err := c.place(cfg, dir, key[1], &h)
				if err != nil {
					return nil, true, errs.New(errs.Internal, "%s: %w", path, err)
				}
				e.mirror = !strings.EqualFold(e.base.Host, domain)
				list = append(list, []*endpoint{e})
			}
		}
		if f.Server == "" {
			if domain == Hub {
				domain = hubHost
			}
			f.Server = "https://" + domain
		}
		if f.can(push) {
			e, err := c.place(cfg, dir, f.Server, &f.hostEntry)
			if err != nil {
				return nil, true, errs.New(errs.Internal, "%s: %w", path, err)
			}
			list = append(list, []*endpoint{e})
		}
		return list, true, nil
	}
	return nil, false, nil
}

// place makes an endpoint of an entry. Files are relative to the directory.
func (c *Client) place(cfg *Config, dir, at string, h *hostEntry) (*endpoint, error) {
	if !strings.Contains(at, "://") {
		at = "https://" + at
	}
	u, err := url.Parse(at)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "invalid host %q", at)
	}
	if len(h.Header) > 0 {
		return nil, errs.New(errs.Invalid, "header is not supported (host %s)", u.Host)
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.SkipVerify} //nolint:gosec // as the user asked
	abs := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	for _, ca := range texts(h.CA) {
		pem, err := os.ReadFile(abs(ca[0]))
		if err != nil {
			return nil, err
		}
		if tc.RootCAs == nil {
			if tc.RootCAs, err = x509.SystemCertPool(); err != nil {
				return nil, err
			}
		}
		tc.RootCAs.AppendCertsFromPEM(pem)
	}
	for _, pair := range texts(h.Client) {
		key := pair[0]
		if len(pair) > 1 && pair[1] != "" {
			key = pair[1]
		}
		cert, err := tls.LoadX509KeyPair(abs(pair[0]), abs(key))
		if err != nil {
			return nil, err
		}
		tc.Certificates = append(tc.Certificates, cert)
	}
	path := strings.TrimSuffix(u.Path, "/")
	api := path
	if !h.OverridePath && !strings.HasSuffix(path, "/v2") {
		api = path + "/v2"
	}
	// The connections are kept with the others, by host and by what the entry says.
	key := strings.Join([]string{"hosts", dir, at}, " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.transports[key]
	if t == nil || c.cfg != cfg {
		t = newTransport(tc)
		c.transports[key] = t
	}
	return &endpoint{base: &url.URL{Scheme: u.Scheme, Host: u.Host}, api: api, http: t, agent: cfg.UserAgent}, nil
}

// texts reads "a", ["a", "b"] and [["a", "b"], ["c", "d"]].
func texts(v any) (out [][]string) {
	switch v := v.(type) {
	case string:
		out = append(out, []string{v})
	case []any:
		for _, e := range v {
			switch e := e.(type) {
			case string:
				out = append(out, []string{e})
			case []any:
				var pair []string
				for _, p := range e {
					if s, ok := p.(string); ok {
						pair = append(pair, s)
					}
				}
				if len(pair) > 0 {
					out = append(out, pair)
				}
			}
		}
	}
	return out
}
