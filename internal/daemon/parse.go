package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/logs/drivers"
	"berth.dev/berth/internal/systemd"
)

// ErrHelp is what Parse returns when the help text was asked for and printed.
var ErrHelp = errors.New("help requested")

// ErrVersion is what Parse returns when only the version was asked for.
var ErrVersion = errors.New("version requested")

// Parse makes the configuration from the command line (without the program's
// name) and the configuration file.
func Parse(program string, args []string, out io.Writer) (*Config, error) {
	c := defaults(program)
	table := options(c)
	set := pflag.NewFlagSet(program, pflag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.SortFlags = true
	for _, o := range table {
		f := set.VarPF(o.value, o.name, o.short, o.usage)
		f.Hidden = o.hidden
		if o.value.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	version := set.BoolP("version", "v", false, "Print version information and quit")
	help := set.BoolP("help", "h", false, "Print usage")

	if err := set.Parse(args); err != nil {
		return nil, fmt.Errorf("%w\nSee '%s --help'.", err, program) //nolint:staticcheck // dockerd's words
	}
	switch {
	case *help:
		_, _ = fmt.Fprintf(out, "Usage:  %s [OPTIONS]\n\nA self-sufficient runtime for containers.\n\nOptions:\n%s", program, set.FlagUsagesWrapped(80))
		return nil, ErrHelp
	case *version:
		return nil, ErrVersion
	case set.NArg() > 0:
		return nil, fmt.Errorf("%q accepts no argument(s).\nSee '%s --help'.\n\nUsage:  %s [OPTIONS]\n\nA self-sufficient runtime for containers.", program, program, program) //nolint:staticcheck // dockerd's words
	}
	c.args = args
	c.flags = map[string]string{}
	set.Visit(func(f *pflag.Flag) { c.flags[f.Name] = f.Value.String() })
	if err := c.readFile(table); err != nil {
		return nil, fmt.Errorf("unable to configure the Docker daemon with file %s: %w", c.ConfigFile, err)
	}
	if err := c.finish(); err != nil {
		return nil, err
	}
	return c, nil
}

// readFile reads the configuration file into the table's values. The default
// file need not exist.
func (c *Config) readFile(table []option) error {
	b, err := os.ReadFile(c.ConfigFile)
	_, asked := c.flags["config-file"]
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return nil
	}
	if err != nil {
		return err
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	var file map[string]json.RawMessage
	if err := json.Unmarshal(b, &file); err != nil {
		return err
	}
	if raw, ok := file["proxies"]; ok {
		var proxies map[string]json.RawMessage
		if err := json.Unmarshal(raw, &proxies); err != nil {
			return err
		}
		delete(file, "proxies")
		for k, v := range proxies {
			file[k] = v
		}
	}
	if err := c.conflicts(table, file); err != nil {
		return err
	}
	for i := range table {
		o := &table[i]
		raw, ok := file[o.fileKey()]
		if !ok || o.key == "-" {
			continue
		}
		if _, given := c.flags[o.name]; given && !o.merges {
			continue
		}
		if string(raw) == "null" {
			continue // as if it were not there
		}
		if err := o.value.SetJSON(raw); err != nil {
			return fmt.Errorf("invalid value for %s: %w", o.fileKey(), err)
		}
	}
	return nil
}

// conflicts fails for keys that no option has and for options that are given
// twice, in dockerd's words.
func (c *Config) conflicts(table []option, file map[string]json.RawMessage) error {
	var twice []string
	known := map[string]bool{}
	for i := range table {
		o := &table[i]
		if o.key == "-" {
			continue
		}
		key := o.fileKey()
		known[key] = true
		raw, inFile := file[key]
		flag, given := c.flags[o.name]
		if inFile && given && !o.merges {
			var v any
			_ = json.Unmarshal(raw, &v) // it is valid JSON
			twice = append(twice, fmt.Sprintf("%s: (from flag: %v, from file: %v)", key, flag, v))
		}
	}
	var unknown []string
	for key := range file {
		if !known[key] {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	if len(unknown) > 0 {
		return fmt.Errorf("the following directives don't match any configuration option: %s", strings.Join(unknown, ", "))
	}
	if len(twice) > 0 {
		return fmt.Errorf("the following directives are specified both as a flag and in the configuration file: %s", strings.Join(twice, ", "))
	}
	return nil
}

// finish derives what follows from other options and checks the rest.
func (c *Config) finish() error {
	if _, said := c.flags["tlsverify"]; said || c.API.TLSVerify {
		c.API.TLS = true // also by --tlsverify=false
	}
	if c.PidFile == "" {
		c.PidFile = c.ExecRoot + "/berthd.pid"
		if c.Program == "dockerd" && c.ExecRoot == DefaultExecRoot {
			c.PidFile = "/var/run/docker.pid"
		}
	}
	if c.Debug {
		c.Log.Level = "debug"
	}
	c.API.Default = len(c.API.Hosts) == 0
	for i, h := range c.API.Hosts {
		var err error
		if c.API.Hosts[i], err = parseHost(h, c.API.TLS); err != nil {
			return err
		}
	}
	// The same address twice is one listener, as it is for scripts that add their own.
	var hosts []string
	for _, h := range c.API.Hosts {
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	c.API.Hosts = hosts
	for i, p := range c.Default.paths() {
		if *p != "" && !strings.HasPrefix(*p, "/") && (i > 0 || *p != "builtin" && *p != "unconfined") {
			return fmt.Errorf("%s: the path must be absolute", *p)
		}
	}
	if c.Default.CgroupnsMode == "" {
		c.Default.CgroupnsMode = "host"
		if cgroupV2() {
			c.Default.CgroupnsMode = "private"
		}
	}
	switch on, set := c.Features["cdi"]; {
	case set && !on, len(c.CDISpecDirs) == 1 && c.CDISpecDirs[0] == "":
		c.CDISpecDirs = []string{}
	case c.CDISpecDirs == nil:
		c.CDISpecDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	for _, o := range c.Runtime.ExecOptions {
		key, val, ok := strings.Cut(o, "=")
		switch {
		case !ok:
			return fmt.Errorf("Unable to parse key/value options: %s", o) //nolint:staticcheck // dockerd's words
		case key != "native.cgroupdriver":
			return fmt.Errorf("Unknown option: %s", key) //nolint:staticcheck // dockerd's words
		case val != "cgroupfs" && val != "systemd":
			return fmt.Errorf("exec-opt native.cgroupdriver: %q is neither \"cgroupfs\" nor \"systemd\"", val)
		}
		c.Runtime.CgroupDriver = val
	}
	if p := c.Default.CgroupParent; p != "" && c.Runtime.CgroupDriver == "systemd" {
		if err := systemd.CheckSlice(p); err != nil {
			return err
		}
	}
	return c.check()
}

func (d *ContainerDefaults) paths() []*string { return []*string{&d.SeccompProfile, &d.InitPath} }

func (c *Config) check() error {
	switch {
	case !slices.Contains([]string{"debug", "info", "warn", "error", "fatal"}, c.Log.Level):
		return fmt.Errorf("invalid logging level: %s", c.Log.Level)
	case c.Log.Format != "text" && c.Log.Format != "json":
		return fmt.Errorf("invalid log format: %s", c.Log.Format)
	case c.Default.CgroupnsMode != "host" && c.Default.CgroupnsMode != "private":
		return fmt.Errorf(`default cgroup namespace mode "%s" is invalid; use "host" or "private"`, c.Default.CgroupnsMode)
	case c.Default.IpcMode != "private" && c.Default.IpcMode != "shareable":
		return fmt.Errorf(`IPC mode "%s" is not supported as default value; use "private" or "shareable"`, c.Default.IpcMode)
	case c.Image.MaxConcurrentDownloads < 0:
		return fmt.Errorf("invalid max concurrent downloads: %d", c.Image.MaxConcurrentDownloads)
	case c.Image.MaxConcurrentUploads < 0:
		return fmt.Errorf("invalid max concurrent uploads: %d", c.Image.MaxConcurrentUploads)
	case c.Image.MaxDownloadAttempts <= 0:
		return fmt.Errorf("invalid max download attempts: %d", c.Image.MaxDownloadAttempts)
	case c.Network.MTU < 0:
		return fmt.Errorf("invalid default MTU: %d", c.Network.MTU)
	case c.Default.ShmSize <= 0:
		return fmt.Errorf("default shm size must be greater than 0")
	case c.Network.Bridge != "" && c.Network.BridgeIP != "":
		return errors.New("failed to start daemon: You specified -b & --bip, mutually exclusive options. Please specify only one") //nolint:staticcheck // dockerd's words
	case c.Network.HostRules && !c.Network.UserlandProxy:
		return errors.New("respect-host-firewall needs the userland proxy: published ports are relayed then")
	case c.Network.FirewallBackend != "" && c.Network.FirewallBackend != "iptables" && c.Network.FirewallBackend != "nftables":
		return errors.New(`invalid firewall-backend: allowed values are "iptables" and "nftables"`)
	}
	if _, _, err := c.Network.fwMark(); err != nil {
		return fmt.Errorf("invalid bridge-accept-fwmark: %w", err)
	}
	if p := c.Default.SeccompProfile; strings.HasPrefix(p, "/") {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("opening seccomp profile (%s) failed: %w", p, err)
		}
	}
	if _, ok := c.Runtime.Runtimes[c.Runtime.Default]; !ok && c.Runtime.Default != "berth" && c.Runtime.Default != "runc" {
		return fmt.Errorf("specified default runtime '%s' does not exist", c.Runtime.Default)
	}
	if _, ok := c.Runtime.Runtimes["runc"]; ok {
		return errors.New("failed to start daemon: runtime name 'runc' is reserved")
	}
	// Nothing is run from there, but who names one means something.
	if p, ok := c.flags["userland-proxy-path"]; ok && p != "" && c.Network.UserlandProxy {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("failed to start daemon: invalid userland-proxy-path: must be an absolute path: %s", p)
		}
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("failed to start daemon: invalid userland-proxy-path: %w", err)
		}
	}
	for _, p := range c.Network.AddressPools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return fmt.Errorf("invalid default address pool: base %s, size %d", p.Base, p.Size)
		}
	}
	if err := drivers.Check(c.Default.LogDriver, c.Default.LogOptions); err != nil {
		return fmt.Errorf("failed to set log opts: %w", err)
	}
	return nil
}

// fwMark reads the mark of packets that bridge networks accept: no mask, no mark.
func (n *NetworkConfig) fwMark() (mark, mask uint32, err error) {
	if n.AcceptFwMark == "" {
		return 0, 0, nil
	}
	m, of, masked := strings.Cut(n.AcceptFwMark, "/")
	v, err := strconv.ParseUint(m, 0, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("invalid firewall mark %q: %w", n.AcceptFwMark, err)
	}
	if !masked {
		return uint32(v), math.MaxUint32, nil
	}
	w, err := strconv.ParseUint(of, 0, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("invalid firewall mask %q: %w", n.AcceptFwMark, err)
	}
	return uint32(v), uint32(w), nil
}

// warn logs what was configured and has no effect.
func (c *Config) warn() {
	for _, o := range foreign() {
		if v, ok := c.flags[o.name]; ok {
			slog.Debug("the option is accepted for compatibility and has no effect", "option", o.name, "value", v)
		}
	}
	if c.SELinux {
		slog.Warn("SELinux is not supported: selinux-enabled has no effect")
	}
}

// reloaded returns the configuration with the options that may change taken
// anew from the file, and their names.
func (c *Config) reloaded() (*Config, error) {
	next, err := Parse(c.Program, c.args, io.Discard)
	if err != nil {
		return nil, err
	}
	out := *c
	have, want := options(&out), options(next)
	for i := range have {
		if !have[i].reload {
			continue
		}
		copyValue(have[i].value, want[i].value)
	}
	out.Log.Level = next.Log.Level
	return &out, nil
}

// copyValue sets dst, a value of the same row, to what src is.
func copyValue(dst, src value) {
	switch d := dst.(type) {
	case *scalar[string]:
		*d.p = *src.(*scalar[string]).p
	case *scalar[bool]:
		*d.p = *src.(*scalar[bool]).p
	case *scalar[int]:
		*d.p = *src.(*scalar[int]).p
	case *sizeValue:
		*d.p = *src.(*sizeValue).p
	case *secs:
		*d.p = *src.(*secs).p
	case *list:
		*d.p = *src.(*list).p
	case runtimes:
		*d.p = *src.(runtimes).p
	case flagsMap:
		*d.p = *src.(flagsMap).p
	}
}

// cgroupV2 reports whether the machine has the unified hierarchy alone.
func cgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// ShutdownGrace is how long requests that are being answered may take at the end.
func (c *Config) ShutdownGrace() time.Duration { return max(c.ShutdownTimeout, time.Second) }
