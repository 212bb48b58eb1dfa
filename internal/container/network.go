package container

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	netsvc "berth.dev/berth/internal/network"
	"berth.dev/berth/internal/network/resolvconf"
	"berth.dev/berth/internal/state"
)

// own reports whether a container has a network namespace with interfaces of
// its own: neither the host's nor another container's, nor an empty one.
func (s Nets) own(r *Record) bool {
	m := r.HostConfig.NetworkMode
	return !m.IsHost() && !m.IsContainer() && (!m.IsNone() || len(s.networks(r)) > 0) && s.mainNetwork(r) != "none"
}

// mainNetwork is the network of a container's mode, by the name or id that was
// given.
func (s Nets) mainNetwork(r *Record) string {
	m := r.HostConfig.NetworkMode
	if m == "" || m.IsDefault() || m.IsBridge() { // without a default bridge it is none
		return s.o.Networks.DefaultName()
	}
	return string(m)
}

// networks are the networks that a container is to be on, with what it asks of each.
func (s Nets) networks(r *Record) map[string]*network.EndpointSettings {
	m := r.HostConfig.NetworkMode
	if m.IsHost() || m.IsContainer() {
		return nil
	}
	out := map[string]*network.EndpointSettings{}
	if r.Networks != nil {
		for name, e := range r.Networks.EndpointsConfig {
			if name == network.NetworkDefault {
				name = s.o.Networks.DefaultName()
			}
			out[name] = e
		}
	}
	main := s.mainNetwork(r)
	if main == "none" {
		delete(out, "none")
		return out
	}
	if _, ok := out[main]; !ok {
		if _, name, err := s.o.Networks.Resolve(main); err == nil { // the mode and the settings may call it differently
			for k := range out {
				if _, n, err := s.o.Networks.Resolve(k); err == nil && n == name {
					return out
				}
			}
		}
		if len(out) == 0 && !r.Left[main] { // who names networks is on those alone
			out[main] = nil
		}
	}
	return out
}

// attach gives a container its interfaces, addresses and ports. into is a
// namespace that it has already, -1 for none; the result is the one that was made.
func (s Nets) attach(ctx context.Context, r *Record, into int, links []link) (int, error) {
	b, err := s.o.Networks.Attach(ctx, &netsvc.Attachment{
		Container: string(r.ID), Name: r.Name, Networks: s.networks(r), Main: s.mainNetwork(r), Into: into,
		Names: baseNames(r), DNS: s.resolvers(r),
		NoIPv6: withoutIPv6(r),
		Ports:  r.HostConfig.PortBindings, Exposed: r.Config.ExposedPorts, PublishAll: r.HostConfig.PublishAllPorts, Links: opens(links),
	})
	if err != nil {
		return -1, err
	}
	if err := s.rewriteHosts(r, b.Endpoints, links); err != nil {
		s.o.Networks.Release(string(r.ID))
		_ = unix.Close(b.FD())
		return -1, err
	}
	return b.FD(), nil
}

// askedPorts are the ports that a container asks to have published.
func askedPorts(r *Record) *netsvc.Ports {
	return &netsvc.Ports{Asked: r.HostConfig.PortBindings, Exposed: r.Config.ExposedPorts, All: r.HostConfig.PublishAllPorts}
}

// withoutIPv6 reports whether a container turns IPv6 off for itself.
func withoutIPv6(r *Record) bool {
	return r.HostConfig.Sysctls["net.ipv6.conf.all.disable_ipv6"] == "1"
}

func (s Nets) rewriteHosts(r *Record, eps []*netsvc.Endpoint, links []link) error {
	text := s.hosts(r, eps)
	for _, l := range links {
		text += l.hosts()
	}
	return rewrite(filepath.Join(s.dir(r.ID), "hosts"), text)
}

