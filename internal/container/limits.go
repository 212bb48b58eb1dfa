package container

import (
	"runtime"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

const minMemory = 6 << 20

// validateLimits refuses limits that cannot be, and drops those that this kernel
// lacks, with a warning for each.
func (s creator) validateLimits(hc *container.Resources, update bool) (warnings []string, err error) {
	bad := func(format string, args ...any) ([]string, error) {
		return nil, errs.New(errs.Invalid, format, args...)
	}
	if hc.Memory != 0 && hc.Memory < minMemory {
		return bad("Minimum memory limit allowed is 6MB")
	}
	if hc.Memory > 0 && hc.MemorySwap > 0 && hc.MemorySwap < hc.Memory {
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if hc.Memory == 0 && hc.MemorySwap > 0 {
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if v := hc.MemorySwappiness; v != nil && (*v < -1 || *v > 100) {
		return bad("Invalid value: %d, valid memory swappiness range is 0-100", *v)
	}
	if hc.NanoCPUs < 0 || hc.NanoCPUs > int64(runtime.NumCPU())*1e9 {
		return bad("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", runtime.NumCPU(), runtime.NumCPU())
	}
	if hc.Memory > 0 && hc.MemorySwap == 0 {
		hc.MemorySwap = 2 * hc.Memory
	}
	return warnings, nil
}
