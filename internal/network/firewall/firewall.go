// Package firewall keeps the engine's rules: about networks, published ports, links.
//
// A Firewall knows what they are; a backend writes them. That is nftables, over netlink, in
// one table, or iptables, by the host's programs, in the chains that Docker has (iptables.go).
//
//	table inet berth
//	  set nets, internal, same, noicc   the engine's bridges
//	  set routed4, free4, open4 …        networks, and ports, that are reached at the containers' own addresses
//	  set trusted                        interfaces by which ports of a network are
//	  set links4, links6                 who may speak to which port all the same
//	  map ports4, ports4at, ranges4 …   published ports → address . port
//	  chain guard    prerouting, raw    nothing from a bridge may speak to 127.0.0.0/8
//	  chain dnat     prerouting, nat  ┐
//	  chain local    output, nat      ┴▶ chain publish: the maps
//	  chain snat     postrouting, nat   masquerading, hairpin
//	  chain forward  forward, filter    chain user first, then isolation
//	  chain user                        the administrator's: never touched
//
// In the table a packet passes a handful of rules and lookups, however many networks
// and ports there are. Each change is one transaction. At boot the
// whole is written again in one transaction, so that no packet meets half of it.
package firewall

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nft keeps the rules in a table of nftables.
type nft struct {
	*Firewall
	name  string
	table *nftables.Table
	chain map[string]*nftables.Chain
	sets  map[string]*nftables.Set
	count map[string]int // rules in each chain
	conn  *nftables.Conn
	sock  *netlink.Conn // what it runs on
}

func newNFT(f *Firewall, name string) *nft {
	return &nft{Firewall: f, name: name, chain: map[string]*nftables.Chain{}, sets: map[string]*nftables.Set{}}
}

// How often, and with what pause, the kernel is asked again for what it does not have at boot.
const (
	tries = 5
	pause = 150 * time.Millisecond
)

// missing reports whether the kernel has not got something.
func missing(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT}, func(e error) bool { return errors.Is(err, e) })
}

// whole reports whether every chain of the engine's has its rules.
func (f *nft) whole() bool {
	c, err := f.dial()
	if err != nil {
		return false
	}
	for name, ch := range f.chain {
		if name == "user" {
			continue
		}
		rules, err := c.GetRules(f.table, ch)
		if err != nil || len(rules) != f.count[name] {
			f.hangUp()
			return false
		}
	}
	return true
}

func linkElements(list []Link) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, l := range list {
		name := "links4"
		if l.To.Is6() {
			name = "links6"
		}
		k := append(append(l.From.AsSlice(), l.To.AsSlice()...), key(l.Proto, l.Port)...)
		out[name] = append(out[name], nftables.SetElement{Key: k})
	}
	return out
}

// change adds or deletes elements of sets in one transaction.
func (f *nft) change(ports []Mapping, links []Link, remove bool) error {
	sets := elements(ports)
	maps.Copy(sets, linkElements(links))
	err := f.commit(func(c *nftables.Conn) error {
		for name, elems := range sets {
			// A message holds some tens of kilobytes.
			for part := range slices.Chunk(elems, 512) {
				var err error
				if remove {
					err = c.SetDeleteElements(f.sets[name], part)
				} else {
					err = c.SetAddElements(f.sets[name], part)
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	if remove && errors.Is(err, unix.ENOENT) {
		return errFlushed
	}
	return err
}

// clean removes the table, with what the administrator has in it.
func (f *nft) clean() error {
	if err := f.present(); err != nil {
		return nil //nolint:nilerr // without nftables there is nothing to remove
	}
	err := f.commit(func(c *nftables.Conn) error {
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: f.name})
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// The kernel answers each message of a transaction, and does so before the first
// answer is read: all of them lie in the socket meanwhile, thousands where there are a
// thousand networks. What a socket holds without asking is enough for forty.
const buffer = 64 << 20

// patience is how long an answer is waited for. Where the kernel refuses a transaction as
// a whole it gives one answer, and the rest would be waited for without end.
const patience = 15 * time.Second

// dial returns the connection to nftables. It stays open: for each one that is closed the
// kernel waits until nobody reads the rules any more, some 8 ms.
func (f *nft) dial() (*nftables.Conn, error) {
	if f.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			f.sock = s
			return errors.Join(s.SetReadBuffer(buffer), s.SetWriteBuffer(buffer))
		}))
		if err != nil {
			return nil, fmt.Errorf("cannot reach nftables: %w", err)
		}
		f.conn = c
	}
	return f.conn, f.sock.SetReadDeadline(time.Now().Add(patience))
}

// present asks whether the kernel has nftables, and has it load the module.
func (f *nft) present() error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	if _, err = c.ListTablesOfFamily(nftables.TableFamilyINet); err == nil {
		return nil
	}
	f.hangUp()
	if errors.Is(err, unix.EINVAL) { // so it says that a part of netfilter is not there
		err = unix.EOPNOTSUPP
	}
	return fmt.Errorf("cannot reach nftables: %w", err)
}

// hangUp drops the connection after an error, with the answers that are still on it.
func (f *nft) hangUp() {
	if f.conn != nil {
		_ = f.conn.CloseLasting()
		f.conn = nil
	}
}

// commit runs what fill gathers as one transaction.
func (f *nft) commit(fill func(*nftables.Conn) error) error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	if err = fill(c); err == nil {
		err = c.Flush()
	}
	if err != nil {
		f.hangUp()
		return fmt.Errorf("cannot write the firewall's rules: %w", err)
	}
	return nil
}

