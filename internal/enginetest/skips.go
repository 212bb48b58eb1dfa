package enginetest

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// Reasons for which a test may be skipped. The list is short on purpose: a test
// that skips shows nothing.
const (
	NeedsRoot      = "needs root"
	NeedsDocker    = "needs the docker client 28 or newer (scripts/install-test-deps)"
	NeedsCgroupV2  = "needs cgroup v2 (make test-vm has it)"
	NeedsCgroupV1  = "needs cgroup v1"
	NeedsUnified   = "needs a mounted cgroup v2 hierarchy, alone or beside v1"
	NeedsAMD64     = "holds the numbers of amd64"
	NeedsSystemd   = "needs systemd as init (scripts/test-systemd-vm has it)"
	NeedsNoSystemd = "needs a host without systemd"
	NeedsOverlay   = "needs overlayfs"
	NeedsNoBridges = "needs a kernel without bridges (VM_WITHOUT=bridge scripts/test-vm has it)"
	NeedsIPTables  = "needs iptables and nft (scripts/install-test-deps)"
	NeedsDebian    = "needs debootstrap (scripts/install-test-deps)"
	LongRun        = "runs under make stress only"
	ShortRun       = "left out by go test -short"
)

// reviewed says which reasons hold under make test, where the machine is known:
// there the others are failures.
var reviewed = map[string]bool{
	NeedsRoot: false, NeedsDocker: false, NeedsOverlay: false, NeedsIPTables: false, NeedsDebian: false,
	NeedsCgroupV2: true, NeedsCgroupV1: true, NeedsUnified: true, NeedsAMD64: true, NeedsSystemd: true, NeedsNoSystemd: true, NeedsNoBridges: true, LongRun: true, ShortRun: true,
}

// Skip ends the test for a reason of the list above.
func Skip(t testing.TB, reason string) {
	t.Helper()
	allowed, known := reviewed[reason]
	switch {
	case !known:
		t.Fatalf("%q is no reviewed reason to skip: see internal/enginetest/skips.go", reason)
	case !allowed && os.Getenv("BERTH_TEST_STRICT") != "":
		t.Fatalf("cannot run here: %s", reason)
	}
	t.Skip(reason)
}

// RequireRoot skips where the test has no root rights.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, NeedsRoot)
	}
}

// RequireIPTables skips where the programs that show and set rules are not there.
func RequireIPTables(t testing.TB) {
	t.Helper()
	for _, p := range []string{"iptables", "ip6tables", "nft"} {
		if _, err := exec.LookPath(p); err != nil {
			Skip(t, NeedsIPTables)
		}
	}
}

// RequireDocker skips where there is no docker client.
func RequireDocker(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		Skip(t, NeedsDocker)
	}
}

// Patience is how long a test waits for what must come. An emulated machine is
// ten times slower than others.
func Patience() time.Duration {
	if os.Getenv("BERTH_TEST_VM") != "" {
		return time.Minute
	}
	return 15 * time.Second
}

// CgroupV2 tells whether the machine has the unified hierarchy alone.
func CgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}
