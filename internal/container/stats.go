package container

import (
	"bufio"
	"context"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

// StatsOptions say how often usage is told.
type StatsOptions struct {
	Stream  bool // once a second until the client goes; else once
	OneShot bool // at once, without the sample before that a rate needs
}

// Stats tells what a container uses.
func (s Views) Stats(ctx context.Context, ref string, o StatsOptions, emit func(container.StatsResponse) error) error {
	if o.Stream && o.OneShot {
		return errs.New(errs.Invalid, "cannot have stream=true and one-shot=true")
	}
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	r := c.Record()
	name := func(x *container.StatsResponse) *container.StatsResponse {
		x.ID, x.Name, x.OSType = string(r.ID), "/"+r.Name, "linux"
		return x
	}
	if !c.Status().Phase.Running() && !o.Stream {
		return emit(*name(&container.StatsResponse{}))
	}
	prev := s.sample(c)
	if o.OneShot {
		return emit(*name(&prev))
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	first := true
	for {
		if o.Stream && first {
			if err := emit(*name(&prev)); err != nil {
				return err
			}
			first = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.isGone() {
			return nil
		}
		cur := s.sample(c)
		cur.PreCPUStats, cur.PreRead = prev.CPUStats, prev.Read
		if err := emit(*name(&cur)); err != nil {
			return err
		}
		if !o.Stream {
			return nil
		}
		prev = cur
	}
}

// sample reads the controllers' files now; nothing for one that does not run.
func (s Views) sample(c *Container) container.StatsResponse {
	st := c.Status()
	out := container.StatsResponse{Read: time.Now().UTC()}
	if !st.Phase.Running() {
		return out
	}
	if s.v2() {
		s.sampleV2("/sys/fs/cgroup"+st.Cgroup, &out)
	} else {
		s.sampleV1(st.Cgroup, &out)
	}
	out.CPUStats.SystemUsage, out.CPUStats.OnlineCPUs = systemCPU()
	if out.MemoryStats.Limit == 0 || out.MemoryStats.Limit > hostMemory() {
		out.MemoryStats.Limit = hostMemory()
	}
	if m := c.Record().HostConfig.NetworkMode; !m.IsHost() && !m.IsContainer() {
		out.Networks = netStats(st.Pid)
	}
	return out
}

func (s Views) dirOf(controller, cgroup string) string {
	if h := s.host.Hierarchy(controller); h != nil {
		return h.Path + cgroup
	}
	return ""
}

func readUint(file string) uint64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	text := strings.TrimSpace(string(raw))
	if text == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// readMap reads a file of "name value" lines.
func readMap(file string) map[string]uint64 {
	out := map[string]uint64{}
	raw, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) == 2 {
			out[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return out
}

func (s Views) sampleV1(cg string, out *container.StatsResponse) {
	if d := s.dirOf("cpuacct", cg); d != "" {
		u := &out.CPUStats.CPUUsage
		u.TotalUsage = readUint(d + "/cpuacct.usage")
		raw, _ := os.ReadFile(d + "/cpuacct.usage_percpu")
		for _, f := range strings.Fields(string(raw)) {
			n, _ := strconv.ParseUint(f, 10, 64)
			u.PercpuUsage = append(u.PercpuUsage, n)
		}
		m := readMap(d + "/cpuacct.stat")
		const tick = uint64(time.Second / ticksPerSecond)
		u.UsageInUsermode, u.UsageInKernelmode = m["user"]*tick, m["system"]*tick
	}
	if d := s.dirOf("cpu", cg); d != "" {
		m := readMap(d + "/cpu.stat")
		out.CPUStats.ThrottlingData = container.ThrottlingData{Periods: m["nr_periods"], ThrottledPeriods: m["nr_throttled"], ThrottledTime: m["throttled_time"]}
	}
	if d := s.dirOf("memory", cg); d != "" {
		out.MemoryStats = container.MemoryStats{
			Usage: readUint(d + "/memory.usage_in_bytes"), MaxUsage: readUint(d + "/memory.max_usage_in_bytes"),
			Failcnt: readUint(d + "/memory.failcnt"), Limit: readUint(d + "/memory.limit_in_bytes"), Stats: readMap(d + "/memory.stat"),
		}
	}
	if d := s.dirOf("pids", cg); d != "" {
		out.PidsStats = container.PidsStats{Current: readUint(d + "/pids.current"), Limit: readUint(d + "/pids.max")}
	}
	if d := s.dirOf("blkio", cg); d != "" {
		out.BlkioStats.IoServiceBytesRecursive = blkioV1(d + "/blkio.throttle.io_service_bytes_recursive")
		out.BlkioStats.IoServicedRecursive = blkioV1(d + "/blkio.throttle.io_serviced_recursive")
	}
}

func blkioV1(file string) []container.BlkioStatEntry {
	out := []container.BlkioStatEntry{}
	raw, _ := os.ReadFile(file)
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		major, minor, _ := strings.Cut(f[0], ":")
		e := container.BlkioStatEntry{Op: f[1]}
		e.Major, _ = strconv.ParseUint(major, 10, 64)
		e.Minor, _ = strconv.ParseUint(minor, 10, 64)
		e.Value, _ = strconv.ParseUint(f[2], 10, 64)
		out = append(out, e)
	}
	return out
}

func (s Views) sampleV2(d string, out *container.StatsResponse) {
	m := readMap(d + "/cpu.stat")
	const micro = 1000
	out.CPUStats.CPUUsage = container.CPUUsage{TotalUsage: m["usage_usec"] * micro, UsageInUsermode: m["user_usec"] * micro, UsageInKernelmode: m["system_usec"] * micro}
	out.CPUStats.ThrottlingData = container.ThrottlingData{Periods: m["nr_periods"], ThrottledPeriods: m["nr_throttled"], ThrottledTime: m["throttled_usec"] * micro}
	out.MemoryStats = container.MemoryStats{
		Usage: readUint(d + "/memory.current"), Limit: readUint(d + "/memory.max"), Stats: readMap(d + "/memory.stat"),
		Failcnt: readMap(d + "/memory.events")["oom"],
	}
	out.PidsStats = container.PidsStats{Current: readUint(d + "/pids.current"), Limit: readUint(d + "/pids.max")}
	raw, _ := os.ReadFile(d + "/io.stat")
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		major, minor, _ := strings.Cut(f[0], ":")
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			e := container.BlkioStatEntry{}
			e.Major, _ = strconv.ParseUint(major, 10, 64)
			e.Minor, _ = strconv.ParseUint(minor, 10, 64)
			e.Value, _ = strconv.ParseUint(v, 10, 64)
			b := &out.BlkioStats
			switch k {
			case "rbytes", "wbytes":
				e.Op = map[string]string{"rbytes": "read", "wbytes": "write"}[k]
				b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, e)
			case "rios", "wios":
				e.Op = map[string]string{"rios": "read", "wios": "write"}[k]
				b.IoServicedRecursive = append(b.IoServicedRecursive, e)
			}
		}
	}
}

// systemCPU is the time that all processors have spent, in nanoseconds, and
// their number: what Docker's clients divide by.
func systemCPU() (ns uint64, online uint32) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, uint32(runtime.NumCPU())
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		v := strings.Fields(sc.Text())
		if len(v) < 8 || !strings.HasPrefix(v[0], "cpu") {
			break
		}
		if v[0] != "cpu" {
			online++
			continue
		}
		for _, x := range v[1:8] {
			n, _ := strconv.ParseUint(x, 10, 64)
			ns += n * uint64(time.Second/ticksPerSecond)
		}
	}
	return ns, online
}

func hostMemory() uint64 {
	raw, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, _ := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			return n * 1024
		}
	}
	return 0
}

// netStats reads the interfaces of a process's network namespace, lo left out.
func netStats(pid int) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	raw, _ := os.ReadFile("/proc/" + itoa(pid) + "/net/dev")
	for line := range strings.Lines(string(raw)) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		out[name] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3), TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