// elements are the elements of each map that stand for ports.
func elements(list []Mapping) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, m := range list {
		v := "4"
		if m.To.Addr().Is6() {
			v = "6"
		}
		if m.Port == 0 {
			last := m.To.Port() + uint16(max(1, m.Count)) - 1
			to := m.To.Addr().AsSlice()
			out["open"+v] = append(out["open"+v], nftables.SetElement{
				Key: append(slices.Clone(to), key(m.Proto, m.To.Port())...), KeyEnd: append(slices.Clone(to), key(m.Proto, last)...),
			})
			continue
		}
		any := m.Host.IsUnspecified() || !m.Host.IsValid()
		if m.Count > 1 && any && m.Port == m.To.Port() {
			out["ranges"+v] = append(out["ranges"+v], nftables.SetElement{
				Key: key(m.Proto, m.Port), KeyEnd: key(m.Proto, m.Port+uint16(m.Count)-1), Val: m.To.Addr().AsSlice(),
			})
			continue
		}
		for i := range max(1, m.Count) {
			val := append(m.To.Addr().AsSlice(), port(m.To.Port()+uint16(i))...)
			k, name := key(m.Proto, m.Port+uint16(i)), "ports"+v
			if !any {
				k, name = append(m.Host.AsSlice(), k...), name+"at"
			}
			out[name] = append(out[name], nftables.SetElement{Key: k, Val: val})
		}
	}
	return out
}

// port is a port in a 4-byte register.
func port(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

func key(proto uint8, p uint16) []byte { return append([]byte{proto, 0, 0, 0}, port(p)...) }

// ifname is an interface's name in its 16 bytes.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// write replaces what is the engine's in one transaction.
func (f *nft) write() error {
	names := slices.Sorted(maps.Keys(f.nets))
	return f.commit(func(c *nftables.Conn) error { return f.gather(c, names) })
}

// gather puts the whole table into a transaction.
func (f *nft) gather(c *nftables.Conn, names []string) error {
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: f.name})
	f.table = t
	for _, s := range f.allSets() {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
		c.FlushSet(s)
		f.sets[s.Name] = s
	}
	add := f.interfaces(names)
	list := make([]Mapping, 0, len(f.ports))
	for m := range f.ports {
		list = append(list, m)
	}
	for name, e := range elements(list) {
		add[name] = append(add[name], e...)
	}
	open := make([]Link, 0, len(f.links))
	for l := range f.links {
		open = append(open, l)
	}
	for name, e := range linkElements(open) {
		add[name] = append(add[name], e...)
	}
	if err := f.fill(c, add); err != nil {
		return err
	}
	f.chains(c)
	f.rules(c, names)
	return nil
}

func (f *nft) fill(c *nftables.Conn, add map[string][]nftables.SetElement) error {
	for name, elems := range add {
		for part := range slices.Chunk(elems, 512) {
			if err := c.SetAddElements(f.sets[name], part); err != nil {
				return err
			}
		}
	}
	return nil
}

// perNetwork are the sets whose elements are networks' interfaces.
var perNetwork = []string{"nets", "same", "internal", "noicc", "trusted", "free4", "free6", "routed4", "routed6"}

