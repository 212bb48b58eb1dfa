package firewall

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Network is a bridge as the firewall sees it.
type Network struct {
	Bridge     string
	Subnets    []netip.Prefix
	Internal   bool // nothing goes in or out
	ICC        bool // its containers may speak with each other
	Masquerade bool // they speak to the world by the host's addresses

	// By family, IPv4 then IPv6.
	Open   [2]bool // every port of its containers may be reached from everywhere
	Routed [2]bool // their addresses are not translated, and they answer to ICMP

	Trusted          []string   // interfaces by which Direct ports are reached
	Source4, Source6 netip.Addr // the address of the host that they speak to the world by, where it is not to be the interface's
}

func (n Network) source(v6 bool) netip.Addr {
	if v6 {
		return n.Source6
	}
	return n.Source4
}

// Policy is what holds for all networks.
type Policy struct {
	Direct     bool   // Direct ports are reached by every interface
	Mark, Mask uint32 // packets that have this mark, as far as Mask tells, reach every container; without a mask none do
}

// Mapping is one published port, or a run of Count ports that keep their
// order: Host.Port+i goes to To+i.
type Mapping struct {
	Proto uint8      // IPPROTO_TCP, _UDP or _SCTP
	Host  netip.Addr // unspecified: every address of the host
	Port  uint16     // 0: none of the host's, see Direct
	Count int        // at least 1
	To    netip.AddrPort
}

// Direct is a mapping that lets packets to To itself pass: to routed networks, by trusted
// interfaces, or from everywhere if the policy says so.
func Direct(proto uint8, to netip.AddrPort, count int) Mapping {
	return Mapping{Proto: proto, To: to, Count: count}
}

// Link lets one container of a network speak to a port of another where containers
// may not speak with each other.
type Link struct {
	From, To netip.Addr
	Proto    uint8
	Port     uint16
}

// backend is where rules are kept: nftables or iptables. Calls come one at a time.
type backend interface {
	// present asks whether the host has it.
	present() error
	// write replaces what is the engine's by what the Firewall says.
	write() error
	// networks replaces what depends on the networks. errFlushed says that it had no place.
	networks() error
	// change adds or removes ports and links. errFlushed says that they had no place.
	change(ports []Mapping, links []Link, remove bool) error
	// whole reports whether all is there.
	whole() bool
	// clean removes all that is the engine's.
	clean() error
}

// errFlushed says that somebody else has removed rules of the engine's.
var errFlushed = errors.New("rules of the firewall are missing")

// Firewall is the engine's rules. It is safe for use by several goroutines.
type Firewall struct {
	mu    sync.Mutex
	b     backend
	pol   Policy
	skip  [2]bool            // IPv4, IPv6: packets that the engine has no rules for
	nets  map[string]Network // by bridge
	ports map[Mapping]bool
	links map[Link]bool
	wrote bool
}

func bare() *Firewall {
	return &Firewall{nets: map[string]Network{}, ports: map[Mapping]bool{}, links: map[Link]bool{}}
}

// New keeps rules in the table of nftables called name. Nothing is written before Restore.
func New(name string) *Firewall {
	f := bare()
	f.b = newNFT(f, name)
	return f
}

// NewIPTables keeps rules by the host's programs iptables and ip6tables.
func NewIPTables() *Firewall {
	f := bare()
	f.b = &iptables{Firewall: f}
	return f
}

// WithoutIPv6 leaves packets of IPv6 alone. It is called before Restore.
func (f *Firewall) WithoutIPv6() { f.skip[1] = true }

// SetPolicy says what holds for all networks. It is written with the next Restore or SetNetwork.
func (f *Firewall) SetPolicy(p Policy) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pol = p
}

// Clean removes what an engine has left that had these networks and this kind of rules.
func (f *Firewall) Clean(nets []Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrote = false
	for _, n := range nets {
		f.nets[n.Bridge] = n
	}
	return f.b.clean()
}

// Restore writes the whole table: with nets, ports and links, and nothing else of the
// engine's.
func (f *Firewall) Restore(nets []Network, ports []Mapping, links []Link) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nets, f.ports, f.links = map[string]Network{}, map[Mapping]bool{}, map[Link]bool{}
	for _, n := range nets {
		f.nets[n.Bridge] = n
	}
	for _, p := range ports {
		f.ports[p] = true
	}
	for _, l := range links {
		f.links[l] = true
	}
	for again := 0; ; again++ {
		err := f.b.present()
		if err == nil {
			err = f.write()
		}
		if !missing(err) || again == tries {
			return err
		}
		time.Sleep(pause) // its modules may be on their way, asked for by another program
	}
}

// write writes everything.
func (f *Firewall) write() error {
	if err := f.b.write(); err != nil {
		return err
	}
	f.wrote = true
	for name := range f.nets {
		localnet(name)
	}
	return nil
}

// change adds or removes ports and links.
func (f *Firewall) change(ports []Mapping, links []Link, remove bool) error {
	if !f.wrote {
		return errors.New("the firewall has not been written yet")
	}
	return f.b.change(ports, links, remove)
}

// Open lets links through, and Shut does no longer. Those that are so already are no error.
func (f *Firewall) Open(list []Link) error { return f.setLinks(list, true) }

// Shut is the opposite of Open.
func (f *Firewall) Shut(list []Link) error { return f.setLinks(list, false) }

func (f *Firewall) setLinks(list []Link, open bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var changed []Link
	for _, l := range list {
		if f.links[l] == open {
			continue
		}
		if changed = append(changed, l); open {
			f.links[l] = true
		} else {
			delete(f.links, l)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	err := f.change(nil, changed, !open)
	switch {
	case errors.Is(err, errFlushed): // somebody flushed the table
		return f.write()
	case err != nil && open:
		for _, l := range changed {
			delete(f.links, l)
		}
	}
	return err
}

// SetNetwork adds or changes a network.
func (f *Firewall) SetNetwork(n Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, had := f.nets[n.Bridge]
	f.nets[n.Bridge] = n
	if err := f.renew(n.Bridge); err != nil {
		if had {
			f.nets[n.Bridge] = old
		} else {
			delete(f.nets, n.Bridge)
		}
		return err
	}
	return nil
}

// DropNetwork removes a network.
func (f *Firewall) DropNetwork(bridge string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.nets[bridge]; !ok {
		return nil
	}
	delete(f.nets, bridge)
	return f.renew()
}

// renew writes what depends on the networks, of which some are new.
func (f *Firewall) renew(names ...string) error {
	if !f.wrote {
		return f.write()
	}
	err := f.b.networks()
	if errors.Is(err, errFlushed) {
		return f.write()
	}
	if err == nil {
		localnet(names...)
	}
	return err
}

// localnet lets published ports of networks answer on loopback.
func localnet(names ...string) {
	for _, name := range names {
		_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/route_localnet", []byte("1"), 0o644)
	}
}

// Publish adds ports, all or none.
func (f *Firewall) Publish(list []Mapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	if err := f.change(list, nil, false); err != nil {
		return err
	}
	for _, m := range list {
		f.ports[m] = true
	}
	return nil
}

// Withdraw removes ports. Those that are not there are no error.
func (f *Firewall) Withdraw(list []Mapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var have []Mapping
	for _, m := range list {
		if f.ports[m] {
			have = append(have, m)
			delete(f.ports, m)
		}
	}
	if len(have) == 0 {
		return nil
	}
	err := f.change(have, nil, true)
	if errors.Is(err, errFlushed) { // somebody flushed the table
		return f.write()
	}
	return err
}