// hosts is the text of /etc/hosts.
func (s Nets) hosts(r *Record, eps []*netsvc.Endpoint) string {
	var b strings.Builder
	if r.HostConfig.NetworkMode.IsHost() {
		raw, _ := os.ReadFile("/etc/hosts")
		b.Write(raw)
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n")
	}
	if !r.HostConfig.NetworkMode.IsHost() && !withoutIPv6(r) {
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, h := range r.HostConfig.ExtraHosts {
		name, ip, ok := cutHost(h)
		if !ok {
			continue
		}
		if ip == "host-gateway" {
			for _, a := range s.hostGateway() {
				fmt.Fprintf(&b, "%s\t%s\n", a, name)
			}
			continue
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	names := r.Config.Hostname
	if d := r.Config.Domainname; d != "" && names != "" {
		names = names + "." + d + " " + names
	} else if host, _, ok := strings.Cut(names, "."); ok && host != "" {
		names += " " + host // a full name is found by its first part, too
	}
	for _, e := range eps {
		for _, p := range []netip.Prefix{e.Addr4, e.Addr6} {
			if p.IsValid() && names != "" {
				fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
			}
		}
	}
	return b.String()
}

// hostGateway are the addresses that "host-gateway" stands for in --add-host.
func (s Nets) hostGateway() []netip.Addr {
	if list := s.def.Load().HostGateway; len(list) > 0 {
		return list
	}
	return s.o.Networks.HostAddresses()
}

// endpoints shows the networks that a container is on: what it asks of them and,
// while it runs, what it has.
func (s Nets) endpoints(r *Record, st *Status) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	if r.HostConfig.NetworkMode.IsContainer() {
		return out
	}
	list := s.networks(r)
	if !s.own(r) {
		list = map[string]*network.EndpointSettings{networkName(r): nil}
	}
	var live []*netsvc.Endpoint
	if st.Phase.Running() {
		live, _ = s.o.Networks.Endpoints(string(r.ID))
	}
	for ref, asked := range list {
		e := &network.EndpointSettings{}
		if asked != nil {
			e = asked.Copy()
		}
		id, name, err := s.o.Networks.Resolve(ref)
		if err != nil {
			name = ref
		}
		if st.Phase.Running() || st.Phase == Exited {
			e.NetworkID = id
		}
		for _, l := range live {
			if l.Network != id {
				continue
			}
			e.EndpointID, e.MacAddress = l.ID, network.HardwareAddr(l.MAC)
			e.Gateway, e.IPv6Gateway = l.Gateway4, l.Gateway6
			if l.Addr4.IsValid() {
				e.IPAddress, e.IPPrefixLen = l.Addr4.Addr(), l.Addr4.Bits()
			}
			if l.Addr6.IsValid() {
				e.GlobalIPv6Address, e.GlobalIPv6PrefixLen = l.Addr6.Addr(), l.Addr6.Bits()
			}
		}
		if container.NetworkMode(name).IsUserDefined() {
			e.DNSNames = s.dnsNames(r, e)
		}
		out[name] = e
	}
	return out
}

// dnsNames are the names by which a container is known on a network of users.
func (s Nets) dnsNames(r *Record, e *network.EndpointSettings) []string {
	var out []string
	add := func(n string) {
		for _, o := range out {
			if o == n {
				return
			}
		}
		if n != "" {
			out = append(out, n)
		}
	}
	add(r.Name)
	for _, a := range e.Aliases {
		add(a)
	}
	add(r.ID.Short())
	add(r.Config.Hostname)
	return out
}

// resolvConf is the host's file, changed by --dns, --dns-search and --dns-option.
// Resolvers on the host's own loopback cannot be reached from a container.
func (s Nets) resolvConf(r *Record) string {
	hc, d := r.HostConfig, s.def.Load()
	own, named, dns := s.own(r), s.named(r), s.resolvers(r)
	conf := resolvconf.Host()
	if own && !named {
		conf = resolvconf.Direct()
	}
	switch {
	case named:
		conf.Servers = []netip.Addr{netip.MustParseAddr(netsvc.ResolverAddress)}
	case len(dns) > 0:
		conf.Servers = nil
		for _, a := range dns {
			if addr, err := netip.ParseAddr(a); err == nil {
				conf.Servers = append(conf.Servers, addr)
			}
		}
	case own:
		ipv6 := netsvc.HasIPv6(s.o.Networks, s.mainNetwork(r))
		conf.Servers = slices.DeleteFunc(slices.Clone(conf.Servers), func(a netip.Addr) bool { return a.IsLoopback() || a.Is6() && !ipv6 })
		if len(conf.Servers) == 0 {
			conf.Servers = resolvconf.Public(ipv6)
		}
	}
	for _, l := range []struct {
		of            *[]string
		own, defaults []string
	}{{&conf.Search, hc.DNSSearch, d.DNSSearch}, {&conf.Options, hc.DNSOptions, d.DNSOptions}} {
		switch {
		case len(l.own) > 0:
			*l.of = l.own
		case len(l.defaults) > 0:
			*l.of = l.defaults
		}
	}
	conf.Search = slices.DeleteFunc(slices.Clone(conf.Search), func(d string) bool { return d == "." })
	if named {
		conf.Dots("0")
	}
	return conf.Text()
}

// Connect puts a container on one more network, also while it runs.
func (s Nets) Connect(ctx context.Context, ref string, req network.ConnectRequest) error {
	id, name, err := s.o.Networks.Resolve(ref)
	if err != nil {
		return err
	}
	if err := s.o.Networks.CheckSettings(name, req.EndpointConfig, true); err != nil {
		return err
	}
	c, err := s.Get(req.Container)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	m := r.HostConfig.NetworkMode
	switch {
	case m.IsHost():
		return errs.New(errs.Forbidden, "container cannot be connected to host network namespace and another network at the same time")
	case m.IsContainer():
		return errs.New(errs.Forbidden, "container sharing network namespace with another container or host cannot be connected to any other network")
	case m.IsNone() && !r.Left["none"], name == "none":
		return errs.New(errs.Forbidden, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	case name == "host":
		return errs.New(errs.Forbidden, "cannot connect container to host network - container must be created in host network mode")
	}
	now := s.networks(&r)
	for k := range now {
		if other, _, err := s.o.Networks.Resolve(k); err == nil && other == id {
			return errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", r.Name, name)
		}
	}
	cfg := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	for k, v := range now {
		cfg.EndpointsConfig[k] = v
	}
	cfg.EndpointsConfig[name] = req.EndpointConfig
	r.Networks, r.Left = cfg, maps.Clone(r.Left)
	delete(r.Left, name)
	if m.IsNone() || s.mainNetwork(&r) == "none" {
		hc := *r.HostConfig
		hc.NetworkMode = container.NetworkMode(name)
		r.HostConfig = &hc
	}
	if c.Status().Phase.Running() {
		if err := s.change(ctx, c, &r, func(fd int) error {
			return s.o.Networks.Connect(ctx, string(r.ID), r.Name, baseNames(&r), id, req.EndpointConfig, askedPorts(&r), fd)
		}); err != nil {
			return err
		}
	}
	return s.store(c, &r)
}

// Disconnect takes a container off a network.
func (s Nets) Disconnect(ctx context.Context, ref string, req network.DisconnectRequest) error {
	id, name, err := s.o.Networks.Resolve(ref)
	if err != nil {
		if req.Force && errs.Is(err, errs.NotFound) {
			return s.forgetNetwork(ref, req.Container, err)
		}
		return err
	}
	c, err := s.Get(req.Container)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	if r.HostConfig.NetworkMode.IsHost() && name == "host" {
		return errs.New(errs.Forbidden, "cannot disconnect container from host network - container was created in host network mode")
	}
	cfg := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	found := false
	left := map[string]bool{}
	for k := range r.Left {
		left[k] = true
	}
	if name == "none" && s.mainNetwork(&r) == "none" && !r.Left["none"] {
		found, left["none"] = true, true // the way to another network
	}
	for k, v := range s.networks(&r) {
		if other, _, err := s.o.Networks.Resolve(k); err == nil && other == id {
			found = true
			left[k] = true
			continue
		}
		cfg.EndpointsConfig[k] = v
	}
	if !found {
		return errs.New(errs.Forbidden, "container %s is not connected to network %s", r.ID, name)
	}
	r.Networks, r.Left = cfg, left
	if c.Status().Phase.Running() {
		if err := s.change(ctx, c, &r, func(fd int) error { return s.o.Networks.Disconnect(ctx, string(r.ID), id, askedPorts(&r), fd) }); err != nil {
			return err
		}
	}
	return s.store(c, &r)
}

// forgetNetwork takes a stopped container off a network that is no more.
func (s Nets) forgetNetwork(ref, ctr string, gone error) error {
	c, err := s.Get(ctr)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := *c.Record()
	list := s.networks(&r)
	if _, on := list[ref]; !on || c.Status().Phase.Running() {
		return gone
	}
	cfg := &network.NetworkingConfig{EndpointsConfig: maps.Clone(list)}
	delete(cfg.EndpointsConfig, ref)
	r.Networks, r.Left = cfg, maps.Clone(r.Left)
	if r.Left == nil {
		r.Left = map[string]bool{}
	}
	r.Left[ref] = true
	return s.store(c, &r)
}

// change does something to a running container's network, and brings its hosts
// file up to date.
func (s Nets) change(_ context.Context, c *Container, r *Record, f func(fd int) error) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", c.Status().Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errNotRunning(c)
	}
	defer unix.Close(fd)
	if err := f(fd); err != nil {
		return err
	}
	eps, _ := s.o.Networks.Endpoints(string(r.ID))
	if err := writeResolvConf(filepath.Join(s.dir(r.ID), "resolv.conf"), s.resolvConf(r), true); err != nil {
		return err
	}
	links, _ := s.links(r) // those that still run
	if err := s.o.Networks.Relink(string(r.ID), opens(links)); err != nil {
		return err
	}
	return s.rewriteHosts(r, eps, links)
}

// baseNames are the names of a container that do not depend on the network.
func baseNames(r *Record) []string { return []string{r.Name, r.ID.Short(), r.Config.Hostname} }

// resolvers are those that a container asks for itself, or the daemon for all.
func (s Nets) resolvers(r *Record) []string {
	var out []string
	for _, a := range r.HostConfig.DNS {
		out = append(out, a.String())
	}
	if len(out) == 0 {
		out = s.def.Load().DNS
	}
	return out
}

// named reports whether a container is on a network where names are answered.
func (s Nets) named(r *Record) bool {
	if !s.own(r) {
		return false
	}
	for ref := range s.networks(r) {
		if _, name, err := s.o.Networks.Resolve(ref); err == nil && container.NetworkMode(name).IsUserDefined() {
			return true
		}
	}
	return false
}

// store swaps and persists a record. c.mu is held.
func (s Nets) store(c *Container, r *Record) error {
	if err := s.o.DB.Update(state.Soon, func(tx *state.Tx) error { return putRecord(tx, r) }); err != nil {
		return err
	}
	c.rec.Store(r)
	return nil
}

// netDir is the directory of the container whose network files are shown.
func (s *Service) netDir(r *Record) string {
	if m := r.HostConfig.NetworkMode; m.IsContainer() {
		if other, err := s.Get(m.ConnectedContainer()); err == nil && other.Record().ID != r.ID {
			other.shared.Store(true)
			return s.netDir(other.Record())
		}
	}
	return s.dir(r.ID)
}

// writeNetFiles writes hostname, hosts and resolv.conf. The addresses of a
// container are known only when it starts: then hosts is written again.
func (s launcher) writeNetFiles(r *Record) error {
	if r.HostConfig.NetworkMode.IsContainer() {
		return nil // those of the other container are shown
	}
	dir := s.dir(r.ID)
	write := func(name, text string) error { return rewrite(filepath.Join(dir, name), text) }
	if err := write("hostname", r.Config.Hostname+"\n"); err != nil {
		return err
	}
	if err := write("hosts", Nets(s).hosts(r, nil)); err != nil {
		return err
	}
	if err := writeResolvConf(filepath.Join(dir, "resolv.conf"), Nets(s).resolvConf(r), false); err != nil {
		return err
	}
	if s.userns != nil {
		return s.ownNetFiles(r)
	}
	return nil
}

// rewrite makes the content of a small file text, in place: the file may be
// mounted. One that holds it already, in a directory used again, is left alone.
func rewrite(path, text string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, len(text)+1)
	n, err := unix.Pread(fd, buf, 0)
	if err == nil && string(buf[:n]) == text {
		return nil
	}
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	if n <= len(text) && err == nil && n < len(buf) {
		return nil // it was not longer
	}
	return unix.Ftruncate(fd, int64(len(text)))
}

