package keeper

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// What an upgrade writes down and the next program reads: tasks, execs, pending
// data in both directions, attachments, an unfinished line of the log.
func TestSaveResume(t *testing.T) {
	stopped, err := newLoop(silent(), func(*source) {}) // never runs: the old program's last state
	if err != nil {
		t.Fatal(err)
	}
	p := newProc(t, stopped, true)
	logFile := t.TempDir() + "/log"
	p.log(logFile)
	c := p.attach(AttachSpec{Stdin: true, Stdout: true, Mux: false})
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	pidFD, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}()
	cgroups := runtime.NewCgroups(&runtime.Host{})
	old := &Keeper{loop: stopped, cgroups: cgroups, orphans: map[string]entry{}, tasks: map[string]*task{}, listenFD: -1}
	old.tasks["a"] = &task{id: "a", pid: pid, pidFD: pidFD, start: 9, cgroup: &runtime.Cgroup{Rel: "/x", V2FD: -1}, mountNS: -1, nsFlags: unix.CLONE_NEWPID, frozen: true, io: p.io}
	old.tasks["b"] = &task{id: "b", pid: 1, pidFD: -1, cgroup: &runtime.Cgroup{Rel: "/y", V2FD: -1}, mountNS: -1, exit: &Exit{ID: "b", Code: 5}, io: &stdio{loop: stopped}}

	// State in the middle of things.
	p.write("half a li")
	if p.io.readOutput(p.io.out[1], stopped.buf) {
		t.Fatal("the output has ended")
	}
	read(t, c, "half a li")
	p.io.attached[0].pending = []byte("not yet sent, ")
	p.io.pending = []byte("not yet read, ")

	st, keep := old.save()
	raw, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	held := map[int]bool{}
	for _, fd := range keep {
		held[fd] = true
	}
	for what, fd := range map[string]int{"pidfd": pidFD, "stdin": p.io.in.fd, "stdout": p.io.out[1].fd, "stderr": p.io.out[2].fd, "attachment": p.io.attached[0].src.fd} {
		if !held[fd] {
			t.Errorf("the %s would be closed by the upgrade", what)
		}
	}

	// The next program.
	var next saved
	if err := json.Unmarshal(raw, &next); err != nil {
		t.Fatal(err)
	}
	k := &Keeper{loop: testLoop(t), cgroups: cgroups, orphans: map[string]entry{"a": {}}, tasks: map[string]*task{}}
	k.cfg.Log = silent()
	if err := k.resume(&next); err != nil {
		t.Fatal(err)
	}
	k.loop.mu.Lock()
	a, b := k.tasks["a"], k.tasks["b"]
	k.loop.mu.Unlock()
	if a == nil || a.pid != pid || a.start != 9 || !a.frozen || a.nsFlags != unix.CLONE_NEWPID || a.cgroup.Rel != "/x" || a.exit != nil || !a.io.once {
		t.Fatalf("%+v", a)
	}
	if b == nil || b.exit == nil || b.exit.Code != 5 {
		t.Errorf("%+v", b)
	}
	if len(k.orphans) != 0 {
		t.Error("a task that is there is still an orphan")
	}
	read(t, c, "not yet sent, ")
	if _, err := io.WriteString(c, "more"); err != nil {
		t.Fatal(err)
	}
	read(t, p.in, "not yet read, more")
	p.write("ne\n")
	read(t, c, "ne\n")
	p.end()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // straight from the socket
		t.Errorf("%v", err)
	}
	eventually(t, "the line in the log is not whole", func() bool {
		text, _ := os.ReadFile(logFile)
		return strings.Contains(string(text), `"log":"half a line\n"`) && strings.Count(string(text), "\n") == 1
	})
	p.io.attached, p.io.out, p.io.in = nil, [3]*source{}, nil // the new keeper's now
}
