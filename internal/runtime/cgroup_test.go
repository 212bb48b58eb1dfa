package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type specsDevice = specs.LinuxDevice

// fakeCgroups is a cgroup file system of plain files: what is written can be read back.
func fakeCgroups(t *testing.T, v2 bool, files ...string) (*Cgroups, *Cgroup, func(string) string) {
	t.Helper()
	dir := t.TempDir()
	h := &Host{CgroupV2: v2}
	if v2 {
		h.Hierarchies = []Hierarchy{{Name: "unified", Path: dir, Unified: true, Controllers: []string{"cpu", "memory", "io", "pids", "cpuset"}}}
	} else {
		h.Hierarchies = []Hierarchy{{Name: "all", Path: dir, Controllers: []string{"cpu", "memory", "blkio", "pids", "cpuset", "devices", "freezer", "hugetlb", "rdma", "net_cls", "net_prio"}}}
	}
	g := &Cgroup{Rel: "/g", V2FD: -1, View: -1}
	if err := os.Mkdir(dir+"/g", 0o755); err != nil {
		t.Fatal(err)
	}
	if v2 {
		g.V2 = dir + "/g"
	} else {
		g.V1 = []string{dir + "/g"}
	}
	for _, f := range files {
		if err := os.WriteFile(dir+"/g/"+f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return NewCgroups(h), g, func(f string) string {
		raw, err := os.ReadFile(dir + "/g/" + f)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
}

var (
	v1Files = []string{
		"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.swappiness", "memory.oom_control", "cpu.shares",
		"cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us", "cpu.rt_runtime_us", "cpuset.cpus", "cpuset.mems", "pids.max", "blkio.weight", "blkio.weight_device", "cpu.idle", "cpu.cfs_burst_us",
		"hugetlb.2MB.limit_in_bytes", "rdma.max", "net_cls.classid", "net_prio.ifpriomap", "blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device", "devices.allow", "devices.deny",
	}
	v2Files = []string{"memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "pids.max", "io.weight", "io.max", "memory.high", "hugetlb.2MB.max", "rdma.max", "cpu.idle", "cpu.max.burst"}
)

func TestApply(t *testing.T) {
	dev := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 16
		return []specs.LinuxThrottleDevice{d}
	}
	cases := []struct {
		name string
		r    specs.LinuxResources
		v1   map[string]string
		v2   map[string]string
	}{
		{
			"memory",
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(300)), Reservation: ptr(int64(50))}},
			map[string]string{"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "300", "memory.soft_limit_in_bytes": "50"},
			map[string]string{"memory.max": "100", "memory.swap.max": "200", "memory.low": "50"},
		},
		{
			"memory, unlimited swap",
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(-1))}},
			map[string]string{"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "-1"},
			map[string]string{"memory.max": "100", "memory.swap.max": "max"},
		},
		{
			"memory, no swap",
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))}},
			map[string]string{"memory.memsw.limit_in_bytes": "100"},
			map[string]string{"memory.max": "100", "memory.swap.max": "0"},
		},
		{
			"cpu",
			specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Period: ptr(uint64(100000)), Quota: ptr(int64(50000)), Cpus: "0-1", Mems: "0"}},
			map[string]string{"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000", "cpuset.cpus": "0-1", "cpuset.mems": "0"},
			map[string]string{"cpu.weight": "100", "cpu.max": "50000 100000", "cpuset.cpus": "0-1", "cpuset.mems": "0"},
		},
		{
			"cpu, quota only",
			specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(20000))}},
			map[string]string{"cpu.cfs_quota_us": "20000", "cpu.cfs_period_us": ""},
			map[string]string{"cpu.max": "20000 100000"},
		},
		{
			"cpu, no quota",
			specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}},
			map[string]string{"cpu.cfs_quota_us": "-1"},
			map[string]string{"cpu.max": "max 100000"},
		},
		{
			"pids",
			specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(7))}},
			map[string]string{"pids.max": "7"},
			map[string]string{"pids.max": "7"},
		},
		{
			"pids, unlimited",
			specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}},
			map[string]string{"pids.max": "max"},
			map[string]string{"pids.max": "max"},
		},
		{
			"block devices",
			specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500)), ThrottleReadBpsDevice: dev(4096)}},
			map[string]string{"blkio.weight": "500", "blkio.throttle.read_bps_device": "8:16 4096"},
			map[string]string{"io.weight": "4950", "io.max": "8:16 rbps=4096"},
		},
		{
			"write iops",
			specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteIOPSDevice: dev(9)}},
			map[string]string{"blkio.throttle.write_iops_device": "8:16 9"},
			map[string]string{"io.max": "8:16 wiops=9"},
		},
		{
			"weights of devices",
			specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{weighted(8, 16, 100)}}},
			map[string]string{"blkio.weight_device": "8:16 100"},
			map[string]string{"io.weight": "8:16 910"},
		},
		{
			"huge pages",
			specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}},
			map[string]string{"hugetlb.2MB.limit_in_bytes": "4194304"},
			map[string]string{"hugetlb.2MB.max": "4194304"},
		},
		{
			"rdma",
			specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr(uint32(3)), HcaObjects: ptr(uint32(4))}}},
			map[string]string{"rdma.max": "mlx5_1 hca_handle=3 hca_object=4"},
			map[string]string{"rdma.max": "mlx5_1 hca_handle=3 hca_object=4"},
		},
		{
			"network",
			specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1048577)), Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 5}}}},
			map[string]string{"net_cls.classid": "1048577", "net_prio.ifpriomap": "lo 5"},
			nil,
		},
		{
			"burst and idle",
			specs.LinuxResources{CPU: &specs.LinuxCPU{Burst: ptr(uint64(500)), Idle: ptr(int64(1))}},
			map[string]string{"cpu.cfs_burst_us": "500", "cpu.idle": "1"},
			map[string]string{"cpu.max.burst": "500", "cpu.idle": "1"},
		},
		{
			"no memory limit",
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}, Pids: &specs.LinuxPids{}},
			map[string]string{"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1", "pids.max": ""},
			map[string]string{"memory.max": "max", "memory.swap.max": "max", "pids.max": ""},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for v2, want := range map[bool]map[string]string{false: c.v1, true: c.v2} {
				files := v1Files
				if v2 {
					files = v2Files
				}
				cg, g, read := fakeCgroups(t, v2, files...)
				if err := cg.Apply(g, &c.r); err != nil {
					t.Fatal(err)
				}
				for f, v := range want {
					if got := read(f); got != v {
						t.Errorf("v2=%v: %s holds %q, want %q", v2, f, got, v)
					}
				}
			}
		})
	}
	cg, g, read := fakeCgroups(t, true, v2Files...)
	for _, refused := range []specs.LinuxResources{
		{Unified: map[string]string{"../memory.max": "1"}},
		{Memory: &specs.LinuxMemory{Swap: ptr(int64(5))}},
		{Memory: &specs.LinuxMemory{Limit: ptr(int64(6)), Swap: ptr(int64(5))}},
	} {
		if err := cg.Apply(g, &refused); err == nil {
			t.Errorf("%+v is accepted", refused)
		}
	}
	if err := cg.Apply(g, &specs.LinuxResources{Unified: map[string]string{"memory.high": "77", "cpu.max": "max"}}); err != nil || read("memory.high") != "77" {
		t.Errorf("unified: %v, %q", err, read("memory.high"))
	}
	if err := cg.Apply(g, nil); err != nil {
		t.Error(err)
	}
	cg, g, read = fakeCgroups(t, false, v1Files...)
	if err := cg.Apply(g, &specs.LinuxResources{Unified: map[string]string{"memory.high": "77"}}); err == nil {
		t.Error("unified resources are accepted on v1")
	}
	if err := cg.Apply(g, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: ptr(int64(10)), Access: "rw"}, {Type: "a"}}}); err != nil ||
		read("devices.allow") != "c 10:* rw" || read("devices.deny") != "a" {
		t.Errorf("devices: %v, %q %q", err, read("devices.allow"), read("devices.deny"))
	}
}

