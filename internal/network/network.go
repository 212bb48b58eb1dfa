// Package network gives containers their network.
//
// # Words
//
// A network has a driver: "bridge" connects the containers of this machine, "null" (the
// network "none") gives them a loopback interface only, "host" is the machine's own. A
// sandbox is a container's network namespace. An endpoint is a sandbox's place on a
// network: interface, addresses, names. A mapping is a published port.
//
//	Create ─▶ Network ─▶ bridge on the host, rules in the firewall
//	Attach ─▶ Sandbox: a namespace with an interface for each network
//	          (taken from a pool where one is ready), addresses, ports
//	Release   what a container's run had, when it has ended
//
// # State
//
// Networks persist in the bucket "network", what a running container has in the bucket
// "sandbox". At boot both are read, bridges and rules are made what they should
// be, and what belongs to containers that run no more is given back: see Keep.
//
// Namespaces are made ahead and wait as descriptors: handing one out
// costs nothing, and the kernel destroys it when the last holder is gone.
package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/network/bridge"
	"berth.dev/berth/internal/network/dns"
	"berth.dev/berth/internal/network/firewall"
	"berth.dev/berth/internal/network/ipam"
	"berth.dev/berth/internal/plugin"
	"berth.dev/berth/internal/state"
)

// Config is the daemon's configuration of networks.
type Config struct {
	Bridge      string           // "" is the engine's own default bridge, "none" none, else an existing one
	Listening   []netip.AddrPort // TCP ports of the engine itself: nobody else gets them
	OwnBridge   string           // the name of the engine's own; "" is DefaultBridge
	BridgeIP    netip.Prefix
	BridgeIP6   netip.Prefix
	FixedCIDR   netip.Prefix
	FixedCIDR6  netip.Prefix
	Gateway     netip.Addr
	Gateway6    netip.Addr
	DefaultIP   netip.Addr // ports are published on it; unspecified or invalid: on all
	MTU         int        // 0 is that of the default route
	ICC         bool
	Masquerade  bool
	AllowDirect bool   // published ports answer at the containers' own addresses, too
	Mark        uint32 // packets with this mark, as far as MarkMask tells, pass to all containers; no mask: none do
	MarkMask    uint32
	Relay       bool                         // ports that the kernel cannot send on are passed on by a program
	Defaults    map[string]map[string]string // options of new networks, by driver
	Forward     bool                         // turn forwarding on
	Firewall    bool                         // write rules
	IPv6        bool                         // on the default bridge
	Pools       []ipam.Pool
	Table       string // of the firewall
	IPTables    bool   // rules are kept by the programs of iptables, not in the table
	NoIPv6Rules bool   // rules are about IPv4 only
	HostRules   bool   // the host's own rules decide who reaches published ports: nothing is translated, all is relayed
	HostGateway []netip.Addr
}

// firewall is the rules that the configuration asks for, kept by iptables or in the table.
func (c *Config) firewall(iptables bool) *firewall.Firewall {
	f := firewall.New(c.Table)
	if iptables {
		f = firewall.NewIPTables()
	}
	if c.NoIPv6Rules {
		f.WithoutIPv6()
	}
	return f
}

// Options are what the service is built from.
type Options struct {
	DB     *state.DB
	Log    *slog.Logger
	Config Config
	Event  func(action events.Action, id string, attributes map[string]string) // may be nil
	// Plugins are where plugins of networks and addresses are looked for; the zero value
	// is where they are installed.
	Plugins plugin.Dirs
}

