package registryd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"
)

// Config is the configuration file. Names are those that registries have; what this one
// adds is storage.quota, storage.maintenance.gc, auth.anonymous and proxy.authhosts. Fields that change nothing here are accepted, so
// that files can be taken over.
type Config struct {
	Version       string        `yaml:"version"`
	LogLevel      string        `yaml:"loglevel"` // before there was log.level
	Log           LogConfig     `yaml:"log"`
	Storage       StorageConfig `yaml:"storage"`
	Auth          AuthConfig    `yaml:"auth"`
	HTTP          HTTPConfig    `yaml:"http"`
	Notifications struct {
		Events struct {
			IncludeReferences bool `yaml:"includereferences"`
		} `yaml:"events"`
		Endpoints []EndpointConfig `yaml:"endpoints"`
	} `yaml:"notifications"`
	Health struct {
		StorageDriver struct {
			Enabled   bool          `yaml:"enabled"`
			Interval  time.Duration `yaml:"interval"`
			Threshold int           `yaml:"threshold"`
		} `yaml:"storagedriver"`
		File []any `yaml:"file"`
		HTTP []any `yaml:"http"`
		TCP  []any `yaml:"tcp"`
	} `yaml:"health"`
	Proxy      ProxyConfig `yaml:"proxy"`
	Validation struct {
		Enabled   bool `yaml:"enabled"`
		Disabled  bool `yaml:"disabled"`
		Manifests any  `yaml:"manifests"`
	} `yaml:"validation"`
	Catalog struct {
		MaxEntries int `yaml:"maxentries"`
	} `yaml:"catalog"`
	Redis      any `yaml:"redis"`
	Middleware any `yaml:"middleware"`
	Policy     any `yaml:"policy"`

	// Ignored are environment variables that name no field.
	Ignored []string `yaml:"-"`
}

// LogConfig is the section log.
type LogConfig struct {
	AccessLog struct {
		Disabled bool `yaml:"disabled"`
	} `yaml:"accesslog"`
	Level        string         `yaml:"level"`     // debug, info, warn, error
	Formatter    string         `yaml:"formatter"` // text, json
	Fields       map[string]any `yaml:"fields"`
	Hooks        []any          `yaml:"hooks"`
	ReportCaller bool           `yaml:"reportcaller"`
}

// StorageConfig is the section storage.
type StorageConfig struct {
	Filesystem struct {
		RootDirectory string `yaml:"rootdirectory"`
		MaxThreads    int    `yaml:"maxthreads"`
	} `yaml:"filesystem"`
	Cache  map[string]any `yaml:"cache"`
	Delete struct {
		Enabled bool `yaml:"enabled"`
	} `yaml:"delete"`
	Redirect    map[string]any `yaml:"redirect"`
	Tag         map[string]any `yaml:"tag"`
	Maintenance struct {
		UploadPurging struct {
			Enabled  *bool         `yaml:"enabled"`
			Age      time.Duration `yaml:"age"`
			Interval time.Duration `yaml:"interval"`
			DryRun   bool          `yaml:"dryrun"`
		} `yaml:"uploadpurging"`
		ReadOnly struct {
			Enabled bool `yaml:"enabled"`
		} `yaml:"readonly"`
		GC struct {
			Enabled  *bool         `yaml:"enabled"`
			Interval time.Duration `yaml:"interval"`
			Grace    time.Duration `yaml:"grace"`
			Untagged bool          `yaml:"untagged"`
		} `yaml:"gc"`
	} `yaml:"maintenance"`
	Quota struct {
		Total      Size `yaml:"total"`
		Repository Size `yaml:"repository"`
	} `yaml:"quota"`
}

// AuthConfig is the section auth.
type AuthConfig struct {
	Htpasswd *HtpasswdConfig `yaml:"htpasswd"`
	Token    *TokenConfig    `yaml:"token"`
	// Anonymous is "pull" to let everybody pull, and only those with a password push.
	Anonymous string `yaml:"anonymous"`
}

// HtpasswdConfig is the section auth.htpasswd.
type HtpasswdConfig struct {
	Realm string `yaml:"realm"`
	Path  string `yaml:"path"`
}

// TokenConfig is the section auth.token.
type TokenConfig struct {
	Realm             string   `yaml:"realm"`
	Service           string   `yaml:"service"`
	Issuer            string   `yaml:"issuer"`
	RootCertBundle    string   `yaml:"rootcertbundle"`
	JWKS              string   `yaml:"jwks"`
	AutoRedirect      bool     `yaml:"autoredirect"`
	AutoRedirectPath  string   `yaml:"autoredirectpath"`
	SigningAlgorithms []string `yaml:"signingalgorithms"`
}

