package logs

import (
	"encoding/binary"
	"math/bits"
	"sort"
	"time"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// plain marks the bytes that stand for themselves in Docker's JSON strings:
// printable ASCII but for the quote, the backslash and HTML's <, > and &.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// has returns a word whose lowest set bit is the high bit of the first byte of x
// that equals c; zero when there is none. (Only above it may it be wrong.)
func has(x uint64, c byte) uint64 {
	x ^= ones * uint64(c)
	return (x - ones) &^ x & highs
}

// special returns a word whose lowest set bit is the high bit of the first of
// x's eight bytes that is not plain; zero when all are.
func special(x uint64) uint64 {
	// below 0x20, or 0x80 and above
	m := (x - ones*0x20) & ^x & highs
	m |= x & highs
	// '<' (0x3c) and '>' (0x3e) differ in one bit
	m |= has(x|ones*0x02, '>')
	return m | has(x, '"') | has(x, '\\') | has(x, '&')
}

// appendEscaped appends s as the inside of a JSON string, escaped exactly as
// Docker's log files are: <, >, & and control characters as \u00xx but for \n
// and \r, U+2028 and U+2029 as \u202x, a byte that is no UTF-8 as \ufffd.
func appendEscaped(dst, s []byte) []byte {
	start := 0
	for i := 0; i < len(s); {
		if i+8 <= len(s) {
			m := special(binary.LittleEndian.Uint64(s[i:]))
			if m == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(m) >> 3
		}
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			switch c {
			case '\\', '"':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(append(dst, s[start:i]...), `\ufffd`...)
			start = i + size
		case r == '\u2028' || r == '\u2029':
			dst = append(append(dst, s[start:i]...), `\u202`...)
			dst = append(dst, hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	return append(dst, s[start:]...)
}

// entryHead and appendTail's text stand around an entry's escaped line.
const entryHead = `{"log":"`

// appendTail appends what follows the line: stream, attributes, time.
func appendTail(dst []byte, stream byte, attrs []byte, ts time.Time) []byte {
	if stream == Stderr {
		dst = append(dst, `","stream":"stderr"`...)
	} else {
		dst = append(dst, `","stream":"stdout"`...)
	}
	if len(attrs) > 0 {
		dst = append(append(dst, `,"attrs":`...), attrs...)
	}
	dst = append(dst, `,"time":"`...)
	dst = ts.UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"', '}', '\n')
}

// appendAttrs appends attrs as a JSON object with sorted keys; nothing for none.
func appendAttrs(dst []byte, attrs map[string]string) []byte {
	if len(attrs) == 0 {
		return dst
	}
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for i, k := range keys {
		if i == 0 {
			dst = append(dst, '{')
		} else {
			dst = append(dst, ',')
		}
		dst = append(appendEscaped(append(dst, '"'), []byte(k)), `":"`...)
		dst = append(appendEscaped(dst, []byte(attrs[k])), '"')
	}
	return append(dst, '}')
}
