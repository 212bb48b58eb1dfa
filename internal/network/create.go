package network

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/firewall"
	"berth.dev/berth/internal/network/ipam"
	"berth.dev/berth/internal/state"
)

// Names of the bridge driver's options (com.docker.network.…).
const (
	optBridge  = "com.docker.network.bridge.name"
	optICC     = "com.docker.network.bridge.enable_icc"
	optMasq    = "com.docker.network.bridge.enable_ip_masquerade"
	optHostIP  = "com.docker.network.bridge.host_binding_ipv4"
	optMTU     = "com.docker.network.driver.mtu"
	optDefault = "com.docker.network.bridge.default_bridge"
	optIfName  = "com.docker.network.endpoint.ifname"
	optPrefix  = "com.docker.network.container_iface_prefix"
)

// Create makes a network.
func (s *Service) Create(_ context.Context, r network.CreateRequest) (id string, warning string, err error) {
	bad := func(format string, args ...any) (string, string, error) {
		return "", "", errs.New(errs.Invalid, format, args...)
	}
	switch {
	case strings.TrimSpace(r.Name) == "":
		return bad("invalid name: name is empty")
	case strings.TrimSpace(r.Name) != r.Name:
		return bad("invalid name: leading and trailing blanks are not allowed: %q", r.Name)
	case r.Name == "bridge" || r.Name == "host" || r.Name == "none" || r.Name == "default" || r.Name == "container":
		return "", "", errs.New(errs.Forbidden, "operation is not permitted on predefined %s network ", r.Name)
	case r.Ingress || r.Scope == "swarm":
		return "", "", errs.New(errs.Unavailable, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	case r.Scope != "" && r.Scope != "local":
		return bad("invalid network scope %q: this engine has local networks only", r.Scope)
	}
	if err := checkConfig(&r); err != nil {
		return "", "", err
	}
	publisher{s}.defaults(&r)
	if r, err = (publisher{s}).configured(r); err != nil {
		return "", "", err
	}
	n := &Network{ICC: true, Masq: true}
	n.ID, n.Name, n.Driver, n.Scope, n.Created = newID(), r.Name, r.Driver, "local", time.Now().UTC()
	n.Internal, n.Attachable = r.Internal, r.Attachable
	n.Options, n.Labels = maps.Clone(r.Options), maps.Clone(r.Labels)
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	if n.Driver == "" || n.Driver == "default" {
		n.Driver = "bridge"
	}
	if r.ConfigOnly {
		return publisher{s}.createConfig(n, &r)
	}
	if r.ConfigFrom != nil {
		n.ConfigFrom = *r.ConfigFrom
	}
	switch n.Driver {
	case "host", "null":
		return "", "", errs.New(errs.Forbidden, "only one instance of %q network is allowed", n.Driver)
	case "overlay":
		return "", "", errs.New(errs.Forbidden, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	n.fresh = true
	drv := s.plugins.of(n.Driver)
	if s.fault != nil && n.Driver == "bridge" {
		return "", "", errs.Wrap(errs.Internal, s.fault, "cannot create the network "+n.Name)
	}
	if n.EnableIPv4, err = enabled(r.EnableIPv4, n.Options, optEnable4, true); err != nil {
		return "", "", err
	}
	if n.EnableIPv6, err = enabled(r.EnableIPv6, n.Options, optEnable6, false); err != nil {
		return "", "", err
	}
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return bad("IPv4 or IPv6 must be enabled")
	}
	if err := drv.read(n); err != nil {
		return "", "", err
	}
	if err := n.readAnnounce(); err != nil {
		return "", "", err
	}
	if n.MTU == 0 && n.Driver == "bridge" {
		n.MTU = s.o.Config.MTU
	}
	s.mu.RLock()
	_, taken := s.byName[n.Name]
	for _, o := range s.nets {
		if c := n.conflict(o); c != nil {
			err = c
		}
	}
	s.mu.RUnlock()
	if taken {
		return "", "", errs.New(errs.Conflict, "network with name %s already exists", n.Name)
	}
	if err != nil {
		return "", "", err
	}
	n.IPAM.Driver = "default"
	if r.IPAM != nil {
		n.IPAM.Driver = cmp.Or(r.IPAM.Driver, "default")
		n.IPAM.Options, n.IPAM.Config = r.IPAM.Options, slices.Clone(r.IPAM.Config)
	}
	n.other = s.plugins.addressing(s, n.IPAM.Driver)
	if err := s.allocate(n); err != nil {
		return "", "", err
	}
	if err := s.bringUp(n); err != nil {
		s.takeDown(n)
		if _, ok := drv.(pluginDriver); ok {
			return "", "", err
		}
		return "", "", errs.Wrap(errs.Internal, advised(err), "cannot create the network "+n.Name)
	}
	if n.EnableIPv6 && n.Driver == "bridge" {
		publisher{s}.forward(true)
	}
	s.mu.Lock()
	if _, again := s.byName[n.Name]; again {
		s.mu.Unlock()
		s.takeDown(n)
		return "", "", errs.New(errs.Conflict, "network with name %s already exists", n.Name)
	}
	s.add(n)
	s.mu.Unlock()
	err = s.o.DB.Update(state.Soon, func(tx *state.Tx) error { return tx.Put(bucket, "n/"+n.ID, n) })
	if err == nil && s.fw != nil && n.Driver == "bridge" {
		err = advised(s.fw.SetNetwork(n.rules()))
	}
	if err != nil {
		_ = s.remove(n)
		return "", "", err
	}
	s.o.Event(events.ActionCreate, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return n.ID, "", nil
}

// read takes the options of the bridge driver.
func (bridgeDriver) read(n *Network) error {
	n.Bridge = "br-" + n.ID[:12]
	for k, v := range n.Options {
		var err error
		switch k {
		case optBridge:
			if !bridge.ValidName(v) {
				return errs.New(errs.Invalid, "invalid bridge name: %s", v)
			}
			n.Bridge = v
		case optICC:
			n.ICC, err = strconv.ParseBool(v)
		case optMasq:
			n.Masq, err = strconv.ParseBool(v)
		case optHostIP:
			n.HostIP, err = netip.ParseAddr(v)
		case optMode4:
			n.Mode4, err = readMode(v)
		case optMode6:
			n.Mode6, err = readMode(v)
		case optInhibit:
			n.Inhibit, err = strconv.ParseBool(v)
		case optTrusted:
			n.Trusted, err = readTrusted(v)
		case optSource4:
			n.Source4, err = netip.ParseAddr(v)
		case optSource6:
			n.Source6, err = netip.ParseAddr(v)
		}
		if err != nil {
			return errs.New(errs.Invalid, "failed to parse %s value: %q (%v)", k, v, err)
		}
	}
	if err := n.checkModes(); err != nil {
		return err
	}
	return n.readMTU()
}

// readMTU takes the option that all drivers have.
func (n *Network) readMTU() error {
	v, ok := n.Options[optMTU]
	if !ok {
		return nil
	}
	var err error
	if n.MTU, err = strconv.Atoi(v); err == nil && n.MTU < 0 {
		err = errors.New("it is negative")
	}
	if err != nil {
		return errs.New(errs.Invalid, "failed to parse %s value: %q (%v)", optMTU, v, err)
	}
	return nil
}

// allocate completes the address configuration: subnets that are not given are chosen,
// gateways are the first address.
func (s *Service) allocate(n *Network) (err error) {
	if n.other != nil {
		return n.other.allocate(n)
	}
	var taken []netip.Prefix
	defer func() {
		if err != nil {
			for _, p := range taken {
				s.space.Release(p)
			}
		}
	}()
	var has4, has6 bool
	for i := range n.IPAM.Config {
		c := &n.IPAM.Config[i]
		if !c.Subnet.IsValid() {
			continue
		}
		if c.Subnet.Addr().IsUnspecified() { // any of that size
			routes, _ := bridge.HostRoutes()
			v6 := c.Subnet.Addr().Is6()
			p, err := s.space.ChooseSize(v6, c.Subnet.Bits(), routes)
			if errors.Is(err, ipam.ErrExhausted) && v6 && c.Subnet.Bits() >= 64 {
				p = netip.PrefixFrom(uniqueLocal(n.ID).Addr(), c.Subnet.Bits())
				err = s.space.Take(p)
			}
			if err != nil {
				return errs.New(errs.Invalid, "%v", err)
			}
			c.Subnet = p
			taken = append(taken, p)
			has4, has6, n.EnableIPv6 = has4 || !v6, has6 || v6, n.EnableIPv6 || v6
			continue
		}
		if c.Subnet != c.Subnet.Masked() {
			return errs.New(errs.Invalid, "invalid network config:\ninvalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
		}
		if c.IPRange.IsValid() && (c.IPRange.Bits() < c.Subnet.Bits() || !c.Subnet.Contains(c.IPRange.Addr())) {
			return errs.New(errs.Invalid, "invalid network config:\ninvalid ip-range %s: it should not be outside of the subnet %s", c.IPRange, c.Subnet)
		}
		if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) {
			return errs.New(errs.Invalid, "invalid network config:\ninvalid gateway %s: parent subnet is %s", c.Gateway, c.Subnet)
		}
		for name, a := range c.AuxAddress {
			if !c.Subnet.Contains(a) {
				return errs.New(errs.Invalid, "invalid network config:\ninvalid auxiliary address %s (%s): parent subnet is %s", name, a, c.Subnet)
			}
		}
		if c.Subnet.Addr().Is6() {
			if has6 = true; !n.EnableIPv6 {
				n.EnableIPv6 = true
			}
		} else {
			has4 = true
		}
		if err := s.space.Take(c.Subnet); err != nil {
			return errs.New(errs.Forbidden, "invalid pool request: %v", err)
		}
		taken = append(taken, c.Subnet)
	}
	routes, rerr := bridge.HostRoutes()
	if rerr != nil {
		s.o.Log.Warn("cannot read the host's routes", "error", rerr)
	}
	choose := func(v6 bool) error {
		p, err := s.space.Choose(v6, routes)
		if errors.Is(err, ipam.ErrExhausted) && v6 {
			p = uniqueLocal(n.ID)
			err = s.space.Take(p)
		}
		if err != nil {
			return errs.New(errs.Invalid, "%v", err)
		}
		taken = append(taken, p)
		// A gateway or range given without a subnet belongs to the one that is chosen.
		for i := range n.IPAM.Config {
			if c := &n.IPAM.Config[i]; !c.Subnet.IsValid() && !v6 {
				c.Subnet = p
				return nil
			}
		}
		n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: p})
		return nil
	}
	if n.EnableIPv4 && !has4 {
		if err := choose(false); err != nil {
			return err
		}
	}
	if n.EnableIPv6 && !has6 {
		if err := choose(true); err != nil {
			return err
		}
	}
	slices.SortStableFunc(n.IPAM.Config, func(x, y network.IPAMConfig) int { // IPv4 first, as Docker shows them
		return x.Subnet.Addr().BitLen() - y.Subnet.Addr().BitLen()
	})
	for i := range n.IPAM.Config {
		if c := &n.IPAM.Config[i]; !c.Gateway.IsValid() && c.Subnet.IsValid() && !(n.Internal && n.Driver != "bridge") && n.onBridge(c.Subnet.Addr()) && !n.bare[family(c.Subnet)] {
			c.Gateway = c.Subnet.Addr()
			if c.Subnet.Bits() < c.Gateway.BitLen()-1 {
				c.Gateway = c.Gateway.Next()
			}
		}
	}
	return nil
}

// uniqueLocal is a subnet of its own for a network (RFC 4193).
func uniqueLocal(id string) netip.Prefix {
	var b [16]byte
	b[0] = 0xfd
	for i := 1; i < 8; i++ {
		n, _ := strconv.ParseUint(id[2*i:2*i+2], 16, 8)
		b[i] = byte(n)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// open makes the network's addresses ready to be handed out.
func (n *Network) open() {
	n.subnets = nil
	if n.other != nil {
		return
	}
	for _, c := range n.IPAM.Config {
		sub := ipam.NewSubnet(c.Subnet, c.IPRange)
		if c.Gateway.IsValid() {
			_ = sub.Take(c.Gateway)
		}
		for _, a := range c.AuxAddress {
			_ = sub.Take(a)
		}
		n.subnets = append(n.subnets, sub)
	}
}

// gateways are the host's addresses on the bridge.
func (n *Network) gateways() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range n.IPAM.Config {
		if c.Gateway.IsValid() && n.onBridge(c.Gateway) {
			out = append(out, netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))
		}
	}
	return out
}

func (n *Network) rules() firewall.Network {
	f := firewall.Network{Bridge: n.Bridge, Internal: n.Internal, ICC: n.ICC, Masquerade: n.Masq, Trusted: n.Trusted, Source4: n.Source4, Source6: n.Source6}
	for _, c := range n.IPAM.Config {
		f.Subnets = append(f.Subnets, c.Subnet)
	}
	for i, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		f.Open[i], f.Routed[i] = n.mode(a) == modeUnprotected, n.mode(a) == modeRouted
	}
	return f
}

