package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Support is what this kernel, with the controllers that are mounted, can limit.
type Support struct {
	Memory, Swap, Reservation  bool
	Swappiness, OOMKillDisable bool
	CPUShares, CPUCfs, Cpuset  bool
	Pids                       bool
	BlkioWeight, WeightDevice  bool
	ReadBps, WriteBps          bool
	ReadIOps, WriteIOps        bool
	Cpus, Mems                 string // processors and memory nodes, such as "0-3"
	CPURealtime                bool
}

// Support looks at the controllers' files. On v2 some of them exist only below
// the root, so there should be a cgroup of the engine's already.
func (h *Host) Support() *Support {
	s := &Support{}
	if h.CgroupV2 {
		h.supportV2(s)
		return s
	}
	have := func(controller string, files ...string) bool {
		y := h.Hierarchy(controller)
		return y != nil && slices.ContainsFunc(files, func(f string) bool {
			_, err := os.Stat(filepath.Join(y.Path, f))
			return err == nil
		})
	}
	*s = Support{
		Memory: have("memory", "memory.limit_in_bytes"), Swap: have("memory", memswLimit), Reservation: have("memory", "memory.soft_limit_in_bytes"),
		Swappiness: have("memory", "memory.swappiness"), OOMKillDisable: have("memory", "memory.oom_control"),
		CPUShares: have("cpu", "cpu.shares"), CPUCfs: have("cpu", "cpu.cfs_quota_us"), CPURealtime: have("cpu", "cpu.rt_runtime_us"),
		Cpuset: have("cpuset", "cpuset.cpus"), Pids: h.Hierarchy("pids") != nil,
		BlkioWeight:  have("blkio", "blkio.weight", "blkio.bfq.weight"),
		WeightDevice: have("blkio", "blkio.weight_device", "blkio.bfq.weight_device"),
		ReadBps:      have("blkio", "blkio.throttle.read_bps_device"), WriteBps: have("blkio", "blkio.throttle.write_bps_device"),
		ReadIOps: have("blkio", "blkio.throttle.read_iops_device"), WriteIOps: have("blkio", "blkio.throttle.write_iops_device"),
	}
	if y := h.Hierarchy("cpuset"); y != nil {
		s.Cpus, s.Mems = readText(y.Path+"/cpuset.cpus"), readText(y.Path+"/cpuset.mems")
	}
	return s
}

func (h *Host) supportV2(s *Support) {
	if len(h.Hierarchies) == 0 {
		return
	}
	y := &h.Hierarchies[0]
	below := func(files ...string) bool {
		return slices.ContainsFunc(files, func(f string) bool {
			m, _ := filepath.Glob(y.Path + "/*/" + f)
			return len(m) > 0
		})
	}
	if y.Has("memory") {
		s.Memory, s.Reservation, s.Swap = true, true, below("memory.swap.max")
	}
	if y.Has("cpu") {
		s.CPUShares, s.CPUCfs = true, true
	}
	if y.Has("io") {
		s.ReadBps, s.WriteBps, s.ReadIOps, s.WriteIOps = true, true, true, true
		s.BlkioWeight = below("io.weight", "io.bfq.weight")
		s.WeightDevice = s.BlkioWeight
	}
	if y.Has("cpuset") {
		s.Cpuset, s.Cpus, s.Mems = true, readText(y.Path+"/cpuset.cpus.effective"), readText(y.Path+"/cpuset.mems.effective")
	}
	s.Pids = y.Has("pids")
}

func readText(file string) string {
	raw, _ := os.ReadFile(file)
	return strings.TrimSpace(string(raw))
}
