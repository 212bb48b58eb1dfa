package keeper

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

func pair(t testing.TB) (a, b *conn) {
	t.Helper()
	fd, local, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "remote")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); local.Close() })
	_ = local.SetDeadline(time.Now().Add(10 * time.Second))
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return &conn{c: local}, &conn{c: c.(*net.UnixConn)} //nolint:forcetypeassert // made as one
}

func TestConn(t *testing.T) {
	a, b := pair(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	before := openFDs(t)
	big := json.RawMessage(`"` + strings.Repeat("x", 3<<20) + `"`)
	go func() {
		for i := range 50 {
			var fds []int
			for range i % 5 {
				fds = append(fds, int(null.Fd()))
			}
			m := &message{ID: uint64(i + 1), Op: "op"}
			if i%10 == 3 {
				m.Body = big
			}
			if err := a.send(m, fds); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := range 50 {
		m, fds, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != uint64(i+1) || len(fds) != i%5 || i%10 == 3 && len(m.Body) != len(big) {
			t.Fatalf("message %d: %d, %d descriptors, %d bytes", i, m.ID, len(fds), len(m.Body))
		}
		for _, fd := range fds {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
		}
		closeAll(fds)
	}
	if after := openFDs(t); after > before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	a.c.Close()
	if _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("%v at the end", err)
	}
}

func TestConnRefuses(t *testing.T) {
	a, _ := pair(t)
	if err := a.send(&message{Body: json.RawMessage(`"` + strings.Repeat("x", maxBody) + `"`)}, nil); err == nil {
		t.Error("an oversize message is sent")
	}
	if err := a.send(&message{}, make([]int, maxFDs+1)); err == nil {
		t.Error("too many descriptors are sent")
	}
	head := func(size, fds uint32, body string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, size)
		return append(binary.LittleEndian.AppendUint32(b, fds), body...)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		b   []byte
		fds []int
	}{
		"oversize":                {head(maxBody+1, 0, ""), nil},
		"4 GiB":                   {head(0xffffffff, 0, ""), nil},
		"descriptors are missing": {head(2, 1, "{}"), nil},
		"descriptors unannounced": {head(2, 0, "{}"), []int{int(null.Fd())}},
		"more than announced":     {head(2, 1, "{}"), []int{int(null.Fd()), int(null.Fd())}},
		"no JSON":                 {head(2, 1, "xx"), []int{int(null.Fd())}},
		"cut in the head":         {head(2, 0, "")[:5], nil},
		"cut in the body":         {head(20, 0, "{"), nil},
		"empty body":              {head(0, 0, ""), nil},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			before := openFDs(t)
			var oob []byte
			if c.fds != nil {
				oob = unix.UnixRights(c.fds...)
			}
			if _, _, err := a.c.WriteMsgUnix(c.b, oob, nil); err != nil {
				t.Fatal(err)
			}
			_ = a.c.CloseWrite()
			if _, _, err := b.receive(); err == nil {
				t.Error("it is taken")
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors, before %d", after, before)
			}
		})
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"), 0)
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x00{}"), 1)
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), 3)
	f.Add([]byte(`....{"i":1,"o":"start","b":{"spec":{}}}`), 0)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		if len(data) == 0 || len(data) > 64<<10 {
			return
		}
		if len(data) >= 4 { // a large announced size only waits for more
			binary.LittleEndian.PutUint32(data, binary.LittleEndian.Uint32(data)%(128<<10))
		}
		a, b := pair(t)
		var oob []byte
		if n = n & 7; n > 0 {
			fds := make([]int, n)
			oob = unix.UnixRights(fds...)
		}
		go func() {
			_, _, _ = a.c.WriteMsgUnix(data, oob, nil)
			_ = a.c.CloseWrite()
		}()
		for {
			m, fds, err := b.receive()
			if err != nil {
				return
			}
			if m == nil {
				t.Fatal("no message and no error")
			}
			closeAll(fds)
		}
	})
}

// Every request of the wrong shape is answered with an error, not with a panic.
func TestDispatchRefuses(t *testing.T) {
	k := &Keeper{tasks: map[string]*task{}, clients: map[*conn]struct{}{}, orphans: map[string]entry{}, filters: map[string]*Filter{}, slots: make(chan struct{}, 1), loop: testLoop(t)}
	k.cfg.Log = silent()
	a, _ := pair(t)
	for _, op := range []string{"start", "exec", "adopt", "attach", "fds", "signal", "resize", "freeze", "update", "pids", "upgrade", "nonsense", ""} {
		for _, body := range []string{``, `null`, `{`, `[]`, `"x"`, `{"id":"none"}`, `{"id":"none","exec":"e","attach":{"fd":0}}`, `{"id":5}`} {
			if op == "start" && (body == `null` || strings.HasPrefix(body, `{"id":"none"`)) {
				continue // see TestStartNeedsSpec
			}
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			before := openFDs(t)
			func() {
				defer func() {
					if r := recover(); r != nil {
						t.Errorf("%s %s: %v", op, body, r)
					}
				}()
				if op == "upgrade" { // with one descriptor it would be done
					_ = unix.Close(fd)
					_, _, err = k.dispatch(a, &message{ID: 1, Op: op, Body: json.RawMessage(body)}, nil)
				} else {
					_, _, err = k.dispatch(a, &message{ID: 1, Op: op, Body: json.RawMessage(body)}, []int{fd})
				}
			}()
			if err == nil {
				t.Errorf("%s %s is taken", op, body)
			}
			if after := openFDs(t); after >= before {
				t.Errorf("%s %s: the descriptor is left open", op, body)
			}
		}
	}
}