// Network is one network. It persists in the bucket "network".
type Network struct {
	network.Network
	Bridge string `json:"bridge,omitempty"` // the interface on the host
	MTU    int    `json:"mtu,omitempty"`
	ICC    bool   `json:"icc,omitempty"`
	Masq   bool   `json:"masq,omitempty"`
	HostIP netip.Addr

	Mode4   string     `json:"mode4,omitempty"` // gateway modes, "" is nat
	Mode6   string     `json:"mode6,omitempty"`
	Inhibit bool       `json:"inhibit,omitempty"` // the host has no IPv4 address on the bridge
	Trusted []string   `json:"trusted,omitempty"` // interfaces by which published ports are reached at the containers' own addresses
	Source4 netip.Addr `json:"source4,omitzero"`  // containers speak to the world by it
	Source6 netip.Addr `json:"source6,omitzero"`

	Parent    string `json:"parent,omitempty"`     // the host's interface that macvlan and ipvlan stand on
	OwnParent bool   `json:"own-parent,omitempty"` // the engine made it

	PoolIDs []string `json:"pool-ids,omitempty"` // of an IPAM plugin, for each of IPAM.Config
	Space   string   `json:"space,omitempty"`    // its address space

	fresh   bool         // it is being made, not read at boot
	bare    [2]bool      // no gateway is wanted for IPv4, IPv6
	other   addressing   // who hands out its addresses; nil for the engine itself
	fault   error        // why it cannot be used
	index   atomic.Int64 // of the bridge or the parent
	subnets []*ipam.Subnet
	pool    *pool
}

// builtin reports whether every engine has the network.
func (n *Network) builtin() bool { return n.Name == "bridge" || n.Name == "host" || n.Name == "none" }

// Service knows the networks and makes sandboxes.
type Service struct {
	o       Options
	fw      *firewall.Firewall // nil without rules
	fault   error              // why there are no bridge networks
	space   *ipam.Space
	makes   *maker
	unwatch func() // ends the firewall's watch
	plugins plugins

	askedPools bool // the pools are the administrator's choice

	mu        sync.RWMutex
	nets      map[string]*Network // by id
	byName    map[string]*Network
	sandboxes map[string]*Sandbox // by container
	ports     ports
	names     map[string]map[string][]*Endpoint // by network and name
	dns       *dns.Server
	outlives  atomic.Pointer[outliver]
	announcer announcer
	mender    mender
}

const bucket, sandboxBucket = "network", "sandbox"

// Open reads the networks, makes what they need on the host, and begins to
// make namespaces ahead.
func Open(o Options) (*Service, error) {
	asked := len(o.Config.Pools) > 0
	if !asked {
		o.Config.Pools = ipam.DefaultPools()
	}
	if o.Config.OwnBridge == "" {
		o.Config.OwnBridge = DefaultBridge
	}
	if o.Config.Table == "" {
		o.Config.Table = "berth"
	}
	if o.Plugins.Sockets == nil && o.Plugins.Specs == nil {
		o.Plugins = plugin.DefaultDirs()
	}
	if o.Event == nil {
		o.Event = func(events.Action, string, map[string]string) {}
	}
	s := &Service{
		o: o, askedPools: asked, space: ipam.NewSpace(o.Config.Pools), nets: map[string]*Network{}, byName: map[string]*Network{}, sandboxes: map[string]*Sandbox{},
		ports: ports{taken: map[portKey][]holder{}}, names: map[string]map[string][]*Endpoint{}, dns: dns.NewServer(),
		plugins: plugins{dirs: o.Plugins, log: o.Log},
	}
	if o.Config.Firewall {
		s.fw = o.Config.firewall(o.Config.IPTables)
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.makes = newMaker(s)
	if s.fw != nil {
		var err error
		if s.unwatch, err = s.fw.Watch(func(err error) {
			if err != nil {
				o.Log.Error("somebody removed the firewall's rules, and they cannot be written again", "error", err)
			} else {
				o.Log.Warn("somebody removed the firewall's rules: they are written again")
			}
		}); err != nil {
			o.Log.Warn("removed rules of the firewall will not be noticed", "error", err)
		}
	}
	return s, nil
}

// Close drops the namespaces that wait. Networks and rules stay: containers use them.
func (s *Service) Close() {
	s.makes.close()
	if s.unwatch != nil {
		s.unwatch()
	}
}

// DefaultName is the network that containers are on which name none.
func (s *Service) DefaultName() string {
	if s.o.Config.Bridge == "none" {
		return "none"
	}
	return "bridge"
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand says
	return hex.EncodeToString(b[:])
}

// builtinID is the id of a network that every engine has: the same at each boot.
func builtinID(name string, created time.Time) string {
	sum := sha256.Sum256([]byte(name + created.Format(time.RFC3339Nano)))
	return hex.EncodeToString(sum[:])
}

// load reads the records and brings the host to agreement with them.
func (s *Service) load() error {
	var created time.Time
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if ok, err := tx.Get(bucket, "created", &created); ok || err != nil {
			return err
		}
		created = time.Now().UTC()
		return tx.Put(bucket, "created", created)
	})
	if err != nil {
		return err
	}
	for _, d := range [][2]string{{"host", "host"}, {"none", "null"}} {
		n := &Network{}
		n.Name, n.ID, n.Created, n.Scope, n.Driver = d[0], builtinID(d[0], created), created, "local", d[1]
		n.EnableIPv4 = true
		n.IPAM = network.IPAM{Driver: "default"}
		n.Options, n.Labels = map[string]string{}, map[string]string{}
		s.add(n)
	}
	for _, key := range s.o.DB.Keys(bucket, "n/") {
		n := &Network{}
		if ok, err := s.o.DB.Get(bucket, key, n); err != nil || !ok {
			s.o.Log.Error("cannot read a network", "id", key, "error", err)
			continue
		}
		if n.ConfigOnly {
			s.add(n)
			continue
		}
		if n.other = s.plugins.addressing(s, n.IPAM.Driver); n.other == nil {
			for _, c := range n.IPAM.Config {
				_ = s.space.Take(c.Subnet)
			}
		}
		if err := s.bringUp(n); err != nil {
			s.o.Log.Error("cannot bring a network up", "network", n.Name, "error", err)
			n.fault = advised(err)
		}
		s.add(n)
	}
	var lack error
	if s.o.Config.Bridge == "none" {
		bridge.RemoveUnused(s.o.Config.OwnBridge) // of an engine before that had one
	} else {
		n, err := s.defaultBridge(created)
		if err != nil && (n == nil || !lacks(err)) {
			return errs.Wrap(errs.Internal, err, "failed to start daemon: Error initializing network controller")
		}
		s.add(n)
		lack = err
	}
	s.ports.reserve(s.o.Config.Listening)
	s.loadSandboxes()
	publisher{s}.forward(false)
	if slices.ContainsFunc(s.all(), func(n *Network) bool { return n.EnableIPv6 && n.Driver == "bridge" }) {
		publisher{s}.forward(true)
	}
	if s.fw != nil {
		s.fw.SetPolicy(firewall.Policy{Direct: s.o.Config.AllowDirect, Mark: s.o.Config.Mark, Mask: s.o.Config.MarkMask})
	}
	if err := (publisher{s}).restoreRules(); lacks(err) {
		lack = cmp.Or(lack, err)
	} else if err != nil {
		return err
	}
	if lack != nil {
		withoutBridges(s, lack)
	}
	return nil
}

