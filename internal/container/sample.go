package container

import (
	"bytes"
	"math"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// A sample is read for each container of "stats", once a second and for all at
// the same time. It takes no more than opening, reading and closing some dozen
// small files, into one buffer.

// reader reads small files of the kernel.
type reader struct {
	path []byte
	dir  int // length of the directory in path
	buf  []byte
}

// pieceMin is what a read returns at least when there is more: the kernel
// fills most of a page before it stops.
const pieceMin = 3 << 10

var readers = sync.Pool{New: func() any { return &reader{buf: make([]byte, 16<<10)} }}

// in makes dir the directory of what is read from now on. "" is none.
func (r *reader) in(dir ...string) bool {
	r.path = r.path[:0]
	for _, d := range dir {
		r.path = append(r.path, d...)
	}
	r.path = append(r.path, '/')
	r.dir = len(r.path)
	return r.dir > 1
}

// text returns a file of the directory, nil when it is not there. It is valid until the
// next call.
func (r *reader) text(name string) []byte {
	r.path = append(r.path[:r.dir], name...)
	fd, err := unix.Open(string(r.path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	n := 0
	for {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		m, err := unix.Read(fd, r.buf[n:])
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if m <= 0 {
			break
		}
		n += m
		if m < pieceMin && n < len(r.buf) {
			break
		}
	}
	_ = unix.Close(fd)
	return r.buf[:n]
}

// number reads a file that holds one number; "max" is the greatest.
func (r *reader) number(name string) uint64 {
	b := bytes.TrimSpace(r.text(name))
	if string(b) == "max" {
		return math.MaxUint64
	}
	return number(b)
}

func number(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}

// fields calls f with each "name value" line.
func fields(text []byte, f func(name []byte, value uint64)) {
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
		if name, value, ok := bytes.Cut(line, []byte{' '}); ok {
			f(name, number(value))
		}
	}
}

func (r *reader) table(name string) map[string]uint64 {
	out := make(map[string]uint64, 48)
	fields(r.text(name), func(name []byte, value uint64) { out[string(name)] = value })
	return out
}

// sample reads the controllers' files now; nothing for one that does not run.
func (s Views) sample(c *Container) container.StatsResponse {
	st := c.Status()
	out := container.StatsResponse{Read: time.Now().UTC()}
	if !st.Phase.Running() {
		return out
	}
	r := readers.Get().(*reader) //nolint:errcheck // nothing else is in the pool
	defer readers.Put(r)
	if s.v2() {
		r.sampleV2("/sys/fs/cgroup", st.Cgroup, &out)
	} else {
		r.sampleV1(s, st.Cgroup, &out)
	}
	out.CPUStats.SystemUsage, out.CPUStats.OnlineCPUs = machine.cpu(r)
	if total := machine.memory(r); out.MemoryStats.Limit == 0 || out.MemoryStats.Limit > total {
		out.MemoryStats.Limit = total
	}
	if m := c.Record().HostConfig.NetworkMode; !m.IsHost() && !m.IsContainer() {
		out.Networks = r.networks(st.Pid)
	}
	return out
}

func (s Views) dirOf(controller string) string {
	if h := s.host.Hierarchy(controller); h != nil {
		return h.Path
	}
	return ""
}

const tick = uint64(time.Second / ticksPerSecond)

func (r *reader) sampleV1(s Views, cg string, out *container.StatsResponse) {
	at := func(controller string) bool {
		d := s.dirOf(controller)
		return d != "" && r.in(d, cg)
	}
	if at("cpuacct") {
		u := &out.CPUStats.CPUUsage
		u.TotalUsage = r.number("cpuacct.usage")
		for _, f := range bytes.Fields(r.text("cpuacct.usage_percpu")) {
			u.PercpuUsage = append(u.PercpuUsage, number(f))
		}
		fields(r.text("cpuacct.stat"), func(name []byte, v uint64) {
			switch string(name) {
			case "user":
				u.UsageInUsermode = v * tick
			case "system":
				u.UsageInKernelmode = v * tick
			}
		})
	}
	if at("cpu") {
		r.throttling(&out.CPUStats.ThrottlingData)
	}
	if at("memory") {
		m := &out.MemoryStats
		m.Usage, m.MaxUsage = r.number("memory.usage_in_bytes"), r.number("memory.max_usage_in_bytes")
		m.Failcnt, m.Limit = r.number("memory.failcnt"), r.number("memory.limit_in_bytes")
		m.Stats = r.table("memory.stat")
	}
	if at("pids") {
		p := &out.PidsStats
		p.Current, p.Limit = r.number("pids.current"), r.number("pids.max")
		if p.Limit == math.MaxUint64 {
			p.Limit = 0
		}
	}
	if at("blkio") {
		// With the scheduler's own accounting it is that which counts.
		b := &out.BlkioStats
		b.IoServiceBytesRecursive = blockV1(r.text("blkio.throttle.io_service_bytes_recursive"))
		b.IoServicedRecursive = blockV1(r.text("blkio.throttle.io_serviced_recursive"))
	}
}

func (r *reader) throttling(t *container.ThrottlingData) {
	fields(r.text("cpu.stat"), func(name []byte, v uint64) {
		switch string(name) {
		case "nr_periods":
			t.Periods = v
		case "nr_throttled":
			t.ThrottledPeriods = v
		case "throttled_time":
			t.ThrottledTime = v
		}
	})
}

func device(b []byte) (major, minor uint64) {
	x, y, _ := bytes.Cut(b, []byte{':'})
	return number(x), number(y)
}

func blockV1(text []byte) []container.BlkioStatEntry {
	out := []container.BlkioStatEntry{}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 3 {
			e := container.BlkioStatEntry{Op: string(f[1]), Value: number(f[2])}
			e.Major, e.Minor = device(f[0])
			out = append(out, e)
		}
	}
	return out
}

func (r *reader) sampleV2(root, cg string, out *container.StatsResponse) {
	r.in(root, cg)
	const micro = 1000
	u, t := &out.CPUStats.CPUUsage, &out.CPUStats.ThrottlingData
	fields(r.text("cpu.stat"), func(name []byte, v uint64) {
		switch string(name) {
		case "usage_usec":
			u.TotalUsage = v * micro
		case "user_usec":
			u.UsageInUsermode = v * micro
		case "system_usec":
			u.UsageInKernelmode = v * micro
		case "nr_periods":
			t.Periods = v
		case "nr_throttled":
			t.ThrottledPeriods = v
		case "throttled_usec":
			t.ThrottledTime = v * micro
		}
	})
	m := &out.MemoryStats
	m.Usage, m.Limit, m.Stats = r.number("memory.current"), r.number("memory.max"), r.table("memory.stat")
	fields(r.text("memory.events"), func(name []byte, v uint64) {
		if string(name) == "oom" {
			m.Failcnt = v
		}
	})
	out.PidsStats = container.PidsStats{Current: r.number("pids.current"), Limit: r.number("pids.max")}
	b := &out.BlkioStats
	for line := range bytes.Lines(r.text("io.stat")) {
		f := bytes.Fields(line)
		for i := 1; i < len(f); i++ {
			k, v, _ := bytes.Cut(f[i], []byte{'='})
			e := container.BlkioStatEntry{Value: number(v)}
			e.Major, e.Minor = device(f[0])
			switch string(k) {
			case "rbytes":
				e.Op = "read"
				b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, e)
			case "wbytes":
				e.Op = "write"
				b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, e)
			case "rios":
				e.Op = "read"
				b.IoServicedRecursive = append(b.IoServicedRecursive, e)
			case "wios":
				e.Op = "write"
				b.IoServicedRecursive = append(b.IoServicedRecursive, e)
			}
		}
	}
}

