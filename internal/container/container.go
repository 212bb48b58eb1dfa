// Package container is the life of containers: create, start, stop, pause,
// exec, attach, wait, restart, remove, and what can be asked about them.
//
// # Words
//
// A Record is what a container is: its configuration, fixed at create but for
// renames and updates. A Status is what it does now, persisted on every
// transition. The Container is the live handle that holds both, the lock of its
// lifecycle and the clients that wait: it is never written anywhere.
//
//	created ─▶ running ◀─▶ paused
//	   │         │  ▲
//	   │         ▼  │ (start, restart policy)
//	   └───▶  exited ── restarting
//	             │
//	             ▼
//	         removing ─▶ gone          (dead: a removal that failed)
//
// # Locks
//
// Service.mu guards the index and is held for memory work only. Container.mu
// is held through a whole start, stop or remove. Record and Status are swapped
// as pointers, so ps and inspect take neither.
package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/cdi"
	"berth.dev/berth/internal/events"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/keeper"
	"berth.dev/berth/internal/logs/ship"
	netsvc "berth.dev/berth/internal/network"
	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/state"
	"berth.dev/berth/internal/systemd"
)

// ID is a container's id: 64 hexadecimal digits.
type ID string

// Short is the id as it is shown.
func (id ID) Short() string { return string(id[:min(12, len(id))]) }

// Record is what a container is. It persists in the bucket "container".
type Record struct {
	ID         ID                        `json:"id"`
	Name       string                    `json:"name"` // without a slash
	Created    time.Time                 `json:"created"`
	Image      digest.Digest             `json:"image"`
	Platform   string                    `json:"platform"`
	Path       string                    `json:"path"`
	Args       []string                  `json:"args"`
	Config     *container.Config         `json:"config"`
	HostConfig *container.HostConfig     `json:"hostConfig"`
	Networks   *network.NetworkingConfig `json:"networks,omitempty"`
	Left       map[string]bool           `json:"left,omitempty"` // networks that it was taken off, by name
	Mounts     []Mount                   `json:"mounts,omitempty"`
	Driver     string                    `json:"driver"`
}

// Mount is one bind or tmpfs of a container, resolved at create.
type Mount struct {
	container.MountPoint
	Options  []string `json:"options,omitempty"`  // fstab words
	MakeHost bool     `json:"makeHost,omitempty"` // make a missing source directory
}

// Status is what a container does. It persists in the bucket "status".
type Status struct {
	Phase        Phase     `json:"phase"`
	Pid          int       `json:"pid,omitempty"`
	ProcStart    uint64    `json:"procStart,omitempty"` // start time of the process, in ticks since boot
	Cgroup       string    `json:"cgroup,omitempty"`
	ExitCode     int       `json:"exitCode"`
	Error        string    `json:"error,omitempty"`
	OOMKilled    bool      `json:"oomKilled,omitempty"`
	StartedAt    time.Time `json:"startedAt,omitzero"`
	FinishedAt   time.Time `json:"finishedAt,omitzero"`
	RestartCount int       `json:"restartCount,omitempty"`
	Stopped      bool      `json:"stopped,omitempty"` // stopped by a user: no restart

	Health container.HealthStatus `json:"health,omitempty"` // "" for a container without a check
}

// Container is the live handle of one container.
type Container struct {
	mu sync.Mutex // the lifecycle: one change of phase at a time

	rec atomic.Pointer[Record]
	st  atomic.Pointer[Status]

	stopAsked atomic.Bool // by a user, in this run
	killed    atomic.Bool // SIGKILL was sent in this run
	shared    atomic.Bool // another container shows this one's network files

	io      sync.Mutex // guards what follows; taken after mu
	waiters []*waiter
	attach  []pendingAttach // clients that came before the start
	execs   map[string]*Exec
	gone    bool

	warm    atomic.Pointer[chan int] // a root under way since create, for the start that follows
	stopped chan struct{}            // closed at each exit, remade at start; under io
	backoff time.Duration
	retry   *time.Timer // a restart under way

	prober *prober                          // checks the health of this run; under mu
	health atomic.Pointer[container.Health] // the last results
}

// Record returns what the container is. It must not be changed.
func (c *Container) Record() *Record { return c.rec.Load() }

// Status returns what the container does. It must not be changed.
func (c *Container) Status() *Status { return c.st.Load() }

// Defaults are what the daemon's configuration gives to containers that do not
// say otherwise. They are one immutable snapshot.
type Defaults struct {
	Runtime      string
	Runtimes     map[string]Runtime // others, by name
	CgroupParent string
	CgroupNS     container.CgroupnsMode // "" is private on cgroup v2, host on v1
	IPC          container.IpcMode      // "" is private
	ShmSize      int64                  // bytes; 0 is 64 MiB
	Init         bool
	NoNewPrivs   bool
	LogDriver    string
	LogOpts      map[string]string
	Ulimits      []*container.Ulimit
	Seccomp      string // path of a profile, "" for the built-in one, "unconfined"
	DNS          []string
	DNSSearch    []string
	DNSOptions   []string
	HostGateway  []netip.Addr // what "host-gateway" stands for; those of the default bridge when empty
	Shutdown     time.Duration
}

// Options are what the service is built from.
type Options struct {
	DataRoot  string
	ExecRoot  string
	DB        *state.DB
	Images    *image.Service
	Snapshots *snapshot.Store
	Networks  *netsvc.Service
	IDMap     *idmap.Mapping // nil runs containers in the host's user namespace
	Events    *events.Bus
	Defaults  Defaults
	CDI       *cdi.Registry    // nil: no such devices
	Systemd   *systemd.Manager // makes the cgroups, nil: the keeper does
	Slice     string           // where they are by default, for Systemd
	Log       *slog.Logger
}