// bringUp makes what a network has on the host. It is run at boot too.
func (s *Service) bringUp(n *Network) error {
	n.open()
	return s.plugins.of(n.Driver).up(s, n)
}

// takeDown removes what a network has on the host.
func (s *Service) takeDown(n *Network) {
	if n.ConfigOnly {
		return
	}
	if n.pool != nil {
		n.pool.drain(n)
	}
	s.plugins.of(n.Driver).down(s, n)
	if n.other != nil {
		n.other.free(n)
		return
	}
	for _, c := range n.IPAM.Config {
		s.space.Release(c.Subnet)
	}
}

// DefaultBridge is the interface of the network "bridge", unless another is configured.
const DefaultBridge = "berth0"

// defaultBridge makes the network "bridge", as the configuration has it.
func (s *Service) defaultBridge(created time.Time) (*Network, error) {
	c := &s.o.Config
	n := &Network{Bridge: c.OwnBridge, MTU: c.MTU, ICC: c.ICC, Masq: c.Masquerade, HostIP: c.DefaultIP}
	n.Name, n.ID, n.Created, n.Scope, n.Driver = "bridge", builtinID("bridge", created), created, "local", "bridge"
	n.EnableIPv4, n.EnableIPv6, n.Labels = true, c.IPv6, map[string]string{}
	n.IPAM.Driver = "default"
	if n.MTU == 0 {
		n.MTU = bridge.DefaultMTU()
	}
	own := c.Bridge == "" || c.Bridge == c.OwnBridge
	var cfg network.IPAMConfig
	switch {
	case !own:
		n.Bridge = c.Bridge
		addrs, err := bridge.Addresses(c.Bridge)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if a.Addr().Is4() && !cfg.Subnet.IsValid() {
				cfg.Subnet, cfg.Gateway = a.Masked(), a.Addr()
			}
		}
		if !cfg.Subnet.IsValid() {
			return nil, errs.New(errs.Invalid, "bridge %s has no IPv4 address", c.Bridge)
		}
	case c.BridgeIP.IsValid():
		cfg.Subnet, cfg.Gateway = c.BridgeIP.Masked(), c.BridgeIP.Addr()
	case c.FixedCIDR.IsValid():
		cfg.Subnet, cfg.Gateway = c.FixedCIDR.Masked(), c.FixedCIDR.Masked().Addr().Next()
	default:
		p, err := publisher{s}.defaultSubnet()
		if err != nil {
			return nil, err
		}
		cfg.Subnet, cfg.Gateway = p, p.Addr().Next()
	}
	_ = s.space.Take(cfg.Subnet) // another network may have it from before: the bridge shows
	cfg.IPRange = c.FixedCIDR
	if c.Gateway.IsValid() {
		cfg.AuxAddress = map[string]netip.Addr{"DefaultGatewayIPv4": c.Gateway}
	}
	n.IPAM.Config = []network.IPAMConfig{cfg}
	if c.IPv6 {
		p := c.FixedCIDR6
		if c.BridgeIP6.IsValid() {
			p = c.BridgeIP6.Masked()
		}
		if !p.IsValid() {
			p = uniqueLocal(n.ID)
		}
		_ = s.space.Take(p)
		gw := p.Addr().Next()
		if c.BridgeIP6.IsValid() {
			gw = c.BridgeIP6.Addr()
		}
		six := network.IPAMConfig{Subnet: p, Gateway: gw}
		if c.Gateway6.IsValid() {
			six.AuxAddress = map[string]netip.Addr{"DefaultGatewayIPv6": c.Gateway6}
		}
		n.IPAM.Config = append(n.IPAM.Config, six)
	}
	host := "0.0.0.0"
	if c.DefaultIP.IsValid() {
		host = c.DefaultIP.String()
	}
	n.Options = map[string]string{
		optDefault: "true", optICC: strconv.FormatBool(n.ICC), optMasq: strconv.FormatBool(n.Masq), optHostIP: host, optBridge: n.Bridge, optMTU: strconv.Itoa(n.MTU),
	}
	n.open()
	index, err := bridge.Ensure(bridge.Config{Name: n.Bridge, MTU: n.MTU, Addrs: n.gateways(), Own: own, Apart: !n.ICC})
	n.index.Store(int64(index))
	n.pool = newPool()
	return n, err
}

