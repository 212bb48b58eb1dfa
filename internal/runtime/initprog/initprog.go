// Package initprog makes berth-init, the program that runs inside the new
// namespaces of a container until its own program takes over.
//
// It is an interpreter for a table of system calls: a static ELF file of less
// than a kilobyte without libc, runtime, stack use or relocation. What to do is
// data, built and tested in Go (package runtime, table.go); this program only does it.
//
// # Start
//
// The parent starts it with these descriptors:
//
//	0 1 2   stdio of the container
//	3       the table: a memory file
//	4       the report pipe, write end
//	5 …     whatever the table's system calls name
//
// It maps the table, private and writable, at TableAddr and walks the
// operations from TableAddr+HeaderSize on. The table ends in execve or exit.
//
// # Operation (64 bytes, little endian)
//
//	offset 0   u16  system call number, or OpReap
//	       2   u8   flags: FlagIgnore, FlagContinue
//	       3   u8   operations to skip after success
//	       4   u8   operations to skip after a tolerated error
//	       5   u8   0
//	       6   u16  an errno that is tolerated, 0 for none
//	       8   6×u64 arguments
//	       56  u64  address that receives the result, 0 for none
//
// A result is most often stored in the argument of a later operation: that is
// how a descriptor goes from open to its user.
//
// # Report (16 bytes on the pipe)
//
//	u64 address of the failed operation · u64 errno
//
// An error that is not tolerated is reported and ends the program with status
// 254, unless FlagContinue is set: then it goes on (one execve per directory of
// PATH). A successful execve closes the pipe; the parent sees the end of file.
//
// # OpReap
//
// The --init mode. The operation before it was clone(CLONE_VM|CLONE_VFORK): the
// child, which sees 0, skips over OpReap by a second look at the result, and
// ends in execve; the parent, process 1 of the container, then closes its
// descriptors above 2, becomes dumpable again (the table made it undumpable, so
// that the child's program never sees them), waits for
// signals for ever: it passes each on to the child (argument 0), reaps what
// ends, and exits as the child did (128+n after signal n).
// Argument 1 is the address of the signal set, argument 2 that of 128 bytes of scratch.
package initprog

import (
	"encoding/binary"
	"fmt"
)

// The layout that table.go and the program agree on.
const (
	TableAddr  = 0x10000000
	TableMax   = 16 << 20 // bytes mapped; more would not fit execve anyway
	HeaderSize = 64       // the first 16 bytes hold the report while it is written
	OpSize     = 64

	FlagIgnore   = 1 // any error is tolerated
	FlagContinue = 2 // an error is reported, then tolerated

	OpReap = 0xffff // not a system call: see the package doc

	FDTable  = 3
	FDReport = 4

	loadAddr = 0x400000
)

// ELF returns the program for a GOARCH.
func ELF(arch string) ([]byte, error) {
	var code []byte
	var machine uint16
	switch arch {
	case "amd64":
		code, machine = amd64(), 62
	case "arm64":
		code, machine = arm64(), 183
	default:
		return nil, fmt.Errorf("there is no berth-init for %s", arch)
	}
	const ehdr, phdr = 64, 56
	size := uint64(ehdr + 2*phdr + len(code))
	le := binary.LittleEndian
	b := make([]byte, 0, size)
	b = append(b, 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, loadAddr+ehdr+2*phdr) // entry
	b = le.AppendUint64(b, ehdr)                 // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{ehdr, phdr, 2, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(typ, flags uint32, addr, size, align uint64) {
		b = le.AppendUint32(b, typ)
		b = le.AppendUint32(b, flags)
		for _, v := range []uint64{0, addr, addr, size, size, align} {
			b = le.AppendUint64(b, v)
		}
	}
	segment(1, 5, loadAddr, size, 0x10000) // PT_LOAD, read and execute
	segment(0x6474e551, 6, 0, 0, 16)       // PT_GNU_STACK, not executable
	return append(b, code...), nil
}

// asm collects machine code and patches jumps to labels when it is done.
type asm struct {
	b      []byte
	labels map[string]int
	fixups []fixup
}

type fixup struct {
	at    int
	label string
	kind  byte // arch-specific
}

func (a *asm) label(name string) {
	if a.labels == nil {
		a.labels = map[string]int{}
	}
	a.labels[name] = len(a.b)
}

func (a *asm) bytes(b ...byte) { a.b = append(a.b, b...) }
func (a *asm) u32(v uint32)    { a.b = binary.LittleEndian.AppendUint32(a.b, v) }
