package archive

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
)

// inflater decodes DEFLATE (RFC 1951) about twice as fast as a decoder that
// takes its input byte by byte: 64 bits are at hand at once, tables give symbol and extra
// bits in one look-up, and matches are copied inside one output window. Unpacking
// a layer is bound by this.
//
// Input comes in large blocks; its end is followed by zeros, so that the inner loop need not
// ask whether there are eight more bytes. That more was used than there is shows afterwards.
type inflater struct {
	src io.Reader

	in    []byte // block with padding at the end of the stream
	ip    int    // next byte to load
	end   int    // end of what was read
	eof   bool   // end is that of the stream
	acc   uint64 // bits at hand, lowest first; those above nbits repeat what ip points to
	nbits uint

	win   []byte // 32 KiB of history, then output
	op    int    // end of output
	given int    // up to where output was handed out
	begin int    // where the stream's own output begins

	block  blockKind
	last   bool
	stored int // bytes left of a stored block

	lit  [4096]uint32 // 11 bits, then tables for longer codes
	dist [1024]uint32 // 8 bits, then the same
}

type blockKind uint8

const (
	blockNone blockKind = iota
	blockStored
	blockCoded
	blockDone
)

const (
	inflateIn     = 128 << 10
	inflateOut    = 256 << 10
	inflateWindow = 32 << 10
	inflatePad    = 32  // zeros after the end of the stream
	inflateMargin = 512 // more than one turn of the inner loop writes

	litBits  = 11
	distBits = 8
)

// A table entry: bits 0-7 are the bits to take, code and extra; 8-11 the bits
// of the code alone; 12-15 the flags; 16-31 the value: a byte, the base of a length or
// distance, or where a table for longer codes starts (8-11 are then its bits).
const (
	entryLiteral = 1 << 15
	entryOdd     = 1 << 14 // one of the two below, or no code at all
	entryEnd     = 1 << 13
	entrySub     = 1 << 12
)

var errCorrupt = errors.New("corrupt compressed data")

func newInflater(src io.Reader) *inflater {
	return &inflater{src: src, in: make([]byte, inflateIn+inflatePad), win: make([]byte, inflateWindow+inflateOut), op: inflateWindow, given: inflateWindow, begin: inflateWindow}
}

// restart begins a new stream where the last one ended.
func (f *inflater) restart() {
	f.block, f.last = blockNone, false
	f.op, f.given, f.begin = inflateWindow, inflateWindow, inflateWindow
}

// next returns the next piece of output, good until the next call; io.EOF after the last.
func (f *inflater) next() ([]byte, error) {
	if f.op >= len(f.win)-inflateMargin {
		copy(f.win, f.win[f.op-inflateWindow:f.op])
		f.begin = max(f.begin-(f.op-inflateWindow), 0)
		f.op, f.given = inflateWindow, inflateWindow
	}
	for f.op < len(f.win)-inflateMargin {
		if f.block == blockDone {
			if f.op == f.given {
				return nil, io.EOF
			}
			break
		}
		if err := f.step(); err != nil {
			return nil, err
		}
	}
	out := f.win[f.given:f.op]
	f.given = f.op
	return out, nil
}

