package container

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/systemd"
)

const (
	minMemory = 6 << 20
	maxCPUs   = 8192 // the highest number that a list may name
)

// validateLimits refuses limits that cannot be, in Docker's words, and drops
// those that this kernel lacks, with a warning for each. An update names only
// what it changes.
func (s creator) validateLimits(r *container.Resources, update bool) (warnings []string, err error) {
	if s.o.Systemd != nil && r.CgroupParent != "" {
		if err := systemd.CheckSlice(r.CgroupParent); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "")
		}
	}
	for _, check := range []func(*container.Resources, bool) ([]string, error){s.memoryLimits, s.cpuLimits, s.blockLimits} {
		w, err := check(r, update)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, w...)
	}
	return warnings, nil
}

func badLimit(format string, args ...any) ([]string, error) {
	return nil, errs.New(errs.Invalid, format, args...)
}

func (s creator) memoryLimits(r *container.Resources, update bool) (warnings []string, err error) {
	if v := r.MemorySwappiness; v != nil && *v == -1 {
		r.MemorySwappiness = nil
	}
	oomOff := r.OomKillDisable != nil && *r.OomKillDisable
	if r.Memory == 0 && r.MemorySwap == 0 && r.MemoryReservation == 0 && r.MemorySwappiness == nil && !oomOff && r.PidsLimit == nil {
		if r.OomKillDisable != nil && s.v2() {
			r.OomKillDisable = nil
		}
		return nil, nil
	}
	have := s.limits()
	warn := func(text string) { warnings = append(warnings, text) }
	if r.Memory != 0 && r.Memory < minMemory {
		return badLimit("Minimum memory limit allowed is 6MB")
	}
	if r.Memory > 0 && !have.Memory {
		warn("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.Memory, r.MemorySwap = 0, -1
	}
	if r.Memory > 0 && r.MemorySwap != -1 && !have.Swap {
		warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = -1
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return badLimit("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 && !update {
		return badLimit("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.MemorySwappiness != nil && !have.Swappiness {
		warn("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		r.MemorySwappiness = nil
	}
	if v := r.MemorySwappiness; v != nil && (*v < 0 || *v > 100) {
		return badLimit("Invalid value: %d, valid memory swappiness range is 0-100", *v)
	}
	if r.MemoryReservation > 0 && !have.Reservation {
		warn("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.MemoryReservation = 0
	}
	if r.MemoryReservation > 0 && r.MemoryReservation < minMemory {
		return badLimit("Minimum memory reservation allowed is 6MB")
	}
	if r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation {
		return badLimit("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if r.OomKillDisable != nil && !have.OOMKillDisable {
		if oomOff {
			warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable, oomOff = nil, false
	}
	if oomOff && r.Memory == 0 {
		warn("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	if r.PidsLimit != nil && !have.Pids {
		if *r.PidsLimit > 0 {
			warn("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		}
		r.PidsLimit = nil
	}
	if r.Memory > 0 && r.MemorySwap == 0 && !update {
		r.MemorySwap = 2 * r.Memory
	}
	return warnings, nil
}

func (s creator) cpuLimits(r *container.Resources, _ bool) (warnings []string, err error) {
	if r.NanoCPUs == 0 && r.CPUShares == 0 && r.CPUPeriod == 0 && r.CPUQuota == 0 && r.CPUPercent == 0 && r.CpusetCpus == "" && r.CpusetMems == "" {
		return nil, nil
	}
	have := s.limits()
	warn := func(text string) { warnings = append(warnings, text) }
	if r.NanoCPUs > 0 && r.CPUPeriod > 0 {
		return badLimit("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	}
	if r.NanoCPUs > 0 && r.CPUQuota > 0 {
		return badLimit("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	}
	if r.NanoCPUs > 0 && !have.CPUCfs {
		return badLimit("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	}
	if n := runtime.NumCPU(); r.NanoCPUs < 0 || r.NanoCPUs > int64(n)*1e9 {
		return badLimit("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", n, n)
	}
	if r.CPUShares < 0 {
		return badLimit("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	}
	if r.CPUShares > 0 && !have.CPUShares {
		warn("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
		r.CPUShares = 0
	}
	if (r.CPUPeriod != 0 || r.CPUQuota != 0) && !have.CPUCfs {
		warn("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
		r.CPUPeriod, r.CPUQuota = 0, 0
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000) {
		return badLimit("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if r.CPUQuota > 0 && r.CPUQuota < 1000 {
		return badLimit("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if r.CPUPercent > 0 {
		warn("linux does not support CPU percent. Percent discarded.")
		r.CPUPercent = 0
	}
	if (r.CpusetCpus != "" || r.CpusetMems != "") && !have.Cpuset {
		warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	for _, x := range []struct{ what, names, value, available string }{
		{"cpuset cpus", "CPUs", r.CpusetCpus, have.Cpus}, {"cpuset mems", "memory nodes", r.CpusetMems, have.Mems},
	} {
		if x.value == "" {
			continue
		}
		want, err := parseList(x.value)
		if err != nil {
			return badLimit("Invalid value %s for %s: %v", x.value, x.what, err)
		}
		got, err := parseList(x.available)
		if err != nil {
			return badLimit("Invalid value %s for %s: %v", x.available, x.what, err)
		}
		for _, n := range want {
			if !slices.Contains(got, n) {
				return badLimit("Requested %s are not available - requested %s, available: %s", x.names, x.value, x.available)
			}
		}
	}
	return warnings, nil
}

// parseList reads "0-2,7", the form of cpuset.cpus.
func parseList(text string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(text, ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		lo, err1 := strconv.Atoi(a)
		hi, err2 := strconv.Atoi(b)
		switch {
		case err1 != nil || err2 != nil || lo < 0 || hi < lo:
			return nil, fmt.Errorf("invalid format: %s", text)
		case hi > maxCPUs:
			return nil, fmt.Errorf("value of out range, maximum is %d", maxCPUs)
		}
		for n := lo; n <= hi; n++ {
			out = append(out, n)
		}
	}
	return out, nil
}

func (s creator) blockLimits(r *container.Resources, _ bool) (warnings []string, err error) {
	if r.IOMaximumBandwidth != 0 || r.IOMaximumIOps != 0 {
		return badLimit("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
	}
	if r.BlkioWeight == 0 && len(r.BlkioWeightDevice)+len(r.BlkioDeviceReadBps)+len(r.BlkioDeviceWriteBps)+len(r.BlkioDeviceReadIOps)+len(r.BlkioDeviceWriteIOps) == 0 {
		return nil, nil
	}
	have := s.limits()
	warn := func(text string) { warnings = append(warnings, text) }
	if r.BlkioWeight > 0 && !have.BlkioWeight {
		warn("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
		r.BlkioWeight = 0
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return badLimit("Range of blkio weight is from 10 to 1000")
	}
	if len(r.BlkioWeightDevice) > 0 && !have.WeightDevice {
		warn("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		r.BlkioWeightDevice = nil
	}
	if len(r.BlkioDeviceReadBps) > 0 && !have.ReadBps {
		warn("Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded.")
		r.BlkioDeviceReadBps = nil
	}
	if len(r.BlkioDeviceWriteBps) > 0 && !have.WriteBps {
		warn("Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded.")
		r.BlkioDeviceWriteBps = nil
	}
	if len(r.BlkioDeviceReadIOps) > 0 && !have.ReadIOps {
		warn("Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded.")
		r.BlkioDeviceReadIOps = nil
	}
	if len(r.BlkioDeviceWriteIOps) > 0 && !have.WriteIOps {
		warn("Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded.")
		r.BlkioDeviceWriteIOps = nil
	}
	return warnings, nil
}

// validateRestart checks a restart policy.
func validateRestart(p container.RestartPolicy) error {
	switch p.Name {
	case "", container.RestartPolicyDisabled, container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		if p.MaximumRetryCount > 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case container.RestartPolicyOnFailure:
		if p.MaximumRetryCount < 0 {
			return errs.New(errs.Invalid, "invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return errs.New(errs.Invalid, "invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", p.Name)
	}
	return nil
}

// pidsLimit turns the API's "unlimited", anything up to 0, into the
// specification's -1.
func pidsLimit(n int64) int64 {
	if n <= 0 || n == math.MaxInt64 {
		return -1
	}
	return n
}
