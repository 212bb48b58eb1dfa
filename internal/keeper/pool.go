package keeper

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/runtime"
)

// poolSize is how many cgroups and /dev trees wait: enough for a burst of
// starts, few enough to cost next to no memory.
const poolSize = 48

// devicesSuffix makes of the keeper's cgroup parent the one of containers with
// device rules of their own: below the other nothing more can be allowed.
const devicesSuffix = "-devices"

// pool makes ahead what a start would have to wait for.
type pool struct {
	k      *Keeper
	life   string // names are unique to this life of the keeper
	seq    atomic.Uint64
	groups chan *runtime.Cgroup
	trees  chan *runtime.DevTree
	stop   chan struct{}
	done   sync.WaitGroup

	handedOut atomic.Int64 // when something was handed out last, in ns
}

func newPool(k *Keeper) *pool {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return &pool{
		k: k, life: hex.EncodeToString(b[:]), stop: make(chan struct{}),
		groups: make(chan *runtime.Cgroup, poolSize), trees: make(chan *runtime.DevTree, poolSize),
	}
}

func (p *pool) start() {
	p.done.Add(2)
	go fill(p, p.groups, p.newCgroup, p.k.removeCgroup)
	go fill(p, p.trees, func() (*runtime.DevTree, error) { return runtime.NewDevTree(nil) }, (*runtime.DevTree).Close)
}

// A new keeper makes the first few things at once and the rest when the engine
// that started it has had time to get going.
const (
	poolFirst = 4
	poolCalm  = 100 * time.Millisecond
)

// refillAfter is how long after a hand-out the pool begins to fill again, unless it
// runs low: making things takes the processor and the kernel's locks from the
// start that is under way.
const refillAfter = 2 * time.Millisecond

// fill keeps a channel full until the pool is closed, then empties it.
func fill[T any](p *pool, ch chan T, make func() (T, error), drop func(T)) {
	defer p.done.Done()
	defer func() {
		for {
			select {
			case v := <-ch:
				drop(v)
			default:
				return
			}
		}
	}()
	for made := 0; ; made++ {
		if made == poolFirst {
			select {
			case <-time.After(poolCalm):
			case <-p.stop:
				return
			}
		}
		for len(ch) > cap(ch)/4 {
			rest := refillAfter - time.Since(time.Unix(0, p.handedOut.Load()))
			if rest <= 0 {
				break
			}
			select {
			case <-time.After(rest):
			case <-p.stop:
				return
			}
		}
		v, err := make()
		if err != nil {
			// A start will meet the same error and report it.
			p.k.cfg.Log.Warn("cannot prepare ahead", "error", err)
			<-p.stop
			return
		}
		select {
		case ch <- v:
		case <-p.stop:
			drop(v)
			return
		}
	}
}

func (p *pool) close() {
	close(p.stop)
	p.done.Wait()
}

func (p *pool) newCgroup() (*runtime.Cgroup, error) {
	g, err := p.k.cgroups.Make(path.Join(p.k.cfg.Parent, fmt.Sprintf("%s-%d", p.life, p.seq.Add(1))))
	if err != nil {
		return nil, err
	}
	if !p.k.cgroups.Inherits(p.k.cfg.Parent) {
		if err := p.k.cgroups.AllowDefaultDevices(g); err != nil {
			p.k.removeCgroup(g)
			return nil, err
		}
	}
	p.k.cgroups.MakeView(g)
	return g, nil
}

// cgroup hands out a cgroup: one made ahead, or one of its own below a parent.
// Those made ahead inherit the default device rules; a container with rules of
// its own gets a place where nothing is inherited.
func (p *pool) cgroup(r *StartRequest, ownDevices bool) (*runtime.Cgroup, error) {
	parent := r.Parent
	if r.Cgroup != "" {
		return p.restricted(p.k.cgroups.Enter(r.Cgroup))
	}
	if parent != "" && path.Clean("/"+parent) != p.k.cfg.Parent || ownDevices {
		if parent == "" {
			parent = p.k.cfg.Parent + devicesSuffix
		}
		return p.restricted(p.k.cgroups.Make(path.Join("/", parent, r.ID)))
	}
	p.handedOut.Store(time.Now().UnixNano())
	select {
	case g := <-p.groups:
		return g, nil
	default:
		return p.newCgroup()
	}
}

// restricted limits a cgroup that inherits nothing to the default devices.
func (p *pool) restricted(g *runtime.Cgroup, err error) (*runtime.Cgroup, error) {
	if err == nil {
		if err = p.k.cgroups.AllowDefaultDevices(g); err != nil {
			p.k.removeCgroup(g)
		}
	}
	return g, err
}

// dev hands out a /dev tree.
func (p *pool) dev(extra []specs.LinuxDevice) (*runtime.DevTree, error) {
	if len(extra) > 0 {
		return runtime.NewDevTree(extra)
	}
	select {
	case d := <-p.trees:
		return d, nil
	default:
		return runtime.NewDevTree(nil)
	}
}