// networks reads the interfaces of a process's network namespace, lo left out.
func (r *reader) networks(pid int) map[string]container.NetworkStats {
	r.in("/proc/", strconv.Itoa(pid), "/net")
	var out map[string]container.NetworkStats
	for line := range bytes.Lines(r.text("dev")) {
		name, rest, ok := bytes.Cut(line, []byte{':'})
		name = bytes.TrimSpace(name)
		f := bytes.Fields(rest)
		if !ok || string(name) == "lo" || len(f) < 12 {
			continue
		}
		if out == nil {
			out = map[string]container.NetworkStats{}
		}
		n := func(i int) uint64 { return number(f[i]) }
		out[string(name)] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3), TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	return out
}

// machineUse is what all samples of a moment have in common.
type machineUse struct {
	mu     sync.Mutex
	at     time.Time
	ns     uint64
	online uint32
	total  uint64
}

var machine machineUse

// machineFresh is how old the machine's use may be: it is divided by what a
// container has used in a second, and one reading costs as much as a sample.
const machineFresh = 2 * time.Millisecond

// cpu is the time that all processors have spent, in nanoseconds, and their
// number: what Docker's clients divide by.
func (m *machineUse) cpu(r *reader) (ns uint64, online uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < machineFresh {
		return m.ns, m.online
	}
	r.in("/proc")
	ns, online = processors(r.text("stat"))
	if online == 0 {
		online = uint32(runtime.NumCPU())
	}
	m.at, m.ns, m.online = time.Now(), ns, online
	return ns, online
}

// processors reads /proc/stat.
func processors(text []byte) (ns uint64, online uint32) {
	for line := range bytes.Lines(text) {
		v := bytes.Fields(line)
		if len(v) < 8 || !bytes.HasPrefix(v[0], []byte("cpu")) {
			break
		}
		if len(v[0]) > 3 {
			online++
			continue
		}
		for _, x := range v[1:8] {
			ns += number(x) * tick
		}
	}
	return ns, online
}

// memory is the machine's memory in bytes.
func (m *machineUse) memory(r *reader) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total == 0 {
		r.in("/proc")
		for line := range bytes.Lines(r.text("meminfo")) {
			if v, ok := bytes.CutPrefix(line, []byte("MemTotal:")); ok {
				m.total = number(bytes.Fields(v)[0]) << 10
			}
		}
	}
	return m.total
}
