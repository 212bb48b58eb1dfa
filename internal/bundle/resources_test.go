package bundle

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/enginetest"
	"berth.dev/berth/internal/runtime"
)

// Limits that only a configuration can ask for arrive in the kernel.
func TestResources(t *testing.T) {
	h := newHost(t)
	host, err := runtime.ReadHost()
	h.must(err)
	limit, huge, class, weight := int64(64<<20), uint64(4<<20), uint32(0x100001), uint64(1024)
	pids := int64(50)
	h.spec.Process.Args = []string{"sleep", "1000"}
	h.spec.Linux.CgroupsPath = "/berth-bundle-test/" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { runtime.NewCgroups(host).RemoveParent("/berth-bundle-test") })
	res := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}, CPU: &specs.LinuxCPU{Shares: &weight},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
	}
	h.spec.Linux.Resources = res
	// Beside v1, controllers of the unified hierarchy are not used.
	hierarchy := func(controller string) *runtime.Hierarchy {
		if y := host.Hierarchy(controller); y != nil && y.Unified == host.CgroupV2 {
			return y
		}
		return nil
	}
	have := func(controller string) bool { return hierarchy(controller) != nil }
	if have("hugetlb") {
		res.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: huge}}
	}
	if have("net_cls") {
		res.Network = &specs.LinuxNetwork{ClassID: &class}
	}
	want := map[string]string{"memory/memory.limit_in_bytes": "67108864", "pids/pids.max": "50", "cpu/cpu.shares": "1024", "hugetlb/hugetlb.2MB.limit_in_bytes": "4194304", "net_cls/net_cls.classid": "1048577"}
	if enginetest.CgroupV2() {
		res.Unified = map[string]string{"memory.high": "33554432", "memory.oom.group": "1"}
		want = map[string]string{"memory/memory.max": "67108864", "pids/pids.max": "50", "cpu/cpu.weight": "100", "hugetlb/hugetlb.2MB.max": "4194304", "memory/memory.high": "33554432", "memory/memory.oom.group": "1"}
	}
	h.ok("create", "r")
	for name, v := range want {
		controller, file, _ := strings.Cut(name, "/")
		y := hierarchy(controller)
		if y == nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(y.Path, h.spec.Linux.CgroupsPath, file))
		if got := strings.TrimSpace(string(raw)); err != nil || got != v {
			t.Errorf("%s is %q, want %q (%v)", file, got, v, err)
		}
	}
	h.ok("delete", "--force", "r")
	if !enginetest.CgroupV2() {
		res.Unified = map[string]string{"memory.high": "33554432"}
		if out, code := h.run("create", "r"); code == 0 || !strings.Contains(out, "cannot use unified on cgroup v1") {
			t.Errorf("unified on v1: %d %q", code, out)
		}
	}
}