// step decodes a part of a block, or a block's header.
func (f *inflater) step() error {
	if err := f.fill(); err != nil {
		return err
	}
	var err error
	switch f.block {
	case blockNone:
		if f.last {
			f.block = blockDone
			return nil
		}
		err = f.header()
	case blockStored:
		err = f.copyStored()
	case blockCoded:
		err = f.coded()
	}
	if err == nil && f.eof && f.ip-int(f.nbits>>3) > f.end {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// fill sees to it that a good piece of input is there, or all that is left.
func (f *inflater) fill() error {
	if f.eof || f.end-f.ip >= 2048 {
		return nil
	}
	back := min(f.ip, 8) // whole bytes that align may give back
	f.end = copy(f.in, f.in[f.ip-back:f.end])
	f.ip = back
	for empty := 0; f.end < inflateIn/2; {
		n, err := f.src.Read(f.in[f.end:inflateIn])
		f.end += n
		if errors.Is(err, io.EOF) {
			f.eof = true
			clear(f.in[f.end : f.end+inflatePad])
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// load makes at least 56 bits available, of input or of padding.
func (f *inflater) load() {
	if f.ip+8 > len(f.in) { // only far past the end: what is there now is an error already
		f.nbits |= 56
		return
	}
	f.acc |= binary.LittleEndian.Uint64(f.in[f.ip:]) << (f.nbits & 63)
	f.ip += int((63 - f.nbits) >> 3)
	f.nbits |= 56
}

func (f *inflater) take(n uint) uint {
	v := uint(f.acc) & (1<<n - 1)
	f.acc >>= n
	f.nbits -= n
	return v
}

// align goes to the next byte of input and gives back what was loaded ahead.
func (f *inflater) align() {
	f.ip -= int(f.nbits >> 3)
	f.acc, f.nbits = 0, 0
}

func (f *inflater) header() error {
	f.load()
	f.last = f.take(1) == 1
	switch f.take(2) {
	case 0:
		f.align()
		if f.ip+4 > f.end {
			return io.ErrUnexpectedEOF
		}
		n := binary.LittleEndian.Uint16(f.in[f.ip:])
		if n != ^binary.LittleEndian.Uint16(f.in[f.ip+2:]) {
			return errCorrupt
		}
		f.ip += 4
		f.block, f.stored = blockStored, int(n)
		return nil
	case 1:
		return f.fixed()
	case 2:
		return f.dynamic()
	}
	return errCorrupt
}

func (f *inflater) copyStored() error {
	n := min(f.stored, f.end-f.ip, len(f.win)-inflateMargin-f.op)
	if n == 0 && f.stored > 0 {
		if f.ip >= f.end {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	f.op += copy(f.win[f.op:f.op+n], f.in[f.ip:])
	f.ip += n
	if f.stored -= n; f.stored == 0 {
		f.block = blockNone
	}
	return nil
}

func (f *inflater) fixed() error {
	var lens [288 + 32]uint8
	for i := range 288 {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	for i := range 32 {
		lens[288+i] = 5
	}
	if !buildTable(f.lit[:], litBits, lens[:288], litEntry) || !buildTable(f.dist[:], distBits, lens[288:], distEntry) {
		return errCorrupt
	}
	f.block = blockCoded
	return nil
}

func (f *inflater) dynamic() error {
	order := [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	nlit, ndist, ncode := int(f.take(5))+257, int(f.take(5))+1, int(f.take(4))+4
	if nlit > 286 || ndist > 30 {
		return errCorrupt
	}
	var clens [19]uint8
	for i := range ncode {
		f.load()
		clens[order[i]] = uint8(f.take(3))
	}
	var ctab [128]uint32
	if !buildTable(ctab[:], 7, clens[:], plainEntry) {
		return errCorrupt
	}
	var lens [286 + 30]uint8
	for i := 0; i < nlit+ndist; {
		f.load()
		e := ctab[f.acc&127]
		if e&entryOdd != 0 {
			return errCorrupt
		}
		f.take(uint(e & 0xff))
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var v uint8
		var rep int
		switch sym {
		case 16:
			if i == 0 {
				return errCorrupt
			}
			v, rep = lens[i-1], 3+int(f.take(2))
		case 17:
			rep = 3 + int(f.take(3))
		default:
			rep = 11 + int(f.take(7))
		}
		if i+rep > nlit+ndist {
			return errCorrupt
		}
		for range rep {
			lens[i] = v
			i++
		}
	}
	if lens[256] == 0 || !buildTable(f.lit[:], litBits, lens[:nlit], litEntry) || !buildTable(f.dist[:], distBits, lens[nlit:nlit+ndist], distEntry) {
		return errCorrupt
	}
	f.block = blockCoded
	return nil
}

// coded decodes symbols until the block, the input at hand or the room for output ends.
func (f *inflater) coded() error {
	in, win := f.in, f.win
	ip, op, acc, n := f.ip, f.op, f.acc, f.nbits
	lit, dist := &f.lit, &f.dist
	inLimit := min(f.end, len(in)-inflatePad) - 24
	if f.eof {
		inLimit = f.end + inflatePad - 24 // into the padding
	}
	outLimit := len(win) - inflateMargin
	var err error
	for ip < inLimit && op < outLimit {
		acc |= binary.LittleEndian.Uint64(in[ip:ip+8]) << (n & 63)
		ip += int((63 - n) >> 3)
		n |= 56
		e := lit[acc&(1<<litBits-1)]
		if e&entryLiteral != 0 {
			acc >>= e & 63
			n -= uint(e & 63)
			win[op] = byte(e >> 16)
			op++
			e = lit[acc&(1<<litBits-1)]
			if e&entryLiteral != 0 {
				acc >>= e & 63
				n -= uint(e & 63)
				win[op] = byte(e >> 16)
				op++
				e = lit[acc&(1<<litBits-1)]
			}
		}
		if e&entryOdd != 0 && e&entrySub != 0 {
			acc >>= litBits
			n -= litBits
			e = lit[(e>>16+uint32(acc)&(1<<(e>>8&15)-1))&4095]
		}
		if e&entryLiteral != 0 {
			acc >>= e & 63
			n -= uint(e & 63)
			win[op] = byte(e >> 16)
			op++
			continue
		}
		if e&entryOdd != 0 {
			if e&entryEnd == 0 {
				err = errCorrupt
				break
			}
			acc >>= e & 63
			n -= uint(e & 63)
			f.block = blockNone
			break
		}
		length := int(e>>16) + int(acc&(1<<(e&63)-1)>>(e>>8&15))
		acc >>= e & 63
		n -= uint(e & 63)
		acc |= binary.LittleEndian.Uint64(in[ip:ip+8]) << (n & 63)
		ip += int((63 - n) >> 3)
		n |= 56
		e = dist[acc&(1<<distBits-1)]
		if e&entryOdd != 0 && e&entrySub != 0 {
			acc >>= distBits
			n -= distBits
			e = dist[(e>>16+uint32(acc)&(1<<(e>>8&15)-1))&1023]
		}
		if e&entryOdd != 0 {
			err = errCorrupt
			break
		}
		back := int(e>>16) + int(acc&(1<<(e&63)-1)>>(e>>8&15))
		acc >>= e & 63
		n -= uint(e & 63)
		if back > op-f.begin {
			err = errCorrupt
			break
		}
		from := op - back
		switch {
		case back >= 8 && length <= 32:
			// Whole words; what is written too much is written over.
			d, s := win[op:op+40], win[from:from+40]
			binary.LittleEndian.PutUint64(d, binary.LittleEndian.Uint64(s))
			if length > 8 {
				binary.LittleEndian.PutUint64(d[8:], binary.LittleEndian.Uint64(s[8:]))
				if length > 16 {
					binary.LittleEndian.PutUint64(d[16:], binary.LittleEndian.Uint64(s[16:]))
					binary.LittleEndian.PutUint64(d[24:], binary.LittleEndian.Uint64(s[24:]))
				}
			}
			op += length
		case back >= length:
			copy(win[op:op+length], win[from:from+length])
			op += length
		default:
			// The match runs into itself: each copy doubles what repeats.
			stop := op + length
			for op < stop {
				op += copy(win[op:stop], win[from:op])
			}
		}
	}
	f.ip, f.op, f.acc, f.nbits = ip, op, acc, n
	if err == nil && f.eof && f.block == blockCoded && ip >= inLimit {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func plainEntry(sym int, length uint32) uint32 {
	return uint32(sym)<<16 | length<<8 | length
}

func litEntry(sym int, length uint32) uint32 {
	switch {
	case sym < 256:
		return uint32(sym)<<16 | entryLiteral | length
	case sym == 256:
		return entryOdd | entryEnd | length
	case sym < 265:
		return uint32(sym-254)<<16 | length<<8 | length
	case sym == 285:
		return 258<<16 | length<<8 | length
	case sym > 285:
		return entryOdd
	}
	extra := uint32(sym-261) / 4
	return (3+(4+uint32(sym-265)%4)<<extra)<<16 | length<<8 | (length + extra)
}

func distEntry(sym int, length uint32) uint32 {
	switch {
	case sym < 4:
		return uint32(sym+1)<<16 | length<<8 | length
	case sym > 29:
		return entryOdd
	}
	extra := uint32(sym-2) / 2
	return (1+(2+uint32(sym)%2)<<extra)<<16 | length<<8 | (length + extra)
}

// buildTable makes the look-up table of a canonical code. It reports whether the
// lengths make a code that is neither too full nor has gaps; none at all and one code of one bit are
// taken, since encoders write them.
func buildTable(t []uint32, primary uint32, lens []uint8, entry func(sym int, length uint32) uint32) bool {
	var count [16]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	var next [16]uint32
	code, total, longest := uint32(0), 0, uint32(0)
	for l := uint32(1); l < 16; l++ {
		code <<= 1
		next[l] = code
		code += uint32(count[l])
		total += count[l]
		if count[l] > 0 {
			longest = l
		}
		if code > 1<<l {
			return false
		}
	}
	for i := range 1 << primary {
		t[i] = entryOdd
	}
	if total == 0 {
		return true
	}
	if code != 1<<15 && (total != 1 || longest != 1) {
		return false
	}
	var codes [320]uint16 // as they come in the stream
	var deep [1 << litBits]uint8
	for sym, l := range lens {
		if l == 0 {
			continue
		}
		codes[sym] = bits.Reverse16(uint16(next[l] << (16 - l)))
		next[l]++
		if uint32(l) > primary {
			head := codes[sym] & (1<<primary - 1)
			deep[head] = max(deep[head], l-uint8(primary))
		}
	}
	free := uint32(1) << primary // where the next table for longer codes goes
	for sym, l8 := range lens {
		l, c := uint32(l8), uint32(codes[sym])
		if l == 0 {
			continue
		}
		if l <= primary {
			e := entry(sym, l)
			for i := c; i < 1<<primary; i += 1 << l {
				t[i] = e
			}
			continue
		}
		head := c & (1<<primary - 1)
		if t[head]&entrySub == 0 {
			size := uint32(1) << deep[head]
			if int(free+size) > len(t) {
				return false
			}
			t[head] = free<<16 | entryOdd | entrySub | uint32(deep[head])<<8 | primary
			free += size
		}
		start, size := t[head]>>16, uint32(1)<<deep[head]
		e := entry(sym, l-primary)
		for i := c >> primary; i < size; i += 1 << (l - primary) {
			t[start+i] = e
		}
	}
	return true
}
