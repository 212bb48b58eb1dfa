package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// iptables keeps the rules by the host's programs, in the chains that Docker has:
//
//	filter FORWARD ─▶ DOCKER-USER       the administrator's: first, never touched
//	               ─▶ DOCKER-FORWARD ─▶ DOCKER-CT        answers
//	                                 ─▶ DOCKER-INTERNAL  networks that lead nowhere
//	                                 ─▶ DOCKER-BRIDGE ─▶ DOCKER  links, neighbours, published ports
//	                                    what comes out of a bridge passes
//	nat PREROUTING, OUTPUT ─▶ DOCKER    published ports
//	nat POSTROUTING                     masquerading, hairpin
//	raw PREROUTING ─▶ DOCKER            nothing from a bridge may speak to 127.0.0.0/8
//
// Each change is one call of iptables-restore, and one more of ip6tables-restore where IPv6
// is concerned. There is room for one engine in a network namespace.
type iptables struct {
	*Firewall
	known map[string]bool   // bridges that rules in POSTROUTING are about
	count [2]map[string]int // rules in each chain of the engine's, by "table chain"
	began bool              // FORWARD has been put in order
}

const userChain = "DOCKER-USER"

// chains are the engine's, by table.
var chains = map[string][]string{
	"filter": {"DOCKER", "DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-FORWARD", "DOCKER-INTERNAL"},
	"nat":    {"DOCKER"},
	"raw":    {"DOCKER"},
}

// calls are the programs of one family.
type calls struct{ save, restore string }

var programs = [2]calls{{"iptables-save", "iptables-restore"}, {"ip6tables-save", "ip6tables-restore"}}

// callTime bounds one call; another program may hold the lock for a while.
const callTime = 30 * time.Second