// sumAttribute holds, of a resolv.conf, the sum of what the engine wrote.
const sumAttribute = "trusted.berth.written"

// writeResolvConf is rewrite for a container's resolv.conf: with gently, one that somebody
// has edited stays. On a filesystem without attributes that cannot be told.
func writeResolvConf(path, text string, gently bool) error {
	now, err := readSmall(path)
	if gently {
		sum := make([]byte, 8)
		n, xerr := unix.Lgetxattr(path, sumAttribute, sum)
		if err == nil && xerr == nil && n == len(sum) && binary.BigEndian.Uint64(sum) != textSum(now) {
			return nil
		}
	} else if err == nil && now == text {
		return nil
	}
	if err := rewrite(path, text); err != nil {
		return err
	}
	_ = unix.Lsetxattr(path, sumAttribute, binary.BigEndian.AppendUint64(nil, textSum(text)), 0)
	return nil
}

// maxSmall is how much of a file is read that a container can write: more than the engine
// ever writes to it, in bytes.
const maxSmall = 64 << 10

// readSmall reads the beginning of a file, whose length is a container's to choose.
func readSmall(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSmall))
	return string(raw), err
}

func textSum(text string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, text)
	return h.Sum64()
}

func cutHost(h string) (name, ip string, ok bool) {
	if name, ip, ok = strings.Cut(h, "="); ok {
		return name, ip, true
	}
	return strings.Cut(h, ":")
}

