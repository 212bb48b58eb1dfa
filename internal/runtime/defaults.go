package runtime

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultMaskedPaths are hidden from containers that are not privileged: what
// tells about the host or lets it be changed. The list is Docker's.
func DefaultMaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// DefaultReadonlyPaths cannot be written by containers that are not privileged.
func DefaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info), linux/pidfd.h
	pidfdInfoExit = 1 << 3
)

// pidfdInfo is struct pidfd_info in its first published size, 64 bytes.
type pidfdInfo struct {
	mask, cgroup             uint64
	pid, tgid, ppid          uint32
	ruid, rgid, euid, egid   uint32
	suid, sgid, fsuid, fsgid uint32
	exitCode                 int32
}

// ExitStatus asks a pidfd how its process, which need not be a child, ended.
// It needs Linux 6.15 and a pidfd opened before the process was reaped.
func ExitStatus(pidFD int) (code int, ok bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidFD), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	ws := unix.WaitStatus(info.exitCode)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), true
	}
	return ws.ExitStatus(), true
}
