package runtime

import (
	"encoding/binary"
	goruntime "runtime"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// call is struct seccomp_data.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c call) word(off uint32) uint32 {
	var b [64]byte
	le := binary.LittleEndian
	le.PutUint32(b[:], c.nr)
	le.PutUint32(b[4:], c.arch)
	for i, a := range c.args {
		le.PutUint64(b[16+8*i:], a)
	}
	return le.Uint32(b[off:])
}

// interpret runs a filter as the kernel does, and checks it as the kernel
// would: jumps forward and inside, loads aligned and inside the data.
func interpret(t *testing.T, code []byte, c call) uint32 {
	t.Helper()
	le := binary.LittleEndian
	n := uint32(len(code) / 8)
	var acc uint32
	for pc, steps := uint32(0), 0; pc < n; pc++ {
		if steps++; steps > 4096 {
			t.Fatal("the filter does not end")
		}
		i := code[pc*8:]
		op, jt, jf, k := le.Uint16(i), uint32(i[2]), uint32(i[3]), le.Uint32(i[4:])
		jump := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch op {
		case 0x20:
			if k%4 != 0 || k > 60 {
				t.Fatalf("load of %d", k)
			}
			acc = c.word(k)
		case 0x54:
			acc &= k
		case 0x15:
			jump(acc == k)
		case 0x25:
			jump(acc > k)
		case 0x35:
			jump(acc >= k)
		case 0x05:
			pc += k
		case 0x06:
			return k
		default:
			t.Fatalf("instruction %#x is none of those this compiler makes", op)
		}
	}
	t.Fatal("the filter runs over its end")
	return 0
}

const (
	retAllow  = 0x7fff0000
	retErrno  = 0x00050000
	auditX86  = 0x40000003
	auditAMD  = 0xc000003e
	auditARM  = 0x40000028
	auditARM8 = 0xc00000b7
)

// naive answers what a profile says of a call, read from top to bottom.
func naive(t *testing.T, s *specs.LinuxSeccomp, numbers map[string]uint32, c call) uint32 {
	t.Helper()
	action := func(a specs.LinuxSeccompAction, e *uint) uint32 {
		v, err := seccompAction(a, e)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	def := action(s.DefaultAction, s.DefaultErrnoRet)
	highest, result := uint32(0), def
	conditional := true
	for _, rule := range s.Syscalls {
		for _, name := range rule.Names {
			nr, ok := numbers[name]
			if !ok {
				continue
			}
			highest = max(highest, nr)
			if nr != c.nr {
				continue
			}
			if len(rule.Args) == 0 {
				result, conditional = action(rule.Action, rule.ErrnoRet), false
				continue
			}
			if !conditional || result != def {
				continue
			}
			if matchArgs(t, rule.Args, c) {
				result = action(rule.Action, rule.ErrnoRet)
			}
		}
	}
	if c.nr > highest {
		return retErrno | uint32(unix.ENOSYS)
	}
	return result
}

func matchArgs(t *testing.T, args []specs.LinuxSeccompArg, c call) bool {
	for _, a := range args {
		v := c.args[a.Index]
		var ok bool
		switch a.Op {
		case specs.OpEqualTo:
			ok = v == a.Value
		case specs.OpNotEqual:
			ok = v != a.Value
		case specs.OpLessThan:
			ok = v < a.Value
		case specs.OpLessEqual:
			ok = v <= a.Value
		case specs.OpGreaterThan:
			ok = v > a.Value
		case specs.OpGreaterEqual:
			ok = v >= a.Value
		case specs.OpMaskedEqual:
			ok = v&a.Value == a.ValueTwo
		default:
			t.Fatal(a.Op)
		}
		if !ok {
			return false
		}
	}
	return true
}

func dockerProfile(t *testing.T, caps ...string) (*specs.LinuxSeccomp, []byte) {
	t.Helper()
	rules, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	code, _, err := CompileSeccomp(rules)
	if err != nil {
		t.Fatal(err)
	}
	if len(code) > 4096*8 {
		t.Fatalf("%d instructions", len(code)/8)
	}
	return rules, code
}

// Interesting argument values: those of the profile's conditions and their neighbours.
var values = []uint64{
	0, 1, 7, 8, 9, 37, 38, 39, 40, 41, 0x20000, 0x20008, 0x20009, 0xffffffff, 0x100000000, 0x100000008, ^uint64(0),
	unix.CLONE_NEWNS, unix.CLONE_NEWUSER, unix.CLONE_NEWNET | unix.CLONE_VM, unix.CLONE_VM | unix.CLONE_VFORK | 17, 2114060288, 2114060288 << 32,
}

func TestSeccompEqualsNaive(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, capNames, {"CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_BPF"}} {
		rules, code := dockerProfile(t, caps...)
		arches := []struct {
			audit  uint32
			column int
		}{{auditAMD, 0}, {auditX86, 1}}
		if goruntime.GOARCH == "arm64" {
			arches = []struct {
				audit  uint32
				column int
			}{{auditARM8, 2}, {auditARM, 3}}
		}
		for _, a := range arches {
			for nr := uint32(0); nr < 700; nr++ {
				for _, v := range values {
					c := call{nr, a.audit, [6]uint64{v, v, v, v, v, v}}
					if got, want := interpret(t, code, c), naive(t, rules, syscallNumbers()[a.column], c); got != want {
						t.Fatalf("caps %v, arch %#x, call %d(%#x): %#x, want %#x", caps, a.audit, nr, v, got, want)
					}
				}
			}
		}
	}
}

