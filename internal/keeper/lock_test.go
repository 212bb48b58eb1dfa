package keeper

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A keeper that was killed holds the lock for a moment longer.
func TestLockWaits(t *testing.T) {
	cfg := Config{ExecRoot: t.TempDir()}
	old, err := lockDir(cfg)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = unix.Close(old) })
	began := time.Now()
	fd, err := lockDir(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if time.Since(began) < 90*time.Millisecond {
		t.Error("two keepers have one lock")
	}
}
