package bundle

import (
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/runtime"
)

// event is one line of the command events, in runc's form.
type event struct {
	Type string `json:"type"` // stats or oom
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

type usageCPU struct {
	Total  uint64   `json:"total"` // nanoseconds, as the two below
	Percpu []uint64 `json:"percpu,omitempty"`
	Kernel uint64   `json:"kernel"`
	User   uint64   `json:"user"`
}

type throttling struct {
	Periods          uint64 `json:"periods,omitempty"`
	ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
	ThrottledTime    uint64 `json:"throttledTime,omitempty"` // nanoseconds
}

type usageMemory struct {
	Limit uint64 `json:"limit"` // bytes, as the next two
	Usage uint64 `json:"usage,omitempty"`
	Max   uint64 `json:"max,omitempty"`
	Fails uint64 `json:"failcnt"`
}

type stats struct {
	CPU struct {
		Usage      usageCPU   `json:"usage"`
		Throttling throttling `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Cache uint64            `json:"cache,omitempty"`
		Usage usageMemory       `json:"usage"`
		Swap  usageMemory       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
}

// cmdEvents prints what a container uses, again and again until it ends, and when the
// kernel killed one of its processes for want of memory.
func (p *program) cmdEvents(args []string) error {
	interval := 5 * time.Second
	once := false
	f := newFlags("events")
	f.DurationVar(&interval, "interval", interval, "")
	f.yes(&once, "stats")
	rest, err := f.all(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New(`"events" requires exactly 1 argument`)
	}
	if interval <= 0 {
		return errors.New("duration interval must be greater than 0")
	}
	r, err := p.load(rest[0])
	if err != nil {
		return err
	}
	if !r.alive() {
		return errors.New("container with id " + r.ID + " is not running")
	}
	c, err := cgroups()
	if err != nil {
		return err
	}
	g := c.Find(r.Cgroup)
	enc := json.NewEncoder(p.out)
	kills := c.OOMKills(g)
	var last time.Time
	for ; r.alive(); time.Sleep(min(interval, 100*time.Millisecond)) {
		if n := c.OOMKills(g); n > kills {
			kills = n
			if err := enc.Encode(event{Type: "oom", ID: r.ID}); err != nil {
				return err
			}
		}
		if time.Since(last) < interval {
			continue
		}
		last = time.Now()
		if err := enc.Encode(event{Type: "stats", ID: r.ID, Data: readStats(g)}); err != nil || once {
			return err
		}
	}
	return nil
}

// readStats reads a container's cgroups, of whichever version.
func readStats(g *runtime.Cgroup) *stats {
	s := &stats{}
	at := func(file string) string {
		for _, dir := range append([]string{g.V2}, g.V1...) {
			if dir == "" {
				continue
			}
			if _, err := os.Stat(dir + "/" + file); err == nil {
				return dir + "/" + file
			}
		}
		return ""
	}
	num := func(file string) uint64 {
		raw, _ := os.ReadFile(at(file))
		n, _ := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
		return n
	}
	table := func(file string) map[string]uint64 {
		raw, _ := os.ReadFile(at(file))
		m := map[string]uint64{}
		for line := range strings.Lines(string(raw)) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
				m[k], _ = strconv.ParseUint(v, 10, 64)
			}
		}
		return m
	}
	s.Pids.Current, s.Pids.Limit = num("pids.current"), num("pids.max")
	if at("memory.current") != "" {
		cpu := table("cpu.stat")
		s.CPU.Usage = usageCPU{Total: cpu["usage_usec"] * 1000, User: cpu["user_usec"] * 1000, Kernel: cpu["system_usec"] * 1000}
		s.CPU.Throttling = throttling{cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"] * 1000}
		s.Memory.Raw = table("memory.stat")
		s.Memory.Cache = s.Memory.Raw["file"]
		s.Memory.Usage = usageMemory{Limit: num("memory.max"), Usage: num("memory.current"), Max: num("memory.peak")}
		s.Memory.Swap = usageMemory{Limit: num("memory.swap.max"), Usage: num("memory.swap.current")}
		return s
	}
	const tick = 10_000_000 // nanoseconds, USER_HZ
	used := table("cpuacct.stat")
	s.CPU.Usage = usageCPU{Total: num("cpuacct.usage"), User: used["user"] * tick, Kernel: used["system"] * tick}
	raw, _ := os.ReadFile(at("cpuacct.usage_percpu"))
	for _, f := range strings.Fields(string(raw)) {
		n, _ := strconv.ParseUint(f, 10, 64)
		s.CPU.Usage.Percpu = append(s.CPU.Usage.Percpu, n)
	}
	cpu := table("cpu.stat")
	s.CPU.Throttling = throttling{cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_time"]}
	s.Memory.Raw = table("memory.stat")
	s.Memory.Cache = s.Memory.Raw["cache"]
	s.Memory.Usage = usageMemory{num("memory.limit_in_bytes"), num("memory.usage_in_bytes"), num("memory.max_usage_in_bytes"), num("memory.failcnt")}
	s.Memory.Swap = usageMemory{num("memory.memsw.limit_in_bytes"), num("memory.memsw.usage_in_bytes"), num("memory.memsw.max_usage_in_bytes"), num("memory.memsw.failcnt")}
	return s
}
