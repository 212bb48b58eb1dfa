// Package bridge connects network namespaces by bridges and veth pairs, over
// netlink.
//
// A veth pair is never deleted by itself: closing the last descriptor of a
// namespace ends its side, and with it the host's, in batches of the kernel's own.
package bridge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Config is a bridge on the host.
type Config struct {
	Name  string
	MTU   int            // 0 leaves it
	Addrs []netip.Prefix // of the host on it: gateways with the subnet's length
	Own   bool           // made and removed by the engine; else it is an administrator's
	Apart bool           // its ports are isolated: neighbours reach each other by the host, where the firewall sees them
}

// Interface is what a namespace gets.
type Interface struct {
	Name     string // in the namespace, "eth0"
	Host     string // the other end
	MAC      net.HardwareAddr
	MTU      int
	Addrs    []netip.Prefix
	Gateways []netip.Addr // default routes; none on an internal network
	Routes   []netip.Prefix
	Sysctls  [][2]string // files below /proc/sys, and values, written before it is up
	Isolated bool        // it may speak with the host, but not with its neighbours on the bridge
}

// whole asks for a list again while others change what it is about: the kernel says so,
// and what it has told then may lack something.
func whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// Ensure makes the bridge, or takes the one that is there, gives it its
// addresses and brings it up. It returns its index.
func Ensure(c Config) (int, error) {
	link, err := netlink.LinkByName(c.Name)
	var missing netlink.LinkNotFoundError
	made := false
	if errors.As(err, &missing) {
		made = true
		if !c.Own {
			return 0, fmt.Errorf("bridge device with non default name %s must be created manually", c.Name)
		}
		la := netlink.NewLinkAttrs()
		la.Name = c.Name
		la.MTU = c.MTU
		la.HardwareAddr = RandomMAC() // else it would be that of one port after another, and neighbours would lose it
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil && !errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("cannot make the bridge %s: %w", c.Name, err)
		}
		link, err = netlink.LinkByName(c.Name)
	}
	if err != nil {
		return 0, err
	}
	if _, ok := link.(*netlink.Bridge); !ok {
		return 0, fmt.Errorf("existing interface %s is not a bridge", c.Name)
	}
	if c.MTU > 0 && link.Attrs().MTU != c.MTU && c.Own {
		if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
			return 0, fmt.Errorf("cannot set the MTU of %s: %w", c.Name, err)
		}
	}
	// Without IPv6 on the bridge the kernel would give it a link-local address all the same. One
	// that was there before may have addresses of somebody else.
	if v6 := slices.ContainsFunc(c.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }); v6 || made {
		setIPv6(c.Name, v6)
	}
	apart(c)
	have, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return 0, err
	}
	for _, p := range c.Addrs {
		if slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == ipNet(p).String() }) {
			continue
		}
		if err := netlink.AddrAdd(link, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("cannot give %s the address %s: %w", c.Name, p, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("cannot bring %s up: %w", c.Name, err)
	}
	return link.Attrs().Index, nil
}

// apart has the host answer for all neighbours of a bridge whose ports are isolated, or
// for none. An administrator's bridge is left as it is unless it has to be so.
func apart(c Config) {
	if v := map[bool]string{true: "1", false: "0"}[c.Apart]; c.Apart || c.Own {
		_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+c.Name+"/proxy_arp_pvlan", []byte(v), 0o644) // where it fails they stay apart
	}
}

// Answer has the host answer for an IPv6 neighbour on a bridge whose ports are isolated,
// as proxy_arp_pvlan does for all of IPv4. It ends with the bridge; where the address is
// somebody else's later, that one is still reached by the host alone.
func Answer(name string, index int, a netip.Addr) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/proxy_ndp", []byte("1"), 0o644); err != nil {
		return err
	}
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY, IP: a.AsSlice()})
	if err != nil {
		return fmt.Errorf("cannot answer for %s on %s: %w", a, name, err)
	}
	return nil
}

func setIPv6(name string, on bool) {
	v := "1"
	if on {
		v = "0"
	}
	// Without a probe its link-local address can be used at once: neighbours are asked from it.
	for _, x := range [][2]string{{"accept_dad", "0"}, {"accept_ra", "0"}, {"disable_ipv6", v}} {
		file, value := x[0], x[1]
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+file, []byte(value), 0o644) // kernels without IPv6
	}
}

// Addresses are those of an existing bridge.
func Addresses(name string) ([]netip.Prefix, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ones, _ := a.Mask.Size()
		if ip = ip.Unmap(); !ip.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(ip, ones))
		}
	}
	return out, nil
}

// Remove removes a bridge of the engine. One that is not there is no error.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// RemoveUnused removes a bridge that no interface is on.
func RemoveUnused(name string) {
	own, err := netlink.LinkByName(name)
	if err != nil || own.Type() != "bridge" {
		return
	}
	all, err := whole(netlink.LinkList)
	if err == nil && !slices.ContainsFunc(all, func(l netlink.Link) bool { return l.Attrs().MasterIndex == own.Attrs().Index }) {
		_ = netlink.LinkDel(own)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else hands out addresses here
	}
	return a
}

// names keeps two makers from one name; the kernel is asked for the rest.
var names struct {
	sync.Mutex
	n uint32
}

