package logs

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"sort"
	"time"
)

// The frame of an entry in the driver local's files, as Docker's are:
//
//	uint32 length · LogEntry (protobuf) · uint32 length      big endian
//
//	LogEntry: 1 source · 2 time in ns · 3 line, without its newline · 4 partial
//	          5 { 1 last · 2 id · 3 ordinal } · 6 { 1 key · 2 value } …
//
// A payload begins with the field source, of which the first byte is 0x0a: a
// newline, that a line never holds. So the text below stands at the beginning
// of payloads only, whatever a container prints, and a reader that was put
// down anywhere finds the next frame by it.
const (
	frameExtra = 8 // the two lengths
	minFrame   = 8 // field source
)

var frameMark = []byte("\x0a\x06std")

// frameAt returns the payload of the frame at the start of b and the frame's
// length: 0 when b holds only a part of it, -1 when there is no frame.
func frameAt(b []byte) (payload []byte, n int) {
	if len(b) < 4 {
		return nil, 0
	}
	l := binary.BigEndian.Uint32(b)
	if l < minFrame || l > maxEntry {
		return nil, -1
	}
	if rest := b[4:]; !bytes.HasPrefix(rest, frameMark[:min(len(rest), len(frameMark))]) {
		return nil, -1
	}
	end := 4 + int(l)
	if len(b) < end+4 {
		return nil, 0
	}
	if binary.BigEndian.Uint32(b[end:]) != l {
		return nil, -1
	}
	return b[4:end], end + 4
}

// nextFrame returns where in b, after from, a frame may begin; -1 when nowhere.
func nextFrame(b []byte, from int) int {
	for from += 4; from < len(b); {
		i := bytes.Index(b[from:], frameMark)
		if i < 0 {
			return -1
		}
		if at := from + i - 4; at >= 0 {
			return at
		}
		from += i + 1
	}
	return -1
}

// lastFrame returns where the last whole frame of a file ends: size, unless the
// end is torn.
func lastFrame(f io.ReaderAt, size int64) int64 {
	if frameEnding(f, size) > 0 {
		return size
	}
	const window = 2 * (maxEntry + frameExtra)
	begin := max(0, size-window)
	buf := make([]byte, size-begin)
	if n, err := f.ReadAt(buf, begin); n < len(buf) && err != nil {
		return size
	}
	for end := len(buf); ; {
		i := bytes.LastIndex(buf[:end], frameMark)
		if i < 4 {
			return begin
		}
		if _, n := frameAt(buf[i-4:]); n > 0 {
			return begin + int64(i-4+n)
		}
		end = i + len(frameMark) - 1
	}
}

// frameEnding returns the length of the frame that ends at end; 0 for none.
func frameEnding(f io.ReaderAt, end int64) int64 {
	var b [4 + 5]byte
	if end < frameExtra+minFrame {
		return 0
	}
	if _, err := f.ReadAt(b[:4], end-4); err != nil {
		return 0
	}
	l := int64(binary.BigEndian.Uint32(b[:]))
	begin := end - l - frameExtra
	if l < minFrame || l > maxEntry || begin < 0 {
		return 0
	}
	if _, err := f.ReadAt(b[:], begin); err != nil || int64(binary.BigEndian.Uint32(b[:])) != l || !bytes.Equal(b[4:], frameMark) {
		return 0
	}
	return l + frameExtra
}