func (s *Service) add(n *Network) {
	s.nets[n.ID], s.byName[n.Name] = n, n
}

// find returns a network by id, name or an unambiguous beginning of its id.
func (s *Service) find(ref string) (*Network, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.nets[ref]; n != nil {
		return n, nil
	}
	if n := s.byName[ref]; n != nil {
		return n, nil
	}
	var found *Network
	for id, n := range s.nets {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, errs.New(errs.Invalid, "network %s is ambiguous (2 matches found based on ID prefix)", ref)
			}
			found = n
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "network %s not found", ref)
	}
	return found, nil
}

// Resolve returns the id and the name of a network.
func (s *Service) Resolve(ref string) (id, name string, err error) {
	n, err := s.find(ref)
	if err != nil {
		return "", "", err
	}
	return n.ID, n.Name, nil
}

// ID returns the id of a network by name, "" for none.
func (s *Service) ID(name string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.byName[name]; n != nil {
		return n.ID
	}
	return ""
}

// HasIPv6 reports whether a network, by name or id, has IPv6.
func HasIPv6(s *Service, ref string) bool {
	n, err := s.find(ref)
	return err == nil && n.EnableIPv6
}

func (s *Service) all() []*Network {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.nets), func(a, b *Network) int { return strings.Compare(a.Name, b.Name) })
}

