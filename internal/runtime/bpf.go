package runtime

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A device program is called for each open and mknod by a process of the cgroup
// or one below it, and returns 1 to allow it. Several on the way to the root
// must all agree.

// The instructions that device programs are made of (linux/bpf.h).
const (
	bpfLoadWord   = 0x61 // LDX | MEM | W: dst = *(u32 *)(src + off)
	bpfMove       = 0xbf // ALU64 | MOV | X
	bpfMoveImm    = 0xb7 // ALU64 | MOV | K
	bpfAndImm     = 0x57 // ALU64 | AND | K
	bpfShiftRight = 0x77 // ALU64 | RSH | K
	bpfJumpNot    = 0x5d // JMP | JNE | X
	bpfJumpNotImm = 0x55 // JMP | JNE | K
	bpfJumpIfImm  = 0x15 // JMP | JEQ | K
	bpfExit       = 0x95
)

// Types of devices in bpf_cgroup_dev_ctx.
const (
	bpfBlock = 1
	bpfChar  = 2
)

type bpfInsn struct {
	op       byte
	dst, src byte
	off      int16
	imm      int32
}

func (i bpfInsn) String() string {
	return fmt.Sprintf("%02x r%d r%d %+d %d", i.op, i.dst, i.src, i.off, i.imm)
}

// program compiles a set: one block for each exception, then the answer for
// the rest. In a set that denies, an exception must cover all that is asked
// for; in one that allows, any part of it is enough.
func (s *deviceSet) program() []bpfInsn {
	const ret, ctx, typ, access, major, minor, tmp = 0, 1, 2, 3, 4, 5, 6
	p := []bpfInsn{
		{op: bpfLoadWord, dst: typ, src: ctx},
		{op: bpfMove, dst: access, src: typ},
		{op: bpfShiftRight, dst: access, imm: 16},
		{op: bpfAndImm, dst: typ, imm: 0xffff},
		{op: bpfLoadWord, dst: major, src: ctx, off: 4},
		{op: bpfLoadWord, dst: minor, src: ctx, off: 8},
	}
	answer := func(allow bool) []bpfInsn {
		n := int32(0)
		if allow {
			n = 1
		}
		return []bpfInsn{{op: bpfMoveImm, dst: ret, imm: n}, {op: bpfExit}}
	}
	for _, e := range s.exceptions {
		kind := int32(bpfChar)
		if e.typ == 'b' {
			kind = bpfBlock
		}
		block := []bpfInsn{{op: bpfJumpNotImm, dst: typ, imm: kind}}
		if e.access != accessAll || s.allow {
			block = append(block, bpfInsn{op: bpfMove, dst: tmp, src: access}, bpfInsn{op: bpfAndImm, dst: tmp, imm: int32(e.access)})
			if s.allow {
				block = append(block, bpfInsn{op: bpfJumpIfImm, dst: tmp})
			} else {
				block = append(block, bpfInsn{op: bpfJumpNot, dst: tmp, src: access})
			}
		}
		if e.major >= 0 {
			block = append(block, bpfInsn{op: bpfJumpNotImm, dst: major, imm: int32(e.major)})
		}
		if e.minor >= 0 {
			block = append(block, bpfInsn{op: bpfJumpNotImm, dst: minor, imm: int32(e.minor)})
		}
		block = append(block, answer(!s.allow)...)
		for i := range block { // each jump goes behind the block
			switch block[i].op {
			case bpfJumpNot, bpfJumpNotImm, bpfJumpIfImm:
				block[i].off = int16(len(block) - i - 1)
			}
		}
		p = append(p, block...)
	}
	return append(p, answer(s.allow)...)
}

// bpf(2): the commands and numbers used here.
const (
	bpfProgLoad     = 5
	bpfProgAttach   = 8
	bpfProgDetach   = 9
	bpfProgFDByID   = 13
	bpfProgQuery    = 16
	bpfCgroupDevice = 15 // the program's type
	bpfAtDevice     = 6  // where it is attached
	bpfAllowMulti   = 2  // beside those that others have attached
)

func bpfCall(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EAGAIN, unix.EINTR: // the verifier was interrupted
			continue
		}
		return -1, errno
	}
}

func bpfError(what string, err error) error { return fmt.Errorf("bpf: %s: %w", what, err) }

// loadProgram gives a device program to the kernel. The descriptor is the caller's.
func loadProgram(insns []bpfInsn) (int, error) {
	code := make([]byte, 0, 8*len(insns))
	for _, i := range insns {
		code = append(code, i.op, i.dst|i.src<<4)
		code = binary.NativeEndian.AppendUint16(code, uint16(i.off))
		code = binary.NativeEndian.AppendUint32(code, uint32(i.imm))
	}
	license := []byte("Apache\x00")
	attr := struct {
		typ, count     uint32
		insns, license uint64
		logLevel, size uint32
		log            uint64
		version, flags uint32
		name           [16]byte
	}{typ: bpfCgroupDevice, count: uint32(len(insns)), name: [16]byte{'b', 'e', 'r', 't', 'h', '_', 'd', 'e', 'v'}}
	var pin runtime.Pinner // the kernel follows the addresses
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr.insns, attr.license = uint64(uintptr(unsafe.Pointer(&code[0]))), uint64(uintptr(unsafe.Pointer(&license[0])))
	fd, err := bpfCall(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, bpfError("load", err)
	}
	unix.CloseOnExec(fd) // it is so already; the manual does not promise it
	return fd, nil
}

type bpfAttachAttr struct{ target, prog, typ, flags uint32 }

func attachProgram(cgroup, prog int) error {
	attr := bpfAttachAttr{uint32(cgroup), uint32(prog), bpfAtDevice, bpfAllowMulti}
	if _, err := bpfCall(bpfProgAttach, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return bpfError("attach", err)
	}
	return nil
}

// attachedPrograms are the ids of the device programs of a cgroup itself.
func attachedPrograms(cgroup int) ([]uint32, error) {
	ids := make([]uint32, 64) // the kernel's limit
	attr := struct {
		target, typ, query, flags uint32
		ids                       uint64
		count, _                  uint32
	}{target: uint32(cgroup), typ: bpfAtDevice, count: uint32(len(ids))}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	attr.ids = uint64(uintptr(unsafe.Pointer(&ids[0])))
	if _, err := bpfCall(bpfProgQuery, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, bpfError("query", err)
	}
	return ids[:attr.count], nil
}

func detachProgram(cgroup int, id uint32) error {
	get := struct{ id, next, flags uint32 }{id: id}
	prog, err := bpfCall(bpfProgFDByID, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return bpfError("program", err)
	}
	defer unix.Close(prog)
	attr := bpfAttachAttr{target: uint32(cgroup), prog: uint32(prog), typ: bpfAtDevice}
	if _, err := bpfCall(bpfProgDetach, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return bpfError("detach", err)
	}
	return nil
}
