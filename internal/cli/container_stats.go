package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// statsRow is the last sample of one container.
type statsRow struct {
	row
	ref, id, name            string
	cpu, mem, memPerc, limit float64
	rx, tx, read, write      float64
	pids                     uint64
	invalid, full, listed    bool // listed: nobody named it
}

func (r statsRow) Container() string {
	if r.listed {
		return shortID(r.ref)
	}
	return r.ref
}

func (r statsRow) Name() string {
	if n := strings.TrimPrefix(r.name, "/"); n != "" {
		return n
	}
	return "--"
}

func (r statsRow) ID() string {
	if r.full {
		return r.id
	}
	return shortID(r.id)
}
func (r statsRow) CPUPerc() string { return r.orDash("--", fmt.Sprintf("%.2f%%", r.cpu)) }
func (r statsRow) MemUsage() string {
	return r.orDash("-- / --", units.BytesSize(r.mem)+" / "+units.BytesSize(r.limit))
}
func (r statsRow) MemPerc() string { return r.orDash("--", fmt.Sprintf("%.2f%%", r.memPerc)) }
func (r statsRow) NetIO() string   { return r.orDash("--", size3(r.rx)+" / "+size3(r.tx)) }
func (r statsRow) BlockIO() string { return r.orDash("--", size3(r.read)+" / "+size3(r.write)) }
func (r statsRow) PIDs() string    { return r.orDash("--", fmt.Sprint(r.pids)) }

func (r statsRow) orDash(dash, text string) string {
	if r.invalid {
		return dash
	}
	return text
}

// sample turns what the engine counts into what people read.
func (r *statsRow) sample(s *container.StatsResponse) {
	r.name, r.id, r.invalid = s.Name, s.ID, false
	r.cpu = cpuPercent(s)
	r.mem = memoryUsed(&s.MemoryStats)
	r.limit = float64(s.MemoryStats.Limit)
	r.memPerc = 0
	if r.limit != 0 {
		r.memPerc = r.mem / r.limit * 100
	}
	r.rx, r.tx, r.read, r.write = 0, 0, 0, 0
	for _, n := range s.Networks {
		r.rx += float64(n.RxBytes)
		r.tx += float64(n.TxBytes)
	}
	for _, b := range s.BlkioStats.IoServiceBytesRecursive {
		if b.Op == "" {
			continue
		}
		switch b.Op[0] {
		case 'r', 'R':
			r.read += float64(b.Value)
		case 'w', 'W':
			r.write += float64(b.Value)
		}
	}
	r.pids = s.PidsStats.Current
}

func cpuPercent(s *container.StatsResponse) float64 {
	cpu := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	system := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	online := float64(s.CPUStats.OnlineCPUs)
	if online == 0 {
		online = float64(len(s.CPUStats.CPUUsage.PercpuUsage))
	}
	if system > 0 && cpu > 0 {
		return cpu / system * online * 100
	}
	return 0
}

// memoryUsed leaves the page cache out that the kernel can take back at once.
func memoryUsed(m *container.MemoryStats) float64 {
	for _, k := range []string{"total_inactive_file", "inactive_file"} { // cgroup v1, v2
		if v, ok := m.Stats[k]; ok && v < m.Usage {
			return float64(m.Usage - v)
		}
	}
	return float64(m.Usage)
}

// statsSet is the rows of all watched containers, in the order they came.
type statsSet struct {
	mu   sync.Mutex
	rows []*statsRow
	errs []error
}

func (s *statsSet) add(ref string, full bool) (*statsRow, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rows {
		if r.ref == ref {
			return r, false
		}
	}
	r := &statsRow{ref: ref, invalid: true, full: full, id: ref}
	s.rows = append(s.rows, r)
	return r, true
}

func (s *statsSet) drop(r *statsRow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.rows {
		if x == r {
			s.rows = append(s.rows[:i], s.rows[i+1:]...)
			return
		}
	}
}

func (s *statsSet) snapshot() []statsRow {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]statsRow, len(s.rows))
	for i, r := range s.rows {
		out[i] = *r
	}
	return out
}

// watch reads samples into r until the stream ends. first is called after the first one or an error.
func (s *statsSet) watch(ctx context.Context, cl *client.Client, r *statsRow, stream bool, first func(error)) {
	var once sync.Once
	report := func(err error) { once.Do(func() { first(err) }) }
	q := url.Values{"stream": {"1"}}
	if !stream {
		q.Set("stream", "0")
	}
	res, err := cl.Do(ctx, client.Request{Method: http.MethodGet, Path: containerPath(r.ref, "/stats"), Query: q})
	if err != nil {
		report(err)
		s.drop(r)
		return
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var v container.StatsResponse
		if err := dec.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			report(err)
			if stream {
				s.drop(r)
			}
			return
		}
		s.mu.Lock()
		r.sample(&v)
		s.mu.Unlock()
		report(nil)
		if !stream {
			return
		}
	}
}