// Service is the container service.
type Service struct {
	o      Options
	keeper *keeper.Client
	ready  chan struct{} // closed when keeper is set: exits may be told before that
	host   *runtime.Host
	limits func() *runtime.Support // what this kernel can limit
	def    atomic.Pointer[Defaults]
	userns *userns // nil without --userns-remap

	mu    sync.RWMutex
	byID  map[ID]*Container
	names map[string]ID
	execs map[string]*Exec // by exec id
	going map[ID]struct{}  // removed, but for their files

	seccomp filters
	users   users
	spares  spareDirs
	cleanup chan func() // directories to remove, behind the reply
	ships   ship.Shipments
	closing atomic.Bool
	linked  atomic.Bool // some container has links
}

// dir is a container's own directory: log and network files.
func (s *Service) dir(id ID) string { return filepath.Join(s.o.DataRoot, "containers", string(id)) }

// newID makes an id that no container has and whose short form is no number:
// it must not be taken for one as a host name.
func newID() ID {
	for {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails, crypto/rand says
		id := hex.EncodeToString(b[:])
		for _, r := range id[:12] {
			if r > '9' {
				return ID(id)
			}
		}
	}
}

// settled is Status after a start that is under way: what a process does can be seen
// before its start is noted, and who has seen it may count on it.
func (c *Container) settled() *Status {
	if st := c.Status(); st.Phase.Running() {
		return st
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Status()
}

// save swaps and persists a status. c.mu is held.
func (s *Service) save(c *Container, st Status) error {
	c.st.Store(&st)
	id := string(c.Record().ID)
	return s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if !tx.Has("container", id) {
			return nil // removed meanwhile
		}
		return tx.Put("status", id, &st)
	})
}

// event publishes what happened to a container, with its image, name and labels.
func (s *Service) event(c *Container, action events.Action, extra ...string) {
	r := c.Record()
	attrs := make(map[string]string, len(r.Config.Labels)+4)
	for k, v := range r.Config.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = r.Config.Image, r.Name
	for i := 0; i+1 < len(extra); i += 2 {
		attrs[extra[i]] = extra[i+1]
	}
	s.o.Events.Log(eventType, action, string(r.ID), attrs)
}

// networkEvent tells that a container joined or left the network that it is on.
func (c *Container) networkEvent(s *Service, action apievents.Action) {
	r := c.Record()
	if r.HostConfig.NetworkMode.IsContainer() {
		return
	}
	name := networkName(r)
	driver := name
	if name == "none" {
		driver = "null"
	}
	s.o.Events.Log(apievents.NetworkEventType, action, s.o.Networks.ID(name), map[string]string{"container": string(r.ID), "name": name, "type": driver})
}

// Open reads the records, finds or starts the keeper, and brings both to
// agreement: see recover.go.
func Open(ctx context.Context, o Options, program string) (*Service, error) {
	s := &Service{
		o: o, byID: map[ID]*Container{}, names: map[string]ID{}, execs: map[string]*Exec{}, going: map[ID]struct{}{},
		cleanup: make(chan func(), 4096), ready: make(chan struct{}),
	}
	var err error
	if s.host, err = runtime.ReadHost(); err != nil {
		return nil, err
	}
	s.limits = sync.OnceValue(s.host.Support)
	Edits{s}.SetDefaults(o.Defaults)
	if o.IDMap != nil {
		if s.userns, err = newUserns(o.IDMap, o.DataRoot, o.Log); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(o.DataRoot, "containers"), 0o710); err != nil {
		return nil, err
	}
	if err := dropSpares(o.DataRoot); err != nil {
		return nil, err
	}
	if err := makeSkeleton(s.o.DataRoot); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.ships.Log = o.Log
	go s.clean()
	kc, hello, err := keeper.Connect(keeper.ClientConfig{
		Config:  keeper.Config{ExecRoot: o.ExecRoot, DataRoot: o.DataRoot, Parent: o.Defaults.CgroupParent, Log: o.Log},
		Program: program, OnExit: s.onExit, OnBack: recovery{s}.reconcile,
	})
	if err != nil {
		return nil, err
	}
	s.keeper = kc
	netsvc.Outlive(o.Networks, outside{kc})
	close(s.ready)
	recovery{s}.reconcile(hello)
	go shipping{s}.resume()
	go recovery{s}.sweep(ctx)
	return s, nil
}

// SetDefaults gives the containers that come other defaults.
func (s Edits) SetDefaults(d Defaults) {
	if d.CgroupNS == "" {
		d.CgroupNS = container.CgroupnsModeHost
		if s.v2() {
			d.CgroupNS = container.CgroupnsModePrivate
		}
	}
	s.def.Store(&d)
}

// Close gives up the connection to the keeper. Containers run on.
func (s *Service) Close() {
	s.closing.Store(true)
	s.ships.Close()
	done := make(chan struct{})
	s.cleanup <- func() { close(done) }
	<-done
	if _, running, paused := s.Counts(); running+paused == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = s.keeper.Shutdown(ctx) // it has nothing to keep; one that has refuses
		cancel()
	}
	s.keeper.Close()
}

// clean runs what need not be done before a reply.
func (s *Service) clean() {
	for f := range s.cleanup {
		f()
	}
}

func (s *Service) later(f func()) {
	select {
	case s.cleanup <- f:
	default:
		go f()
	}
}

// IsRunning tells whether the holder of a reference is a running container.
func (s *Service) IsRunning(id string) bool {
	s.mu.RLock()
	c := s.byID[ID(id)]
	s.mu.RUnlock()
	return c != nil && c.Status().Phase.Running()
}

func (s *Service) v2() bool       { return s.host.CgroupV2 }
func (s *Service) caps() []string { return s.host.Capabilities() }
