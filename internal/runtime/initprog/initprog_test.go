package initprog

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The programs are generated; a change of a single byte must be meant. Review
// the disassembly (objdump -b binary -m i386:x86-64 or aarch64 -D), then write
// the new sum here.
var golden = map[string]string{
	"amd64": "94c290292c433d9963a7372a604e2f8b74f131a1c452c3a85c1137767e2ddd5b",
	"arm64": "6394c270d429f0ccd9f548ca3c55e1553e30fdce0f10bd6f885ce27b79b076e3",
}

func TestBytes(t *testing.T) {
	for arch, want := range golden {
		prog, err := ELF(arch)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ELF(arch)
		if err != nil || !bytes.Equal(prog, again) {
			t.Fatalf("%s: two runs differ", arch)
		}
		sum := sha256.Sum256(prog)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s: sha256 is %s, want %s", arch, got, want)
		}
		if len(prog) >= 1024 {
			t.Errorf("%s: %d bytes, it is to stay below a kilobyte", arch, len(prog))
		}
	}
	if _, err := ELF("riscv64"); err == nil {
		t.Error("an unknown architecture has a program")
	}
}

func TestELF(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		prog, err := ELF(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(prog))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if f.Machine != machine || f.Type != elf.ET_EXEC || f.Class != elf.ELFCLASS64 || len(f.Progs) != 2 {
			t.Errorf("%s: header %+v", arch, f.FileHeader)
		}
		for _, p := range f.Progs {
			switch p.Type {
			case elf.PT_LOAD:
				if p.Flags != elf.PF_R|elf.PF_X || f.Entry < p.Vaddr || f.Entry >= p.Vaddr+p.Filesz || p.Filesz != uint64(len(prog)) {
					t.Errorf("%s: load segment %+v, entry %#x", arch, p.ProgHeader, f.Entry)
				}
				if p.Vaddr+p.Memsz > TableAddr {
					t.Errorf("%s: the program reaches into the table", arch)
				}
			case elf.PT_GNU_STACK:
				if p.Flags&elf.PF_X != 0 {
					t.Errorf("%s: the stack is executable", arch)
				}
			default:
				t.Errorf("%s: segment %v: nothing is to be loaded or interpreted", arch, p.Type)
			}
		}
	}
}

// machine is one architecture as a table sees it: system call numbers and the
// way to run its programs.
type machine struct {
	name string
	run  []string // what runs a foreign program
	nr   map[string]uint16
}

