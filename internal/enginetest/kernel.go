package enginetest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// KernelAtLeast reports whether this is Linux major.minor or newer.
func KernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	return err == nil && (a > major || a == major && b >= minor)
}

// WithoutBridges tells whether the kernel has been deprived of what bridge networks
// need, which scripts/test-vm can do.
func WithoutBridges() bool { return os.Getenv("BERTH_TEST_WITHOUT") != "" }
