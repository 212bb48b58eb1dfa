package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestPath(t *testing.T) {
	for slice, want := range map[string]string{
		"system.slice": "/system.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice", "-.slice": "/", "a--b.slice": "", ".slice": "", "x": "", "-a.slice": "", "a/b.slice": "",
	} {
		got, err := Path(slice)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q %v", slice, got, err)
		}
	}
	for parent, ok := range map[string]bool{"my.slice": true, "/a/b": false, ".slice": false, "a/b.slice": false} {
		if err := CheckSlice(parent); (err == nil) != ok || err != nil && err.Error() != `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"` {
			t.Errorf("%s: %v", parent, err)
		}
	}
}

func TestBitmap(t *testing.T) {
	for list, want := range map[string][]byte{"0": {1}, "0-2,9": {7, 2}, "8": {0, 1}, "": nil, "x": nil, "3-1": nil, "0-99999": nil} {
		if got := bitmap(list); !bytes.Equal(got, want) {
			t.Errorf("%q: %v, want %v", list, got, want)
		}
	}
}

func TestProperties(t *testing.T) {
	limit, swap, low, quota, pids := int64(64<<20), int64(96<<20), int64(1<<20), int64(12345), int64(-1)
	shares, period := uint64(512), uint64(50000)
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap, Reservation: &low},
		CPU:    &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "0-1"},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	for unified, want := range map[bool][]string{
		true: {
			"AllowedCPUs=[3]", "CPUQuotaPerSecUSec=250000", "CPUQuotaPeriodUSec=50000", "CPUWeight=59", "MemoryLow=1048576", "MemoryMax=67108864", "MemorySwapMax=33554432",
			"TasksMax=18446744073709551615",
		},
		false: {"CPUQuotaPerSecUSec=250000", "CPUShares=512", "MemoryLimit=67108864", "TasksMax=18446744073709551615"},
	} {
		m := New(unified, func(uint64) uint64 { return 59 })
		var got []string
		for _, p := range m.properties(r) {
			got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("unified=%v:\n%s\nwant\n%s", unified, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if len(m.properties(nil)) != 0 {
			t.Error("limits out of nothing")
		}
	}
}

func TestNoSystemd(t *testing.T) {
	if Running() {
		t.Skip("this host has systemd")
	}
	_, err := New(false, nil, "/bin/true").Start(context.Background(), Scope{Name: "x.scope"})
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("%v", err)
	}
}