func call(input, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if len(os.Getenv("PATH")) == 0 {
		cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// families are those that the engine has rules for.
func (i *iptables) families() (out []int) {
	for v, skip := range i.skip {
		if !skip {
			out = append(out, v)
		}
	}
	return out
}

func (i *iptables) present() error {
	for _, v := range i.families() {
		for _, p := range []string{programs[v].save, programs[v].restore} {
			if _, err := exec.LookPath(p); err != nil {
				return fmt.Errorf("iptables not found: %w", err)
			}
		}
	}
	return nil
}

// table is what a table holds now.
type table struct {
	chains map[string]bool
	rules  []string // as iptables-save shows them: "-A CHAIN …"
}

func (t *table) has(rule string) bool { return slices.Contains(t.rules, rule) }

// in are the rules of one chain.
func (t *table) in(chain string) (out []string) {
	for _, r := range t.rules {
		if strings.HasPrefix(r, "-A "+chain+" ") {
			out = append(out, r)
		}
	}
	return out
}

func saved(v int) (map[string]*table, error) {
	text, err := call("", programs[v].save)
	if err != nil {
		return nil, err
	}
	out := map[string]*table{}
	for _, name := range []string{"filter", "nat", "raw"} {
		out[name] = &table{chains: map[string]bool{}}
	}
	now := &table{chains: map[string]bool{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			if now = out[line[1:]]; now == nil {
				now = &table{chains: map[string]bool{}}
			}
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			now.chains[name] = true
		case strings.HasPrefix(line, "-A "):
			now.rules = append(now.rules, line)
		}
	}
	return out, nil
}

// batch is one call of iptables-restore.
type batch struct{ tables map[string][]string }

func (b *batch) add(table, format string, args ...any) {
	if b.tables == nil {
		b.tables = map[string][]string{}
	}
	b.tables[table] = append(b.tables[table], fmt.Sprintf(format, args...))
}

func (b *batch) run(v int) error {
	if len(b.tables) == 0 {
		return nil
	}
	var text strings.Builder
	for _, t := range slices.Sorted(maps.Keys(b.tables)) {
		text.WriteString("*" + t + "\n" + strings.Join(b.tables[t], "\n") + "\nCOMMIT\n")
	}
	_, err := call(text.String(), programs[v].restore, "--noflush", "-w", strconv.Itoa(int(callTime/time.Second)))
	return err
}

func (i *iptables) networks() error { return i.write() }

func (i *iptables) write() error {
	if i.known == nil {
		i.known = map[string]bool{}
	}
	for name := range i.nets {
		i.known[name] = true
	}
	for _, v := range i.families() {
		now, err := saved(v)
		if err == nil {
			err = i.all(v, now).run(v)
		}
		if err != nil && !i.spared(v) {
			return err
		}
	}
	for name := range i.known {
		if _, ok := i.nets[name]; !ok {
			delete(i.known, name)
		}
	}
	i.began = true
	return nil
}

// spared reports whether a host may lack the tables of a family: those of IPv6, while no
// network has it.
func (i *iptables) spared(v int) bool {
	for _, n := range i.nets {
		if len(n.of(v)) > 0 {
			return false
		}
	}
	return v == 1
}

// all writes every rule of one family, where the tables hold now.
func (i *iptables) all(v int, now map[string]*table) *batch {
	b := &batch{}
	tables := []string{"filter", "nat"}
	if v == 0 {
		tables = append(tables, "raw")
	}
	for _, t := range tables {
		for _, c := range chains[t] {
			b.add(t, ":%s - [0:0]", c) // empties it, too
		}
	}
	names := slices.Sorted(maps.Keys(i.nets))
	once := func(table, rule string) {
		if !now[table].has(rule) {
			b.add(table, "%s", rule)
		}
	}

	if v == 0 {
		once("raw", "-A PREROUTING -j DOCKER")
		for _, name := range names {
			b.add("raw", "-A DOCKER -d 127.0.0.0/8 -i %s -j DROP", name)
		}
	}

	for _, c := range []string{"PREROUTING", "OUTPUT"} {
		once("nat", "-A "+c+" -m addrtype --dst-type LOCAL -j DOCKER")
	}
	if v == 1 { // the kernel does not send on what has such an address: a program does
		b.add("nat", "-A DOCKER -d ::1/128 -j RETURN")
		b.add("nat", "-A DOCKER -d fe80::/10 -j RETURN")
	}
	leaving := i.leaving(v, names)
	for _, r := range now["nat"].in("POSTROUTING") {
		if i.about(r) && !slices.Contains(leaving, r) {
			b.add("nat", "-D%s", r[2:])
		}
	}
	for _, r := range leaving {
		once("nat", r)
	}

	if !now["filter"].chains[userChain] {
		b.add("filter", ":%s - [0:0]", userChain)
	}
	i.order(b, now["filter"].in("FORWARD"))
	b.add("filter", "-A DOCKER-FORWARD -j DOCKER-CT")
	b.add("filter", "-A DOCKER-FORWARD -j DOCKER-INTERNAL")
	b.add("filter", "-A DOCKER-FORWARD -j DOCKER-BRIDGE")
	for _, name := range names {
		i.network(b, v, i.nets[name])
	}
	for _, m := range slices.SortedFunc(maps.Keys(i.ports), func(x, y Mapping) int { return strings.Compare(fmt.Sprint(x), fmt.Sprint(y)) }) {
		i.port(b, v, m, true)
	}
	for l := range i.links {
		i.link(b, v, l, true)
	}
	i.count[v] = map[string]int{}
	for t, lines := range b.tables {
		for _, l := range lines {
			i.tally(v, t, l)
		}
	}
	return b
}

// tally keeps count of the rules in chains of the engine's.
func (i *iptables) tally(v int, table, line string) {
	f := strings.Fields(line)
	if len(f) < 2 || !slices.Contains(chains[table], f[1]) {
		return
	}
	switch f[0] {
	case "-A", "-I":
		i.count[v][table+" "+f[1]]++
	case "-D":
		i.count[v][table+" "+f[1]]--
	}
}

// about reports whether a rule is about a bridge of the engine's.
func (i *iptables) about(rule string) bool {
	f := strings.Fields(rule)
	for k := 1; k < len(f); k++ {
		if f[k-1] == "-o" && i.known[f[k]] {
			return true
		}
	}
	return false
}

// order puts the administrator's chain before the engine's, and both before everything else
// when the engine starts. Later what the administrator has put before them stays there.
func (i *iptables) order(b *batch, forward []string) {
	user, own := "-A FORWARD -j "+userChain, "-A FORWARD -j DOCKER-FORWARD"
	at := slices.Index(forward, user)
	if fits := at >= 0 && slices.Index(forward, own) > at; fits && (i.began || at == 0 && forward[1] == own) {
		return
	}
	for _, r := range forward {
		if r == user || r == own {
			b.add("filter", "-D%s", r[2:])
		}
	}
	b.add("filter", "-I FORWARD -j DOCKER-FORWARD")
	b.add("filter", "-I FORWARD -j %s", userChain)
}

// of is the subnets of one family.
func (n Network) of(v int) (out []netip.Prefix) {
	for _, s := range n.Subnets {
		if s.Addr().Is6() == (v == 1) {
			out = append(out, s)
		}
	}
	return out
}

// leaving are the rules of nat POSTROUTING, as iptables-save shows them.
func (i *iptables) leaving(v int, names []string) (out []string) {
	add := func(format string, args ...any) { out = append(out, "-A POSTROUTING "+fmt.Sprintf(format, args...)) }
	for _, name := range names {
		n := i.nets[name]
		if v == 0 && len(n.of(v)) > 0 {
			add("-s 127.0.0.0/8 -o %s -j MASQUERADE", name)
		}
		for _, s := range n.of(v) {
			// A container that calls itself, or a neighbour, by a published port.
			add("-s %s -o %s -m conntrack --ctstate DNAT -j MASQUERADE", s, name)
			if !n.Masquerade || n.Internal || n.Routed[v] {
				continue
			}
			if a := n.source(v == 1); a.IsValid() {
				add("-s %s ! -o %s -j SNAT --to-source %s", s, name, a)
			} else {
				add("-s %s ! -o %s -j MASQUERADE", s, name)
			}
		}
	}
	return out
}

// network adds the rules of a bridge. Those of ports and links are put before them.
func (i *iptables) network(b *batch, v int, n Network) {
	if len(n.of(v)) == 0 && v == 1 {
		return
	}
	br := n.Bridge
	add := func(chain, format string, args ...any) {
		b.add("filter", "-A %s %s", chain, fmt.Sprintf(format, args...))
	}
	from := ""
	if n.Internal {
		from = "-i " + br + " "
		add("DOCKER-INTERNAL", "-i %s ! -o %s -j DROP", br, br)
		add("DOCKER-INTERNAL", "! -i %s -o %s -j DROP", br, br)
	}
	add("DOCKER-CT", "%s-o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", from, br)
	add("DOCKER-BRIDGE", "-o %s -j DOCKER", br)
	if n.ICC {
		add("DOCKER", "-i %s -o %s -j ACCEPT", br, br)
	} else {
		add("DOCKER", "-i %s -o %s -m conntrack --ctstate DNAT -j ACCEPT", br, br)
		add("DOCKER", "-i %s -o %s -j DROP", br, br)
	}
	if n.Internal {
		return
	}
	if i.pol.Mask != 0 {
		add("DOCKER", "-o %s -m mark --mark %#x/%#x -j ACCEPT", br, i.pol.Mark, i.pol.Mask)
	}
	switch {
	case n.Open[v]:
		add("DOCKER", "! -i %s -o %s -j ACCEPT", br, br)
	case n.Routed[v]:
		add("DOCKER", "-o %s -p %s -j ACCEPT", br, [2]string{"icmp", "ipv6-icmp"}[v])
	}
	add("DOCKER", "! -i %s -o %s -j DROP", br, br)
	add("DOCKER-FORWARD", "-i %s -j ACCEPT", br)
}

var protocols = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}

// on is the network that an address is of.
func (i *iptables) on(a netip.Addr) (Network, bool) {
	for _, n := range i.nets {
		for _, s := range n.Subnets {
			if s.Contains(a) {
				return n, true
			}
		}
	}
	return Network{}, false
}

// dports is a match of Count ports from the first one on.
func dports(proto uint8, first uint16, count int) string {
	p := protocols[proto]
	if count > 1 {
		return fmt.Sprintf("-p %s -m %s --dport %d:%d", p, p, first, int(first)+count-1)
	}
	return fmt.Sprintf("-p %s -m %s --dport %d", p, p, first)
}

// port adds or removes the rules of a published port.
func (i *iptables) port(b *batch, v int, m Mapping, add bool) {
	to := m.To.Addr()
	n, ok := i.on(to)
	if !ok || to.Is6() != (v == 1) || protocols[m.Proto] == "" {
		return
	}
	any := !m.Host.IsValid() || m.Host.IsUnspecified()
	if !any && m.Host.Is6() != to.Is6() {
		return // a program sends it on
	}
	pass, trans := "-I DOCKER", "-A DOCKER"
	if !add {
		pass, trans = "-D DOCKER", "-D DOCKER"
	}
	count := max(1, m.Count)
	if m.Port == 0 { // at the container's own address
		match := fmt.Sprintf("-d %s -o %s %s -j ACCEPT", to, n.Bridge, dports(m.Proto, m.To.Port(), count))
		if n.Routed[v] || i.pol.Direct {
			b.add("filter", "%s %s", pass, match)
			return
		}
		for _, t := range n.Trusted {
			b.add("filter", "%s -i %s %s", pass, t, match)
		}
		return
	}
	b.add("filter", "%s -d %s ! -i %s -o %s %s -m conntrack --ctstate DNAT -j ACCEPT", pass, to, n.Bridge, n.Bridge, dports(m.Proto, m.To.Port(), count))
	host := ""
	if !any {
		host = "-d " + m.Host.String() + " "
	}
	if m.Port == m.To.Port() && count > 1 { // each goes to the same port
		b.add("nat", "%s %s%s -j DNAT --to-destination %s", trans, host, dports(m.Proto, m.Port, count), to)
		return
	}
	for k := range count {
		at := netip.AddrPortFrom(to, m.To.Port()+uint16(k))
		b.add("nat", "%s %s%s -j DNAT --to-destination %s", trans, host, dports(m.Proto, m.Port+uint16(k), 1), at)
	}
}

// link adds or removes the rule of a link.
func (i *iptables) link(b *batch, v int, l Link, add bool) {
	n, ok := i.on(l.To)
	if !ok || l.To.Is6() != (v == 1) || protocols[l.Proto] == "" {
		return
	}
	op := "-I DOCKER"
	if !add {
		op = "-D DOCKER"
	}
	b.add("filter", "%s -s %s -d %s -i %s -o %s %s -j ACCEPT", op, l.From, l.To, n.Bridge, n.Bridge, dports(l.Proto, l.Port, 1))
}

func (i *iptables) change(ports []Mapping, links []Link, remove bool) error {
	for _, v := range i.families() {
		err := i.apply(v, ports, links, !remove)
		switch {
		case err != nil && remove:
			return errFlushed // what is not there cannot be removed
		case err != nil: // all or none: each table of each family is a transaction of its own
			return errors.Join(err, i.write())
		}
	}
	return nil
}

// apply adds or removes ports and links of one family.
func (i *iptables) apply(v int, ports []Mapping, links []Link, add bool) error {
	b := &batch{}
	for _, m := range ports {
		i.port(b, v, m, add)
	}
	for _, l := range links {
		i.link(b, v, l, add)
	}
	if err := b.run(v); err != nil {
		return err
	}
	for t, lines := range b.tables {
		for _, l := range lines {
			i.tally(v, t, l)
		}
	}
	return nil
}

func (i *iptables) whole() bool {
	for _, v := range i.families() {
		now, err := saved(v)
		if err != nil && i.spared(v) {
			continue
		}
		if err != nil {
			return false
		}
		forward := now["filter"].in("FORWARD")
		user := slices.Index(forward, "-A FORWARD -j "+userChain)
		if user < 0 || slices.Index(forward, "-A FORWARD -j DOCKER-FORWARD") < user || !now["nat"].has("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER") {
			return false
		}
		for _, r := range i.leaving(v, slices.Collect(maps.Keys(i.nets))) {
			if !now["nat"].has(r) {
				return false
			}
		}
		for t, list := range chains {
			for _, c := range list {
				if len(now[t].in(c)) != i.count[v][t+" "+c] {
					return false
				}
			}
		}
	}
	return true
}

// clean leaves the administrator's chain, and the way to it.
func (i *iptables) clean() error {
	if i.present() != nil {
		return nil // without the programs there are no rules of theirs
	}
	i.known = map[string]bool{}
	for name := range i.nets {
		i.known[name] = true
	}
	for _, v := range i.families() {
		now, err := saved(v)
		if err != nil {
			return err
		}
		b := &batch{}
		for t, tab := range now {
			for _, r := range tab.rules {
				f := strings.Fields(r)
				own := slices.Contains(chains[t], f[len(f)-1]) && f[len(f)-2] == "-j" && !strings.HasPrefix(f[1], "DOCKER")
				if own || t == "nat" && f[1] == "POSTROUTING" && i.about(r) {
					b.add(t, "-D%s", r[2:])
				}
			}
			for _, c := range chains[t] {
				if tab.chains[c] {
					b.tables = prepend(b.tables, t, ":"+c+" - [0:0]")
					b.add(t, "-X %s", c)
				}
			}
		}
		if err := b.run(v); err != nil {
			return err
		}
	}
	i.began = false
	return nil
}

func prepend(m map[string][]string, t, line string) map[string][]string {
	if m == nil {
		m = map[string][]string{}
	}
	m[t] = append([]string{line}, m[t]...)
	return m
}
