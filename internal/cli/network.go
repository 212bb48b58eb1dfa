package cli

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// networkRow is one network of network ls.
type networkRow struct {
	row
	n    network.Summary
	full bool
}

func (r networkRow) ID() string {
	if r.full {
		return r.n.ID
	}
	return shortID(r.n.ID)
}
func (r networkRow) Name() string             { return r.n.Name }
func (r networkRow) Driver() string           { return r.n.Driver }
func (r networkRow) Scope() string            { return r.n.Scope }
func (r networkRow) IPv4() string             { return strconv.FormatBool(r.n.EnableIPv4) }
func (r networkRow) IPv6() string             { return strconv.FormatBool(r.n.EnableIPv6) }
func (r networkRow) Internal() string         { return strconv.FormatBool(r.n.Internal) }
func (r networkRow) Labels() string           { return joinLabels(r.n.Labels) }
func (r networkRow) CreatedAt() string        { return r.n.Created.String() }
func (r networkRow) Label(name string) string { return r.n.Labels[name] }

func networkLsCmd(cli *CLI, c *cobra.Command) {
	var quiet, noTrunc bool
	var format string
	var filters filterValue
	f := c.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	formatFlag(c, &format)
	f.VarP(&filters, "filter", "f", `Provide filter values (e.g. "driver=bridge")`)
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := url.Values{}
		filters.query(q)
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		list, err := client.Get[[]network.Summary](c.Context(), cl, "/networks", q)
		if err != nil {
			return err
		}
		if format == "" && !quiet {
			format = cli.Config().NetworksFormat
		}
		if quiet && (format == "" || format == "table") {
			format = "{{.ID}}"
		}
		rows := make([]networkRow, len(list))
		for i, n := range list {
			rows[i] = networkRow{n: n, full: noTrunc}
		}
		sortRows(rows, networkRow.Name)
		return render(cli.Out, format, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", header{
			"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6", "Internal": "INTERNAL",
			"Labels": "LABELS", "CreatedAt": "CREATED AT",
		}, rows)
	}
}

func networkInspectCmd(cli *CLI, c *cobra.Command) {
	var verbose bool
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Verbose output for diagnostics")
	inspectGroup(cli, c, func() url.Values {
		if verbose {
			return url.Values{"verbose": {"true"}}
		}
		return nil
	}, func(ref string) string { return "/networks/" + ref })
}

func networkRmCmd(cli *CLI, c *cobra.Command) {
	var force bool
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		failed := false
		for _, name := range args {
			err := cl.Call(c.Context(), http.MethodDelete, "/networks/"+name, nil)
			if err != nil {
				if force && client.IsNotFound(err) {
					continue
				}
				fmt.Fprintln(cli.Err, err)
				failed = true
				continue
			}
			fmt.Fprintln(cli.Out, name)
		}
		if failed {
			return StatusError{Code: 1}
		}
		return nil
	}
}

func networkConnectCmd(cli *CLI, c *cobra.Command) {
	var a networkAttachment
	var aliases, linkLocal, driverOpts []string
	var ip, ip6 string
	links := list(checkLink)
	f := c.Flags()
	f.StringVar(&ip, "ip", "", `IPv4 address (e.g., "172.30.100.104")`)
	f.StringVar(&ip6, "ip6", "", `IPv6 address (e.g., "2001:db8::33")`)
	f.Var(links, "link", "Add link to another container")
	f.StringSliceVar(&aliases, "alias", nil, "Add network-scoped alias for the container")
	f.StringSliceVar(&linkLocal, "link-local-ip", nil, "Add a link-local address for the container")
	f.StringSliceVar(&driverOpts, "driver-opt", nil, "driver options for the network")
	f.IntVar(&a.gwPriority, "gw-priority", 0, "Highest gw-priority provides the default gateway. Accepts positive and negative values.")
	c.RunE = func(c *cobra.Command, args []string) error {
		ep := &network.EndpointSettings{Aliases: aliases, Links: links.values, GwPriority: a.gwPriority, IPAMConfig: &network.EndpointIPAMConfig{}}
		var err error
		if ep.IPAMConfig.IPv4Address, err = parseAddr(ip); err != nil {
			return err
		}
		if ep.IPAMConfig.IPv6Address, err = parseAddr(ip6); err != nil {
			return err
		}
		for _, s := range linkLocal {
			l, err := parseAddr(s)
			if err != nil {
				return err
			}
			ep.IPAMConfig.LinkLocalIPs = append(ep.IPAMConfig.LinkLocalIPs, l)
		}
		for _, s := range driverOpts {
			k, v, ok := strings.Cut(s, "=")
			if !ok || k == "" {
				return errors.New("invalid key/value pair format in driver options")
			}
			if ep.DriverOpts == nil {
				ep.DriverOpts = map[string]string{}
			}
			ep.DriverOpts[k] = v
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		return cl.JSON(c.Context(), client.Request{
			Method: http.MethodPost, Path: "/networks/" + args[0] + "/connect",
			Body: network.ConnectRequest{Container: args[1], EndpointConfig: ep},
		}, nil)
	}
}

func networkDisconnectCmd(cli *CLI, c *cobra.Command) {
	var force bool
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		return cl.JSON(c.Context(), client.Request{
			Method: http.MethodPost, Path: "/networks/" + args[0] + "/disconnect",
			Body: network.DisconnectRequest{Container: args[1], Force: force},
		}, nil)
	}
}