func weighted(major, minor int64, w uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &w}
	d.Major, d.Minor = major, minor
	return d
}

// A kernel that does not count swap: "unlimited" needs no file, a limit does.
func TestNoSwapAccounting(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		cg, g, _ := fakeCgroups(t, v2, "memory.limit_in_bytes", "memory.max")
		if err := cg.Apply(g, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(-1))}}); err != nil {
			t.Errorf("v2=%v: %v", v2, err)
		}
		if err := cg.Apply(g, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(200))}}); err == nil {
			t.Errorf("v2=%v: a swap limit is set by nothing", v2)
		}
	}
}

// Memory must be lowered before memory+swap, and raised after it.
func TestMemoryOrder(t *testing.T) {
	cg, g, _ := fakeCgroups(t, false, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
	dir := g.V1[0]
	for _, c := range []struct {
		current string
		swap    int64
		first   string // the file that is written first: the other one is missing then
	}{{"100", 300, "memory.memsw.limit_in_bytes"}, {"500", 300, "memory.limit_in_bytes"}, {"500", -1, "memory.memsw.limit_in_bytes"}} {
		if err := os.WriteFile(dir+"/memory.memsw.limit_in_bytes", []byte(c.current), 0o644); err != nil {
			t.Fatal(err)
		}
		err := cg.Apply(g, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(50)), Swap: &c.swap}})
		if err != nil {
			t.Fatal(err)
		}
		// Make the second write fail and see which one had been done.
		blocked := "memory.limit_in_bytes"
		if c.first == blocked {
			blocked = "memory.memsw.limit_in_bytes"
		}
		keep := filepath.Join(dir, "kept")
		if c.first == "memory.limit_in_bytes" {
			continue // reading the present value needs the other file
		}
		if err := os.Rename(filepath.Join(dir, blocked), keep); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/memory.memsw.limit_in_bytes", []byte(c.current), 0o644); err != nil {
			t.Fatal(err)
		}
		err = cg.Apply(g, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(50)), Swap: &c.swap}})
		if err == nil || !strings.Contains(err.Error(), blocked) {
			t.Errorf("%+v: %v, want a failure of %s", c, err, blocked)
		}
		if err := os.Rename(keep, filepath.Join(dir, blocked)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSharesToWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 512: 59, 262144: 10000, 1 << 40: 10000} {
		if got := SharesToWeight(shares); got != want {
			t.Errorf("%d: %d, want %d", shares, got, want)
		}
	}
	last := uint64(0)
	for s := uint64(2); s <= 262144; s += 97 {
		w := SharesToWeight(s)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("%d: %d after %d", s, w, last)
		}
		last = w
	}
}