// HTTPConfig is the section http.
type HTTPConfig struct {
	Addr         string        `yaml:"addr"`
	Net          string        `yaml:"net"` // tcp or unix
	Host         string        `yaml:"host"`
	Prefix       string        `yaml:"prefix"`
	Secret       string        `yaml:"secret"`
	RelativeURLs bool          `yaml:"relativeurls"`
	DrainTimeout time.Duration `yaml:"draintimeout"`
	TLS          struct {
		Certificate  string   `yaml:"certificate"`
		Key          string   `yaml:"key"`
		ClientCAs    []string `yaml:"clientcas"`
		ClientAuth   string   `yaml:"clientauth"`
		MinimumTLS   string   `yaml:"minimumtls"`
		CipherSuites []string `yaml:"ciphersuites"`
		LetsEncrypt  any      `yaml:"letsencrypt"`
	} `yaml:"tls"`
	Headers map[string][]string `yaml:"headers"`
	Debug   struct {
		Addr       string `yaml:"addr"`
		Prometheus struct {
			Enabled bool   `yaml:"enabled"`
			Path    string `yaml:"path"`
		} `yaml:"prometheus"`
	} `yaml:"debug"`
	HTTP2 struct {
		Disabled bool `yaml:"disabled"`
	} `yaml:"http2"`
	H2C struct {
		Enabled bool `yaml:"enabled"`
	} `yaml:"h2c"`
}

// EndpointConfig is one of notifications.endpoints.
type EndpointConfig struct {
	Name              string              `yaml:"name"`
	Disabled          bool                `yaml:"disabled"`
	URL               string              `yaml:"url"`
	Headers           map[string][]string `yaml:"headers"`
	Timeout           time.Duration       `yaml:"timeout"`
	Threshold         int                 `yaml:"threshold"`
	Backoff           time.Duration       `yaml:"backoff"`
	IgnoredMediaTypes []string            `yaml:"ignoredmediatypes"`
	Ignore            struct {
		MediaTypes []string `yaml:"mediatypes"`
		Actions    []string `yaml:"actions"`
	} `yaml:"ignore"`
}

// ProxyConfig is the section proxy.
type ProxyConfig struct {
	RemoteURL string         `yaml:"remoteurl"`
	Username  string         `yaml:"username"`
	Password  string         `yaml:"password"`
	TTL       *time.Duration `yaml:"ttl"`       // 0: for ever; not given: a week
	AuthHosts []string       `yaml:"authhosts"` // HOST[:PORT] of token servers that are told the password
	Exec      any            `yaml:"exec"`
}

// Size is a number of bytes, written as a number or like "10GiB".
type Size int64

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	if err := s.set(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

func (s *Size) set(text string) error {
	v, err := units.RAMInBytes(text)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a size", text)
	}
	*s = Size(v)
	return nil
}

// ReadConfig reads a file, or none when path is empty, and then what the environment
// overrides: REGISTRY_HTTP_ADDR is http.addr, the value is YAML.
func ReadConfig(path string, environ []string) (*Config, error) {
	c := &Config{}
	c.HTTP.Addr = ":5000"
	c.Storage.Filesystem.RootDirectory = "/var/lib/registry"
	if path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read the configuration: %w", err)
		}
		if err := c.parse(b); err != nil {
			return nil, fmt.Errorf("configuration file %s: %w", path, err)
		}
	}
	environ = slices.Sorted(slices.Values(environ)) // REGISTRY_AUTH before what is in it
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		words, ok := strings.CutPrefix(name, "REGISTRY_")
		if !ok || words == "" {
			continue
		}
		known, err := override(reflect.ValueOf(c).Elem(), strings.Split(strings.ToLower(words), "_"), value)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", name, err)
		}
		if !known { // a cluster sets REGISTRY_PORT and the like for a service of that name
			c.Ignored = append(c.Ignored, name)
		}
	}
	return c, nil
}

// drivers are storage drivers of other registries.
var drivers = []string{"s3", "gcs", "azure", "swift", "oss", "inmemory"}

func (c *Config) parse(b []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	err := dec.Decode(c)
	if errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	}
	var te *yaml.TypeError
	if errors.As(err, &te) {
		var lines []string
		for _, l := range te.Errors {
			// "line 3: field x not found in type registryd.Config" tells of Go.
			if at, rest, ok := strings.Cut(l, ": field "); ok {
				if field, _, ok := strings.Cut(rest, " not found in type "); ok {
					l = at + ": unknown key " + strconv.Quote(field)
					if slices.Contains(drivers, field) {
						l = at + ": storage driver " + strconv.Quote(field) + " is not supported, only filesystem"
					}
				}
			}
			lines = append(lines, l)
		}
		return errors.New(strings.Join(lines, "; "))
	}
	return err
}

