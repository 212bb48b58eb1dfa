package initprog

import "encoding/binary"

// The few amd64 encodings needed. Registers: rbx is the current operation,
// r12 the child in reap mode; the system call uses the rest.

const jmp32 = 'j' // a 32-bit displacement relative to its own end

func (a *asm) jmp(label string) { a.bytes(0xe9); a.rel32(label) }

func (a *asm) jcc(cond byte, label string) { a.bytes(0x0f, 0x80|cond); a.rel32(label) }

func (a *asm) rel32(label string) {
	a.fixups = append(a.fixups, fixup{len(a.b), label, jmp32})
	a.u32(0)
}

func (a *asm) movEAX(v uint32) { a.bytes(0xb8); a.u32(v) }
func (a *asm) movEDI(v uint32) { a.bytes(0xbf); a.u32(v) }
func (a *asm) movESI(v uint32) { a.bytes(0xbe); a.u32(v) }
func (a *asm) movEDX(v uint32) { a.bytes(0xba); a.u32(v) }
func (a *asm) syscall()        { a.bytes(0x0f, 0x05) }

const (
	ccAE = 3
	ccE  = 4
	ccNE = 5
	ccLE = 14
)

func amd64() []byte {
	a := &asm{}
	// mmap(TableAddr, TableMax, RW, PRIVATE|FIXED|NORESERVE, FDTable, 0)
	a.movEAX(9)
	a.movEDI(TableAddr)
	a.movESI(TableMax)
	a.movEDX(3)
	a.bytes(0x41, 0xba)
	a.u32(0x4012) // mov r10d
	a.bytes(0x41, 0xb8)
	a.u32(FDTable)            // mov r8d
	a.bytes(0x45, 0x31, 0xc9) // xor r9d,r9d
	a.syscall()
	a.bytes(0x48, 0x3d)
	a.u32(0xfffff001) // cmp rax,-4095
	a.jcc(ccAE, "die")
	a.bytes(0xbb)
	a.u32(TableAddr + HeaderSize) // mov ebx

	a.label("next")
	a.bytes(0x0f, 0xb7, 0x03) // movzx eax, word [rbx]
	a.bytes(0x3d)
	a.u32(OpReap)
	a.jcc(ccE, "reap")
	a.bytes(0x48, 0x8b, 0x7b, 8)  // mov rdi,[rbx+8]
	a.bytes(0x48, 0x8b, 0x73, 16) // rsi
	a.bytes(0x48, 0x8b, 0x53, 24) // rdx
	a.bytes(0x4c, 0x8b, 0x53, 32) // r10
	a.bytes(0x4c, 0x8b, 0x43, 40) // r8
	a.bytes(0x4c, 0x8b, 0x4b, 48) // r9
	a.syscall()
	a.bytes(0x48, 0x3d)
	a.u32(0xfffff001)
	a.jcc(ccAE, "error")
	a.bytes(0x48, 0x8b, 0x4b, 56)   // mov rcx,[rbx+56]
	a.bytes(0x48, 0x85, 0xc9)       // test rcx,rcx
	a.bytes(0x74, 3)                // jz +3
	a.bytes(0x48, 0x89, 0x01)       // mov [rcx],rax
	a.bytes(0x0f, 0xb6, 0x4b, 3)    // movzx ecx, byte [rbx+3]
	a.label("advance")              // rbx += 64*(1+rcx)
	a.bytes(0x48, 0xc1, 0xe1, 6)    // shl rcx,6
	a.bytes(0x48, 0x8d, 0x5c, 0x0b) // lea rbx,[rbx+rcx+64]
	a.bytes(64)
	a.jmp("next")

	a.label("error")
	a.bytes(0xf7, 0xd8)           // neg eax
	a.bytes(0xf6, 0x43, 2)        // test byte [rbx+2], FlagIgnore
	a.bytes(FlagIgnore)           //
	a.jcc(ccNE, "tolerated")      //
	a.bytes(0x66, 0x3b, 0x43, 6)  // cmp ax,[rbx+6]
	a.jcc(ccE, "tolerated")       //
	a.bytes(0x48, 0x89, 0x1c, 37) // mov [TableAddr],rbx
	a.u32(TableAddr)
	a.bytes(0x48, 0x89, 0x04, 37) // mov [TableAddr+8],rax
	a.u32(TableAddr + 8)
	a.movEAX(1) // write(FDReport, TableAddr, 16)
	a.movEDI(FDReport)
	a.movESI(TableAddr)
	a.movEDX(16)
	a.syscall()
	a.bytes(0xf6, 0x43, 2)
	a.bytes(FlagContinue)
	a.jcc(ccE, "die")
	a.label("tolerated")
	a.bytes(0x0f, 0xb6, 0x4b, 4) // movzx ecx, byte [rbx+4]
	a.jmp("advance")

	a.label("die") // exit_group(254)
	a.movEDI(254)
	a.label("exit")
	a.movEAX(231)
	a.syscall()

	// reap: rbx is the OpReap operation; its argument 0 is the child.
	a.label("reap")
	a.bytes(0x4c, 0x8b, 0x63, 8) // mov r12,[rbx+8]
	a.bytes(0x4d, 0x85, 0xe4)    // test r12,r12
	a.bytes(0xb9)
	a.u32(0)              // mov ecx,0
	a.jcc(ccE, "advance") // the child goes on to its execve
	// close_range(3, ~0, 0): the report pipe must see its end of file
	a.movEAX(436)
	a.movEDI(3)
	a.movESI(0xffffffff)
	a.bytes(0x31, 0xd2) // xor edx,edx
	a.syscall()
	// prctl(PR_SET_DUMPABLE, 1): the container may look at its init again
	a.movEAX(157)
	a.movEDI(4)
	a.movESI(1)
	a.syscall()

	a.label("wait") // rt_sigtimedwait(set, scratch, 0, 8)
	a.movEAX(128)
	a.bytes(0x48, 0x8b, 0x7b, 16) // rdi = [rbx+16]
	a.bytes(0x48, 0x8b, 0x73, 24) // rsi = [rbx+24]
	a.bytes(0x31, 0xd2)
	a.bytes(0x41, 0xba)
	a.u32(8)
	a.syscall()
	a.bytes(0x83, 0xf8, 17) // cmp eax,SIGCHLD
	a.jcc(ccE, "zombies")
	a.bytes(0x85, 0xc0) // test eax,eax
	a.jcc(ccLE, "wait")
	a.bytes(0x89, 0xc6)       // mov esi,eax
	a.bytes(0x44, 0x89, 0xe7) // mov edi,r12d
	a.movEAX(62)              // kill
	a.syscall()
	a.jmp("wait")

	a.label("zombies") // wait4(-1, scratch, WNOHANG, 0)
	a.movEAX(61)
	a.bytes(0x48, 0xc7, 0xc7)
	a.u32(0xffffffff)
	a.bytes(0x48, 0x8b, 0x73, 24)
	a.movEDX(1)
	a.bytes(0x45, 0x31, 0xd2) // xor r10d,r10d
	a.syscall()
	a.bytes(0x85, 0xc0)
	a.jcc(ccLE, "wait")
	a.bytes(0x44, 0x39, 0xe0) // cmp eax,r12d
	a.jcc(ccNE, "zombies")
	a.bytes(0x48, 0x8b, 0x73, 24) // the child: status at [rsi]
	a.bytes(0x8b, 0x06)           // mov eax,[rsi]
	a.bytes(0x89, 0xc7)           // mov edi,eax
	a.bytes(0xc1, 0xef, 8)        // shr edi,8
	a.bytes(0x83, 0xe0, 0x7f)     // and eax,0x7f
	a.jcc(ccE, "exit")            // exited: its code
	a.bytes(0x8d, 0xb8)           // lea edi,[rax+128]
	a.u32(128)
	a.jmp("exit")

	for _, f := range a.fixups {
		binary.LittleEndian.PutUint32(a.b[f.at:], uint32(int32(a.labels[f.label]-(f.at+4))))
	}
	return a.b
}
