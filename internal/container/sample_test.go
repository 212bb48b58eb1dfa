package container

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/runtime"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSampleV2(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir+"/g", map[string]string{
		"cpu.stat":       "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 3\nthrottled_usec 11\n",
		"memory.current": "8192\n", "memory.max": "max\n", "memory.stat": "anon 4096\nfile 100\ninactive_file 77\n", "memory.events": "low 0\noom 2\noom_kill 1\n",
		"pids.current": "4\n", "pids.max": "max\n",
		"io.stat": "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n259:0 rbytes=9\n",
	})
	var out container.StatsResponse
	r := &reader{buf: make([]byte, 64)} // too small for some
	r.sampleV2(dir, "/g", &out)
	entry := func(major uint64, op string, v uint64) container.BlkioStatEntry {
		e := container.BlkioStatEntry{Major: major, Op: op, Value: v}
		if major == 8 {
			e.Minor = 16
		}
		return e
	}
	want := container.StatsResponse{
		CPUStats: container.CPUStats{
			CPUUsage:       container.CPUUsage{TotalUsage: 5e6, UsageInUsermode: 3e6, UsageInKernelmode: 2e6},
			ThrottlingData: container.ThrottlingData{Periods: 7, ThrottledPeriods: 3, ThrottledTime: 11000},
		},
		MemoryStats: container.MemoryStats{Usage: 8192, Limit: math.MaxUint64, Stats: map[string]uint64{"anon": 4096, "file": 100, "inactive_file": 77}, Failcnt: 2},
		PidsStats:   container.PidsStats{Current: 4, Limit: math.MaxUint64},
		BlkioStats: container.BlkioStats{
			IoServiceBytesRecursive: []container.BlkioStatEntry{entry(8, "read", 1), entry(8, "write", 2), entry(259, "read", 9)},
			IoServicedRecursive:     []container.BlkioStatEntry{entry(8, "read", 3), entry(8, "write", 4)},
		},
	}
	if !reflect.DeepEqual(out, want) {
		t.Errorf("%+v\nwant %+v", out, want)
	}
}

func TestSampleV1(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir+"/g", map[string]string{
		"cpuacct.usage": "5000\n", "cpuacct.usage_percpu": "2000 3000 \n", "cpuacct.stat": "user 3\nsystem 2\n",
		"cpu.stat":              "nr_periods 7\nnr_throttled 3\nthrottled_time 11\n",
		"memory.usage_in_bytes": "8192\n", "memory.max_usage_in_bytes": "9000\n", "memory.failcnt": "6\n", "memory.limit_in_bytes": "10000\n", "memory.stat": "cache 1\ntotal_inactive_file 2\n",
		"pids.current": "4\n", "pids.max": "max\n",
		"blkio.throttle.io_service_bytes_recursive": "8:16 Read 1\n8:16 Write 2\nTotal 3\n", "blkio.throttle.io_serviced_recursive": "8:16 Read 3\nTotal 3\n",
	})
	s := testService()
	s.host = &runtime.Host{Hierarchies: []runtime.Hierarchy{{Path: dir, Controllers: []string{"cpu", "cpuacct", "memory", "pids", "blkio"}}}}
	var out container.StatsResponse
	r := &reader{buf: make([]byte, 64)}
	r.sampleV1(Views{s}, "/g", &out)
	entry := func(op string, v uint64) container.BlkioStatEntry {
		return container.BlkioStatEntry{Major: 8, Minor: 16, Op: op, Value: v}
	}
	want := container.StatsResponse{
		CPUStats: container.CPUStats{
			CPUUsage:       container.CPUUsage{TotalUsage: 5000, PercpuUsage: []uint64{2000, 3000}, UsageInUsermode: 3 * tick, UsageInKernelmode: 2 * tick},
			ThrottlingData: container.ThrottlingData{Periods: 7, ThrottledPeriods: 3, ThrottledTime: 11},
		},
		MemoryStats: container.MemoryStats{Usage: 8192, MaxUsage: 9000, Failcnt: 6, Limit: 10000, Stats: map[string]uint64{"cache": 1, "total_inactive_file": 2}},
		PidsStats:   container.PidsStats{Current: 4},
		BlkioStats: container.BlkioStats{
			IoServiceBytesRecursive: []container.BlkioStatEntry{entry("Read", 1), entry("Write", 2)},
			IoServicedRecursive:     []container.BlkioStatEntry{entry("Read", 3)},
		},
	}
	if !reflect.DeepEqual(out, want) {
		t.Errorf("%+v\nwant %+v", out, want)
	}
}

func TestProcessors(t *testing.T) {
	ns, online := processors([]byte("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n"))
	if ns != 28*tick || online != 2 {
		t.Errorf("%d %d", ns, online)
	}
}

// BenchmarkSample reads the cgroups and the interfaces of this process: what
// one line of "stats" costs the engine.
func BenchmarkSample(b *testing.B) {
	host, err := runtime.ReadHost()
	if err != nil {
		b.Fatal(err)
	}
	s := testService()
	s.host = host
	cg := "/"
	for _, h := range host.Hierarchies {
		if h.Has("memory") || h.Unified && host.CgroupV2 {
			cg = h.Self
		}
	}
	c := &Container{}
	c.rec.Store(&Record{HostConfig: &container.HostConfig{}})
	c.st.Store(&Status{Phase: Running, Pid: os.Getpid(), Cgroup: cg})
	b.ReportAllocs()
	for b.Loop() {
		if x := (Views{s}).sample(c); x.CPUStats.SystemUsage == 0 {
			b.Fatal("nothing read")
		}
	}
}
