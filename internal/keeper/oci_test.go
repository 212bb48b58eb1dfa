package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// What runc and crun say of a program that cannot be run.
func TestOCIFailure(t *testing.T) {
	for _, tc := range []struct {
		msg, words string
		stage      runtime.Stage
		errno      unix.Errno
	}{
		{`runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH`, "executable file not found", runtime.StageExec, unix.ENOENT},
		{`runc create failed: unable to start container process: exec: \"/etc\": permission denied`, "permission denied", runtime.StageExec, unix.EACCES},
		{"executable file `nope` not found in $PATH: No such file or directory", "no such file or directory", runtime.StageExec, unix.ENOENT},
		{"exec /x: Permission denied", "permission denied", runtime.StageExec, unix.EACCES},
		{"invalid rootfs", "invalid rootfs", runtime.StageProcess, 0},
	} {
		log := filepath.Join(t.TempDir(), "log.json")
		if err := os.WriteFile(log, []byte(`{"level":"debug","msg":"x"}`+"\n"+`{"level":"error","msg":"`+tc.msg+`"}`+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var f *Failure
		if !errors.As(ociFailure(log, "/usr/bin/crun", 1), &f) || f.Stage != string(tc.stage) || f.Errno != int(tc.errno) || !strings.Contains(f.Msg, tc.words) {
			t.Errorf("%s: %+v", tc.msg, f)
		}
	}
}

// A start waits until the runtime has forgotten the task before.
func TestLeaving(t *testing.T) {
	k := foreign{&Keeper{}}
	k.awaitLeft("a") // nothing to wait for
	done := make(chan struct{})
	k.leaving = map[string]chan struct{}{"a": done}
	waited := make(chan struct{})
	go func() { k.awaitLeft("a"); close(waited) }()
	select {
	case <-waited:
		t.Fatal("it did not wait")
	default:
	}
	close(done)
	<-waited
}
