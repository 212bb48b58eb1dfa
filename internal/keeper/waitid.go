package keeper

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfo is the kernel's siginfo_t as waitid(2) fills it; x/sys hides the
// fields that matter.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [128 - 28]byte
}

// exitCode is the exit status as a shell tells it.
func (s *siginfo) exitCode() int {
	const cldExited = 1
	if s.code == cldExited {
		return int(s.status)
	}
	return 128 + int(s.status)
}

func waitid(pidFD int, si *siginfo) error {
	return unix.Waitid(unix.P_PIDFD, pidFD, (*unix.Siginfo)(unsafe.Pointer(si)), unix.WEXITED, nil)
}