func networkCreateCmd(cli *CLI, c *cobra.Command) {
	req := network.CreateRequest{}
	var ipv4, ipv6 bool
	var configFrom, ipamDriver string
	var subnets, ranges, gateways []string
	opts, aux, ipamOpts, labels := kvMap(nil), kvMap(nil), kvMap(nil), list(checkLabel)
	f := c.Flags()
	f.StringVarP(&req.Driver, "driver", "d", "bridge", "Driver to manage the Network")
	f.VarP(opts, "opt", "o", "Set driver specific options")
	f.Var(labels, "label", "Set metadata on a network")
	f.BoolVar(&req.Internal, "internal", false, "Restrict external access to the network")
	f.BoolVar(&ipv4, "ipv4", true, "Enable or disable IPv4 address assignment")
	f.BoolVar(&ipv6, "ipv6", false, "Enable or disable IPv6 address assignment")
	f.BoolVar(&req.Attachable, "attachable", false, "Enable manual container attachment")
	f.BoolVar(&req.Ingress, "ingress", false, "Create swarm routing-mesh network")
	f.StringVar(&req.Scope, "scope", "", "Control the network's scope")
	f.BoolVar(&req.ConfigOnly, "config-only", false, "Create a configuration only network")
	f.StringVar(&configFrom, "config-from", "", "The network from which to copy the configuration")
	f.StringVar(&ipamDriver, "ipam-driver", "default", "IP Address Management Driver")
	f.StringSliceVar(&subnets, "subnet", nil, "Subnet in CIDR format that represents a network segment")
	f.StringSliceVar(&ranges, "ip-range", nil, "Allocate container ip from a sub-range")
	f.StringSliceVar(&gateways, "gateway", nil, "IPv4 or IPv6 Gateway for the master subnet")
	f.Var(aux, "aux-address", "Auxiliary IPv4 or IPv6 addresses used by Network driver")
	f.Var(ipamOpts, "ipam-opt", "Set IPAM driver specific options")
	c.RunE = func(c *cobra.Command, args []string) error {
		req.Name, req.Options, req.Labels = args[0], opts.values, pairs(labels.values)
		cfgs, err := ipamConfigs(subnets, ranges, gateways, aux.values)
		if err != nil {
			return err
		}
		req.IPAM = &network.IPAM{Driver: ipamDriver, Config: cfgs, Options: ipamOpts.values}
		if f.Changed("ipv4") {
			req.EnableIPv4 = &ipv4
		}
		if f.Changed("ipv6") {
			req.EnableIPv6 = &ipv6
		}
		if configFrom != "" {
			req.ConfigFrom = &network.ConfigReference{Network: configFrom}
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := client.Post[network.CreateResponse](c.Context(), cl, "/networks/create", nil, req)
		if err != nil {
			return err
		}
		if res.Warning != "" {
			fmt.Fprintf(cli.Err, "WARNING: %s\n", res.Warning)
		}
		fmt.Fprintln(cli.Out, res.ID)
		return nil
	}
}

// ipamConfigs puts ranges, gateways and auxiliary addresses to the subnets that hold them.
func ipamConfigs(subnets, ranges, gateways []string, aux map[string]string) ([]network.IPAMConfig, error) {
	if len(subnets) < len(ranges) || len(subnets) < len(gateways) {
		return nil, errors.New("every ip-range or gateway must have a corresponding subnet")
	}
	cfgs := []network.IPAMConfig{}
	var nets []netip.Prefix
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &net.ParseError{Type: "CIDR address", Text: s}
		}
		for _, o := range nets {
			if o.Overlaps(p) {
				return nil, errors.New("multiple overlapping subnet configuration is not supported")
			}
		}
		nets = append(nets, p)
		cfgs = append(cfgs, network.IPAMConfig{Subnet: p})
	}
	find := func(a netip.Addr) *network.IPAMConfig {
		for i, n := range nets {
			if n.Contains(a) {
				return &cfgs[i]
			}
		}
		return nil
	}
	for _, r := range ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, &net.ParseError{Type: "CIDR address", Text: r}
		}
		c := find(p.Addr())
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for range %s", r)
		case c.IPRange.IsValid():
			return nil, fmt.Errorf("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", r, c.IPRange, c.Subnet)
		}
		c.IPRange = p
	}
	for _, g := range gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return nil, fmt.Errorf("invalid gateway address: %s", g)
		}
		c := find(a)
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for gateway %s", g)
		case c.Gateway.IsValid():
			return nil, fmt.Errorf("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", g, c.Gateway, c.Subnet)
		}
		c.Gateway = a
	}
	for name, s := range aux {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid aux-address: %s", s)
		}
		c := find(a)
		if c == nil {
			return nil, fmt.Errorf("no matching subnet for aux-address %s", s)
		}
		if c.AuxAddress == nil {
			c.AuxAddress = map[string]netip.Addr{}
		}
		c.AuxAddress[name] = a
	}
	return cfgs, nil
}
