package runtime

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:embed syscalls.txt
var syscallTable string

// syscallNumbers returns name → number for the columns of syscalls.txt.
var syscallNumbers = sync.OnceValue(func() [4]map[string]uint32 {
	var t [4]map[string]uint32
	for i := range t {
		t[i] = make(map[string]uint32, 512)
	}
	for line := range strings.Lines(syscallTable) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] == "#" {
			continue
		}
		for i := range t {
			if n, err := strconv.ParseInt(f[i+1], 10, 32); err == nil && n >= 0 {
				t[i][f[0]] = uint32(n)
			}
		}
	}
	return t
})

// filterArch is an architecture that a filter can tell apart.
type filterArch struct {
	audit  uint32 // AUDIT_ARCH_*
	column int    // in syscalls.txt
}

var filterArches = map[specs.Arch]filterArch{
	specs.ArchX86_64:  {0xc000003e, 0},
	specs.ArchX86:     {0x40000003, 1},
	specs.ArchAARCH64: {0xc00000b7, 2},
	specs.ArchARM:     {0x40000028, 3},
}

var nativeArch = map[string]specs.Arch{"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM}

const x32Bit = 0x40000000

// bpf is one classic BPF instruction (struct sock_filter).
type bpf struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

const (
	bpfLoad = 0x20 // BPF_LD|BPF_W|BPF_ABS
	bpfAnd  = 0x54 // BPF_ALU|BPF_AND|BPF_K
	bpfJEq  = 0x15
	bpfJGt  = 0x25
	bpfJGe  = 0x35
	bpfJa   = 0x05
	bpfRet  = 0x06
)

// leaf is what happens for a system call number: checks in turn, then action.
type leaf struct {
	rules  []argRule
	action uint32
}

type argRule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// interval is a run of numbers with one leaf; it reaches up to the next one.
type interval struct {
	from uint32
	leaf *leaf
}

// CompileSeccomp turns a profile into a filter: a binary search over ranges of
// system call numbers for each architecture, so that a call costs about seven
// comparisons instead of four hundred. Names that this engine does not know are
// left out, as libseccomp does. A number beyond every named one answers ENOSYS,
// not the default errno, so that programs fall back from calls that the profile
// was written before.
func CompileSeccomp(s *specs.LinuxSeccomp) (filter []byte, flags uint, err error) {
	def, err := seccompAction(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, 0, err
	}
	arches := s.Architectures
	if native := nativeArch[goruntime.GOARCH]; !slices.Contains(arches, native) {
		arches = append([]specs.Arch{native}, arches...)
	}
	prog := []bpf{{code: bpfLoad, k: 4}} // seccomp_data.arch
	for _, name := range arches {
		a, ok := filterArches[name]
		if !ok {
			continue // x32 and foreign ones: not reachable, or refused below
		}
		body, err := compileArch(s, a, def)
		if err != nil {
			return nil, 0, err
		}
		prog = append(prog, bpf{bpfJEq, 1, 0, a.audit}, bpf{code: bpfJa, k: uint32(len(body))})
		prog = append(prog, body...)
	}
	prog = append(prog, bpf{code: bpfRet, k: 0}) // another architecture: kill
	if len(prog) > 4096 {
		return nil, 0, fmt.Errorf("the seccomp profile is too long: %d instructions, the kernel takes 4096", len(prog))
	}
	out := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		out = binary.LittleEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.LittleEndian.AppendUint32(out, i.k)
	}
	if s.Flags == nil {
		flags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	for _, f := range s.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlag("SECCOMP_FILTER_FLAG_TSYNC"):
			flags |= unix.SECCOMP_FILTER_FLAG_TSYNC
		default:
			return nil, 0, fmt.Errorf("seccomp flag %q is not known", f)
		}
	}
	return out, flags, nil
}

func seccompAction(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	ret := uint32(unix.EPERM)
	if errno != nil {
		ret = uint32(*errno) & 0xffff
	}
	switch a {
	case specs.ActAllow:
		return 0x7fff0000, nil
	case specs.ActErrno:
		return 0x00050000 | ret, nil
	case specs.ActKill, specs.ActKillThread:
		return 0, nil
	case specs.ActKillProcess:
		return 0x80000000, nil
	case specs.ActTrap:
		return 0x00030000, nil
	case specs.ActTrace:
		return 0x7ff00000 | ret, nil
	case specs.ActLog:
		return 0x7ffc0000, nil
	default:
		return 0, fmt.Errorf("string %s is not a valid action for seccomp", a) // as runc says
	}
}