// sampleAll asks an engine that can do it for all running containers at once,
// twice, as rates need it. ok is false for an engine that cannot.
func (s *statsSet) sampleAll(ctx context.Context, cl *client.Client, full bool) (ok bool, err error) {
	before := map[string]container.StatsResponse{}
	each := func(f func(container.StatsResponse)) (bool, error) {
		res, err := cl.Do(ctx, client.Request{Method: http.MethodGet, Path: "/berth/stats"})
		if err != nil {
			if client.IsNotFound(err) {
				return false, nil
			}
			return false, err
		}
		defer res.Body.Close()
		for dec := json.NewDecoder(res.Body); ; {
			var v container.StatsResponse
			if err := dec.Decode(&v); errors.Is(err, io.EOF) {
				return true, nil
			} else if err != nil {
				return false, err
			}
			f(v)
		}
	}
	if ok, err = each(func(v container.StatsResponse) { before[v.ID] = v }); !ok || err != nil || len(before) == 0 {
		return ok, err
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(time.Second):
	}
	return each(func(v container.StatsResponse) {
		if b, known := before[v.ID]; known {
			v.PreCPUStats, v.PreRead = b.CPUStats, b.Read
			r, _ := s.add(v.ID, full)
			r.listed = true
			r.sample(&v)
		}
	})
}

func statsCmd(cli *CLI, c *cobra.Command) {
	var all, noStream, noTrunc bool
	var format string
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "Show all containers (default shows just running)")
	f.BoolVar(&noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not truncate output")
	formatFlag(c, &format)
	c.RunE = func(c *cobra.Command, args []string) error {
		if format == "" {
			format = cli.Config().StatsFormat
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		set := &statsSet{}
		if noStream && !all && len(args) == 0 {
			if ok, err := set.sampleAll(ctx, cl, noTrunc); err != nil {
				return err
			} else if ok {
				return renderStats(cli.Out, format, set.snapshot())
			}
		}
		refs := args
		if len(args) == 0 {
			q := url.Values{}
			if all {
				q.Set("all", "1")
			}
			list, err := client.Get[[]container.Summary](ctx, cl, "/containers/json", q)
			if err != nil {
				return err
			}
			for _, s := range list {
				refs = append(refs, s.ID)
			}
		}
		var wg sync.WaitGroup
		for _, ref := range refs {
			r, fresh := set.add(ref, noTrunc)
			if !fresh {
				continue
			}
			wg.Add(1)
			go set.watch(ctx, cl, r, !noStream, func(err error) {
				defer wg.Done()
				if err != nil {
					set.mu.Lock()
					set.errs = append(set.errs, err)
					set.mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(args) > 0 && len(set.errs) > 0 {
			return errors.Join(set.errs...)
		}
		if noStream {
			return renderStats(cli.Out, format, set.snapshot())
		}
		if len(args) == 0 {
			go set.follow(ctx, cl, all, noTrunc)
		}
		return liveStats(cli, ctx, set, format, len(args) > 0)
	}
}

func renderStats(w io.Writer, format string, rows []statsRow) error {
	return render(w, format, "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}", header{
		"Container": "CONTAINER", "Name": "NAME", "ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
		"NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
	}, rows)
}

// liveStats redraws the table twice a second.
func liveStats(cli *CLI, ctx context.Context, set *statsSet, format string, fixed bool) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		rows := set.snapshot()
		var table bytes.Buffer
		if err := renderStats(&table, format, rows); err != nil {
			return err
		}
		var out bytes.Buffer
		out.WriteString("\x1b[H")
		for _, l := range strings.SplitAfter(strings.TrimSuffix(table.String(), "\n"), "\n") {
			text, nl, _ := strings.Cut(l, "\n")
			out.WriteString(text + "\x1b[K\n" + nl)
		}
		out.WriteString("\x1b[J")
		if _, err := cli.Out.Write(out.Bytes()); err != nil {
			return err
		}
		if fixed && len(rows) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// follow adds containers as they come, and takes those away that end.
func (s *statsSet) follow(ctx context.Context, cl *client.Client, all, full bool) {
	res, err := cl.Do(ctx, client.Request{Method: http.MethodGet, Path: "/events", Query: url.Values{"filters": {`{"type":{"container":true}}`}}})
	if err != nil {
		return
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var m events.Message
		if dec.Decode(&m) != nil {
			return
		}
		switch {
		case m.Action == events.ActionStart, all && m.Action == events.ActionCreate:
			if r, fresh := s.add(m.Actor.ID, full); fresh {
				r.listed = true
				go s.watch(ctx, cl, r, true, func(error) {})
			}
		case m.Action == events.ActionDestroy, !all && m.Action == events.ActionDie:
			s.mu.Lock()
			for i, r := range s.rows {
				if r.ref == m.Actor.ID {
					s.rows = append(s.rows[:i:i], s.rows[i+1:]...)
					break
				}
			}
			s.mu.Unlock()
		}
	}
}
