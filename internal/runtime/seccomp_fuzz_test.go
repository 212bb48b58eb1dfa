package runtime

import (
	"encoding/binary"
	goruntime "runtime"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzSeccomp makes a profile and a call of bytes. The compiled filter must be one that
// the kernel takes, and must answer what the profile says when it is read from
// top to bottom.
func FuzzSeccomp(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3}, uint16(0), uint64(0), uint64(3))
	f.Add([]byte{1, 0, 2, 1, 0, 5, 9, 9, 0, 0, 3, 1, 0, 2, 1, 7, 7}, uint16(1), uint64(9), uint64(1<<32))
	f.Add([]byte{2, 4, 200, 2, 1, 6, 1, 0, 1, 3, 200, 0, 1, 1, 255}, uint16(200), ^uint64(0), uint64(4))
	numbers := syscallNumbers()[nativeColumn()]
	names := make([]string, 512)
	for name, nr := range numbers {
		if nr < uint32(len(names)) {
			names[nr] = name
		}
	}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActLog, specs.ActTrace, specs.ActTrap, specs.ActKillThread}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	arch := filterArches[nativeArch[goruntime.GOARCH]].audit
	f.Fuzz(func(t *testing.T, raw []byte, nr uint16, a, b uint64) {
		next := func() byte {
			if len(raw) == 0 {
				return 0
			}
			x := raw[0]
			raw = raw[1:]
			return x
		}
		word := func() uint64 { // small numbers, and such that differ in one half
			x := uint64(next())
			return []uint64{x, x << 32, x<<32 | 0xffffffff, ^x}[next()%4]
		}
		s := &specs.LinuxSeccomp{DefaultAction: actions[next()%byte(len(actions))]}
		for range 64 {
			if len(raw) == 0 {
				break
			}
			errno := uint(next())
			rule := specs.LinuxSyscall{Action: actions[next()%byte(len(actions))], ErrnoRet: &errno}
			for range next() % 8 {
				if name := names[int(next())*2%len(names)]; name != "" {
					rule.Names = append(rule.Names, name)
				}
			}
			if rule.Action == s.DefaultAction || len(rule.Names) == 0 {
				continue // says nothing
			}
			index := uint(next()) // of different arguments: two conditions on one are alternatives, as in Docker's runtime
			for n := range uint(next() % 3) {
				rule.Args = append(rule.Args, specs.LinuxSeccompArg{Index: (index + n) % 6, Op: ops[next()%byte(len(ops))], Value: word(), ValueTwo: word()})
			}
			s.Syscalls = append(s.Syscalls, rule)
		}
		code, _, err := CompileSeccomp(s)
		if err != nil {
			return
		}
		wellFormed(t, code)
		for _, n := range []uint32{uint32(nr), uint32(nr) % 512, uint32(nr) % 512 &^ 1} {
			for _, args := range [][6]uint64{{a, b, a, b, a, b}, {b, a, a, a, b, b}} {
				c := call{n, arch, args}
				got, want := interpret(t, code, c), naive(t, s, numbers, c)
				if (s.DefaultAction != specs.ActErrno || len(s.Syscalls) == 0) && !named(s, numbers, n) { // naive is written for profiles that refuse
					want, _ = seccompAction(s.DefaultAction, nil)
				}
				if got != want {
					t.Fatalf("call %d %#x: %#x, want %#x of %+v", n, args, got, want, s)
				}
			}
		}
		if got := interpret(t, code, call{nr: uint32(nr), arch: 1}); got != 0 {
			t.Fatalf("another architecture: %#x", got)
		}
	})
}

func named(s *specs.LinuxSeccomp, numbers map[string]uint32, nr uint32) bool {
	for _, rule := range s.Syscalls {
		for _, name := range rule.Names {
			if n, ok := numbers[name]; ok && n == nr {
				return true
			}
		}
	}
	return false
}

// wellFormed checks a filter as bpf_check_classic and seccomp_check_filter do.
func wellFormed(t *testing.T, code []byte) {
	t.Helper()
	n := len(code) / 8
	if n == 0 || n > 4096 || len(code)%8 != 0 {
		t.Fatalf("%d instructions", n)
	}
	le := binary.LittleEndian
	for pc := range n {
		i := code[pc*8:]
		op, jt, jf, k := le.Uint16(i), int(i[2]), int(i[3]), le.Uint32(i[4:])
		switch op {
		case 0x20:
			if k%4 != 0 || k >= 64 {
				t.Fatalf("%d: load of %d", pc, k)
			}
		case 0x05:
			if uint64(k) >= uint64(n-pc-1) {
				t.Fatalf("%d: jump by %d of %d", pc, k, n)
			}
		case 0x15, 0x25, 0x35:
			if pc+jt+1 >= n || pc+jf+1 >= n {
				t.Fatalf("%d: jump by %d, %d of %d", pc, jt, jf, n)
			}
		case 0x54, 0x06:
		default:
			t.Fatalf("%d: instruction %#x", pc, op)
		}
	}
	if op := le.Uint16(code[(n-1)*8:]); op != 0x06 {
		t.Fatalf("the last instruction is %#x", op)
	}
}
