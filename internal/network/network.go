// Package network gives containers their network.
//
// This engine knows two networks of its own, as every Docker host does: "none",
// a network namespace with nothing but a loopback interface, and "host", the
// network of the machine. A container can also share another container's.
// Drivers that connect containers plug in here.
//
// Network namespaces are made ahead and wait as descriptors: handing one out
// costs nothing, and the kernel destroys it when the last holder is gone.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/state"
)

// quiet is how long after a hand-out the pool is filled again, unless it runs
// low: making a namespace takes locks that a start under way needs.
const quiet = 3 * time.Millisecond

// poolSize is how many namespaces wait. They are cheap; making one is not.
const poolSize = 64

// Options are what the service is built from.
type Options struct {
	DB  *state.DB
	Log *slog.Logger
}

// Service knows the networks and makes namespaces.
type Service struct {
	o       Options
	created time.Time
	ids     map[string]string // of the predefined networks, by name
	pool    chan int
	stop    chan struct{}
	done    chan struct{}

	handedOut atomic.Int64 // when a namespace was handed out last, in ns
}

// Open reads the networks and begins to make namespaces ahead.
func Open(o Options) (*Service, error) {
	s := &Service{o: o, pool: make(chan int, poolSize), stop: make(chan struct{}), done: make(chan struct{})}
	err := o.DB.Update(state.Async, func(tx *state.Tx) error {
		if ok, err := tx.Get("network", "created", &s.created); ok || err != nil {
			return err
		}
		s.created = time.Now().UTC()
		return tx.Put("network", "created", s.created)
	})
	if err != nil {
		return nil, err
	}
	s.ids = map[string]string{}
	for _, n := range s.predefined() {
		s.ids[n.Name] = n.ID
	}
	go s.fill()
	return s, nil
}

// Close drops the namespaces that wait.
func (s *Service) Close() {
	close(s.stop)
	<-s.done
}

func (s *Service) fill() {
	defer close(s.done)
	for made := 0; ; made++ {
		if made == 4 { // the rest when the engine has had time to get going
			select {
			case <-time.After(100 * time.Millisecond):
			case <-s.stop:
				s.drain()
				return
			}
		}
		for len(s.pool) > poolSize/4 {
			rest := quiet - time.Since(time.Unix(0, s.handedOut.Load()))
			if rest <= 0 {
				break
			}
			select {
			case <-time.After(rest):
			case <-s.stop:
				s.drain()
				return
			}
		}
		fd, err := linux.NewNetNS()
		if err != nil {
			s.o.Log.Warn("cannot prepare a network namespace", "error", err)
			<-s.stop // a start will meet the same error and report it
			return
		}
		select {
		case s.pool <- fd:
		case <-s.stop:
			_ = unix.Close(fd)
			s.drain()
			return
		}
	}
}

func (s *Service) drain() {
	for {
		select {
		case fd := <-s.pool:
			_ = unix.Close(fd)
		default:
			return
		}
	}
}

// Isolated returns a network namespace with only a loopback interface. The
// descriptor is the caller's.
func (s *Service) Isolated() (int, error) {
	s.handedOut.Store(time.Now().UnixNano())
	select {
	case fd := <-s.pool:
		return fd, nil
	default:
		return linux.NewNetNS()
	}
}

// predefined are the networks that cannot be made or removed.
func (s *Service) predefined() []network.Inspect {
	list := make([]network.Inspect, 0, 2)
	for _, d := range [][2]string{{"host", "host"}, {"none", "null"}} {
		sum := sha256.Sum256([]byte(d[0] + s.created.Format(time.RFC3339Nano)))
		n := network.Inspect{}
		n.Name, n.ID, n.Created, n.Scope, n.Driver = d[0], hex.EncodeToString(sum[:]), s.created, "local", d[1]
		n.EnableIPv4 = true
		n.IPAM = network.IPAM{Driver: "default"}
		n.Options, n.Labels = map[string]string{}, map[string]string{}
		n.Containers = map[string]network.EndpointResource{}
		list = append(list, n)
	}
	return list
}

// List returns the networks that the filters leave.
func (s *Service) List(_ context.Context, f filter.Args) ([]network.Inspect, error) {
	if err := f.Validate("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	out := []network.Inspect{}
	for _, n := range s.predefined() {
		switch {
		case f.Has("dangling") && dangling:
		case f.Has("type") && !f.Exact("type", "builtin"):
		case !f.Exact("driver", n.Driver), !f.Exact("scope", n.Scope), !f.Labels("label", n.Labels):
		case f.Has("name") && !containsAny(n.Name, f["name"]):
		case !f.Fuzzy("id", n.ID):
		default:
			out = append(out, n)
		}
	}
	return out, nil
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

// Inspect finds one network by name, id or prefix of an id.
func (s *Service) Inspect(_ context.Context, name, scope string) (network.Inspect, error) {
	for _, n := range s.predefined() {
		if (n.Name == name || n.ID == name || len(name) >= 3 && strings.HasPrefix(n.ID, name)) && (scope == "" || scope == n.Scope) {
			return n, nil
		}
	}
	return network.Inspect{}, errs.New(errs.NotFound, "network %s not found", name)
}

// ID returns the id of a predefined network.
func (s *Service) ID(name string) string { return s.ids[name] }

// Remove removes a network. Those that every engine has cannot be removed.
func (s *Service) Remove(ctx context.Context, name string) error {
	n, err := s.Inspect(ctx, name, "")
	if err != nil {
		return err
	}
	return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
}

// Prune removes the networks that nobody uses: of those of this engine none.
func (s *Service) Prune(_ context.Context, f filter.Args) (network.PruneReport, error) {
	if err := f.Validate("label", "label!", "until"); err != nil {
		return network.PruneReport{}, err
	}
	_, err := f.Until()
	return network.PruneReport{}, err
}