func TestStartNeedsSpec(t *testing.T) {
	k := &Keeper{tasks: map[string]*task{}, filters: map[string]*Filter{}, slots: make(chan struct{}, 1), loop: testLoop(t)}
	k.cfg.Log = silent()
	for _, body := range []string{`{"id":"x"}`, `null`, `{"id":"x","spec":{}}`, `{"id":"x","spec":{"process":{}}}`, `{"id":"x","spec":{"process":{},"linux":{}},"root":7}`, `{"id":"x","spec":{"process":{},"linux":{}},"root":-1}`} {
		func() {
			defer func() {
				if r := recover(); r != nil {
					t.Errorf("%s: %v", body, r)
				}
			}()
			if _, _, err := k.dispatch(nil, &message{Op: "start", Body: json.RawMessage(body)}, nil); err == nil {
				t.Errorf("%s is taken", body)
			}
		}()
		if len(k.tasks) != 0 {
			t.Errorf("%s: a task is left: %v", body, k.tasks)
			k.tasks = map[string]*task{}
		}
		for len(k.slots) > 0 {
			<-k.slots
		}
	}
}

func TestFailure(t *testing.T) {
	se := &runtime.StartError{Stage: runtime.StageExec, Errno: unix.ENOENT, Path: "nope"}
	f := failure(fmt.Errorf("wrapped: %w", se))
	if f.Kind != KindStart || f.Stage != "exec" || f.Errno != int(unix.ENOENT) || f.Path != "nope" || f.Msg != se.Error() {
		t.Errorf("%+v", f)
	}
	if f := failure(notFound("x")); f.Kind != KindNotFound || f.Msg != "no task x" {
		t.Errorf("%+v", f)
	}
	if f := failure(io.EOF); f.Kind != "" || f.Msg != "EOF" {
		t.Errorf("%+v", f)
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	open := func() *journal {
		t.Helper()
		j, err := openJournal(path, silent())
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open()
	j.write(entry{Op: opStart, ID: "a", Pid: 1, Start: 11})
	j.write(entry{Op: opStart, ID: "b", Pid: 2})
	j.write(entry{Op: opExit, ID: "b", Exit: &Exit{ID: "b", Code: 3}})
	j.write(entry{Op: opStart, ID: "c", Pid: 3})
	j.write(entry{Op: opForget, ID: "c"})
	check := func(j *journal) {
		t.Helper()
		e := j.entries()
		if len(e) != 2 || e["a"].Pid != 1 || e["a"].Start != 11 || e["a"].Exit != nil || e["b"].Exit == nil || e["b"].Exit.Code != 3 || e["b"].Pid != 2 {
			t.Errorf("%+v", e)
		}
	}
	check(j)
	check(open())

	// A torn last line, and lines of rubbish, lose nothing else.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "rubbish\n\x00\x00\n{\"op\":\"start\",\"id\":\"d\",\"pi")
	f.Close()
	j = open()
	check(j)
	j.write(entry{Op: opStart, ID: "e"})
	if e := open().entries(); len(e) != 3 {
		t.Errorf("what follows a torn line is lost: %v", e)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi.Mode(), err)
	}

	// Another boot: nothing of it is true any more.
	raw, _ := os.ReadFile(path)
	if err := os.WriteFile(path, bytes.Replace(raw, []byte(bootID()), []byte("another-boot"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if e := open().entries(); len(e) != 0 {
		t.Errorf("entries of another boot: %v", e)
	}
}

func TestJournalRewrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, silent())
	if err != nil {
		t.Fatal(err)
	}
	pad := strings.Repeat("x", 4000)
	for i := range 1000 {
		id := fmt.Sprint(i)
		j.write(entry{Op: opStart, ID: id, Cgroup: pad})
		if i%100 != 0 {
			j.write(entry{Op: opForget, ID: id})
		}
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > journalMax+2*4096 {
		t.Errorf("%d bytes", fi.Size())
	}
	j2, err := openJournal(path, silent())
	if err != nil || len(j2.entries()) != 10 {
		t.Errorf("%d entries, %v", len(j2.entries()), err)
	}
}

// A disk that was full for a moment costs the entry that met it, not the next one.
func TestJournalFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, silent())
	if err != nil {
		t.Fatal(err)
	}
	j.write(entry{Op: opStart, ID: "a"})
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	lim := old
	lim.Cur = uint64(j.size) + 10
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &lim); err != nil {
		t.Fatal(err)
	}
	j.write(entry{Op: opStart, ID: "b"})
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	j.write(entry{Op: opStart, ID: "c"})
	j2, err := openJournal(path, silent())
	if err != nil {
		t.Fatal(err)
	}
	if e := j2.entries(); e["c"].ID != "c" || e["a"].ID != "a" {
		t.Errorf("%v", e)
	}
}

func TestWaitid(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "kill -15 $$": 143} {
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if code, lost := reapPid(fd, false, 0, 0); code != want || lost {
			t.Errorf("%s: %d, lost %v", script, code, lost)
		}
		// A second look, as a keeper that did not start it would take.
		if code, lost := reapPid(fd, true, 0, 0); code != want && !lost {
			t.Errorf("%s, adopted: %d, lost %v", script, code, lost)
		}
		_ = unix.Close(fd)
	}
}

func TestStartTime(t *testing.T) {
	if a, b := startTime(os.Getpid()), startTime(os.Getpid()); a == 0 || a != b {
		t.Errorf("%d %d", a, b)
	}
	if n := startTime(1 << 30); n != 0 {
		t.Errorf("a process that is not: %d", n)
	}
}

func TestBuildOf(t *testing.T) {
	if Build() == "" || Build() != BuildOf("/proc/self/exe") {
		t.Errorf("%q", Build())
	}
	for _, f := range []string{"/bin/sh", "/no/such", "/dev/null"} {
		if b := BuildOf(f); b != "" {
			t.Errorf("%s: %q", f, b)
		}
	}
}