// defaultSubnet is that of the default bridge: the same at each boot; the first of the
// administrator's pools, or else Docker's where the host does not use it.
func (s publisher) defaultSubnet() (netip.Prefix, error) {
	var p netip.Prefix
	have, _ := bridge.Addresses(s.o.Config.OwnBridge)
	there := func() bool { // our own bridge of an earlier engine
		return slices.ContainsFunc(have, func(a netip.Prefix) bool { return a.Masked() == p })
	}
	if ok, err := s.o.DB.Get(bucket, "default-subnet", &p); err == nil && ok && (!s.askedPools || there() || s.space.Pooled(p)) {
		return p, nil
	}
	p = netip.MustParsePrefix("172.17.0.0/16")
	routes, _ := bridge.HostRoutes()
	if s.askedPools || slices.ContainsFunc(routes, p.Overlaps) && !there() {
		var err error
		if p, err = s.space.Choose(false, routes); err != nil {
			return p, err
		}
	}
	return p, s.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put(bucket, "default-subnet", p) })
}

// forward turns IP forwarding on, for IPv6 with the first network that has it. That nothing
// else is forwarded then is for the administrator to say: what a table of nftables drops,
// no rule of another program can let through, so that other engines would be cut off.
func (s publisher) forward(ipv6 bool) {
	if !s.o.Config.Forward || s.o.Config.Bridge == "none" {
		return
	}
	files := []string{"/proc/sys/net/ipv4/ip_forward"}
	if ipv6 {
		files = []string{"/proc/sys/net/ipv6/conf/default/forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"}
	}
	for _, f := range files {
		if raw, err := os.ReadFile(f); err != nil || strings.TrimSpace(string(raw)) == "1" {
			continue
		}
		if err := os.WriteFile(f, []byte("1"), 0o644); err != nil {
			s.o.Log.Warn("cannot turn IP forwarding on: containers reach no other hosts", "error", err)
		}
	}
}

