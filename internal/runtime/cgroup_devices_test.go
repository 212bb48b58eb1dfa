package runtime

import (
	"os"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// run interprets a device program, as the kernel would.
func run(t *testing.T, p []bpfInsn, typ, access uint32, major, minor int64) bool {
	t.Helper()
	ctx := map[int16]int64{0: int64(access<<16 | typ), 4: major, 8: minor}
	var r [8]int64
	for pc := 0; pc < len(p); pc++ {
		i := p[pc]
		jump := false
		switch i.op {
		case bpfLoadWord:
			r[i.dst] = ctx[i.off]
		case bpfMove:
			r[i.dst] = r[i.src]
		case bpfMoveImm:
			r[i.dst] = int64(i.imm)
		case bpfAndImm:
			r[i.dst] &= int64(i.imm)
		case bpfShiftRight:
			r[i.dst] >>= i.imm
		case bpfJumpNot:
			jump = r[i.dst] != r[i.src]
		case bpfJumpNotImm:
			jump = r[i.dst] != int64(i.imm)
		case bpfJumpIfImm:
			jump = r[i.dst] == int64(i.imm)
		case bpfExit:
			return r[0] == 1
		default:
			t.Fatalf("what is %s?", i)
		}
		if jump {
			pc += int(i.off)
		}
	}
	t.Fatal("the program has no end")
	return false
}

func TestDefaultDeviceProgram(t *testing.T) {
	const file = "testdata/device-program.golden"
	var b strings.Builder
	p := defaultDevices().program()
	for _, i := range p {
		b.WriteString(i.String() + "\n")
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the program has changed (write it with -update):\n%s", b.String())
	}
	for _, c := range []struct {
		typ          uint32
		access       string
		major, minor int64
		ok           bool
	}{
		{bpfChar, "rw", 1, 3, true},
		{bpfChar, "rwm", 1, 3, true},
		{bpfChar, "r", 1, 9, true},
		{bpfChar, "rw", 136, 77, true},
		{bpfChar, "rw", 5, 2, true},
		{bpfChar, "rw", 10, 200, true},
		{bpfChar, "m", 240, 7, true},
		{bpfBlock, "m", 8, 0, true},
		{bpfChar, "r", 1, 1, false},
		{bpfChar, "rw", 1, 11, false},
		{bpfBlock, "r", 8, 0, false},
		{bpfBlock, "rwm", 8, 0, false},
		{bpfBlock, "r", 1, 3, false},
		{bpfChar, "rw", 10, 229, false},
		{bpfChar, "rm", 240, 7, false},
	} {
		if got := run(t, p, c.typ, accessBits(c.access), c.major, c.minor); got != c.ok {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestDeviceSet(t *testing.T) {
	rule := func(allow bool, text string) specs.LinuxDeviceCgroup {
		f := strings.Fields(text)
		d := specs.LinuxDeviceCgroup{Allow: allow, Type: f[0]}
		if len(f) > 1 {
			num := func(s string) *int64 {
				n, err := strconv.ParseInt(s, 10, 64)
				if err != nil {
					return nil
				}
				return &n
			}
			major, minor, _ := strings.Cut(f[1], ":")
			d.Major, d.Minor, d.Access = num(major), num(minor), f[2]
		}
		return d
	}
	type ask struct {
		text string // type, numbers, access
		ok   bool
	}
	for _, c := range []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		asks  []ask
	}{
		{"added", []specs.LinuxDeviceCgroup{rule(true, "b 8:0 r")}, []ask{{"b 8:0 r", true}, {"b 8:0 w", false}, {"b 8:0 rw", false}, {"b 8:1 r", false}}},
		{"added twice", []specs.LinuxDeviceCgroup{rule(true, "b 8:0 r"), rule(true, "b 8:0 w")}, []ask{{"b 8:0 rw", true}}},
		{"any minor", []specs.LinuxDeviceCgroup{rule(true, "b 8:* rwm")}, []ask{{"b 8:1 rwm", true}, {"c 8:1 r", false}}},
		{"any major", []specs.LinuxDeviceCgroup{rule(true, "c *:229 rw")}, []ask{{"c 10:229 rw", true}, {"c 10:1 rw", false}}},
		{"all", []specs.LinuxDeviceCgroup{rule(true, "a")}, []ask{{"b 8:1 rwm", true}}},
		{"all but one", []specs.LinuxDeviceCgroup{rule(true, "a"), rule(false, "b 8:0 w")}, []ask{{"b 8:0 r", true}, {"b 8:0 rw", false}, {"b 8:1 rwm", true}}},
		{"none", []specs.LinuxDeviceCgroup{rule(false, "a")}, []ask{{"c 1:3 r", false}, {"c 10:1 m", false}}},
		{"taken back", []specs.LinuxDeviceCgroup{rule(true, "b 8:0 rw"), rule(false, "b 8:0 w")}, []ask{{"b 8:0 r", true}, {"b 8:0 w", false}}},
		{"a part of a wider one stays", []specs.LinuxDeviceCgroup{rule(true, "b 8:* rw"), rule(false, "b 8:0 rw")}, []ask{{"b 8:0 r", true}}},
	} {
		s := defaultDevices()
		for _, r := range c.rules {
			if err := s.apply(r); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range c.asks {
			r := rule(true, a.text)
			typ := uint32(bpfChar)
			if r.Type == "b" {
				typ = bpfBlock
			}
			if got := run(t, s.program(), typ, accessBits(r.Access), *r.Major, *r.Minor); got != a.ok {
				t.Errorf("%s: %s is %v", c.name, a.text, got)
			}
		}
	}
	if err := defaultDevices().apply(specs.LinuxDeviceCgroup{Type: "x"}); err == nil {
		t.Error("a device of type x")
	}
}

// The kernel takes the programs, and a cgroup has one of them at a time.
func TestDeviceProgramsInKernel(t *testing.T) {
	enginetest.RequireRoot(t)
	h, err := ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	var root string
	for _, y := range h.Hierarchies {
		if y.Unified {
			root = y.Path
		}
	}
	if root == "" {
		enginetest.Skip(t, enginetest.NeedsUnified)
	}
	dir, err := os.MkdirTemp(root, "berth-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	c := NewCgroups(&Host{CgroupV2: true, Hierarchies: []Hierarchy{{Path: root, Unified: true}}})
	g := &Cgroup{V2: dir, V2FD: -1, View: -1}
	count := func() int {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		ids, err := attachedPrograms(fd)
		if err != nil {
			t.Fatal(err)
		}
		return len(ids)
	}
	for _, x := range []struct {
		rules []specs.LinuxDeviceCgroup
		want  int
	}{
		{nil, 1},
		{nil, 1},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: ptr(int64(8)), Access: "rw"}}, 1},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Type: "a"}, {Type: "b", Major: ptr(int64(8)), Access: "w"}}, 1},
		{[]specs.LinuxDeviceCgroup{{Allow: true}}, 0},
	} {
		if err := c.devicesV2(g, x.rules); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != x.want {
			t.Errorf("%v: %d programs, want %d", x.rules, n, x.want)
		}
	}
}
