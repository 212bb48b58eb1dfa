package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cmdUpdate changes the limits of a container: those of a file (linux.resources
// of the specification), or those of flags, sizes with units as "64m".
func (p *program) cmdUpdate(args []string) error {
	var file string
	limits := map[string]*string{}
	f := newFlags("update")
	f.text(&file, "", "resources", "r")
	for _, name := range []string{
		"blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-rt-period", "cpu-rt-runtime", "cpu-idle", "cpuset-cpus", "cpuset-mems",
		"memory", "memory-reservation", "memory-swap", "pids-limit",
	} {
		limits[name] = new(string)
		f.text(limits[name], "", name)
	}
	rest, err := f.all(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New(`"update" requires exactly 1 argument`)
	}
	r, err := p.load(rest[0])
	if err != nil {
		return err
	}
	c, err := cgroups()
	if err != nil {
		return err
	}
	if st := r.status(c); st == specs.StateStopped || st == specs.StateCreating {
		return fmt.Errorf("cannot update a container that is not running: %s", st)
	}
	res := &specs.LinuxResources{}
	if file != "" {
		var raw []byte
		if file == "-" {
			raw, err = io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		} else {
			raw, err = os.ReadFile(file)
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, res); err != nil {
			return fmt.Errorf("cannot read the resources: %w", err)
		}
	} else if err := fromFlags(res, limits); err != nil {
		return err
	}
	res.Devices = nil // an update does not change them
	return c.Apply(c.Find(r.Cgroup), res)
}

// fromFlags fills res with the flags that were given.
func fromFlags(res *specs.LinuxResources, limits map[string]*string) error {
	for name, text := range limits {
		if *text == "" {
			continue
		}
		cpu, mem := res.CPU, res.Memory
		if strings.HasPrefix(name, "cpu") && cpu == nil {
			cpu = &specs.LinuxCPU{}
			res.CPU = cpu
		}
		if strings.HasPrefix(name, "memory") && mem == nil {
			mem = &specs.LinuxMemory{}
			res.Memory = mem
		}
		switch name {
		case "cpuset-cpus":
			cpu.Cpus = *text
			continue
		case "cpuset-mems":
			cpu.Mems = *text
			continue
		}
		n, err := parseSize(*text)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %w", name, err)
		}
		u := uint64(max(n, 0))
		switch name {
		case "memory":
			mem.Limit = &n
		case "memory-reservation":
			mem.Reservation = &n
		case "memory-swap":
			mem.Swap = &n
		case "cpu-period":
			cpu.Period = &u
		case "cpu-quota":
			cpu.Quota = &n
		case "cpu-burst":
			cpu.Burst = &u
		case "cpu-share":
			cpu.Shares = &u
		case "cpu-rt-period":
			cpu.RealtimePeriod = &u
		case "cpu-rt-runtime":
			cpu.RealtimeRuntime = &n
		case "cpu-idle":
			cpu.Idle = &n
		case "pids-limit":
			res.Pids = &specs.LinuxPids{Limit: &n}
		case "blkio-weight":
			if n < 0 || n > math.MaxUint16 {
				return fmt.Errorf("invalid value for %s: %s", name, *text)
			}
			w := uint16(n)
			res.BlockIO = &specs.LinuxBlockIO{Weight: &w}
		}
	}
	return nil
}

// parseSize reads a number with an optional unit of 1024.
func parseSize(s string) (int64, error) {
	num := strings.TrimRight(strings.ToLower(s), "b")
	shift := 0
	if num != "" {
		if i := strings.IndexByte("kmgt", num[len(num)-1]); i >= 0 {
			shift, num = 10*(i+1), num[:len(num)-1]
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	return n << shift, nil
}
