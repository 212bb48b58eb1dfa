// Package resolvconf reads the host's resolv.conf, and writes those of containers:
// see resolv.conf(5).
package resolvconf

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	path = "/etc/resolv.conf"
	// What systemd-resolved asks, where the file names its stub only.
	resolvedPath = "/run/systemd/resolve/resolv.conf"
	// Suites that start engines with another file name it in this variable.
	pathVariable = "DOCKER_TEST_RESOLV_CONF_PATH"
)

// Conf is what a file says.
type Conf struct {
	Servers []netip.Addr
	Search  []string
	Options []string
	Other   []string // lines of other words
}

// Parse reads a file's text. What is no address is left out of the servers; of several
// search lines the last one counts, options add up.
func Parse(text string) Conf {
	var c Conf
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		f := strings.Fields(line)
		switch f[0] {
		case "nameserver":
			if len(f) > 1 {
				if a, err := netip.ParseAddr(f[1]); err == nil {
					c.Servers = append(c.Servers, a)
				}
			}
		case "search", "domain":
			c.Search = f[1:]
		case "options":
			c.Options = append(c.Options, f[1:]...)
		default:
			c.Other = append(c.Other, line)
		}
	}
	return c
}

// Text is the file.
func (c *Conf) Text() string {
	var b strings.Builder
	for _, a := range c.Servers {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	if len(c.Search) > 0 {
		b.WriteString("search " + strings.Join(c.Search, " ") + "\n")
	}
	if len(c.Options) > 0 {
		b.WriteString("options " + strings.Join(c.Options, " ") + "\n")
	}
	for _, l := range c.Other {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// Dots adds ndots:n unless there is that option already, with a number.
func (c *Conf) Dots(n string) {
	valid := func(o string) bool {
		v := strings.TrimPrefix(o, "ndots:")
		return v != "" && strings.Trim(v, "0123456789") == ""
	}
	c.Options = slices.DeleteFunc(slices.Clone(c.Options), func(o string) bool {
		return o == "ndots" || strings.HasPrefix(o, "ndots:") && !valid(o)
	})
	if !slices.ContainsFunc(c.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		c.Options = append(c.Options, "ndots:"+n)
	}
}

// Public are the resolvers for containers whose host has none that they can reach, those
// of Docker.
func Public(ipv6 bool) []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4")}
	if ipv6 {
		out = append(out, netip.MustParseAddr("2001:4860:4860::8888"), netip.MustParseAddr("2001:4860:4860::8844"))
	}
	return out
}

// Host reads the host's file, for what asks from the host's namespace.
func Host() Conf { return hostFile.get(hostPath()) }

// Direct reads the host's file for a container that asks its resolvers itself: where
// that names only the stub of systemd-resolved, those behind it.
func Direct() Conf {
	p := hostPath()
	c := hostFile.get(p)
	if p == path && len(c.Servers) == 1 && c.Servers[0] == stub {
		if behind := resolvedFile.get(resolvedPath); len(behind.Servers) > 0 {
			return behind
		}
	}
	return c
}

var stub = netip.MustParseAddr("127.0.0.53")

func hostPath() string {
	if p := os.Getenv(pathVariable); p != "" {
		return p
	}
	return path
}

// file is one that is read again when it has changed.
type file struct {
	mu    sync.Mutex
	path  string
	mtime time.Time
	size  int64
	conf  Conf
}

var hostFile, resolvedFile file

func (f *file) get(path string) Conf {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil {
		f.conf, f.mtime = Conf{}, time.Time{}
		return f.conf
	}
	if path == f.path && st.ModTime().Equal(f.mtime) && st.Size() == f.size {
		return f.conf
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		raw = nil
	}
	f.path, f.conf, f.mtime, f.size = path, Parse(string(raw)), st.ModTime(), st.Size()
	return f.conf
}
