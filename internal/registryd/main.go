package registryd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

const usage = `Usage:  registry COMMAND [OPTIONS] [CONFIG]

A private registry of images.

Commands:
  serve   Serve the registry until interrupted
  gc      Remove blobs that no manifest names (also garbage-collect)

`

// flags are the options of both commands. Each that is given wins over the
// environment, which wins over the file.
type flags struct {
	set *pflag.FlagSet

	addr, root, level, cert, key, htpasswd, realm, proxy, debug string
	total, repo                                                 string
	clientCAs                                                   []string
	remove, readOnly, anonymous                                 bool
	dry, untagged                                               bool
	grace                                                       time.Duration
}

func (f *flags) common() {
	f.set.StringVar(&f.root, "root", "", "Directory of the content (default /var/lib/registry)")
	f.set.StringVar(&f.level, "log-level", "", "debug, info, warn or error (default info)")
}

func (f *flags) serve() {
	s := f.set
	s.StringVar(&f.addr, "addr", "", "Address to listen on (default :5000)")
	s.StringVar(&f.debug, "debug-addr", "", "Address for /metrics and /debug/health")
	s.StringVar(&f.cert, "tls-cert", "", "Certificate file")
	s.StringVar(&f.key, "tls-key", "", "Key file of the certificate")
	s.StringSliceVar(&f.clientCAs, "tls-client-ca", nil, "Only clients with a certificate of these authorities")
	s.StringVar(&f.htpasswd, "htpasswd", "", "File of users and passwords (bcrypt)")
	s.StringVar(&f.realm, "realm", "Registry", "What clients are told that the passwords are for")
	s.BoolVar(&f.anonymous, "anonymous-pull", false, "Nobody needs a password to pull")
	s.BoolVar(&f.remove, "delete", false, "Tags, manifests and blobs can be deleted")
	s.BoolVar(&f.readOnly, "read-only", false, "Nothing can be changed")
	s.StringVar(&f.total, "quota", "", "Size that the registry may have")
	s.StringVar(&f.repo, "quota-repository", "", "Size that each repository may have")
	s.StringVar(&f.proxy, "proxy", "", "Mirror the registry at this address")
}

// apply overrides what was given.
func (f *flags) apply(c *Config) error {
	given := f.set.Changed
	set := func(name string, to *string, v string) {
		if given(name) {
			*to = v
		}
	}
	set("root", &c.Storage.Filesystem.RootDirectory, f.root)
	set("log-level", &c.Log.Level, f.level)
	set("addr", &c.HTTP.Addr, f.addr)
	set("debug-addr", &c.HTTP.Debug.Addr, f.debug)
	if given("debug-addr") {
		c.HTTP.Debug.Prometheus.Enabled = true
	}
	set("tls-cert", &c.HTTP.TLS.Certificate, f.cert)
	set("tls-key", &c.HTTP.TLS.Key, f.key)
	if given("tls-client-ca") {
		c.HTTP.TLS.ClientCAs = f.clientCAs
	}
	if given("htpasswd") {
		c.Auth.Htpasswd = &HtpasswdConfig{Realm: f.realm, Path: f.htpasswd}
	}
	if f.anonymous {
		c.Auth.Anonymous = "pull"
	}
	if given("delete") {
		c.Storage.Delete.Enabled = f.remove
	}
	if given("read-only") {
		c.Storage.Maintenance.ReadOnly.Enabled = f.readOnly
	}
	set("proxy", &c.Proxy.RemoteURL, f.proxy)
	for name, q := range map[string]struct {
		to *Size
		v  string
	}{"quota": {&c.Storage.Quota.Total, f.total}, "quota-repository": {&c.Storage.Quota.Repository, f.repo}} {
		if given(name) {
			if err := q.to.set(q.v); err != nil {
				return fmt.Errorf("--%s: %w", name, err)
			}
		}
	}
	return nil
}

