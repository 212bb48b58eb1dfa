package container

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// addDevices lists the nodes of --device, or with --privileged all of the
// host's, and the rules that allow them.
func addDevices(s *specs.Spec, hc *container.HostConfig) error {
	s.Linux.Resources = &specs.LinuxResources{}
	res := s.Linux.Resources
	if hc.Privileged {
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Type: "a", Access: "rwm"}}
		s.Linux.Devices = hostDevices()
	}
	for _, d := range hc.Devices {
		list, err := devicesAt(d.PathOnHost, d.PathInContainer)
		if err != nil {
			return err
		}
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, dev := range list {
			major, minor := dev.Major, dev.Minor
			s.Linux.Devices = append(s.Linux.Devices, dev)
			res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &major, Minor: &minor, Access: access})
		}
	}
	for _, rule := range hc.DeviceCgroupRules {
		r, err := parseDeviceRule(rule)
		if err != nil {
			return err
		}
		res.Devices = append(res.Devices, r)
	}
	return nil
}

func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	bad := errs.New(errs.Invalid, "invalid device cgroup rule format: '%s'", rule)
	f := strings.Fields(rule)
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("abc", f[0]) || strings.Trim(f[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok {
		return r, bad
	}
	for _, p := range []struct {
		text string
		to   **int64
	}{{major, &r.Major}, {minor, &r.Minor}} {
		if p.text == "*" {
			continue
		}
		n, err := strconv.ParseInt(p.text, 10, 64)
		if err != nil {
			return r, bad
		}
		*p.to = &n
	}
	return r, nil
}

func deviceOf(path, name string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	d := specs.LinuxDevice{Path: name, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false
	}
	return d, true
}

// devicesAt returns the device at a path of the host, or those in a directory.
func devicesAt(host, inside string) ([]specs.LinuxDevice, error) {
	if inside == "" {
		inside = host
	}
	if d, ok := deviceOf(host, inside); ok {
		return []specs.LinuxDevice{d}, nil
	}
	var list []specs.LinuxDevice
	err := filepath.WalkDir(host, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d, ok := deviceOf(p, inside+strings.TrimPrefix(p, host)); ok && !e.IsDir() {
			list = append(list, d)
		}
		return nil
	})
	if err != nil {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: no such file or directory", host)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Invalid, "error gathering device information while adding custom device %q: not a device node", host)
	}
	return list, nil
}

// hostDevices are the nodes below /dev, but for those that belong to a
// terminal, shared memory and message queues.
func hostDevices() []specs.LinuxDevice {
	var list []specs.LinuxDevice
	_ = filepath.WalkDir("/dev", func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is not passed on
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Name() == "console" || e.Name() == "ptmx" || e.Type()&os.ModeSymlink != 0 {
			return nil
		}
		if d, ok := deviceOf(p, p); ok {
			list = append(list, d)
		}
		return nil
	})
	return list
}

// resources turns the API's limits into the specification's. Paths of devices
// are looked up now: their numbers may change from start to start.
func resources(r *container.Resources, out *specs.LinuxResources) error {
	out.Memory = memoryResources(r)
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		v := uint64(r.CPUShares)
		cpu.Shares = &v
	}
	period, quota := uint64(r.CPUPeriod), r.CPUQuota
	if r.NanoCPUs > 0 {
		period = 100000
		quota = r.NanoCPUs * int64(period) / 1e9
	}
	if period != 0 {
		cpu.Period = &period
	}
	if quota != 0 {
		cpu.Quota = &quota
	}
	if r.CPURealtimePeriod != 0 {
		v := uint64(r.CPURealtimePeriod)
		cpu.RealtimePeriod = &v
	}
	if r.CPURealtimeRuntime != 0 {
		cpu.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	out.CPU = cpu
	if r.PidsLimit != nil { // 0 after an update that took the limit away
		n := pidsLimit(*r.PidsLimit)
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	io := &specs.LinuxBlockIO{}
	if r.BlkioWeight > 0 {
		io.Weight = &r.BlkioWeight
	}
	out.BlockIO = io
	for _, d := range r.BlkioWeightDevice {
		major, minor, err := deviceNumber(d.Path)
		if err != nil {
			return err
		}
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		w.Major, w.Minor = major, minor
		io.WeightDevice = append(io.WeightDevice, w)
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &io.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &io.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &io.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &io.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			major, minor, err := deviceNumber(d.Path)
			if err != nil {
				return err
			}
			x := specs.LinuxThrottleDevice{Rate: d.Rate}
			x.Major, x.Minor = major, minor
			*t.to = append(*t.to, x)
		}
	}
	return nil
}

func memoryResources(r *container.Resources) *specs.LinuxMemory {
	mem := &specs.LinuxMemory{}
	if r.Memory > 0 {
		mem.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		mem.Reservation = &r.MemoryReservation
	}
	if r.MemorySwap != 0 {
		mem.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		v := uint64(*r.MemorySwappiness)
		mem.Swappiness = &v
	}
	mem.DisableOOMKiller = r.OomKillDisable
	return mem
}

// deviceNumber looks up the device of a limit, in Docker's words when it is not there.
func deviceNumber(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, errs.New(errs.Invalid, "stat %s: %v", path, err)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}
