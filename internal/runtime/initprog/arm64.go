package initprog

import "encoding/binary"

// The few arm64 encodings needed (Arm Architecture Reference Manual, C6).
// Registers: x19 the current operation, x20 the child in reap mode.

const (
	kB     = 'b' // 26-bit branch
	kBcond = 'c' // 19-bit conditional branch, also cbz and cbnz
)

func (a *asm) branch(label string) { a.fix(label, kB, 0x14000000) }
func (a *asm) bcond(cond uint32, label string) {
	a.fix(label, kBcond, 0x54000000|cond)
}
func (a *asm) cbz(reg uint32, label string) { a.fix(label, kBcond, 0xb4000000|reg) }

func (a *asm) fix(label string, kind byte, insn uint32) {
	a.fixups = append(a.fixups, fixup{len(a.b), label, kind})
	a.u32(insn)
}

// mov loads a 32-bit constant.
func (a *asm) mov(reg uint32, v uint32) {
	a.u32(0xd2800000 | (v&0xffff)<<5 | reg) // movz xN,#lo
	if v>>16 != 0 {
		a.u32(0xf2a00000 | (v>>16)<<5 | reg) // movk xN,#hi,lsl 16
	}
}

func (a *asm) movReg(dst, src uint32)     { a.u32(0xaa0003e0 | src<<16 | dst) }
func (a *asm) ldr(dst, off uint32)        { a.u32(0xf9400000 | off/8<<10 | 19<<5 | dst) } // of the operation, at x19
func (a *asm) ldrw(dst, base, off uint32) { a.u32(0xb9400000 | off/4<<10 | base<<5 | dst) }
func (a *asm) ldrh(dst, base, off uint32) { a.u32(0x79400000 | off/2<<10 | base<<5 | dst) }
func (a *asm) ldrb(dst, base, off uint32) { a.u32(0x39400000 | off<<10 | base<<5 | dst) }
func (a *asm) str(src, base, off uint32)  { a.u32(0xf9000000 | off/8<<10 | base<<5 | src) }
func (a *asm) svc()                       { a.u32(0xd4000001) }
func (a *asm) cmpReg(n, m uint32)         { a.u32(0xeb00001f | m<<16 | n<<5) }
func (a *asm) cmpImm(n, imm uint32)       { a.u32(0xf100001f | imm<<10 | n<<5) }
func (a *asm) addImm(dst, n, imm uint32)  { a.u32(0x91000000 | imm<<10 | n<<5 | dst) }
func (a *asm) addLSL6(dst, n, m uint32)   { a.u32(0x8b000000 | m<<16 | 6<<10 | n<<5 | dst) }
func (a *asm) neg(dst, src uint32)        { a.u32(0xcb0003e0 | src<<16 | dst) }
func (a *asm) cmnImm(n, imm uint32)       { a.u32(0xb100001f | imm<<10 | n<<5) }
func (a *asm) lsrw(dst, src, n uint32)    { a.u32(0x53007c00 | n<<16 | src<<5 | dst) }
func (a *asm) andw7f(dst, src uint32)     { a.u32(0x12001800 | src<<5 | dst) }
func (a *asm) tstBit(n, bit uint32, label string, set bool) {
	// tbz/tbnz would need a third fix-up: shift the bit out and compare instead.
	a.u32(0xd3400000 | bit<<16 | bit<<10 | n<<5 | 9) // ubfx x9,xn,#bit,#1
	if set {
		a.fix(label, kBcond, 0xb5000000|9) // cbnz x9
	} else {
		a.cbz(9, label)
	}
}

const (
	cEQ = 0
	cNE = 1
	cHS = 2
	cLE = 13
)

func arm64() []byte {
	a := &asm{}
	a.mov(8, 222) // mmap
	a.mov(0, TableAddr)
	a.mov(1, TableMax)
	a.mov(2, 3)
	a.mov(3, 0x4012)
	a.mov(4, FDTable)
	a.mov(5, 0)
	a.svc()
	a.cmnImm(0, 4095)
	a.bcond(cHS, "die")
	a.mov(19, TableAddr+HeaderSize)

	a.label("next")
	a.ldrh(8, 19, 0)
	a.mov(9, OpReap)
	a.cmpReg(8, 9)
	a.bcond(cEQ, "reap")
	for i := uint32(0); i < 6; i++ {
		a.ldr(i, 8+8*i)
	}
	a.svc()
	a.cmnImm(0, 4095)
	a.bcond(cHS, "error")
	a.ldr(10, 56)
	a.cbz(10, "nostore")
	a.str(0, 10, 0)
	a.label("nostore")
	a.ldrb(11, 19, 3)
	a.label("advance")
	a.addLSL6(19, 19, 11)
	a.addImm(19, 19, 64)
	a.branch("next")

	a.label("error")
	a.neg(12, 0)
	a.ldrb(13, 19, 2)
	a.tstBit(13, 0, "tolerated", true)
	a.ldrh(14, 19, 6)
	a.cmpReg(12, 14)
	a.bcond(cEQ, "tolerated")
	a.mov(1, TableAddr)
	a.str(19, 1, 0)
	a.str(12, 1, 8)
	a.mov(8, 64)
	a.mov(0, FDReport)
	a.mov(2, 16)
	a.svc()
	a.tstBit(13, 1, "die", false)
	a.label("tolerated")
	a.ldrb(11, 19, 4)
	a.branch("advance")

	a.label("die")
	a.mov(0, 254)
	a.label("exit")
	a.mov(8, 94)
	a.svc()

	a.label("reap")
	a.ldr(20, 8)
	a.mov(11, 0)
	a.cbz(20, "advance")
	a.mov(8, 436)
	a.mov(0, 3)
	a.mov(1, 0xffffffff)
	a.mov(2, 0)
	a.svc()
	a.mov(8, 167) // prctl(PR_SET_DUMPABLE, 1)
	a.mov(0, 4)
	a.mov(1, 1)
	a.svc()

	a.label("wait")
	a.mov(8, 137)
	a.ldr(0, 16)
	a.ldr(1, 24)
	a.mov(2, 0)
	a.mov(3, 8)
	a.svc()
	a.cmpImm(0, 17)
	a.bcond(cEQ, "zombies")
	a.cmpImm(0, 0)
	a.bcond(cLE, "wait")
	a.movReg(1, 0)
	a.movReg(0, 20)
	a.mov(8, 129)
	a.svc()
	a.branch("wait")

	a.label("zombies")
	a.mov(8, 260)
	a.u32(0x92800000) // mov x0,#-1
	a.ldr(1, 24)
	a.mov(2, 1)
	a.mov(3, 0)
	a.svc()
	a.cmpImm(0, 0)
	a.bcond(cLE, "wait")
	a.cmpReg(0, 20)
	a.bcond(cNE, "zombies")
	a.ldr(1, 24)
	a.ldrw(2, 1, 0)
	a.lsrw(0, 2, 8)
	a.andw7f(2, 2)
	a.cbz(2, "exit")
	a.addImm(0, 2, 128)
	a.branch("exit")

	for _, f := range a.fixups {
		insn := binary.LittleEndian.Uint32(a.b[f.at:])
		delta := uint32(int32(a.labels[f.label]-f.at) / 4)
		if f.kind == kB {
			insn |= delta & 0x3ffffff
		} else {
			insn |= delta & 0x7ffff << 5
		}
		binary.LittleEndian.PutUint32(a.b[f.at:], insn)
	}
	return a.b
}
