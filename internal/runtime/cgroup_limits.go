package runtime

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Apply writes limits. Nil fields, and zeros where the specification has no
// use for them, stay as they are. An error names the file.
func (c *Cgroups) Apply(g *Cgroup, r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if c.host.CgroupV2 {
		return c.applyV2(g, r)
	}
	return c.applyV1(g, r)
}

func writeCgroup(dir, file, value string) error {
	name := dir + "/" + file
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("failed to write %q: %w", value, &os.PathError{Op: "write", Path: name, Err: err})
	}
	return nil
}

// setting is one value for one file of a controller.
type setting struct {
	controller, file, value string
	maybe                   bool // not having the file is fine
}

func (c *Cgroups) applyV1(g *Cgroup, r *specs.LinuxResources) error {
	if len(r.Unified) > 0 {
		return errors.New("invalid configuration: cannot use unified on cgroup v1")
	}
	if err := c.memoryV1(g, r.Memory); err != nil {
		return err
	}
	var s []setting
	add := func(ctrl, file, value string) { s = append(s, setting{controller: ctrl, file: file, value: value}) }
	if p := r.CPU; p != nil {
		if p.Shares != nil && *p.Shares != 0 {
			switch { // the kernel would take the nearest that it can do, and not tell
			case *p.Shares < minShares:
				return fmt.Errorf("the minimum allowed cpu-shares is %d", minShares)
			case *p.Shares > maxShares:
				return fmt.Errorf("the maximum allowed cpu-shares is %d", maxShares)
			}
			add("cpu", "cpu.shares", strconv.FormatUint(*p.Shares, 10))
		}
		if p.Period != nil && *p.Period != 0 {
			add("cpu", "cpu.cfs_period_us", strconv.FormatUint(*p.Period, 10))
		}
		if p.Quota != nil && *p.Quota != 0 {
			add("cpu", "cpu.cfs_quota_us", strconv.FormatInt(*p.Quota, 10))
		}
		if p.Burst != nil {
			add("cpu", "cpu.cfs_burst_us", strconv.FormatUint(*p.Burst, 10))
		}
		if p.RealtimePeriod != nil && *p.RealtimePeriod != 0 {
			add("cpu", "cpu.rt_period_us", strconv.FormatUint(*p.RealtimePeriod, 10))
		}
		if p.RealtimeRuntime != nil && *p.RealtimeRuntime != 0 {
			add("cpu", "cpu.rt_runtime_us", strconv.FormatInt(*p.RealtimeRuntime, 10))
		}
		if p.Idle != nil {
			add("cpu", "cpu.idle", strconv.FormatInt(*p.Idle, 10))
		}
		if p.Cpus != "" {
			add("cpuset", "cpuset.cpus", p.Cpus)
		}
		if p.Mems != "" {
			add("cpuset", "cpuset.mems", p.Mems)
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids", "pids.max", pidsMax(*r.Pids.Limit))
	}
	if b := r.BlockIO; b != nil {
		s = append(s, c.blockV1(g, b)...)
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", strconv.FormatUint(h.Limit, 10))
		s = append(s, setting{"hugetlb", "hugetlb." + h.Pagesize + ".rsvd.limit_in_bytes", strconv.FormatUint(h.Limit, 10), true})
	}
	for _, v := range rdmaLimits(r) {
		add("rdma", "rdma.max", v)
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil && *n.ClassID != 0 {
			add("net_cls", "net_cls.classid", strconv.FormatUint(uint64(*n.ClassID), 10))
		}
		for _, p := range n.Priorities {
			add("net_prio", "net_prio.ifpriomap", p.Name+" "+strconv.FormatUint(uint64(p.Priority), 10))
		}
	}
	for _, d := range r.Devices {
		file := "devices.deny"
		if d.Allow {
			file = "devices.allow"
		}
		add("devices", file, deviceRule(d))
	}
	for _, x := range s {
		dir := c.dirFor(g, x.controller)
		if dir == "" {
			return fmt.Errorf("the cgroup controller %q is not available on this machine", x.controller)
		}
		if err := writeCgroup(dir, x.file, x.value); err != nil && (!x.maybe || !errors.Is(err, os.ErrNotExist)) {
			return err
		}
	}
	return nil
}

const memswLimit = "memory.memsw.limit_in_bytes"

// memoryV1 writes memory limits. Memory may never be above memory and swap, so
// the order depends on what is set now.
func (c *Cgroups) memoryV1(g *Cgroup, m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	limit, swap := value(m.Limit), value(m.Swap)
	if limit == 0 && swap == 0 && value(m.Reservation) == 0 && m.Swappiness == nil && m.DisableOOMKiller == nil {
		return nil
	}
	dir := c.dirFor(g, "memory")
	if dir == "" {
		return errors.New("the cgroup controller \"memory\" is not available on this machine")
	}
	if limit == -1 && swap == 0 {
		swap = -1
	}
	setLimit := func() error {
		if limit == 0 {
			return nil
		}
		err := writeCgroup(dir, "memory.limit_in_bytes", strconv.FormatInt(limit, 10))
		if errors.Is(err, unix.EBUSY) {
			usage, _ := readInt(dir + "/memory.usage_in_bytes")
			peak, _ := readInt(dir + "/memory.max_usage_in_bytes")
			return fmt.Errorf("unable to set memory limit to %d (current usage: %d, peak usage: %d)", limit, usage, peak)
		}
		return err
	}
	setSwap := func() error {
		if swap == 0 {
			return nil
		}
		err := writeCgroup(dir, memswLimit, strconv.FormatInt(swap, 10))
		if swap == -1 && errors.Is(err, os.ErrNotExist) {
			return nil // a kernel that does not count swap limits none
		}
		return err
	}
	steps := []func() error{setLimit, setSwap}
	if limit != 0 && swap != 0 {
		if now, _ := readInt(dir + "/" + memswLimit); swap == -1 || swap > now {
			steps[0], steps[1] = steps[1], steps[0]
		}
	}
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	if n := value(m.Reservation); n != 0 {
		if err := writeCgroup(dir, "memory.soft_limit_in_bytes", strconv.FormatInt(n, 10)); err != nil {
			return err
		}
	}
	if m.Swappiness != nil && int64(*m.Swappiness) >= 0 {
		if err := writeCgroup(dir, "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10)); err != nil {
			return err
		}
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		return writeCgroup(dir, "memory.oom_control", "1")
	}
	return nil
}

func (c *Cgroups) blockV1(g *Cgroup, b *specs.LinuxBlockIO) (s []setting) {
	add := func(file, value string) { s = append(s, setting{controller: "blkio", file: file, value: value}) }
	weight := func() string { // the name depends on the kernel's scheduler
		if _, err := os.Stat(c.dirFor(g, "blkio") + "/blkio.weight"); err != nil {
			return "blkio.bfq.weight"
		}
		return "blkio.weight"
	}
	if b.Weight != nil && *b.Weight != 0 {
		add(weight(), strconv.Itoa(int(*b.Weight)))
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		add("blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight)))
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil && *d.Weight != 0 {
			add(weight()+"_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight))
		}
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			add("blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight))
		}
	}
	for _, t := range []struct {
		file string
		list []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			add(t.file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
		}
	}
	return s
}

// value is what a pointer points to, 0 for nil.
func value(p *int64) int64 {
	if p == nil {
		return 0
	}
	return *p
}

func rdmaLimits(r *specs.LinuxResources) []string {
	var out []string
	for _, dev := range sortedKeys(r.Rdma) {
		x, v := r.Rdma[dev], dev
		if x.HcaHandles != nil {
			v += " hca_handle=" + strconv.FormatUint(uint64(*x.HcaHandles), 10)
		}
		if x.HcaObjects != nil {
			v += " hca_object=" + strconv.FormatUint(uint64(*x.HcaObjects), 10)
		}
		out = append(out, v)
	}
	return out
}

func pidsMax(n int64) string {
	if n <= 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func limitV2(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// swapV2 is memory.swap.max for a specification's swap, which counts memory and
// swap together; ok is false when there is nothing to set.
func swapV2(limit, swap int64) (text string, ok bool, err error) {
	switch {
	case swap == 0 && limit == -1:
		return "max", true, nil
	case swap == 0:
		return "", false, nil
	case swap < 0:
		return "max", true, nil
	case limit <= 0:
		return "", false, errors.New("unable to set swap limit without memory limit")
	case swap < limit:
		return "", false, errors.New("memory+swap limit should be >= memory limit")
	}
	return strconv.FormatInt(swap-limit, 10), true, nil
}

func (c *Cgroups) applyV2(g *Cgroup, r *specs.LinuxResources) error {
	var s []setting
	add := func(file, value string) { s = append(s, setting{file: file, value: value}) }
	if m := r.Memory; m != nil {
		swap, ok, err := swapV2(value(m.Limit), value(m.Swap))
		if err != nil {
			return err
		}
		if ok { // a kernel without swap accounting limits none
			s = append(s, setting{file: "memory.swap.max", value: swap, maybe: swap == "max"})
		}
		if n := value(m.Limit); n != 0 {
			add("memory.max", limitV2(n))
		}
		if n := value(m.Reservation); n != 0 {
			add("memory.low", limitV2(n))
		}
	}
	if p := r.CPU; p != nil {
		if p.Shares != nil && *p.Shares != 0 {
			add("cpu.weight", strconv.FormatUint(SharesToWeight(*p.Shares), 10))
		}
		if p.Idle != nil {
			add("cpu.idle", strconv.FormatInt(*p.Idle, 10))
		}
		if value(p.Quota) != 0 || p.Period != nil && *p.Period != 0 {
			quota, period := "max", uint64(100000)
			if value(p.Quota) > 0 {
				quota = strconv.FormatInt(*p.Quota, 10)
			}
			if p.Period != nil && *p.Period != 0 {
				period = *p.Period
			}
			add("cpu.max", fmt.Sprintf("%s %d", quota, period))
		}
		if p.Burst != nil {
			add("cpu.max.burst", strconv.FormatUint(*p.Burst, 10))
		}
		if p.Cpus != "" {
			add("cpuset.cpus", p.Cpus)
		}
		if p.Mems != "" {
			add("cpuset.mems", p.Mems)
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		add("pids.max", pidsMax(*r.Pids.Limit))
	}
	if b := r.BlockIO; b != nil {
		s = append(s, blockV2(g, b)...)
	}
	for _, h := range r.HugepageLimits {
		n := strconv.FormatUint(h.Limit, 10)
		add("hugetlb."+h.Pagesize+".max", n)
		s = append(s, setting{file: "hugetlb." + h.Pagesize + ".rsvd.max", value: n, maybe: true})
	}
	for _, v := range rdmaLimits(r) {
		add("rdma.max", v)
	}
	for _, k := range sortedKeys(r.Unified) {
		if strings.Contains(k, "/") {
			return fmt.Errorf("unified resource %q must be a file name (no slashes)", k)
		}
		for line := range strings.Lines(r.Unified[k]) { // such as one of io.max for each device
			add(k, strings.TrimSuffix(line, "\n"))
		}
	}
	for _, x := range s {
		if err := writeCgroup(g.V2, x.file, x.value); err != nil && (!x.maybe || !errors.Is(err, os.ErrNotExist)) {
			return err
		}
	}
	if len(r.Devices) > 0 {
		return c.devicesV2(g, r.Devices)
	}
	return nil
}

func blockV2(g *Cgroup, b *specs.LinuxBlockIO) (s []setting) {
	add := func(file, value string) { s = append(s, setting{file: file, value: value}) }
	// The scheduler's own weight, where it is used, has the range of v1.
	weight := func(w uint16) (file, value string) {
		if _, err := os.Stat(g.V2 + "/io.bfq.weight"); err == nil {
			return "io.bfq.weight", strconv.Itoa(int(w))
		}
		return "io.weight", strconv.FormatUint(1+(uint64(max(w, 10))-10)*9999/990, 10)
	}
	if b.Weight != nil && *b.Weight != 0 {
		add(weight(*b.Weight))
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil && *d.Weight != 0 {
			file, v := weight(*d.Weight)
			add(file, fmt.Sprintf("%d:%d %s", d.Major, d.Minor, v))
		}
	}
	for _, t := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice}, {"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice}} {
		for _, d := range t.list {
			add("io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.key, d.Rate))
		}
	}
	return s
}

// The range of cpu.shares.
const minShares, maxShares = 2, 262144

// SharesToWeight maps cpu.shares (2 to 262144) to cpu.weight (1 to 10000). The
// curve, a parabola between logarithms, meets the ends and the defaults, 1024
// and 100: OCI runtimes have agreed on it, since a straight line gives 39 there.
func SharesToWeight(shares uint64) uint64 {
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
