// Package vlan gives containers a place of their own on an interface of the host, by
// macvlan and ipvlan: on the wire they are machines beside the host.
package vlan

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/network/bridge"
)

// Kind is what a container's interface is made of.
type Kind struct {
	IP   bool   // ipvlan: all share the parent's hardware address
	Mode string // bridge, private, vepa, passthru; of ipvlan: l2, l3, l3s
	Flag string // of ipvlan: bridge, private, vepa
}

var macModes = map[string]netlink.MacvlanMode{
	"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
	"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

var ipModes = map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}

var ipFlags = map[string]netlink.IPVlanFlag{
	"": netlink.IPVLAN_FLAG_BRIDGE, "bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA,
}

// Check tells, in Docker's words, what is wrong with a kind.
func (k Kind) Check() error {
	if !k.IP {
		if _, ok := macModes[k.Mode]; !ok {
			return fmt.Errorf("requested macvlan mode '%s' is not valid, 'bridge' mode is the macvlan driver default", k.Mode)
		}
		return nil
	}
	if _, ok := ipModes[k.Mode]; !ok {
		return fmt.Errorf("requested ipvlan mode '%s' is not valid, 'l2' mode is the ipvlan driver default", k.Mode)
	}
	if _, ok := ipFlags[k.Flag]; !ok {
		return fmt.Errorf("requested ipvlan flag '%s' is not valid, 'bridge' is the ipvlan driver default", k.Flag)
	}
	return nil
}

// Routed reports whether packets leave by the interface without a gateway.
func (k Kind) Routed() bool { return k.IP && (k.Mode == "l3" || k.Mode == "l3s") }

// Parent returns the index of the interface that a network stands on. One whose name is
// NAME.ID is made as a VLAN of NAME, one whose name begins with "dm-" as an interface that leads nowhere, when
// it is not there; made tells so.
func Parent(name string) (index int, made bool, err error) {
	link, err := netlink.LinkByName(name)
	if err == nil {
		return link.Attrs().Index, false, nil
	}
	var missing netlink.LinkNotFoundError
	if !errors.As(err, &missing) {
		return 0, false, err
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.Flags = name, net.FlagUp
	add := netlink.Link(&netlink.Dummy{LinkAttrs: la})
	if !strings.HasPrefix(name, "dm-") {
		on, tag, ok := strings.Cut(name, ".")
		id, err := strconv.Atoi(tag)
		switch {
		case !ok || err != nil:
			return 0, false, fmt.Errorf("invalid subinterface vlan name %s, example formatting is eth0.10", name)
		case id < 1 || id > 4094:
			return 0, false, fmt.Errorf("vlan id must be between 1-4094, received: %d", id)
		}
		parent, err := netlink.LinkByName(on)
		if err != nil {
			return 0, false, fmt.Errorf("-o parent interface was not found on the host: %s", on)
		}
		la.ParentIndex = parent.Attrs().Index
		add = &netlink.Vlan{LinkAttrs: la, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	}
	if err := netlink.LinkAdd(add); err != nil {
		return 0, false, fmt.Errorf("cannot make the parent interface %s: %w", name, hint(err))
	}
	link, err = netlink.LinkByName(name)
	if err != nil {
		return 0, false, err
	}
	return link.Attrs().Index, true, netlink.LinkSetUp(link)
}

// Join makes the interface in.Name in the namespace ns, on the parent with the given index.
func Join(parent, ns int, k Kind, in *bridge.Interface) error {
	la := netlink.NewLinkAttrs()
	la.Name, la.ParentIndex, la.Namespace, la.HardwareAddr = in.Name, parent, netlink.NsFd(ns), in.MAC
	if in.MTU > 0 {
		la.MTU = in.MTU
	}
	var link netlink.Link = &netlink.Macvlan{LinkAttrs: la, Mode: macModes[k.Mode]}
	if k.IP {
		la.HardwareAddr = nil
		link = &netlink.IPVlan{LinkAttrs: la, Mode: ipModes[k.Mode], Flag: ipFlags[k.Flag]}
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("cannot make the interface %s: %w", in.Name, hint(err))
	}
	if err := bridge.Configure(ns, in); err != nil {
		_ = bridge.Leave(ns, in.Name)
		return err
	}
	return nil
}

// hint says more than the kernel does.
func hint(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.New(err.Error() + ": this kernel does not have that kind of interface, or its module is not loaded")
	}
	return err
}
