package keeper

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/runtime"
)

// poolSize is how many cgroups and /dev trees wait: enough for a burst of
// starts, few enough to cost next to no memory.
const poolSize = 24

// pool makes ahead what a start would have to wait for.
type pool struct {
	k      *Keeper
	life   string // names are unique to this life of the keeper
	seq    atomic.Uint64
	groups chan *runtime.Cgroup
	trees  chan *runtime.DevTree
	stop   chan struct{}
	done   sync.WaitGroup
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
	go fill(p, p.groups, func() (*runtime.Cgroup, error) { return p.newCgroup() }, p.k.removeCgroup)
	go fill(p, p.trees, func() (*runtime.DevTree, error) { return runtime.NewDevTree(nil) }, (*runtime.DevTree).Close)
}

// fill keeps a channel full until the pool is closed, then empties it.
func fill[T any](p *pool, ch chan T, make func() (T, error), drop func(T)) {
	defer p.done.Done()
	for {
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
			for {
				select {
				case v := <-ch:
					drop(v)
				default:
					return
				}
			}
		}
	}
}

func (p *pool) close() {
	close(p.stop)
	p.done.Wait()
}

func (p *pool) newCgroup() (*runtime.Cgroup, error) {
	return p.k.cgroups.Make(path.Join(p.k.cfg.Parent, fmt.Sprintf("%s-%d", p.life, p.seq.Add(1))))
}

// cgroup hands out a cgroup: one made ahead, or one of its own below a parent.
func (p *pool) cgroup(parent, id string) (*runtime.Cgroup, error) {
	if parent != "" && path.Clean("/"+parent) != p.k.cfg.Parent {
		return p.k.cgroups.Make(path.Join("/", parent, id))
	}
	select {
	case g := <-p.groups:
		return g, nil
	default:
		return p.newCgroup()
	}
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