func machines(t *testing.T) []machine {
	amd := machine{name: "amd64", nr: map[string]uint16{
		"write": 1, "close": 3, "getpid": 39, "clone": 56, "execve": 59, "kill": 62, "chdir": 80, "exit_group": 231, "rt_sigprocmask": 14,
		"dup": 32, "openat": 257, "nanosleep": 35,
	}}
	arm := machine{name: "arm64", nr: map[string]uint16{
		"write": 64, "close": 57, "getpid": 172, "clone": 220, "execve": 221, "kill": 129, "chdir": 49, "exit_group": 94, "rt_sigprocmask": 135,
		"dup": 23, "openat": 56, "nanosleep": 101,
	}}
	native, foreign := amd, arm
	if runtime.GOARCH == "arm64" {
		native, foreign = arm, amd
	}
	list := []machine{native}
	qemu := map[string]string{"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[foreign.name]
	if path, err := exec.LookPath(qemu); err == nil {
		foreign.run = []string{path}
		list = append(list, foreign)
	} else {
		t.Logf("%s is not installed (Debian package qemu-user): %s is checked by its sum only", qemu, foreign.name)
	}
	return list
}

type op struct {
	nr              string // "" is OpReap
	flags           byte
	skipOK, skipErr byte
	allow           unix.Errno
	args            [6]uint64
	store           uint64
}

// table is written by hand here, on purpose not by package runtime.
type table struct {
	m    machine
	ops  []op
	data []byte
}

const dataAt = 64 << 10

func (t *table) add(nr string, args ...uint64) *op {
	o := op{nr: nr}
	copy(o.args[:], args)
	t.ops = append(t.ops, o)
	return &t.ops[len(t.ops)-1]
}

func (t *table) bytes(b []byte) uint64 {
	for len(t.data)%8 != 0 {
		t.data = append(t.data, 0)
	}
	a := uint64(TableAddr + dataAt + len(t.data))
	t.data = append(t.data, b...)
	return a
}

func (t *table) str(s string) uint64 { return t.bytes(append([]byte(s), 0)) }

func (t *table) word(v uint64) uint64 { return t.bytes(binary.LittleEndian.AppendUint64(nil, v)) }

// arg is the address of an argument of operation i.
func arg(i, n int) uint64 { return TableAddr + HeaderSize + uint64(i)*OpSize + 8 + 8*uint64(n) }

func (t *table) exit(code uint64) { t.add("exit_group", code) }

func (t *table) encode() []byte {
	b := make([]byte, dataAt+len(t.data))
	le := binary.LittleEndian
	for i, o := range t.ops {
		p := b[HeaderSize+i*OpSize:]
		nr := uint16(OpReap)
		if o.nr != "" {
			nr = t.m.nr[o.nr]
		}
		le.PutUint16(p, nr)
		p[2], p[3], p[4] = o.flags, o.skipOK, o.skipErr
		le.PutUint16(p[6:], uint16(o.allow))
		for j, a := range o.args {
			le.PutUint64(p[8+8*j:], a)
		}
		le.PutUint64(p[56:], o.store)
	}
	copy(b[dataAt:], t.data)
	return b
}

type report struct{ op, errno uint64 }

type result struct {
	status  syscall.WaitStatus
	reports []report
	out     string
}

// start runs a table as process 1 of nothing: the caller waits.
func (t *table) start(tt *testing.T) (pid int, finish func() result) {
	tt.Helper()
	prog, err := ELF(t.m.name)
	if err != nil {
		tt.Fatal(err)
	}
	file := filepath.Join(tt.TempDir(), "init")
	if err := os.WriteFile(file, prog, 0o755); err != nil {
		tt.Fatal(err)
	}
	mem, err := unix.MemfdCreate("table", unix.MFD_CLOEXEC)
	if err != nil {
		tt.Fatal(err)
	}
	defer unix.Close(mem)
	if _, err := unix.Write(mem, t.encode()); err != nil {
		tt.Fatal(err)
	}
	if err := unix.Ftruncate(mem, TableMax); err != nil {
		tt.Fatal(err)
	}
	rep, repW, err := os.Pipe()
	if err != nil {
		tt.Fatal(err)
	}
	out, outW, err := os.Pipe()
	if err != nil {
		tt.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		tt.Fatal(err)
	}
	defer null.Close()
	argv := append(append([]string{}, t.m.run...), file)
	pid, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Files: []uintptr{null.Fd(), outW.Fd(), 2, uintptr(mem), repW.Fd()}})
	if err != nil {
		tt.Fatal(err)
	}
	repW.Close()
	outW.Close()
	return pid, func() result {
		var r result
		timer := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		defer timer.Stop()
		if _, err := syscall.Wait4(pid, &r.status, 0, nil); err != nil {
			tt.Fatal(err)
		}
		var buf bytes.Buffer
		_, _ = buf.ReadFrom(rep)
		for b := buf.Bytes(); len(b) >= 16; b = b[16:] {
			addr := binary.LittleEndian.Uint64(b)
			r.reports = append(r.reports, report{(addr - TableAddr - HeaderSize) / OpSize, binary.LittleEndian.Uint64(b[8:])})
		}
		buf.Reset()
		_, _ = buf.ReadFrom(out)
		r.out = buf.String()
		rep.Close()
		out.Close()
		return r
	}
}

const enoent, ebadf = uint64(unix.ENOENT), uint64(unix.EBADF)

