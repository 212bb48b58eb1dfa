package container

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A number that another process has now leads to nothing.
func TestOpenProcess(t *testing.T) {
	dir, err := unix.Open("/proc/self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	start, err := startOf(dir)
	if err != nil || start == 0 {
		t.Fatal(start, err)
	}
	for _, file := range []string{"root", "ns/mnt"} {
		fd, err := openProcess(&Status{Pid: os.Getpid(), ProcStart: start}, file, unix.O_PATH)
		if err != nil {
			t.Fatal(file, err)
		}
		_ = unix.Close(fd)
		if fd, err := openProcess(&Status{Pid: os.Getpid(), ProcStart: start - 1}, file, unix.O_PATH); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s of a process that has the number of another: %d %v", file, fd, err)
		}
	}
}