// restoreRules writes the firewall's whole table.
func (s publisher) restoreRules() error {
	if s.fw == nil {
		return nil
	}
	var nets []firewall.Network
	var ports []firewall.Mapping
	var links []firewall.Link
	for _, n := range s.all() {
		if n.Driver == "bridge" {
			nets = append(nets, n.rules())
		}
	}
	s.mu.RLock()
	all := slices.Collect(maps.Values(s.sandboxes))
	s.mu.RUnlock()
	for _, b := range all {
		ports = append(ports, s.mappings(b)...)
		links = append(links, b.Links...)
	}
	if err := s.switchRules(nets); err != nil {
		return err
	}
	return s.fw.Restore(nets, ports, links)
}

// switchRules removes the rules of the other kind, where the last engine kept its rules so.
func (s publisher) switchRules(nets []firewall.Network) error {
	const key = "iptables"
	was := false
	if _, err := s.o.DB.Get(bucket, key, &was); err != nil || was == s.o.Config.IPTables {
		return err
	}
	old := s.o.Config.firewall(was)
	if err := old.Clean(nets); err != nil {
		s.o.Log.Warn("cannot remove the rules of the firewall that was used before", "error", err)
	}
	return s.o.DB.Update(state.Soon, func(tx *state.Tx) error { return tx.Put(bucket, key, s.o.Config.IPTables) })
}