func TestInterpreter(t *testing.T) {
	cases := []struct {
		name    string
		build   func(*table)
		code    int
		reports []report
		out     string
	}{
		{"success goes on to the next", func(t *table) {
			t.add("write", 1, t.str("hi"), 2)
			t.add("write", 1, t.str("!"), 1)
			t.exit(7)
		}, 7, nil, "hi!"},
		{"an error is reported with its operation and ends it", func(t *table) {
			t.add("write", 1, t.str("a"), 1)
			t.add("chdir", t.str("/nowhere/at/all"))
			t.add("write", 1, t.str("b"), 1)
			t.exit(0)
		}, 254, []report{{1, enoent}}, "a"},
		{"a tolerated errno", func(t *table) {
			t.add("chdir", t.str("/nowhere")).allow = unix.ENOENT
			t.exit(3)
		}, 3, nil, ""},
		{"another errno than the tolerated one", func(t *table) {
			t.add("close", 77).allow = unix.ENOENT
			t.exit(3)
		}, 254, []report{{0, ebadf}}, ""},
		{"FlagIgnore", func(t *table) {
			t.add("close", 77).flags = FlagIgnore
			t.add("chdir", t.str("/nowhere")).flags = FlagIgnore
			t.exit(4)
		}, 4, nil, ""},
		{"FlagContinue reports each and goes on", func(t *table) {
			t.add("close", 77).flags = FlagContinue
			t.add("chdir", t.str("/nowhere")).flags = FlagContinue
			t.exit(5)
		}, 5, []report{{0, ebadf}, {1, enoent}}, ""},
		{"skipOK after success", func(t *table) {
			t.add("getpid").skipOK = 2
			t.exit(1)
			t.exit(2)
			t.exit(3)
		}, 3, nil, ""},
		{"skipErr is not for success", func(t *table) {
			t.add("getpid").skipErr = 2
			t.exit(1)
			t.exit(2)
			t.exit(3)
		}, 1, nil, ""},
		{"skipErr after a tolerated error, skipOK not", func(t *table) {
			o := t.add("close", 77)
			o.allow, o.skipErr, o.skipOK = unix.EBADF, 1, 2
			t.exit(1)
			t.exit(2)
			t.exit(3)
		}, 2, nil, ""},
		{"skipErr after an ignored error", func(t *table) {
			o := t.add("close", 77)
			o.flags, o.skipErr = FlagIgnore, 2
			t.exit(1)
			t.exit(2)
			t.exit(3)
		}, 3, nil, ""},
		{"a result becomes an argument", func(t *table) {
			t.add("dup", 1).store = arg(1, 0)
			t.add("write", 99, t.str("dup"), 3)
			t.add("close", 1)
			t.exit(0)
		}, 0, nil, "dup"},
		{"a failed call stores nothing", func(t *table) {
			o := t.add("dup", 77)
			o.store, o.flags = arg(1, 0), FlagIgnore
			t.exit(9)
		}, 9, nil, ""},
		{"all six arguments arrive", func(t *table) {
			// Through openat and write: the fourth argument is the mode.
			t.add("openat", 0xffffffffffffff9c, t.str("/dev/null"), unix.O_WRONLY, 0).store = arg(1, 0)
			t.add("close", 99)
			t.exit(0)
		}, 0, nil, ""},
		{"the last of a run of execve", func(t *table) {
			argv := t.bytes(make([]byte, 8))
			t.add("execve", t.str("/nowhere/x"), argv, argv).flags = FlagContinue
			t.add("execve", t.str("/etc/passwd"), argv, argv).flags = FlagContinue
			t.exit(254)
		}, 254, []report{{0, enoent}, {1, uint64(unix.EACCES)}}, ""},
		{"skips of up to 255", func(t *table) {
			t.add("getpid").skipOK = 255
			for range 255 {
				t.exit(1)
			}
			t.exit(6)
		}, 6, nil, ""},
	}
	for _, m := range machines(t) {
		for _, c := range cases {
			t.Run(m.name+"/"+c.name, func(t *testing.T) {
				tab := &table{m: m}
				c.build(tab)
				_, finish := tab.start(t)
				r := finish()
				if !r.status.Exited() || r.status.ExitStatus() != c.code || r.out != c.out {
					t.Errorf("status %#x, output %q; want %d, %q", r.status, r.out, c.code, c.out)
				}
				if len(r.reports) != len(c.reports) {
					t.Fatalf("reports %v, want %v", r.reports, c.reports)
				}
				for i := range r.reports {
					if r.reports[i] != c.reports[i] {
						t.Errorf("reports %v, want %v", r.reports, c.reports)
					}
				}
			})
		}
	}
}