func TestSeccompDockerDefault(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		enginetest.Skip(t, enginetest.NeedsAMD64)
	}
	_, plain := dockerProfile(t)
	_, admin := dockerProfile(t, "CAP_SYS_ADMIN")
	const eperm, enosys = retErrno | uint32(unix.EPERM), retErrno | uint32(unix.ENOSYS)
	cases := []struct {
		name  string
		c     call
		plain uint32
		admin uint32
	}{
		{"read", call{nr: unix.SYS_READ}, retAllow, retAllow},
		{"execve", call{nr: unix.SYS_EXECVE}, retAllow, retAllow},
		{"execveat", call{nr: unix.SYS_EXECVEAT}, retAllow, retAllow},
		{"openat2", call{nr: unix.SYS_OPENAT2}, retAllow, retAllow},
		{"close_range", call{nr: unix.SYS_CLOSE_RANGE}, retAllow, retAllow},
		{"faccessat", call{nr: unix.SYS_FACCESSAT}, retAllow, retAllow},
		{"mount", call{nr: unix.SYS_MOUNT}, eperm, retAllow},
		{"umount2", call{nr: unix.SYS_UMOUNT2}, eperm, retAllow},
		{"move_mount", call{nr: unix.SYS_MOVE_MOUNT}, eperm, retAllow},
		{"bpf", call{nr: unix.SYS_BPF}, eperm, retAllow},
		{"setns", call{nr: unix.SYS_SETNS}, eperm, retAllow},
		{"unshare", call{nr: unix.SYS_UNSHARE}, eperm, retAllow},
		{"keyctl", call{nr: unix.SYS_KEYCTL}, eperm, eperm},
		{"add_key", call{nr: unix.SYS_ADD_KEY}, eperm, eperm},
		{"reboot", call{nr: unix.SYS_REBOOT}, eperm, eperm},
		{"kexec_load", call{nr: unix.SYS_KEXEC_LOAD}, eperm, eperm},
		{"init_module", call{nr: unix.SYS_INIT_MODULE}, eperm, eperm},
		{"userfaultfd", call{nr: unix.SYS_USERFAULTFD}, eperm, eperm},
		{"io_uring_setup", call{nr: unix.SYS_IO_URING_SETUP}, eperm, eperm},
		{"clone3", call{nr: unix.SYS_CLONE3}, enosys, retAllow},
		{"clone of a thread", call{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD}}, retAllow, retAllow},
		{"clone NEWUSER", call{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_NEWUSER | 17}}, eperm, retAllow},
		{"clone NEWNS", call{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_NEWNS}}, eperm, retAllow},
		{"clone NEWCGROUP", call{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_NEWCGROUP}}, eperm, retAllow},
		{"clone, high half", call{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_NEWUSER << 32}}, retAllow, retAllow},
		{"personality 0", call{nr: unix.SYS_PERSONALITY}, retAllow, retAllow},
		{"personality READ_IMPLIES_EXEC", call{nr: unix.SYS_PERSONALITY, args: [6]uint64{0x400000}}, eperm, eperm},
		{"personality ADDR_NO_RANDOMIZE", call{nr: unix.SYS_PERSONALITY, args: [6]uint64{0x40000}}, eperm, eperm},
		{"personality query", call{nr: unix.SYS_PERSONALITY, args: [6]uint64{0xffffffff}}, retAllow, retAllow},
		{"socket INET", call{nr: unix.SYS_SOCKET, args: [6]uint64{unix.AF_INET}}, retAllow, retAllow},
		{"socket NETLINK", call{nr: unix.SYS_SOCKET, args: [6]uint64{unix.AF_NETLINK}}, retAllow, retAllow},
		{"socket VSOCK", call{nr: unix.SYS_SOCKET, args: [6]uint64{unix.AF_VSOCK}}, eperm, eperm},
		{"socket ALG", call{nr: unix.SYS_SOCKET, args: [6]uint64{unix.AF_ALG}}, eperm, eperm},
		{"socket XDP", call{nr: unix.SYS_SOCKET, args: [6]uint64{unix.AF_XDP}}, retAllow, retAllow},
		{"a call of the future", call{nr: 600}, enosys, enosys},
		{"a number never used", call{nr: 0x3fffffff}, enosys, enosys},
		{"x32 read", call{nr: x32Bit}, eperm, eperm},
		{"x32 mount", call{nr: x32Bit | unix.SYS_MOUNT}, eperm, eperm},
		{"x32, all bits", call{nr: 0xffffffff}, eperm, eperm},
		{"i386 exit", call{nr: 1, arch: auditX86}, retAllow, retAllow},
		{"i386 mount", call{nr: 21, arch: auditX86}, eperm, retAllow},
		{"i386 future", call{nr: 600, arch: auditX86}, enosys, enosys},
		{"another architecture", call{nr: 0, arch: auditARM8}, 0, 0},
	}
	for _, c := range cases {
		if c.c.arch == 0 {
			c.c.arch = auditAMD
		}
		if got := interpret(t, plain, c.c); got != c.plain {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.plain)
		}
		if got := interpret(t, admin, c.c); got != c.admin {
			t.Errorf("%s with CAP_SYS_ADMIN: %#x, want %#x", c.name, got, c.admin)
		}
	}
}

