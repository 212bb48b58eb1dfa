package stress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// TestStress makes, starts and removes containers in random order from eight
// clients while berthd is killed. Afterwards nothing may be left: the engine's
// leak check looks at mounts, cgroups, processes, descriptors, goroutines and files;
// this test adds network namespaces and disk space.
func TestStress(t *testing.T) {
	total, kills := 160, 3
	if os.Getenv("BERTH_STRESS") == "full" {
		total, kills = 2000, 20
	} else if testing.Short() {
		enginetest.Skip(t, enginetest.ShortRun)
	}
	const clients = 8
	e := enginetest.Start(t)
	before := diskUsage(t, e.DataRoot)
	var done, started atomic.Int64
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	var work sync.WaitGroup
	for n := range clients {
		work.Go(func() {
			w := &worker{e: e, ctx: ctx, random: rand.New(rand.NewPCG(uint64(n), 7))}
			for i := 0; done.Load() < int64(total) || len(w.have) > 0; i++ {
				if ctx.Err() != nil {
					t.Errorf("client %d is stuck: %v", n, w.have)
					return
				}
				if done.Load() >= int64(total) {
					w.remove() // the rest
					continue
				}
				w.step(fmt.Sprintf("c%d-%d", n, i), &done, &started)
			}
		})
	}
	finished := make(chan struct{})
	go func() { work.Wait(); close(finished) }()
	for i := range kills {
		mark := int64(total * (i + 1) / (kills + 1))
		for done.Load() < mark && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		e.Restart()
	}
	<-finished
	t.Logf("%d containers made, %d started, %d kills", done.Load(), started.Load(), kills)

	var left []struct{ Names []string }
	if _, body := e.Call(http.MethodGet, "/containers/json?all=1", nil, &left); len(left) > 0 {
		t.Errorf("containers are left: %s", body)
	}
	enginetest.Eventually(t, "the snapshots' space is given back", func() bool { return diskUsage(t, e.DataRoot) < before+4<<20 })
}

type worker struct {
	e      *enginetest.Engine
	ctx    context.Context //nolint:containedctx // one for the whole test
	random *rand.Rand
	have   []string
}

// step does one thing at random. A request that a kill has cut off is asked
// again: every one of them can be.
func (w *worker) step(name string, done, started *atomic.Int64) {
	switch n := w.random.IntN(10); {
	case len(w.have) == 0 || n < 4:
		w.create(name)
		done.Add(1)
	case n < 7:
		id := w.have[w.random.IntN(len(w.have))]
		if status := w.call(http.MethodPost, "/containers/"+id+"/start", nil, 204, 304); status == 204 {
			started.Add(1)
		}
	case n < 8:
		id := w.have[w.random.IntN(len(w.have))]
		w.call(http.MethodPost, "/containers/"+id+"/stop?t=0", nil, 204, 304)
	default:
		w.remove()
	}
}

func (w *worker) create(name string) {
	command := [][]string{{"true"}, {"sh", "-c", "echo hello; exit 3"}, {"sleep", "1000"}, {"sh", "-c", "sleep 0.05; head -c 100000 /dev/zero > /file"}}[w.random.IntN(4)]
	body := map[string]any{"Image": enginetest.Image, "Cmd": command, "HostConfig": map[string]any{"Memory": 64 << 20}}
	w.call(http.MethodPost, "/containers/create?name="+name, body, 201, 409) // 409: the one before the kill was made
	w.have = append(w.have, name)
}

func (w *worker) remove() {
	i := w.random.IntN(len(w.have))
	w.call(http.MethodDelete, "/containers/"+w.have[i]+"?force=1", nil, 204, 404)
	w.have = append(w.have[:i], w.have[i+1:]...)
}

// call asks until one of the answers comes.
func (w *worker) call(method, path string, body any, want ...int) int {
	var last string
	for range 200 {
		if w.ctx.Err() != nil {
			return 0
		}
		ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
		status, text, err := w.e.TryCall(ctx, method, path, body)
		timeout := ctx.Err() != nil
		cancel()
		for _, s := range want {
			if err == nil && status == s {
				return status
			}
		}
		if timeout {
			panic(fmt.Sprintf("%s %s: no answer in 30s\n%s", method, path, w.e.Log()))
		}
		if err == nil {
			var m struct{ Message string }
			_ = json.Unmarshal(text, &m)
			last = fmt.Sprint(status, " ", m.Message)
		} else {
			last = err.Error()
		}
		time.Sleep(20 * time.Millisecond)
	}
	panic(fmt.Sprintf("%s %s: %s, want %v\n%s", method, path, last, want, w.e.Log()))
}

func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	return n
}
