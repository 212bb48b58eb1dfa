package logs

import (
	"bytes"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// decoder reads entries. Its memory is reused from entry to entry.
type decoder struct {
	wantAttrs bool
	msg       Message
	line      []byte // holds msg.Line when it had escapes
	scratch   []byte // holds keys and short values
	timeText  []byte // the last time read, as text: entries of one chunk share it
	time      time.Time
	lastID    string // of the last partial entry read
}

func indexNewline(b []byte) int { return bytes.IndexByte(b, '\n') }

// decode reads one line of a log file into d.msg. It reports false for a line
// that is no entry: such lines are passed over. Members may come in any order,
// unknown ones are skipped; a line without "log" or "time" is no entry.
func (d *decoder) decode(b []byte) bool {
	d.msg.Stream, d.msg.Attrs = Stdout, nil
	p := parser{b: b}
	if !p.open('{') {
		return false
	}
	var haveLog, haveTime bool
	for first := true; ; first = false {
		key, more, ok := p.key(first, d)
		if !ok {
			return false
		}
		if !more {
			break
		}
		switch string(key) {
		case "log":
			if d.msg.Line, ok = p.str(&d.line); !ok {
				return false
			}
			haveLog = true
		case "stream":
			v, ok := p.str(&d.scratch)
			if !ok {
				return false
			}
			if string(v) == "stderr" {
				d.msg.Stream = Stderr
			}
		case "time":
			v, ok := p.str(&d.scratch)
			if !ok {
				return false
			}
			if !bytes.Equal(v, d.timeText) || len(v) == 0 {
				t, ok := parseTime(v)
				if !ok {
					return false
				}
				d.time, d.timeText = t, append(d.timeText[:0], v...)
			}
			d.msg.Time = d.time
			haveTime = true
		case "attrs":
			if !d.attrs(&p) {
				return false
			}
		default:
			if !p.skip(0) {
				return false
			}
		}
	}
	p.space()
	return haveLog && haveTime && p.i == len(p.b)
}

// attrs reads the attributes' object, or passes over it when nobody wants them.
func (d *decoder) attrs(p *parser) bool {
	p.space()
	if !d.wantAttrs || p.peek() != '{' {
		return p.skip(0)
	}
	p.i++
	m := map[string]string{}
	for first := true; ; first = false {
		key, more, ok := p.key(first, d)
		if !ok {
			return false
		}
		if !more {
			d.msg.Attrs = m
			return true
		}
		k := string(key)
		p.space()
		if p.peek() != '"' {
			if !p.skip(1) {
				return false
			}
			continue
		}
		v, ok := p.str(&d.scratch)
		if !ok {
			return false
		}
		m[k] = string(v)
	}
}

// parser is a cursor over one JSON text.
type parser struct {
	b []byte
	i int
}

func (p *parser) space() {
	for p.i < len(p.b) {
		switch p.b[p.i] {
		case ' ', '\t', '\r', '\n':
			p.i++
		default:
			return
		}
	}
}

// peek returns the byte at the cursor, 0 at the end.
func (p *parser) peek() byte {
	if p.i < len(p.b) {
		return p.b[p.i]
	}
	return 0
}

// open passes over white space and the byte c.
func (p *parser) open(c byte) bool {
	p.space()
	if p.peek() != c {
		return false
	}
	p.i++
	return true
}

// key reads the next member's name and the colon; more is false at the object's end.
func (p *parser) key(first bool, d *decoder) (key []byte, more, ok bool) {
	p.space()
	switch {
	case p.peek() == '}':
		p.i++
		return nil, false, true
	case first:
	case !p.open(','):
		return nil, false, false
	}
	p.space()
	key, ok = p.str(&d.scratch)
	return key, true, ok && p.open(':')
}

// str reads a string: a part of the input when it has no escapes, else put
// together in *buf.
func (p *parser) str(buf *[]byte) ([]byte, bool) {
	if !p.open('"') {
		return nil, false
	}
	b := p.b[p.i:]
	q := bytes.IndexByte(b, '"')
	if q < 0 {
		return nil, false
	}
	e := bytes.IndexByte(b[:q], '\\')
	if e < 0 {
		p.i += q + 1
		return b[:q], true
	}
	out := (*buf)[:0]
	for {
		// b[:e] is plain and b[e] a backslash
		out = append(out, b[:e]...)
		var n int
		if out, n = unescape(out, b[e:]); n == 0 {
			return nil, false
		}
		b = b[e+n:]
		// q is where the quote was thought to be; the escape may have held it
		if q -= e + n; q < 0 {
			if q = bytes.IndexByte(b, '"'); q < 0 {
				return nil, false
			}
		}
		if e = bytes.IndexByte(b[:q], '\\'); e < 0 {
			out = append(out, b[:q]...)
			*buf = out
			p.i = len(p.b) - len(b) + q + 1
			return out, true
		}
	}
}

// unescape appends what the escape at the start of b stands for and returns
// the number of bytes it takes; 0 for a wrong one.
func unescape(dst, b []byte) ([]byte, int) {
	if len(b) < 2 {
		return dst, 0
	}
	c := b[1]
	switch c {
	case '"', '\\', '/':
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'u':
		r, ok := hex4(b)
		if !ok {
			return dst, 0
		}
		n := 6
		if utf16.IsSurrogate(r) {
			if low, ok := hex4(b[6:]); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
				r, n = utf16.DecodeRune(r, low), 12
			} else {
				r = utf8.RuneError
			}
		}
		return utf8.AppendRune(dst, r), n
	default:
		return dst, 0
	}
	return append(dst, c), 2
}