// networks replaces what depends on the networks, and nothing else: there may be many ports.
func (f *nft) networks() error {
	names := slices.Sorted(maps.Keys(f.nets))
	err := f.commit(func(c *nftables.Conn) error {
		for _, name := range perNetwork {
			c.FlushSet(f.sets[name])
		}
		if err := f.fill(c, f.interfaces(names)); err != nil {
			return err
		}
		c.FlushChain(f.chain["snat"])
		f.count["snat"] = 0
		f.translations(f.adder(c), names)
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return errFlushed
	}
	return err
}

// interfaces are the elements of the sets perNetwork.
func (f *nft) interfaces(names []string) map[string][]nftables.SetElement {
	add := map[string][]nftables.SetElement{}
	for _, name := range names {
		n := f.nets[name]
		add["nets"] = append(add["nets"], nftables.SetElement{Key: ifname(name)})
		add["same"] = append(add["same"], nftables.SetElement{Key: append(ifname(name), ifname(name)...)})
		if n.Internal {
			add["internal"] = append(add["internal"], nftables.SetElement{Key: ifname(name)})
		}
		for i, v := range []string{"4", "6"} {
			if n.Open[i] {
				add["free"+v] = append(add["free"+v], nftables.SetElement{Key: ifname(name)})
			}
			if n.Routed[i] {
				add["routed"+v] = append(add["routed"+v], nftables.SetElement{Key: ifname(name)})
			}
		}
		for _, from := range n.Trusted {
			add["trusted"] = append(add["trusted"], nftables.SetElement{Key: append(ifname(from), ifname(name)...)})
		}
		if !n.ICC {
			add["noicc"] = append(add["noicc"], nftables.SetElement{Key: ifname(name)})
		}
	}
	return add
}

func (f *nft) allSets() []*nftables.Set {
	set := func(name string, key nftables.SetDatatype, concat bool) *nftables.Set {
		return &nftables.Set{Table: f.table, Name: name, KeyType: key, Concatenation: concat, KeyByteOrder: binaryutil.NativeEndian}
	}
	portKey := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	out := []*nftables.Set{
		set("nets", nftables.TypeIFName, false), set("internal", nftables.TypeIFName, false), set("noicc", nftables.TypeIFName, false),
		set("same", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName), true),
		set("trusted", nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName), true),
		set("free4", nftables.TypeIFName, false), set("free6", nftables.TypeIFName, false),
		set("routed4", nftables.TypeIFName, false), set("routed6", nftables.TypeIFName, false),
	}
	for _, v := range []struct {
		suffix string
		addr   nftables.SetDatatype
	}{{"4", nftables.TypeIPAddr}, {"6", nftables.TypeIP6Addr}} {
		to := nftables.MustConcatSetType(v.addr, nftables.TypeInetService)
		at := nftables.MustConcatSetType(v.addr, nftables.TypeInetProto, nftables.TypeInetService)
		out = append(out,
			&nftables.Set{Table: f.table, Name: "ports" + v.suffix, IsMap: true, KeyType: portKey, DataType: to, Concatenation: true},
			&nftables.Set{Table: f.table, Name: "ports" + v.suffix + "at", IsMap: true, KeyType: at, DataType: to, Concatenation: true},
			&nftables.Set{Table: f.table, Name: "links" + v.suffix, KeyType: nftables.MustConcatSetType(v.addr, v.addr, nftables.TypeInetProto, nftables.TypeInetService), Concatenation: true},
			&nftables.Set{Table: f.table, Name: "open" + v.suffix, KeyType: at, Concatenation: true, Interval: true},
			&nftables.Set{Table: f.table, Name: "ranges" + v.suffix, IsMap: true, KeyType: portKey, DataType: v.addr, Concatenation: true, Interval: true},
		)
	}
	return out
}