// A table that cannot be mapped: nothing to report with, the status tells.
func TestNoTable(t *testing.T) {
	prog, err := ELF(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(file, prog, 0o755); err != nil {
		t.Fatal(err)
	}
	err = exec.Command(file).Run()
	var e *exec.ExitError
	if !asExit(err, &e) || e.ExitCode() != 254 {
		t.Errorf("%v, want exit status 254", err)
	}
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // straight from exec
	*to = e
	return ok
}

// reaper adds what package runtime adds for --init, then child in its place.
func (t *table) reaper(child func()) {
	all, none := t.word(^uint64(0)), t.word(0)
	t.add("rt_sigprocmask", unix.SIG_SETMASK, all, 0, 8)
	n := len(t.ops)
	t.add("clone", unix.CLONE_VM|unix.CLONE_VFORK|uint64(unix.SIGCHLD), 0, 0, 0, 0).store = arg(n+1, 0)
	t.add("", 0, all, t.bytes(make([]byte, 128)))
	t.add("rt_sigprocmask", unix.SIG_SETMASK, none, 0, 8)
	child()
}

func (t *table) exec(args ...string) {
	var v []byte
	for _, a := range args {
		v = binary.LittleEndian.AppendUint64(v, t.str(a))
	}
	argv := t.bytes(append(v, make([]byte, 8)...))
	t.add("execve", t.str(args[0]), argv, t.word(0)).flags = FlagContinue
	t.exit(254)
}

func TestReap(t *testing.T) {
	cases := []struct {
		name string
		sh   string
		code int
	}{
		{"exit code", "exit 5", 5},
		{"zero", "exit 0", 0},
		{"255", "exit 255", 255},
		{"signal", "kill -9 $$", 137},
		{"term", "kill -15 $$", 143},
		{"orphans and children before it", "(sleep 0.05; exit 9) & (exit 8) & sleep 0.1; exit 6", 6},
	}
	for _, m := range machines(t) {
		for _, c := range cases {
			t.Run(m.name+"/"+c.name, func(t *testing.T) {
				tab := &table{m: m}
				tab.reaper(func() { tab.exec("/bin/sh", "-c", c.sh) })
				_, finish := tab.start(t)
				if r := finish(); r.status.ExitStatus() != c.code || len(r.reports) != 0 {
					t.Errorf("status %#x, reports %v; want exit %d", r.status, r.reports, c.code)
				}
			})
		}
		t.Run(m.name+"/signals are passed on", func(t *testing.T) {
			tab := &table{m: m}
			tab.reaper(func() {
				tab.exec("/bin/sh", "-c", "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.02; done")
			})
			pid, finish := tab.start(t)
			time.Sleep(300 * time.Millisecond)
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if r := finish(); r.status.ExitStatus() != 3 || r.out != "up\ngot\n" {
				t.Errorf("status %#x, output %q", r.status, r.out)
			}
		})
		t.Run(m.name+"/the child's execve fails", func(t *testing.T) {
			tab := &table{m: m}
			tab.reaper(func() { tab.exec("/nowhere/x") })
			_, finish := tab.start(t)
			if r := finish(); r.status.ExitStatus() != 254 || len(r.reports) != 1 || r.reports[0].errno != enoent {
				t.Errorf("status %#x, reports %v", r.status, r.reports)
			}
		})
	}
}

// The parent sees the end of the report pipe when the command runs, not when it ends.
func TestReportPipeIsClosedByReaper(t *testing.T) {
	m := machines(t)[0]
	tab := &table{m: m}
	// Without CLOEXEC on 4 the command would hold it: close it in the child.
	tab.reaper(func() { tab.add("close", FDReport); tab.exec("/bin/sleep", "5") })
	prog, err := ELF(m.name)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(file, prog, 0o755); err != nil {
		t.Fatal(err)
	}
	mem := filepath.Join(t.TempDir(), "table")
	if err := os.WriteFile(mem, tab.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(mem)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, err := syscall.ForkExec(file, []string{"init"}, &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2, f.Fd(), w.Fd()}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(3 * time.Second))
	n, err := r.Read(make([]byte, 1))
	if n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("read %d, %v; want the end of the file at once", n, err)
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	_, _ = syscall.Wait4(pid, nil, 0, nil)
}
