package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// networkAttachment is one --network.
type networkAttachment struct {
	target       string
	aliases      []string
	links        []string
	linkLocalIPs []netip.Addr
	driverOpts   map[string]string
	ipv4, ipv6   netip.Addr
	mac          string
	gwPriority   int
}

// networkValue is the flag --network.
type networkValue struct{ list []networkAttachment }

func (n *networkValue) String() string { return "" }
func (n *networkValue) Type() string   { return "network" }

func (n *networkValue) Set(s string) error {
	if !strings.Contains(s, "=") {
		n.list = append(n.list, networkAttachment{target: s})
		return nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	var a networkAttachment
	for _, f := range fields {
		key, val, ok := strings.Cut(strings.ToLower(f), "=")
		if !ok || key == "" {
			return fmt.Errorf("invalid field %s", f)
		}
		key, val = strings.TrimSpace(key), strings.TrimSpace(val)
		switch key {
		case "name":
			a.target = val
		case "alias":
			a.aliases = append(a.aliases, val)
		case "ip":
			if a.ipv4, err = parseAddr(val); err != nil {
				return err
			}
		case "ip6":
			if a.ipv6, err = parseAddr(val); err != nil {
				return err
			}
		case "mac-address":
			if _, err := net.ParseMAC(val); err != nil {
				return fmt.Errorf("%s is not a valid mac address", val)
			}
			a.mac = val
		case "link-local-ip":
			ip, err := parseAddr(val)
			if err != nil {
				return err
			}
			a.linkLocalIPs = append(a.linkLocalIPs, ip)
		case "driver-opt":
			k, v, ok := strings.Cut(val, "=")
			if !ok || k == "" {
				return errors.New("invalid key value pair format in driver options")
			}
			if a.driverOpts == nil {
				a.driverOpts = map[string]string{}
			}
			a.driverOpts[strings.TrimSpace(k)] = strings.TrimSpace(v)
		case "gw-priority":
			if a.gwPriority, err = strconv.Atoi(val); err != nil {
				var ne *strconv.NumError
				if errors.As(err, &ne) {
					err = ne.Err
				}
				return fmt.Errorf("invalid gw-priority (%s): %w", val, err)
			}
		default:
			return errors.New("invalid field key " + key)
		}
	}
	if a.target == "" {
		return errors.New("network name/id is not specified")
	}
	n.list = append(n.list, a)
	return nil
}

func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("invalid IP address: %s", s)
	}
	return a, nil
}

// networking joins --network with the flags that describe the first network.
func (o *containerOptions) networking() (container.NetworkMode, map[string]*network.EndpointSettings, error) {
	list := o.networks.list
	if len(list) == 0 {
		list = []networkAttachment{{target: network.NetworkDefault}}
	}
	endpoints := make(map[string]*network.EndpointSettings, len(list))
	user, system := false, false
	for i := range list {
		n := list[i]
		if container.NetworkMode(n.target).IsUserDefined() {
			user = true
		} else {
			system = true
		}
		if i == 0 {
			if err := o.applyFlags(&n); err != nil {
				return "", nil, err
			}
		}
		ep, err := n.settings()
		if err != nil {
			return "", nil, err
		}
		if _, dup := endpoints[n.target]; dup {
			return "", nil, fmt.Errorf("network %q is specified multiple times", n.target)
		}
		if user && system {
			return "", nil, errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		endpoints[n.target] = ep
	}
	return container.NetworkMode(list[0].target), endpoints, nil
}

// applyFlags moves --ip, --network-alias and the like into the first network.
func (o *containerOptions) applyFlags(n *networkAttachment) error {
	conflict := func(flag, per string) error {
		return fmt.Errorf("conflicting options: cannot specify both %s and per-network %s", flag, per)
	}
	aliases, links, local := o.aliases.values, o.links.values, o.linkLocalIPs.values
	switch {
	case len(n.aliases) > 0 && len(aliases) > 0:
		return conflict("--network-alias", "alias")
	case len(n.links) > 0 && len(links) > 0:
		return conflict("--link", "links")
	case n.ipv4.IsValid() && o.ipv4 != "":
		return conflict("--ip", "IPv4 address")
	case n.ipv6.IsValid() && o.ipv6 != "":
		return conflict("--ip6", "IPv6 address")
	case n.mac != "" && o.mac != "":
		return conflict("--mac-address", "MAC address")
	case len(n.linkLocalIPs) > 0 && len(local) > 0:
		return conflict("--link-local-ip", "link-local IP addresses")
	}
	if len(aliases) > 0 {
		n.aliases = aliases
	}
	if len(links) > 0 && container.NetworkMode(n.target).IsUserDefined() {
		n.links = links
	}
	var err error
	if o.ipv4 != "" {
		if n.ipv4, err = parseAddr(o.ipv4); err != nil {
			return err
		}
	}
	if o.ipv6 != "" {
		if n.ipv6, err = parseAddr(o.ipv6); err != nil {
			return err
		}
	}
	if o.mac != "" {
		n.mac = o.mac
	}
	for _, s := range local {
		a, err := parseAddr(s)
		if err != nil {
			return err
		}
		n.linkLocalIPs = append(n.linkLocalIPs, a)
	}
	return nil
}

// settings returns the endpoint's part of the create request.
func (n *networkAttachment) settings() (*network.EndpointSettings, error) {
	if strings.TrimSpace(n.target) == "" {
		return nil, errors.New("no name set for network")
	}
	if !container.NetworkMode(n.target).IsUserDefined() {
		if len(n.aliases) > 0 {
			return nil, errors.New("network-scoped aliases are only supported for user-defined networks")
		}
		if len(n.links) > 0 {
			return nil, errors.New("links are only supported for user-defined networks")
		}
	}
	ep := &network.EndpointSettings{
		Aliases: n.aliases, Links: n.links, DriverOpts: n.driverOpts, GwPriority: n.gwPriority,
	}
	if n.ipv4.IsValid() || n.ipv6.IsValid() || len(n.linkLocalIPs) > 0 {
		ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: n.ipv4, IPv6Address: n.ipv6, LinkLocalIPs: n.linkLocalIPs}
	}
	if n.mac != "" {
		hw, err := net.ParseMAC(n.mac)
		if err != nil {
			return nil, fmt.Errorf("%s is not a valid mac address", n.mac)
		}
		ep.MacAddress = network.HardwareAddr(hw)
	}
	return ep, nil
}