func TestDeviceRule(t *testing.T) {
	for want, d := range map[string]specs.LinuxDeviceCgroup{
		"a": {Allow: true}, "c *:* rwm": {Type: "c"}, "c 1:3 r": {Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "r"},
		"b 8:* rw": {Type: "b", Major: ptr(int64(8)), Minor: ptr(int64(-1)), Access: "rw"},
	} {
		if got := deviceRule(d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestOOMKills(t *testing.T) {
	for v2, f := range map[bool]string{false: "memory.oom_control", true: "memory.events"} {
		cg, g, _ := fakeCgroups(t, v2)
		dir := g.V2
		if !v2 {
			dir = g.V1[0]
		}
		if n := cg.OOMKills(g); n != 0 {
			t.Errorf("no file: %d", n)
		}
		text := "low 0\noom 4\noom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
		if err := os.WriteFile(dir+"/"+f, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if n := cg.OOMKills(g); n != 3 {
			t.Errorf("v2=%v: %d, want 3", v2, n)
		}
	}
}

// A parent that somebody removes is made again.
func TestMakeWithoutParent(t *testing.T) {
	cg, _, _ := fakeCgroups(t, false)
	for range 2 {
		g, err := cg.Make("/parent/child")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Dir(g.V1[0])); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that has got the number of one that was in the cgroup stays alive.
func TestKillSparesOthers(t *testing.T) {
	cg, g, _ := fakeCgroups(t, false)
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	pid := cmd.Process.Pid
	if err := cg.Signal(g, []int{pid}, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
		t.Fatal("a process that is not in the cgroup was killed")
	case <-time.After(50 * time.Millisecond):
	}
	if err := os.WriteFile(g.V1[0]+"/cgroup.procs", []byte(fmt.Sprintln(pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := cg.Signal(g, []int{pid}, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a member was not killed")
		_ = cmd.Process.Kill()
	}
}
