package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Hop is a route that somebody else wants in a namespace: to To by Via, or directly where Via
// is not valid.
type Hop struct {
	To  netip.Prefix
	Via netip.Addr
}

// Take moves the host's interface in.Host into the namespace ns, where it is called in.Name,
// or prefix and the first free number, and configures it. in.Name and in.MAC are set.
// After an error the interface is the host's again.
func Take(ns int, in *Interface, prefix string, hops []Hop) (err error) {
	link, err := netlink.LinkByName(in.Host)
	if err != nil {
		return fmt.Errorf("cannot find the interface %s on the host: %w", in.Host, err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("cannot reach the network namespace: %w", err)
	}
	defer h.Close()
	if in.Name == "" {
		if in.Name, err = freeName(h, prefix); err != nil {
			return err
		}
	}
	// Down, or it cannot be renamed; by a name that nobody else has, on its way.
	passing := "mv" + hostName()[4:]
	if err = errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, passing)); err != nil {
		_ = netlink.LinkSetName(link, in.Host)
		return fmt.Errorf("cannot take the interface %s: %w", in.Host, err)
	}
	if err = netlink.LinkSetNsFd(link, ns); err != nil {
		_ = netlink.LinkSetName(link, in.Host)
		return fmt.Errorf("cannot move the interface %s into the container: %w", in.Host, err)
	}
	name := passing
	defer func() {
		if err != nil {
			_ = giveBack(h, name, in.Host)
		}
	}()
	if link, err = h.LinkByName(passing); err != nil {
		return err
	}
	if err = h.LinkSetName(link, in.Name); err != nil {
		return fmt.Errorf("error renaming interface %q to %q: %w", in.Host, in.Name, err)
	}
	name = in.Name
	if len(in.MAC) > 0 {
		if err = h.LinkSetHardwareAddr(link, in.MAC); err != nil {
			return fmt.Errorf("cannot give %s the hardware address %s: %w", in.Name, in.MAC, err)
		}
	}
	if in.MTU > 0 {
		if err = h.LinkSetMTU(link, in.MTU); err != nil {
			return fmt.Errorf("cannot set the MTU of %s: %w", in.Name, err)
		}
	}
	if len(in.MAC) == 0 {
		in.MAC = link.Attrs().HardwareAddr
	}
	gateways := in.Gateways // some are reached only by the routes that come with them
	in.Gateways = nil
	err = Configure(ns, in)
	in.Gateways = gateways
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	for _, hop := range hops {
		r := &netlink.Route{LinkIndex: index, Dst: ipNet(hop.To)}
		if hop.Via.IsValid() {
			r.Gw = hop.Via.AsSlice()
		} else {
			r.Scope = netlink.SCOPE_LINK
		}
		if err = h.RouteReplace(r); err != nil {
			return fmt.Errorf("cannot set the route %s: %w", hop.To, err)
		}
	}
	return routes(h, index, in)
}

// freeName is prefix with the first number that makes it a name which no interface has.
func freeName(h *netlink.Handle, prefix string) (string, error) {
	links, err := whole(h.LinkList)
	if err != nil {
		return "", err
	}
	used := map[string]bool{}
	for _, l := range links {
		used[l.Attrs().Name] = true
	}
	for i := 0; ; i++ {
		if name := fmt.Sprint(prefix, i); !used[name] {
			if !ValidName(name) {
				return "", fmt.Errorf("invalid interface name: %s", name)
			}
			return name, nil
		}
	}
}

// Return gives the interface name of the namespace ns back to the host, where it is called
// host. One that is gone is no error.
func Return(ns int, name, host string) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return giveBack(h, name, host)
}

func giveBack(h *netlink.Handle, name, host string) error {
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	// Its name comes from a place where the container may have changed it: a new one is
	// set before the host sees it.
	passing := "mv" + hostName()[4:]
	if err := errors.Join(h.LinkSetDown(link), h.LinkSetName(link, passing)); err != nil {
		return err
	}
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	if err := h.LinkSetNsFd(link, int(own)); err != nil {
		return err
	}
	if link, err = netlink.LinkByName(passing); err != nil {
		return err
	}
	return netlink.LinkSetName(link, host)
}