// override sets the field that words name. Known is false when there is none.
func override(v reflect.Value, words []string, value string) (known bool, err error) {
	if len(words) == 0 {
		return true, yaml.Unmarshal([]byte(value), v.Addr().Interface())
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type().Elem().Kind() != reflect.Struct {
			return false, nil
		}
		p := reflect.New(v.Type().Elem())
		if !v.IsNil() {
			p.Elem().Set(v.Elem())
		}
		if known, err = override(p.Elem(), words, value); known && err == nil {
			v.Set(p)
		}
		return known, err
	case reflect.Struct:
		for i := range v.NumField() {
			if key := v.Type().Field(i).Tag.Get("yaml"); key == words[0] {
				return override(v.Field(i), words[1:], value)
			}
		}
	case reflect.Slice:
		n, err := strconv.Atoi(words[0])
		if err != nil || n < 0 || n > v.Len() {
			return false, nil
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if n < v.Len() {
			e.Set(v.Index(n))
		}
		if known, err = override(e, words[1:], value); !known || err != nil {
			return known, err
		}
		if n == v.Len() {
			v.Set(reflect.Append(v, e))
		} else {
			v.Index(n).Set(e)
		}
		return true, nil
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		if known, err = override(e, nil, value); err != nil {
			return known, err
		}
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		v.SetMapIndex(reflect.ValueOf(strings.Join(words, "_")), e)
		return true, nil
	}
	return false, nil
}

// finish checks the configuration as a whole and fills in what was not given.
func (c *Config) finish() error {
	bad := func(format string, a ...any) error { return fmt.Errorf("configuration: "+format, a...) }
	switch {
	case c.Version != "" && c.Version != "0.1":
		return bad("version is %q, this is 0.1", c.Version)
	case c.Storage.Filesystem.RootDirectory == "":
		return bad("storage.filesystem.rootdirectory is empty")
	case (c.HTTP.TLS.Certificate == "") != (c.HTTP.TLS.Key == ""):
		return bad("http.tls needs both certificate and key")
	case len(c.HTTP.TLS.ClientCAs) > 0 && c.HTTP.TLS.Certificate == "":
		return bad("http.tls.clientcas needs certificate and key")
	case c.HTTP.TLS.LetsEncrypt != nil:
		return bad("http.tls.letsencrypt is not supported: name a certificate and a key")
	case c.Middleware != nil:
		return bad("middleware is not supported")
	case c.HTTP.Net != "" && c.HTTP.Net != "tcp" && c.HTTP.Net != "unix":
		return bad("http.net is %q: it may be tcp or unix", c.HTTP.Net)
	case c.Auth.Htpasswd != nil && c.Auth.Token != nil:
		return bad("auth has more than one of htpasswd and token")
	case c.Auth.Htpasswd != nil && (c.Auth.Htpasswd.Realm == "" || c.Auth.Htpasswd.Path == ""):
		return bad("auth.htpasswd needs realm and path")
	case c.Auth.Anonymous != "" && c.Auth.Anonymous != "pull":
		return bad("auth.anonymous is %q: it may be pull", c.Auth.Anonymous)
	case c.Auth.Anonymous != "" && c.Auth.Htpasswd == nil:
		return bad("auth.anonymous needs auth.htpasswd: with tokens their issuer decides")
	case c.Proxy.Exec != nil:
		return bad("proxy.exec is not supported")
	case len(c.Health.HTTP)+len(c.Health.TCP)+len(c.Health.File) > 0:
		return bad("health checks other than storagedriver are not supported")
	}
	if t := c.Auth.Token; t != nil && (t.Realm == "" || t.Service == "" || t.Issuer == "" || t.RootCertBundle == "" && t.JWKS == "") {
		return bad("auth.token needs realm, service, issuer, and rootcertbundle or jwks")
	}
	for i, e := range c.Notifications.Endpoints {
		if e.URL == "" && !e.Disabled {
			return bad("notifications.endpoints[%d] has no url", i)
		}
	}
	if c.Log.Level == "" {
		c.Log.Level = c.LogLevel
	}
	usual := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	m := &c.Storage.Maintenance
	usual(&m.UploadPurging.Age, 168*time.Hour)
	usual(&m.UploadPurging.Interval, 24*time.Hour)
	usual(&m.GC.Interval, 24*time.Hour)
	usual(&m.GC.Grace, 24*time.Hour)
	usual(&c.HTTP.DrainTimeout, 10*time.Second)
	usual(&c.Health.StorageDriver.Interval, 10*time.Second)
	if c.Health.StorageDriver.Threshold <= 0 {
		c.Health.StorageDriver.Threshold = 3
	}
	if c.Catalog.MaxEntries <= 0 {
		c.Catalog.MaxEntries = 1000
	}
	return nil
}

func on(b *bool) bool { return b == nil || *b }
