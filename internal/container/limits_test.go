package container

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/runtime"
)

// Every refusal of a limit in Docker's words.
func TestLimitErrors(t *testing.T) {
	ptr := func(n int64) *int64 { return &n }
	for want, r := range map[string]container.Resources{
		"Minimum memory limit allowed is 6MB":                                                  {Memory: minMemory - 1},
		"Minimum memoryswap limit should be larger than memory limit, see usage":               {Memory: 64 << 20, MemorySwap: 32 << 20},
		"You should always set the Memory limit when using Memoryswap limit, see usage":        {MemorySwap: 32 << 20},
		"Invalid value: 101, valid memory swappiness range is 0-100":                           {MemorySwappiness: ptr(101)},
		"Invalid value: -2, valid memory swappiness range is 0-100":                            {MemorySwappiness: ptr(-2)},
		"Minimum memory reservation allowed is 6MB":                                            {MemoryReservation: 1},
		"Minimum memory limit can not be less than memory reservation limit, see usage":        {Memory: 8 << 20, MemoryReservation: 9 << 20},
		"Conflicting options: Nano CPUs and CPU Period cannot both be set":                     {NanoCPUs: 1e9, CPUPeriod: 5000},
		"Conflicting options: Nano CPUs and CPU Quota cannot both be set":                      {NanoCPUs: 1e9, CPUQuota: 5000},
		"CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)": {CPUPeriod: 999},
		"CPU cfs quota can not be less than 1ms (i.e. 1000)":                                   {CPUQuota: 999},
		"invalid CPU shares (-1): value must be a positive integer":                            {CPUShares: -1},
		"Invalid value x for cpuset cpus: invalid format: x":                                   {CpusetCpus: "x"},
		"Invalid value 0- for cpuset cpus: invalid format: 0-":                                 {CpusetCpus: "0-"},
		"Invalid value 9-1 for cpuset cpus: invalid format: 9-1":                               {CpusetCpus: "9-1"},
		"Invalid value 99999 for cpuset cpus: value of out range, maximum is 8192":             {CpusetCpus: "99999"},
		"Requested CPUs are not available - requested 0-9, available: 0-1":                     {CpusetCpus: "0-9"},
		"Invalid value q for cpuset mems: invalid format: q":                                   {CpusetMems: "q"},
		"Requested memory nodes are not available - requested 0,3, available: 0":               {CpusetMems: "0,3"},
		"Range of blkio weight is from 10 to 1000":                                             {BlkioWeight: 1001},
		"Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps": {IOMaximumIOps: 1},
	} {
		_, err := creator{testService()}.validateLimits(&r, false)
		if err == nil || err.Error() != want || !errs.Is(err, errs.Invalid) {
			t.Errorf("%q, want %q", err, want)
		}
	}
	_, err := creator{testService()}.validateLimits(&container.Resources{NanoCPUs: 1e15}, false)
	if err == nil || !strings.HasPrefix(err.Error(), "range of CPUs is from 0.01 to ") {
		t.Errorf("%v", err)
	}
	if _, err := (creator{testService()}).validateLimits(&container.Resources{MemorySwap: 32 << 20}, true); err != nil {
		t.Errorf("an update of the swap alone: %v", err)
	}
	for _, ok := range []container.Resources{{CpusetCpus: "0,1"}, {CpusetCpus: "1", CpusetMems: "0"}, {CPUQuota: -1}, {MemorySwappiness: ptr(0)}, {Memory: minMemory}} {
		if w, err := (creator{testService()}).validateLimits(&ok, false); err != nil || len(w) > 0 {
			t.Errorf("%+v: %v %v", ok, w, err)
		}
	}
}