// chains declares the chains and empties those that are the engine's.
func (f *nft) chains(c *nftables.Conn) {
	hook := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) {
		policy := nftables.ChainPolicyAccept
		f.chain[name] = c.AddChain(&nftables.Chain{Table: f.table, Name: name, Type: typ, Hooknum: hook, Priority: prio, Policy: &policy})
	}
	hook("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	hook("dnat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	hook("local", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	hook("snat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	for _, name := range []string{"publish", "user"} {
		f.chain[name] = c.AddChain(&nftables.Chain{Table: f.table, Name: name})
	}
	for name, ch := range f.chain {
		if name != "user" {
			c.FlushChain(ch)
		}
	}
}

// The 4-byte registers that hold keys and values side by side.
const (
	reg32    = 8 // NFT_REG32_00
	regValue = 16
)

// ruler adds a rule to a chain, of some parts.
type ruler func(chain string, parts ...[]expr.Any)

// adder adds rules to a transaction, and counts them.
func (f *nft) adder(c *nftables.Conn) ruler {
	return func(chain string, parts ...[]expr.Any) {
		f.count[chain]++
		c.AddRule(&nftables.Rule{Table: f.table, Chain: f.chain[chain], Exprs: slices.Concat(parts...)})
	}
}

// translations writes the rules of the chain snat.
func (f *nft) translations(rule ruler, names []string) {
	for i, v := range []int{4, 6} {
		if f.skip[i] {
			rule("snat", family(v), accept)
		}
	}
	out := meta(expr.MetaKeyOIFNAME)
	for _, name := range names {
		n := f.nets[name]
		rule("snat", out, equal(ifname(name)), family(4), saddr4(netip.MustParsePrefix("127.0.0.0/8")), masquerade)
		for _, s := range n.Subnets {
			v, from := 4, saddr4(s)
			if s.Addr().Is6() {
				v, from = 6, saddr6(s)
			}
			// A container that calls itself, or a neighbour, by a published port.
			rule("snat", out, equal(ifname(name)), family(v), from, translated, masquerade)
			if n.Masquerade && !n.Internal && !n.Routed[v/6] {
				rule("snat", out, differs(ifname(name)), family(v), from, sourceNAT(n.source(v == 6)))
			}
		}
	}
}

// rules writes the rules of every chain.
func (f *nft) rules(c *nftables.Conn, names []string) {
	f.count = map[string]int{}
	rule := f.adder(c)
	in, out := meta(expr.MetaKeyIIFNAME), meta(expr.MetaKeyOIFNAME)

	for i, v := range []int{4, 6} {
		for _, ch := range []string{"guard", "dnat", "local", "forward"} {
			if f.skip[i] {
				rule(ch, family(v), accept)
			}
		}
	}
	// It sees each packet: the address is compared before the interface is looked for.
	rule("guard", family(4), daddr4(netip.MustParsePrefix("127.0.0.0/8")), in, f.has("nets"), drop)
	for _, ch := range []string{"dnat", "local"} {
		rule(ch, localAddress, jump("publish"))
	}
	// The kernel does not send on what has such an address: a program does.
	for _, p := range []string{"::1/128", "fe80::/10"} {
		rule("publish", family(6), daddr6(netip.MustParsePrefix(p)), verdict(expr.VerdictReturn))
	}
	for _, v := range []int{4, 6} {
		suffix := fmt.Sprint(v)
		rule("publish", family(v), addrPortKey(v), f.lookup("ports"+suffix+"at"), dnat(v, true))
		rule("publish", family(v), portKey, f.lookup("ranges"+suffix), dnat(v, false))
		rule("publish", family(v), portKey, f.lookup("ports"+suffix), dnat(v, true))
	}
	f.translations(rule, names)
	rule("forward", jump("user"))
	rule("forward", established, accept)
	rule("forward", pairKey, f.has("same"), in, f.has("noicc"), translated, accept)
	rule("forward", pairKey, f.has("same"), family(4), linkKey(4), f.hasAt("links4"), accept)
	rule("forward", pairKey, f.has("same"), family(6), linkKey(6), f.hasAt("links6"), accept)
	rule("forward", pairKey, f.has("same"), in, f.has("noicc"), drop)
	rule("forward", pairKey, f.has("same"), accept)
	rule("forward", in, f.has("internal"), drop)
	rule("forward", out, f.has("internal"), drop)
	rule("forward", out, f.has("nets"), translated, accept)
	if f.pol.Mask != 0 {
		rule("forward", out, f.has("nets"), marked(f.pol.Mark, f.pol.Mask), accept)
	}
	for _, v := range []int{4, 6} {
		suffix := fmt.Sprint(v)
		icmp := []byte{unix.IPPROTO_ICMP}
		if v == 6 {
			icmp[0] = unix.IPPROTO_ICMPV6
		}
		rule("forward", out, f.has("free"+suffix), family(v), accept)
		rule("forward", out, f.has("routed"+suffix), family(v), meta(expr.MetaKeyL4PROTO), equal(icmp), accept)
		if f.pol.Direct {
			rule("forward", family(v), addrPortKey(v), f.hasAt("open"+suffix), accept)
		} else {
			rule("forward", out, f.has("routed"+suffix), family(v), addrPortKey(v), f.hasAt("open"+suffix), accept)
			rule("forward", pairKey, f.has("trusted"), family(v), addrPortKey(v), f.hasAt("open"+suffix), accept)
		}
	}
	rule("forward", out, f.has("nets"), drop)
	rule("forward", in, f.has("nets"), accept)
}