// Main runs a command line, without the program's name, and returns the exit code. A
// line that begins with a configuration file serves.
func Main(ctx context.Context, args []string, out, errOut io.Writer) int {
	command := ""
	if len(args) > 0 {
		switch command = args[0]; {
		case strings.HasSuffix(command, ".yml"), strings.HasSuffix(command, ".yaml"):
			command = "serve"
		default:
			args = args[1:]
		}
	}
	f := &flags{set: pflag.NewFlagSet("registry "+command, pflag.ContinueOnError)}
	f.set.SetOutput(io.Discard)
	f.set.SortFlags = false
	help := f.set.BoolP("help", "h", false, "Print usage")
	f.common()
	var run func(context.Context, *flags, *Config, io.Writer, *slog.Logger) error
	switch command {
	case "serve":
		f.serve()
		run = runServe
	case "gc", "garbage-collect":
		f.set.BoolVarP(&f.dry, "dry-run", "d", false, "Only say what would be removed")
		f.set.BoolVarP(&f.untagged, "delete-untagged", "m", false, "Remove manifests without a tag too")
		f.set.DurationVar(&f.grace, "grace", time.Hour, "Keep what is younger")
		run = runGC
	case "", "help", "--help", "-h":
		_, _ = io.WriteString(out, usage)
		return 0
	default:
		_, _ = fmt.Fprintf(errOut, "registry: unknown command: %s\n\n%s", command, usage)
		return 1
	}
	if err := f.set.Parse(args); err != nil {
		_, _ = fmt.Fprintf(errOut, "registry %s: %v\n", command, err)
		return 125
	}
	if *help {
		_, _ = fmt.Fprintf(out, "Usage:  registry %s [OPTIONS] [CONFIG]\n\nOptions:\n%s", command, f.set.FlagUsagesWrapped(80))
		return 0
	}
	if f.set.NArg() > 1 {
		_, _ = fmt.Fprintf(errOut, "registry %s: at most one configuration file\n", command)
		return 125
	}
	c, err := f.config()
	if err == nil {
		var log *slog.Logger
		if log, err = newLog(c, errOut); err == nil {
			for _, name := range c.Ignored {
				log.Debug("not an option of the registry", "variable", name)
			}
			err = run(ctx, f, c, out, log)
		}
	}
	if err != nil {
		_, _ = fmt.Fprintln(errOut, "registry:", err)
		return 1
	}
	return 0
}

func (f *flags) config() (*Config, error) {
	path := f.set.Arg(0)
	if path == "" {
		path = os.Getenv("REGISTRY_CONFIGURATION_PATH")
	}
	c, err := ReadConfig(path, os.Environ())
	if err != nil {
		return nil, err
	}
	if err := f.apply(c); err != nil {
		return nil, err
	}
	return c, c.finish()
}

func newLog(c *Config, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	switch c.Log.Level {
	case "", "info":
	case "debug", "trace":
		level = slog.LevelDebug
	case "warn", "warning":
		level = slog.LevelWarn
	case "error", "fatal", "panic":
		level = slog.LevelError
	default:
		return nil, fmt.Errorf("configuration: log.level is %q: it may be debug, info, warn or error", c.Log.Level)
	}
	o := &slog.HandlerOptions{Level: level, AddSource: c.Log.ReportCaller}
	var log *slog.Logger
	switch c.Log.Formatter {
	case "", "text":
		log = slog.New(slog.NewTextHandler(w, o))
	case "json", "logstash":
		log = slog.New(slog.NewJSONHandler(w, o))
	default:
		return nil, fmt.Errorf("configuration: log.formatter is %q: it may be text or json", c.Log.Formatter)
	}
	for k, v := range c.Log.Fields {
		log = log.With(k, v)
	}
	return log, nil
}

func runServe(ctx context.Context, _ *flags, c *Config, _ io.Writer, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := New(c, log)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

func runGC(ctx context.Context, f *flags, c *Config, out io.Writer, log *slog.Logger) error {
	dir := c.Storage.Filesystem.RootDirectory
	if _, err := os.Stat(filepath.Join(dir, "docker/registry/v2")); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no registry in %s", dir)
	}
	s, err := openStore(dir, log)
	if err != nil {
		return err
	}
	verb := "removed"
	if f.dry {
		verb = "would remove"
	}
	got, err := s.collect(ctx, CollectOptions{
		Grace: f.grace, Untagged: f.untagged, DryRun: f.dry,
		Found: func(kind, name string) { _, _ = fmt.Fprintf(out, "%s %s %s\n", verb, kind, name) },
	})
	if err == nil {
		_, _ = fmt.Fprintf(out, "%s %d manifests and %d blobs, %s\n", verb, got.Manifests, got.Blobs, human(got.Bytes))
	}
	return err
}
