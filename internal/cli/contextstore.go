package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"berth.dev/berth/internal/client"
)

const defaultContext = "default"

// contextStore keeps contexts as files: contexts/meta/SHA256(name)/meta.json and
// contexts/tls/SHA256(name)/docker/{ca,cert,key}.pem.
type contextStore struct{ dir string }

// contextMeta is one meta.json.
type contextMeta struct {
	Name      string
	Metadata  map[string]any
	Endpoints map[string]contextEndpoint
}

type contextEndpoint struct {
	Host          string `json:",omitempty"`
	SkipTLSVerify bool
}

func (m *contextMeta) description() string { s, _ := m.Metadata["Description"].(string); return s }

func (cli *CLI) contextStore() *contextStore {
	return &contextStore{dir: filepath.Join(cli.configDir(), "contexts")}
}

func contextID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

func (s *contextStore) metaDir(name string) string {
	return filepath.Join(s.dir, "meta", contextID(name))
}

func (s *contextStore) tlsDir(name string) string {
	return filepath.Join(s.dir, "tls", contextID(name))
}

var contextName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$`)

func checkContextName(name string) error {
	switch {
	case name == "":
		return errors.New("context name cannot be empty")
	case name == defaultContext:
		return errors.New(`"default" is a reserved context name`)
	case !contextName.MatchString(name):
		return fmt.Errorf("context name %q is invalid, names are validated against regexp \"%s\"", name, contextName)
	}
	return nil
}

func (s *contextStore) get(name string) (*contextMeta, error) {
	b, err := os.ReadFile(filepath.Join(s.metaDir(name), "meta.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("context %q: context not found: open %s: no such file or directory", name, filepath.Join(s.metaDir(name), "meta.json"))
	}
	if err != nil {
		return nil, err
	}
	var m contextMeta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("context %q: parsing %s: %w", name, filepath.Join(s.metaDir(name), "meta.json"), err)
	}
	return &m, nil
}

func (s *contextStore) exists(name string) bool {
	_, err := os.Stat(filepath.Join(s.metaDir(name), "meta.json"))
	return err == nil
}

func (s *contextStore) put(m *contextMeta) error {
	dir := s.metaDir(m.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if m.Metadata == nil {
		m.Metadata = map[string]any{}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "meta.json.tmp")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "meta.json"))
}

func (s *contextStore) remove(name string) error {
	return errors.Join(os.RemoveAll(s.metaDir(name)), os.RemoveAll(s.tlsDir(name)))
}

func (s *contextStore) list() ([]*contextMeta, error) {
	dirs, err := os.ReadDir(filepath.Join(s.dir, "meta"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []*contextMeta
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(s.dir, "meta", d.Name(), "meta.json"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var m contextMeta
		if err := json.Unmarshal(b, &m); err != nil {
			return nil, err
		}
		out = append(out, &m)
	}
	sort.Slice(out, func(i, j int) bool { return naturalLess(out[i].Name, out[j].Name) })
	return out, nil
}

// tlsFiles returns the PEM files of a context, by endpoint and name.
func (s *contextStore) tlsFiles(name string) map[string]map[string][]byte {
	out := map[string]map[string][]byte{}
	eps, _ := os.ReadDir(s.tlsDir(name))
	for _, ep := range eps {
		files, _ := os.ReadDir(filepath.Join(s.tlsDir(name), ep.Name()))
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(s.tlsDir(name), ep.Name(), f.Name()))
			if err != nil {
				continue
			}
			if out[ep.Name()] == nil {
				out[ep.Name()] = map[string][]byte{}
			}
			out[ep.Name()][f.Name()] = b
		}
	}
	return out
}

func (s *contextStore) putTLS(name, ep, file string, data []byte) error {
	dir := filepath.Join(s.tlsDir(name), filepath.Base(ep))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, filepath.Base(file)), data, 0o600)
}

// endpoint returns where a context connects to.
func (s *contextStore) endpoint(name string) (endpoint, error) {
	m, err := s.get(name)
	if err != nil {
		return endpoint{}, err
	}
	e, ok := m.Endpoints["docker"]
	if !ok {
		return endpoint{}, fmt.Errorf("cannot find docker endpoint in context %q", name)
	}
	files := s.tlsFiles(name)["docker"]
	var tls *client.TLSFiles
	if len(files) > 0 || e.SkipTLSVerify {
		tls = &client.TLSFiles{CAPEM: files["ca.pem"], CertPEM: files["cert.pem"], KeyPEM: files["key.pem"], SkipVerify: e.SkipTLSVerify}
	}
	host, err := parseHost(e.Host, tls != nil)
	return endpoint{host: host, tls: tls, standard: host == "unix://"+defaultSocket}, err
}
