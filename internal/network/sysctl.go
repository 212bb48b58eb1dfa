package network

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// optSysctls is an endpoint's option: settings of its interface, "net.X.Y.IFNAME.Z=V,…".
const optSysctls = "com.docker.network.endpoint.sysctls"

// checkSysctls tells what is wrong with the settings that an endpoint asks for.
func checkSysctls(list string, bad func(format string, args ...any)) {
	for s := range strings.SplitSeq(list, ",") {
		f := strings.SplitN(s, ".", 5)
		if len(f) != 5 || f[1] != "ipv4" && f[1] != "ipv6" && f[1] != "mpls" || !strings.EqualFold(f[3], "ifname") || strings.Contains(f[4], "/") {
			bad("unrecognised network interface sysctl '%s'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'", s)
		}
	}
}

// sysctls are the settings of an interface as files below /proc/sys, with their values;
// off6 tells that they turn IPv6 off.
func sysctls(e *network.EndpointSettings, ifname string) (list [][2]string, off6 bool, err error) {
	if e == nil || e.DriverOpts[optSysctls] == "" {
		return nil, false, nil
	}
	for s := range strings.SplitSeq(e.DriverOpts[optSysctls], ",") {
		f := strings.SplitN(s, ".", 5)
		if len(f) != 5 {
			continue // refused when it was asked for
		}
		key, value, ok := strings.Cut(f[4], "=")
		if !ok {
			return nil, false, fmt.Errorf("no value in sysctl %s", s)
		}
		if f[1] == "ipv6" && f[2] == "conf" && key == "disable_ipv6" && value == "1" {
			off6 = true
		}
		list = append(list, [2]string{strings.Join([]string{"net", f[1], f[2], ifname, key}, "/"), value})
	}
	return list, off6, nil
}