// parsePublish reads all --publish values.
func parsePublish(specs []string) (network.PortSet, network.PortMap, error) {
	exposed, bindings := network.PortSet{}, network.PortMap{}
	for _, spec := range specs {
		if strings.Contains(spec, "=") {
			var err error
			if spec, err = shortPublish(spec); err != nil {
				return nil, nil, err
			}
		}
		if err := parsePort(spec, exposed, bindings); err != nil {
			return nil, nil, err
		}
	}
	return exposed, bindings, nil
}

// shortPublish turns published=8080,target=80,protocol=tcp into the short form.
func shortPublish(s string) (string, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return "", err
	}
	p := map[string]string{"protocol": "tcp"}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return "", fmt.Errorf("invalid publish opts format (should be name=value but got '%s')", f)
		}
		k = strings.ToLower(k)
		switch k {
		case "protocol", "published", "target", "mode":
			p[k] = v
		default:
			return "", fmt.Errorf("invalid field key %s", k)
		}
	}
	if p["published"] == "" {
		return p["target"] + "/" + p["protocol"], nil
	}
	return p["published"] + ":" + p["target"] + "/" + p["protocol"], nil
}

// parsePort reads [ip:][host[-host]:]container[-container][/proto].
func parsePort(spec string, exposed network.PortSet, bindings network.PortMap) error {
	rest, proto, hasProto := strings.Cut(spec, "/")
	if !hasProto || proto == "" {
		proto = "tcp"
	}
	ip, host, cont := splitPort(rest)
	if strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
		ip = ip[1 : len(ip)-1]
	}
	var addr netip.Addr
	if ip != "" {
		var err error
		if addr, err = netip.ParseAddr(ip); err != nil {
			return errors.New("invalid IP address: " + ip)
		}
	}
	if cont == "" {
		return fmt.Errorf("no port specified: %s<empty>", spec)
	}
	c0, c1, err := portRange(cont)
	if err != nil {
		return errors.New("invalid containerPort: " + cont)
	}
	var h0, h1 uint16
	if host != "" {
		if h0, h1, err = portRange(host); err != nil {
			return errors.New("invalid hostPort: " + host)
		}
	}
	if host != "" && c1-c0 != h1-h0 && c0 != c1 {
		return fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", cont, host)
	}
	if l := strings.ToLower(proto); l != "tcp" && l != "udp" && l != "sctp" {
		return errors.New("invalid proto: " + proto)
	}
	for i := uint32(0); i <= uint32(c1-c0); i++ {
		port, _ := network.PortFrom(c0+uint16(i), network.IPProtocol(strings.ToLower(proto)))
		b := network.PortBinding{HostIP: addr}
		switch {
		case host == "":
		case c0 == c1 && h0 != h1: // the engine takes a free one of the range
			b.HostPort = fmt.Sprintf("%d-%d", h0, h1)
		default:
			b.HostPort = strconv.Itoa(int(h0) + int(i))
		}
		exposed[port] = struct{}{}
		bindings[port] = append(bindings[port], b)
	}
	return nil
}

// splitPort cuts at the last two colons.
func splitPort(s string) (ip, host, cont string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", s
	}
	cont, s = s[i+1:], s[:i]
	if i = strings.LastIndexByte(s, ':'); i < 0 {
		return "", s, cont
	}
	return s[:i], s[i+1:], cont
}

func portRange(s string) (lo, hi uint16, err error) {
	a, b, ranged := strings.Cut(s, "-")
	x, err := strconv.ParseUint(a, 10, 16)
	if err != nil || !ranged {
		return uint16(x), uint16(x), err
	}
	y, err := strconv.ParseUint(b, 10, 16)
	if err == nil && y < x {
		err = errors.New("invalid range specified for port: " + s)
	}
	return uint16(x), uint16(y), err
}