// appendLocal appends one frame, whose line is a followed by c.
func appendLocal(dst []byte, stream byte, ts time.Time, a, c []byte, part Partial, attrs []byte) []byte {
	head := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if stream == Stderr {
		dst = append(dst, "\x0a\x06stderr\x10"...)
	} else {
		dst = append(dst, "\x0a\x06stdout\x10"...)
	}
	dst = binary.AppendUvarint(dst, uint64(ts.UnixNano()))
	dst = binary.AppendUvarint(append(dst, 0x1a), uint64(len(a)+len(c)))
	dst = append(append(dst, a...), c...)
	if part.Ordinal > 0 {
		dst = append(dst, 0x20, 1, 0x2a)
		n := 2 + len(part.ID) + 1 + uvarintLen(uint64(part.Ordinal))
		if part.Last {
			n += 2
		}
		dst = binary.AppendUvarint(dst, uint64(n))
		if part.Last {
			dst = append(dst, 0x08, 1)
		}
		dst = append(append(dst, 0x12, byte(len(part.ID))), part.ID...)
		dst = binary.AppendUvarint(append(dst, 0x18), uint64(part.Ordinal))
	}
	dst = append(dst, attrs...)
	n := uint32(len(dst) - head - 4)
	binary.BigEndian.PutUint32(dst[head:], n)
	return binary.BigEndian.AppendUint32(dst, n)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// appendLocalAttrs appends attrs as the fields 6 of every entry.
func appendLocalAttrs(dst []byte, attrs map[string]string) []byte {
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		v := attrs[k]
		n := 2 + uvarintLen(uint64(len(k))) + len(k) + uvarintLen(uint64(len(v))) + len(v)
		dst = binary.AppendUvarint(append(dst, 0x32), uint64(n))
		dst = append(binary.AppendUvarint(append(dst, 0x0a), uint64(len(k))), k...)
		dst = append(binary.AppendUvarint(append(dst, 0x12), uint64(len(v))), v...)
	}
	return dst
}

// fields is a cursor over a protobuf message.
type fields []byte

// next returns the next field: its number, and its value as a number or as
// bytes. It reports false at the end, and for what is no protobuf.
func (f *fields) next() (num uint64, v uint64, b []byte, ok bool) {
	tag, n := binary.Uvarint(*f)
	if n <= 0 {
		return 0, 0, nil, false
	}
	*f = (*f)[n:]
	switch tag & 7 {
	case 0:
		if v, n = binary.Uvarint(*f); n <= 0 {
			return 0, 0, nil, false
		}
	case 1:
		n = 8
	case 2:
		l, m := binary.Uvarint(*f)
		if m <= 0 || l > uint64(len(*f)-m) {
			return 0, 0, nil, false
		}
		b, n = (*f)[m:m+int(l)], m+int(l)
	case 5:
		n = 4
	default:
		return 0, 0, nil, false
	}
	if n > len(*f) {
		return 0, 0, nil, false
	}
	*f = (*f)[n:]
	return tag >> 3, v, b, true
}

// decodeLocal reads the payload of a frame into d.msg, as decode does for a line.
func (d *decoder) decodeLocal(b []byte) bool {
	d.msg = Message{Stream: Stdout}
	var line []byte
	var partial, haveTime bool
	for f := fields(b); len(f) > 0; {
		num, v, val, ok := f.next()
		if !ok {
			return false
		}
		switch num {
		case 1:
			if string(val) == "stderr" {
				d.msg.Stream = Stderr
			}
		case 2:
			d.msg.Time = time.Unix(0, int64(v)).UTC()
			haveTime = true
		case 3:
			line = val
		case 4:
			partial = v != 0
		case 5:
			if !d.partialField(val) {
				return false
			}
		case 6:
			if d.wantAttrs && !d.attrField(val) {
				return false
			}
		}
	}
	if !haveTime {
		return false
	}
	if !partial {
		d.msg.Partial = Partial{}
	} else if d.msg.Partial.Ordinal == 0 {
		d.msg.Partial.Ordinal = 1
	}
	d.msg.Line = line
	if !partial || d.msg.Partial.Last {
		d.line = append(append(d.line[:0], line...), '\n')
		d.msg.Line = d.line
	}
	return true
}

func (d *decoder) partialField(b []byte) bool {
	for f := fields(b); len(f) > 0; {
		num, v, val, ok := f.next()
		if !ok {
			return false
		}
		switch num {
		case 1:
			d.msg.Partial.Last = v != 0
		case 2:
			if string(val) != d.lastID { // the parts of one line share the text
				d.lastID = string(val)
			}
			d.msg.Partial.ID = d.lastID
		case 3:
			d.msg.Partial.Ordinal = int(min(v, math.MaxInt32))
		}
	}
	return true
}

func (d *decoder) attrField(b []byte) bool {
	var k, v string
	for f := fields(b); len(f) > 0; {
		num, _, val, ok := f.next()
		if !ok {
			return false
		}
		switch num {
		case 1:
			k = string(val)
		case 2:
			v = string(val)
		}
	}
	if d.msg.Attrs == nil {
		d.msg.Attrs = map[string]string{}
	}
	d.msg.Attrs[k] = v
	return true
}