// hex4 reads \uXXXX at the start of b.
func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// maxDepth bounds the nesting of values that skip passes over.
const maxDepth = 32

// skip passes over one value of any kind.
func (p *parser) skip(depth int) bool {
	if depth > maxDepth {
		return false
	}
	p.space()
	switch c := p.peek(); c {
	case '"':
		var scratch []byte
		_, ok := p.str(&scratch)
		return ok
	case '{', '[':
		p.i++
		for first := true; ; first = false {
			p.space()
			if p.peek() == c+2 { // '}' is '{'+2 and ']' is '['+2
				p.i++
				return true
			}
			if !first && !p.open(',') {
				return false
			}
			if c == '{' && (!p.skip(depth+1) || !p.open(':')) || !p.skip(depth+1) {
				return false
			}
		}
	}
	start := p.i
	for p.i < len(p.b) {
		switch c := p.b[p.i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c == '-', c == '+', c == '.', c == 'E':
			p.i++
			continue
		}
		break
	}
	return p.i > start
}

// parseTime reads RFC 3339. The form that log files have, UTC with Z, is read
// without the time package's general parser.
func parseTime(b []byte) (time.Time, bool) {
	if len(b) < 20 || b[len(b)-1] != 'Z' || b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' {
		t, err := time.Parse(time.RFC3339Nano, string(b))
		return t, err == nil
	}
	year, ok1 := digits(b[0:4])
	month, ok2 := digits(b[5:7])
	day, ok3 := digits(b[8:10])
	hour, ok4 := digits(b[11:13])
	minute, ok5 := digits(b[14:16])
	sec, ok6 := digits(b[17:19])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || sec > 59 {
		return time.Time{}, false
	}
	nsec := 0
	if frac := b[19 : len(b)-1]; len(frac) > 0 {
		if frac[0] != '.' || len(frac) < 2 || len(frac) > 10 {
			return time.Time{}, false
		}
		var ok bool
		if nsec, ok = digits(frac[1:]); !ok {
			return time.Time{}, false
		}
		for i := len(frac); i < 10; i++ {
			nsec *= 10
		}
	}
	return time.Date(year, time.Month(month), day, hour, minute, sec, nsec, time.UTC), true
}

func digits(b []byte) (int, bool) {
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