// isOn reports whether a container is on one of the networks, named by name or id.
func (s Nets) isOn(r *Record, refs []string) bool {
	on := func(id, name string) bool {
		return slices.ContainsFunc(refs, func(ref string) bool { return ref == name || ref != "" && strings.HasPrefix(id, ref) })
	}
	if !s.own(r) && on(s.o.Networks.ID(networkName(r)), networkName(r)) {
		return true
	}
	for k := range s.networks(r) {
		if id, name, err := s.o.Networks.Resolve(k); err == nil && on(id, name) {
			return true
		}
	}
	return false
}

// portMap is what inspect shows of a container's ports: those that it
// exposes, with where they are published while it runs.
func (s Nets) portMap(r *Record, st *Status) network.PortMap {
	out := network.PortMap{}
	if !st.Phase.Running() || !s.own(r) {
		return out
	}
	for p := range r.Config.ExposedPorts {
		out[p] = nil
	}
	_, live := s.o.Networks.Endpoints(string(r.ID))
	for p, b := range live {
		out[p] = b
	}
	return out
}

// ports is the PORTS column of ps.
func (s Nets) ports(r *Record, st *Status) []container.PortSummary {
	out := []container.PortSummary{}
	for p, list := range s.portMap(r, st) {
		if len(list) == 0 {
			out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range list {
			if b.HostPort == "" { // open at the container's own address
				continue
			}
			n, _ := strconv.ParseUint(b.HostPort, 10, 16)
			out = append(out, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(n), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(out, func(a, b container.PortSummary) int {
		if c := cmp.Compare(a.PrivatePort, b.PrivatePort); c != 0 {
			return c
		}
		if c := cmp.Compare(a.PublicPort, b.PublicPort); c != 0 {
			return c
		}
		return a.IP.Compare(b.IP)
	})
	return out
}
