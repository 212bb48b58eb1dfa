package container

import (
	"bytes"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// openProcess opens a file of /proc/PID of a container's process. The process may
// have ended, and its number may be another's by now, one of the host perhaps: the
// directory is opened first, which stands for one process for ever, and its start
// time must be that of the container.
func openProcess(st *Status, file string, flags int) (int, error) {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d", st.Pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	start, err := startOf(dir)
	if err != nil {
		return -1, err
	}
	if st.ProcStart != 0 && start != st.ProcStart {
		return -1, unix.ESRCH
	}
	return unix.Openat(dir, file, flags|unix.O_CLOEXEC, 0)
}

// startOf is field 22 of stat in a process's directory.
func startOf(dir int) (uint64, error) {
	fd, err := unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var buf [1024]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n])
	if len(fields) < 20 {
		return 0, unix.ESRCH
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
