package runtime

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// dataOffset is where the strings and buffers of a table begin: room for 4096
// operations. The pages between are holes of the memory file.
const dataOffset = 4096 * initprog.OpSize

// Stage names the part of the set-up that an operation belongs to; a failure
// is reported with it.
type Stage string

// The stages, in the order in which a start runs them.
const (
	StageCgroup     Stage = "cgroup"
	StageNamespace  Stage = "namespace"
	StageRootfs     Stage = "rootfs"
	StageMount      Stage = "mount"
	StageDevice     Stage = "device"
	StageMask       Stage = "mask"
	StageHostname   Stage = "hostname"
	StageSysctl     Stage = "sysctl"
	StageRlimit     Stage = "rlimit"
	StageUser       Stage = "user"
	StageCapability Stage = "capability"
	StageSeccomp    Stage = "seccomp"
	StageCwd        Stage = "cwd"
	StageProcess    Stage = "process"
	StageExec       Stage = "exec"
)

// op is one system call of a table, as data: a test can print and compare it.
type op struct {
	nr      uintptr
	args    [6]uint64
	flags   uint8
	skipOK  uint8
	skipErr uint8
	allow   unix.Errno
	store   uint64 // address that receives the result

	stage Stage
	path  string // what it is about, for the report
}

// table is a program for berth-init under construction. It knows nothing of
// containers; see plan.go for that.
type table struct {
	ops   []op
	data  []byte
	stage Stage
	code  []byte // encode's result
}

// tables are used again: one start needs tens of kilobytes for a moment.
var tables = sync.Pool{New: func() any {
	return &table{ops: make([]op, 0, 256), data: make([]byte, 0, 16<<10)}
}}

func newTable() *table {
	t := tables.Get().(*table)
	t.ops, t.data, t.stage = t.ops[:0], t.data[:0], ""
	return t
}

// release gives the table back. Nothing of it may be used afterwards.
func (t *table) release() { tables.Put(t) }

// str places a NUL-terminated string and returns its address.
func (t *table) str(s string) uint64 {
	a := t.addr()
	t.data = append(t.data, s...)
	t.data = append(t.data, 0)
	return a
}

// bytes places b, aligned to 8, and returns its address.
func (t *table) bytes(b []byte) uint64 {
	for len(t.data)%8 != 0 {
		t.data = append(t.data, 0)
	}
	a := t.addr()
	t.data = append(t.data, b...)
	return a
}

// words places 64-bit words and returns their address.
func (t *table) words(ws ...uint64) uint64 {
	b := make([]byte, 0, 8*len(ws))
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return t.bytes(b)
}

// strv places a NULL-terminated vector of strings, as execve takes.
func (t *table) strv(list []string) uint64 {
	ws := make([]uint64, 0, len(list)+1)
	for _, s := range list {
		ws = append(ws, t.str(s))
	}
	return t.words(append(ws, 0)...)
}

func (t *table) addr() uint64 { return initprog.TableAddr + dataOffset + uint64(len(t.data)) }

// call adds a system call and returns its index.
func (t *table) call(path string, nr uintptr, args ...uint64) int {
	o := op{nr: nr, stage: t.stage, path: path}
	copy(o.args[:], args)
	t.ops = append(t.ops, o)
	return len(t.ops) - 1
}

// last is the operation added last, to set its flags.
func (t *table) last() *op { return &t.ops[len(t.ops)-1] }

// feed stores the result of operation from as argument arg of operation to.
func (t *table) feed(from, to, arg int) {
	t.ops[from].store = initprog.TableAddr + initprog.HeaderSize + uint64(to)*initprog.OpSize + 8 + uint64(arg)*8
}

const (
	atFDCWD     = uint64(0xffffffffffffff9c) // -100
	atEmptyPath = unix.AT_EMPTY_PATH
)

// encode returns the bytes at the start of the memory file and those at dataOffset.
func (t *table) encode() (ops, data []byte, err error) {
	if len(t.ops) > dataOffset/initprog.OpSize-2 || dataOffset+len(t.data) > initprog.TableMax {
		return nil, nil, fmt.Errorf("argument list too long: %w", unix.E2BIG)
	}
	size := initprog.HeaderSize + len(t.ops)*initprog.OpSize
	if cap(t.code) < size {
		t.code = make([]byte, size, size+size/4)
	}
	ops = t.code[:size]
	clear(ops)
	le := binary.LittleEndian
	for i, o := range t.ops {
		b := ops[initprog.HeaderSize+i*initprog.OpSize:]
		le.PutUint16(b, uint16(o.nr))
		b[2], b[3], b[4] = o.flags, o.skipOK, o.skipErr
		le.PutUint16(b[6:], uint16(o.allow))
		for j, a := range o.args {
			le.PutUint64(b[8+8*j:], a)
		}
		le.PutUint64(b[56:], o.store)
	}
	return ops, t.data, nil
}

// failed returns the operation that a report's address names.
func (t *table) failed(addr uint64) (op, bool) {
	i := (addr - initprog.TableAddr - initprog.HeaderSize) / initprog.OpSize
	if i >= uint64(len(t.ops)) {
		return op{}, false
	}
	return t.ops[i], true
}