// A kernel that lacks a limit: a warning, and the value is dropped.
func TestLimitWarnings(t *testing.T) {
	s := testService()
	s.limits = func() *runtime.Support { return &runtime.Support{} }
	yes, pids := true, int64(5)
	dev := []*blkiodev.ThrottleDevice{{Path: "/dev/x", Rate: 1}}
	swappiness := int64(5)
	r := container.Resources{
		Memory: 64 << 20, MemoryReservation: 32 << 20, MemorySwappiness: &swappiness, OomKillDisable: &yes, PidsLimit: &pids,
		CPUShares: 5, CPUPeriod: 5000, CPUQuota: 5000, CPUPercent: 5, CpusetCpus: "0", BlkioWeight: 50, BlkioWeightDevice: []*blkiodev.WeightDevice{{Path: "/dev/x", Weight: 10}},
		BlkioDeviceReadBps: dev, BlkioDeviceWriteBps: dev, BlkioDeviceReadIOps: dev, BlkioDeviceWriteIOps: dev,
	}
	w, err := creator{s}.validateLimits(&r, false)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "limit-warnings", strings.Join(w, "\n")+"\n")
	if want := (container.Resources{MemorySwap: -1}); !reflect.DeepEqual(r, want) {
		t.Errorf("left: %+v", r)
	}
	s.limits = func() *runtime.Support { x := allLimits; x.Swap = false; return &x }
	r = container.Resources{Memory: 64 << 20}
	w, err = creator{s}.validateLimits(&r, false)
	if err != nil || r.MemorySwap != -1 || len(w) != 1 || w[0] != "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap." {
		t.Errorf("%v %v %d", w, err, r.MemorySwap)
	}
	r = container.Resources{NanoCPUs: 1e9}
	s.limits = func() *runtime.Support { return &runtime.Support{} }
	if _, err = (creator{s}).validateLimits(&r, false); err == nil || !strings.HasPrefix(err.Error(), "NanoCPUs can not be set, as your kernel") {
		t.Errorf("%v", err)
	}
}

func TestMergeLimits(t *testing.T) {
	one := int64(1)
	for _, c := range []struct {
		is, update container.Resources
		err        string
	}{
		{container.Resources{}, container.Resources{NanoCPUs: 7, PidsLimit: &one, BlkioWeight: 10, CpusetCpus: "1", CpusetMems: "0", CPUShares: 3, MemoryReservation: 4}, ""},
		{container.Resources{Memory: 5, MemorySwap: 10}, container.Resources{Memory: 7}, ""},
		{container.Resources{Memory: 5, MemorySwap: 10}, container.Resources{Memory: 11}, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
		{container.Resources{}, container.Resources{Memory: 11}, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
		{container.Resources{Memory: 5, MemorySwap: 10}, container.Resources{MemorySwap: 4}, "Minimum memoryswap limit should be larger than memory limit, see usage"},
		{container.Resources{Memory: 5, MemorySwap: 10}, container.Resources{Memory: 50, MemorySwap: -1}, ""},
		{container.Resources{CPUPeriod: 1}, container.Resources{NanoCPUs: 1}, "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set"},
		{container.Resources{CPUQuota: 1}, container.Resources{NanoCPUs: 1}, "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set"},
		{container.Resources{NanoCPUs: 1}, container.Resources{CPUPeriod: 1}, "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"},
		{container.Resources{NanoCPUs: 1}, container.Resources{CPUQuota: 1}, "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"},
	} {
		to := c.is
		err := mergeLimits(&to, &c.update)
		if fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
			t.Errorf("%+v: %v, want %q", c.update, err, c.err)
		}
		if err == nil && (c.update.Memory != 0 && to.Memory != c.update.Memory || c.update.MemorySwap != 0 && to.MemorySwap != c.update.MemorySwap ||
			to.NanoCPUs != c.update.NanoCPUs || to.BlkioWeight != c.update.BlkioWeight || (to.PidsLimit == nil) != (c.update.PidsLimit == nil) || to.CpusetCpus != c.update.CpusetCpus) {
			t.Errorf("%+v became %+v", c.update, to)
		}
	}
	for in, want := range map[int64]int64{5: 5, 0: 0, -1: 0, -2: 0} {
		to := container.Resources{PidsLimit: &one}
		if err := mergeLimits(&to, &container.Resources{PidsLimit: &in}); err != nil || *to.PidsLimit != want {
			t.Errorf("pids limit %d became %d: %v", in, *to.PidsLimit, err)
		}
	}
}