// List returns the networks that the filters leave, with who is on them.
func (s *Service) List(_ context.Context, f filter.Args) ([]network.Inspect, error) {
	if err := f.Validate("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return nil, errs.New(errs.Invalid, "invalid filter: 'type'='%s'", t)
		}
	}
	out := []network.Inspect{}
	for _, n := range s.all() {
		kind := "custom"
		if n.builtin() {
			kind = "builtin"
		}
		unused := !n.builtin() && len(s.members(n.ID)) == 0
		switch {
		case f.Has("dangling") && dangling != unused:
		case f.Has("type") && !f.Exact("type", kind):
		case !f.Exact("driver", n.Driver), !f.Exact("scope", n.Scope), !f.Labels("label", n.Labels):
		case f.Has("name") && !slices.ContainsFunc(f["name"], func(x string) bool { return strings.Contains(n.Name, x) }):
		case !f.Fuzzy("id", n.ID):
		default:
			out = append(out, s.inspect(n))
		}
	}
	return out, nil
}

// Inspect tells everything about one network.
func (s *Service) Inspect(_ context.Context, ref, scope string) (network.Inspect, error) {
	n, err := s.find(ref)
	if err != nil {
		return network.Inspect{}, err
	}
	if scope != "" && scope != n.Scope {
		return network.Inspect{}, errs.New(errs.NotFound, "network %s not found", ref)
	}
	out := s.inspect(n)
	out.Status = (publisher{s}).status(n, s.members(n.ID))
	return out, nil
}

func (s *Service) inspect(n *Network) network.Inspect {
	out := network.Inspect{Network: n.Network, Containers: map[string]network.EndpointResource{}}
	for id, e := range s.members(n.ID) {
		r := network.EndpointResource{Name: e.Container, EndpointID: e.ID, MacAddress: network.HardwareAddr(e.MAC)}
		if e.Addr4.IsValid() {
			r.IPv4Address = e.Addr4
		}
		if e.Addr6.IsValid() {
			r.IPv6Address = e.Addr6
		}
		out.Containers[id] = r
	}
	return out
}

// members are the endpoints of a network by container.
func (s *Service) members(id string) map[string]*Endpoint {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[string]*Endpoint{}
	for c, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.Network == id {
				out[c] = e
			}
		}
	}
	return out
}

// Remove removes a network that nobody is on.
func (s *Service) Remove(_ context.Context, ref string) error {
	n, err := s.find(ref)
	if err != nil {
		return err
	}
	if n.builtin() {
		return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if m := s.members(n.ID); len(m) > 0 {
		var who []string
		for id, e := range m {
			who = append(who, `name:"`+e.Container+`" id:"`+id[:min(12, len(id))]+`"`)
		}
		slices.Sort(who)
		return errs.New(errs.Forbidden, "error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(who, ", "))
	}
	if (publisher{s}).configures(n) {
		return errs.New(errs.Forbidden, "configuration network %q is in use", n.Name)
	}
	if r, ok := s.plugins.of(n.Driver).(pluginDriver); ok {
		if _, err := r.d.Capabilities(); err != nil {
			return errs.New(errs.KindOf(err), "error while removing network: failed deleting Network: %v", err)
		}
	}
	return s.remove(n)
}

func (s *Service) remove(n *Network) error {
	err := s.o.DB.Update(state.Soon, func(tx *state.Tx) error {
		tx.Delete(bucket, "n/"+n.ID)
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.nets, n.ID)
	if s.byName[n.Name] == n {
		delete(s.byName, n.Name)
	}
	s.mu.Unlock()
	s.takeDown(n)
	s.o.Event(events.ActionDestroy, n.ID, map[string]string{"name": n.Name, "type": n.Driver})
	return nil
}

// Prune removes the networks that nobody is on and that the filters leave.
func (s *Service) Prune(_ context.Context, f filter.Args) (network.PruneReport, error) {
	out := network.PruneReport{}
	if err := f.Validate("label", "label!", "until"); err != nil {
		return out, err
	}
	until, err := f.Until()
	if err != nil {
		return out, err
	}
	for _, n := range s.all() {
		if n.builtin() || !until.IsZero() && !n.Created.Before(until) || !f.Labels("label", n.Labels) || f.Has("label!") && f.Labels("label!", n.Labels) {
			continue
		}
		if len(s.members(n.ID)) > 0 {
			continue
		}
		if err := s.remove(n); err != nil {
			s.o.Log.Warn("cannot prune a network", "network", n.Name, "error", err)
			continue
		}
		out.NetworksDeleted = append(out.NetworksDeleted, n.Name)
	}
	s.o.Event(events.ActionPrune, "", map[string]string{"reclaimed": "0"})
	return out, nil
}