// compileArch returns the program for one architecture. Every path of it returns.
func compileArch(s *specs.LinuxSeccomp, a filterArch, def uint32) ([]bpf, error) {
	numbers := syscallNumbers()[a.column]
	leaves := map[uint32]*leaf{}
	for _, sc := range s.Syscalls {
		action, err := seccompAction(sc.Action, sc.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range sc.Names {
			nr, ok := numbers[name]
			if !ok {
				continue
			}
			l := leaves[nr]
			if l == nil {
				l = &leaf{action: def}
				leaves[nr] = l
			}
			if len(sc.Args) == 0 {
				l.action, l.rules = action, nil
				continue
			}
			if l.action != def {
				continue // allowed whatever its arguments are
			}
			l.rules = append(l.rules, splitRules(sc.Args, action)...)
		}
	}
	nrs := make([]uint32, 0, len(leaves))
	for nr := range leaves {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	other := &leaf{action: def}
	list := []interval{{0, other}}
	same := func(a, b *leaf) bool {
		return a == b || len(a.rules)+len(b.rules) == 0 && a.action == b.action
	}
	put := func(from uint32, l *leaf) {
		if n := len(list) - 1; n > 0 && list[n].from == from {
			list = list[:n] // what the number before left open
		}
		if last := list[len(list)-1]; last.from == from {
			list[len(list)-1].leaf = l
		} else if !same(last.leaf, l) {
			list = append(list, interval{from, l})
		}
	}
	for _, nr := range nrs {
		put(nr, leaves[nr])
		put(nr+1, other)
	}
	if len(nrs) > 0 && def>>16 == 5 {
		put(nrs[len(nrs)-1]+1, &leaf{action: 0x00050000 | uint32(unix.ENOSYS)})
	}
	if a.column == 0 { // x32 calls come with the amd64 audit number and a bit set
		put(x32Bit, &leaf{action: def})
	}
	return append([]bpf{{code: bpfLoad, k: 0}}, search(list)...), nil
}

// splitRules makes one rule of the conditions, or one of each when an argument
// is named twice: then any of them is enough, as OCI runtimes agree.
func splitRules(args []specs.LinuxSeccompArg, action uint32) []argRule {
	seen := map[uint]bool{}
	twice := false
	for _, a := range args {
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []argRule{{args, action}}
	}
	rules := make([]argRule, 0, len(args))
	for _, a := range args {
		rules = append(rules, argRule{[]specs.LinuxSeccompArg{a}, action})
	}
	return rules
}

func search(list []interval) []bpf {
	if len(list) == 1 {
		return list[0].leaf.code()
	}
	mid := len(list) / 2
	low, high := search(list[:mid]), search(list[mid:])
	var prog []bpf
	if len(low) <= 255 {
		prog = []bpf{{bpfJGe, uint8(len(low)), 0, list[mid].from}}
	} else {
		prog = []bpf{{bpfJGe, 0, 1, list[mid].from}, {code: bpfJa, k: uint32(len(low))}}
	}
	return append(append(prog, low...), high...)
}

func (l *leaf) code() []bpf {
	var prog []bpf
	for _, r := range l.rules {
		prog = append(prog, r.code()...)
	}
	return append(prog, bpf{code: bpfRet, k: l.action})
}

// code checks the conditions one after the other. Jumps to "no" are patched to
// the end of the rule.
func (r argRule) code() []bpf {
	var prog []bpf
	type patch struct {
		at   int
		true bool
	}
	var no []patch
	emit := func(i bpf) int { prog = append(prog, i); return len(prog) - 1 }
	failIf := func(at int, cond bool) { no = append(no, patch{at, cond}) }
	for _, a := range r.args {
		lo, hi := uint32(16+8*a.Index), uint32(20+8*a.Index)
		v := a.Value
		switch a.Op {
		case specs.OpEqualTo, specs.OpMaskedEqual:
			want, mask := v, ^uint64(0)
			if a.Op == specs.OpMaskedEqual {
				want, mask = a.ValueTwo, a.Value
			}
			for _, h := range []struct{ off, want, mask uint32 }{{hi, uint32(want >> 32), uint32(mask >> 32)}, {lo, uint32(want), uint32(mask)}} {
				emit(bpf{code: bpfLoad, k: h.off})
				if h.mask != ^uint32(0) {
					emit(bpf{code: bpfAnd, k: h.mask})
				}
				failIf(emit(bpf{bpfJEq, 0, 0, h.want}), false)
			}
		case specs.OpNotEqual:
			emit(bpf{code: bpfLoad, k: hi})
			emit(bpf{bpfJEq, 0, 2, uint32(v >> 32)})
			emit(bpf{code: bpfLoad, k: lo})
			failIf(emit(bpf{bpfJEq, 0, 0, uint32(v)}), true)
		case specs.OpGreaterThan, specs.OpGreaterEqual:
			emit(bpf{code: bpfLoad, k: hi})
			emit(bpf{bpfJGt, 3, 0, uint32(v >> 32)}) // surely greater: over the low half
			failIf(emit(bpf{bpfJEq, 0, 0, uint32(v >> 32)}), false)
			emit(bpf{code: bpfLoad, k: lo})
			failIf(emit(bpf{orderOp(a.Op == specs.OpGreaterThan), 0, 0, uint32(v)}), false)
		case specs.OpLessThan, specs.OpLessEqual:
			emit(bpf{code: bpfLoad, k: hi})
			failIf(emit(bpf{bpfJGt, 0, 0, uint32(v >> 32)}), true)
			emit(bpf{bpfJEq, 0, 2, uint32(v >> 32)}) // surely less: over the low half
			emit(bpf{code: bpfLoad, k: lo})
			failIf(emit(bpf{orderOp(a.Op == specs.OpLessEqual), 0, 0, uint32(v)}), true)
		}
	}
	emit(bpf{code: bpfRet, k: r.action})
	for _, p := range no {
		d := uint8(len(prog) - p.at - 1)
		if p.true {
			prog[p.at].jt = d
		} else {
			prog[p.at].jf = d
		}
	}
	return prog
}

func orderOp(strict bool) uint16 {
	if strict {
		return bpfJGt
	}
	return bpfJGe
}