// Join makes a veth pair: one end on the bridge with the given index, the other in
// the namespace ns with its addresses and routes, up. in.Host is set.
func Join(bridge, ns int, in *Interface) error {
	la := netlink.NewLinkAttrs()
	la.MasterIndex, la.MTU, la.Flags, la.TxQLen = bridge, in.MTU, net.FlagUp, 1000
	for try := 0; ; try++ {
		la.Name = hostName()
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: in.Name, PeerNamespace: netlink.NsFd(ns), PeerHardwareAddr: in.MAC})
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || try > 10 {
			return fmt.Errorf("cannot make a veth pair: %w", err)
		}
	}
	in.Host = la.Name
	link, err := netlink.LinkByName(in.Host)
	if err != nil {
		return err
	}
	// Where bridged traffic passes the firewall, a container's call to its own published
	// port is turned round on the bridge itself: out by the port that it came in.
	err = netlink.LinkSetHairpin(link, true)
	if err == nil && in.Isolated { // few hosts have their firewall see what stays on a bridge
		err = netlink.LinkSetIsolated(link, true)
	}
	if err == nil {
		err = Configure(ns, in)
	}
	if err != nil {
		_ = netlink.LinkDel(link)
	}
	return err
}

// hostName is a new name for the host's end.
func hostName() string {
	var b [4]byte
	if _, err := unix.Getrandom(b[:], 0); err != nil {
		names.Lock()
		names.n++
		b[0], b[1], b[2], b[3] = byte(names.n>>24), byte(names.n>>16), byte(names.n>>8), byte(names.n)
		names.Unlock()
	}
	return fmt.Sprintf("veth%x", b)[:11]
}

// Configure gives the interface in.Name of a namespace its addresses and routes
// and brings it up.
func Configure(ns int, in *Interface) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("cannot reach the network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(in.Name)
	if err != nil {
		return err
	}
	set := in.Sysctls
	if slices.ContainsFunc(in.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		set = append([][2]string{{"net/ipv6/conf/" + in.Name + "/accept_dad", "0"}, {"net/ipv6/conf/" + in.Name + "/accept_ra", "0"}, {"net/ipv6/conf/" + in.Name + "/disable_ipv6", "0"}}, set...)
	}
	if in.Isolated && len(set) > 0 { // the host routes between neighbours, and there is no shorter way
		set = append(set, [2]string{"net/ipv6/conf/" + in.Name + "/accept_redirects", "0"})
	}
	if len(set) > 0 {
		if err := settings(ns, set); err != nil {
			return err
		}
	}
	for _, p := range in.Addrs {
		if err := h.AddrAdd(link, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot give %s the address %s: %w", in.Name, p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring %s up: %w", in.Name, err)
	}
	return routes(h, link.Attrs().Index, in)
}

// settings writes files below /proc/sys in a namespace: they belong to that of the thread
// that writes them.
func settings(ns int, list [][2]string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := unix.Setns(ns, unix.CLONE_NEWNET)
		for _, x := range list {
			if err == nil {
				err = os.WriteFile("/proc/sys/"+x[0], []byte(x[1]), 0o644)
			}
		}
		done <- err
	}()
	return <-done
}

func routes(h *netlink.Handle, index int, in *Interface) error {
	for _, g := range in.Gateways {
		// One that somebody else has set is not replaced.
		if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("failed to set gateway: %w", err)
		}
	}
	for _, p := range in.Routes {
		if err := h.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("cannot set the route %s: %w", p, err)
		}
	}
	return nil
}

// Gateways replaces the default routes of a namespace by those of one interface, for the
// families that it has gateways of.
func Gateways(ns int, in *Interface) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, g := range in.Gateways {
		family := netlink.FAMILY_V4
		if g.Is6() {
			family = netlink.FAMILY_V6
		}
		list, err := whole(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return err
		}
		for _, r := range list {
			if r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
				_ = h.RouteDel(&r)
			}
		}
	}
	link, err := h.LinkByName(in.Name)
	if err != nil {
		return err
	}
	return routes(h, link.Attrs().Index, in)
}

// Leave takes an interface out of a namespace that lives on.
func Leave(ns int, name string) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.LinkDel(link)
}

// Interfaces lists the names of a namespace's interfaces, and whose addresses they have.
func Interfaces(ns int) (map[string][]netip.Prefix, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := whole(h.LinkList)
	if err != nil {
		return nil, err
	}
	out := map[string][]netip.Prefix{}
	for _, l := range links {
		list, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, err
		}
		name := l.Attrs().Name
		out[name] = nil
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				ones, _ := a.Mask.Size()
				out[name] = append(out[name], netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
	}
	return out, nil
}

// HostRoutes are the destinations that the host has routes to, which new
// subnets should avoid; the default route is not among them.
func HostRoutes() ([]netip.Prefix, error) {
	list, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			out = append(out, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out, nil
}

// DefaultMTU is that of the interface with the default route, 1500 without one.
func DefaultMTU() int {
	list, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 1500
	}
	for _, r := range list {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				return link.Attrs().MTU
			}
		}
	}
	return 1500
}

// MAC is the hardware address that belongs to an IPv4 address, a local one as
// Docker makes them.
func MAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// ValidName reports whether a name can be an interface's.
func ValidName(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && !strings.ContainsAny(name, "/: \t\n\x00") && name != "." && name != ".."
}

// RandomMAC is a new local hardware address.
func RandomMAC() net.HardwareAddr {
	b := make(net.HardwareAddr, 6)
	_, _ = rand.Read(b) // never fails, crypto/rand says
	b[0] = b[0]&^1 | 2
	return b
}
