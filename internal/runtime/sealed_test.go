package runtime

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// What every container's first process runs is the same memory for all of them:
// who gets at it, by /proc/self/exe or a descriptor, cannot change it.
func TestInitIsSealed(t *testing.T) {
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(r.fd)
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", r.fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	for _, fd := range []int{r.fd, again} {
		if _, err := unix.Pwrite(fd, []byte("evil"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("a write: %v", err)
		}
		if err := unix.Ftruncate(fd, 1); !errors.Is(err, unix.EPERM) {
			t.Errorf("made shorter: %v", err)
		}
		if err := unix.Ftruncate(fd, 1<<20); !errors.Is(err, unix.EPERM) {
			t.Errorf("made longer: %v", err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("seals can be added: %v", err)
		}
	}
	if _, err := unix.Mmap(again, 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("it can be mapped for writing")
	}
}