// Every comparison at every boundary of both halves.
func TestSeccompOperators(t *testing.T) {
	edge := []uint64{0, 1, 2, 0xfffffffe, 0xffffffff, 0x100000000, 0x100000001, 0x1ffffffff, 0x200000000, 0xffffffff00000000, ^uint64(0)}
	nr := syscallNumbers()[nativeColumn()]["read"]
	arch := filterArches[nativeArch[goruntime.GOARCH]].audit
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	for _, op := range ops {
		for _, v := range edge {
			for _, two := range edge {
				if op != specs.OpMaskedEqual && two != 0 {
					continue
				}
				s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
					Names: []string{"read"}, Action: specs.ActAllow,
					Args: []specs.LinuxSeccompArg{{Index: 5, Op: op, Value: v, ValueTwo: two}, {Index: 0, Op: specs.OpEqualTo, Value: 3}},
				}}}
				code, _, err := CompileSeccomp(s)
				if err != nil {
					t.Fatal(err)
				}
				for _, arg := range edge {
					for _, first := range []uint64{3, 4} {
						c := call{nr, arch, [6]uint64{first, 0, 0, 0, 0, arg}}
						if got, want := interpret(t, code, c), naive(t, s, syscallNumbers()[nativeColumn()], c); got != want {
							t.Fatalf("%s %#x,%#x for %#x: %#x, want %#x", op, v, two, arg, got, want)
						}
					}
				}
			}
		}
	}
}

func TestSeccompProfiles(t *testing.T) {
	native := filterArches[nativeArch[goruntime.GOARCH]].audit
	nrs := syscallNumbers()[nativeColumn()]
	one := func(s *specs.LinuxSeccomp, name string, args ...uint64) uint32 {
		t.Helper()
		code, _, err := CompileSeccomp(s)
		if err != nil {
			t.Fatal(err)
		}
		c := call{nr: nrs[name], arch: native}
		copy(c.args[:], args)
		return interpret(t, code, c)
	}
	e := uint(1)
	cases := []struct {
		name string
		s    *specs.LinuxSeccomp
		call string
		args []uint64
		want uint32
	}{
		{"empty profile", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "read", nil, retAllow},
		{"deny list", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"chmod", "fchmodat"}, Action: specs.ActErrno, ErrnoRet: &e}}}, "fchmodat", nil, retErrno | 1},
		{"deny list, another call", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"fchmodat"}, Action: specs.ActErrno}}}, "read", nil, retAllow},
		{"kill process", &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess}, "read", nil, 0x80000000},
		{"unknown names are left out", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"no_such_call", "read"}, Action: specs.ActAllow}}}, "read", nil, retAllow},
		{"an argument twice is one of them", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 1, Op: specs.OpEqualTo}, {Index: 0, Value: 2, Op: specs.OpEqualTo}}}}}, "read", []uint64{2}, retAllow},
		{"errno 38 by default", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(38))}, "read", nil, retErrno | 38},
	}
	for _, c := range cases {
		if got := one(c.s, c.call, c.args...); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	for _, bad := range []*specs.LinuxSeccomp{
		{DefaultAction: "SCMP_ACT_FUN"},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: "x"}}},
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"FLAG"}},
	} {
		if _, _, err := CompileSeccomp(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// The table against the numbers of x/sys.
func TestSyscallNumbers(t *testing.T) {
	nrs := syscallNumbers()[nativeColumn()]
	for name, nr := range map[string]uint32{
		"read": unix.SYS_READ, "execve": unix.SYS_EXECVE, "openat2": unix.SYS_OPENAT2, "clone3": unix.SYS_CLONE3, "mount_setattr": unix.SYS_MOUNT_SETATTR,
		"seccomp": unix.SYS_SECCOMP, "close_range": unix.SYS_CLOSE_RANGE, "landlock_restrict_self": unix.SYS_LANDLOCK_RESTRICT_SELF, "cachestat": unix.SYS_CACHESTAT,
	} {
		if nrs[name] != nr {
			t.Errorf("%s is %d, want %d", name, nrs[name], nr)
		}
	}
	for i, col := range syscallNumbers() {
		if len(col) < 290 {
			t.Errorf("column %d has %d calls", i, len(col))
		}
		seen := map[uint32]string{}
		for n, nr := range col {
			if other, dup := seen[nr]; dup {
				t.Errorf("column %d: %s and %s are both %d", i, n, other, nr)
			}
			seen[nr] = n
		}
	}
}
