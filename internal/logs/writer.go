package logs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Writer is the sink of the drivers that keep files. Its buffers are shared and used only
// during a call, so an idle writer costs a file descriptor and its unfinished
// lines (at most 16 KiB a stream).
type Writer struct {
	path  string
	opts  Options
	local bool   // the driver is local, not json-file
	attrs []byte // opts.Attrs, encoded

	mu      sync.Mutex // guards what follows; held for one write(2) at a time
	file    *os.File   // nil when closed
	size    int64      // of file, what is written
	torn    bool       // the file does not end in a newline (json-file)
	partial [2]partial // stdout, stderr

	squeeze sync.WaitGroup // the background compression
	busy    bool           // a compression runs
	again   bool           // … and must look once more
	closing atomic.Bool    // … and must end soon
}

// partial is the beginning of a line whose end is not here yet.
type partial struct {
	rest []byte
	more bool      // earlier parts of this line are written
	ts   time.Time // the time of the first part, which all parts get
	id   string    // driver local: of the line, once it has parts
	n    int       // … and how many are written
}

// next returns what is told of the line's next part.
func (p *partial) next(last bool) Partial {
	if p.id == "" {
		var b [32]byte
		_, _ = unix.Getrandom(b[:], 0)
		p.id = hex.EncodeToString(b[:])
	}
	p.n++
	return Partial{ID: p.id, Ordinal: p.n, Last: last}
}

// maxAttrs bounds what attributes add to each entry, encoded.
const maxAttrs = maxEntry / 4

// bufs holds encoding buffers for all writers.
var bufs = sync.Pool{New: func() any { b := make([]byte, 0, 128<<10); return &b }}

// flushAt is the number of encoded bytes at which they are written in the
// middle of a chunk: what one chunk may cost in memory.
const flushAt = 112 << 10

// OpenWriter opens or creates the json-file log at path for appending.
func OpenWriter(path string, opts Options) (*Writer, error) {
	return openWriter(DriverJSONFile, path, opts)
}

func openWriter(driver, path string, opts Options) (*Writer, error) {
	w := &Writer{path: path, opts: opts.withDefaults()}
	switch driver {
	case DriverJSONFile, "":
		w.attrs = appendAttrs(nil, opts.Attrs)
	case DriverLocal:
		w.local = true
		w.attrs = appendLocalAttrs(nil, opts.Attrs)
	default:
		return nil, unknownDriver(driver)
	}
	if len(w.attrs) > maxAttrs {
		w.attrs = nil // no reader would take an entry with them
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	if w.opts.Compress {
		w.mu.Lock()
		w.compressLocked()
		w.mu.Unlock()
	}
	return w, nil
}

// State is what a writer needs to go on in another process image. It marshals
// to JSON.
type State struct {
	Driver  string         `json:"driver,omitempty"`
	Path    string         `json:"path"`
	Options Options        `json:"options"`
	Partial []PartialState `json:"partial,omitempty"`
}

// PartialState is the unfinished line of one stream.
type PartialState struct {
	Stream byte      `json:"stream"`
	Rest   []byte    `json:"rest,omitempty"`
	More   bool      `json:"more,omitempty"`
	Time   time.Time `json:"time"`
	ID     string    `json:"id,omitempty"`
	Parts  int       `json:"parts,omitempty"`
}

// State returns what Resume needs. The writer must not be written to after.
func (w *Writer) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := State{Driver: w.driver(), Path: w.path, Options: w.opts}
	for i := range w.partial {
		if p := &w.partial[i]; len(p.rest) > 0 || p.more {
			st.Partial = append(st.Partial, PartialState{Stream: byte(i) + 1, Rest: bytes.Clone(p.rest), More: p.more, Time: p.ts, ID: p.id, Parts: p.n})
		}
	}
	return st
}

func (w *Writer) driver() string {
	if w.local {
		return DriverLocal
	}
	return DriverJSONFile
}

func (w *Writer) resume(parts []PartialState) {
	for _, p := range parts {
		if p.Stream == Stdout || p.Stream == Stderr {
			w.partial[p.Stream-1] = partial{rest: p.Rest, more: p.More, ts: p.Time, id: p.ID, n: p.Parts}
		}
	}
}

// open opens the file and takes its size. The caller holds mu, or is alone.
func (w *Writer) open() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open the log file: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	w.file, w.size, w.torn = f, fi.Size(), false
	if w.local {
		// A torn frame is cut off: readers do not go beyond it either.
		if end := lastFrame(f, w.size); end < w.size && f.Truncate(end) == nil {
			w.size = end
		}
	} else if w.size > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], w.size-1); err == nil && last[0] != '\n' {
			w.torn = true
		}
	}
	return nil
}

// Write appends the lines that chunk completes, in one write(2) unless it is
// very large or a rotation falls into it. The rest is kept until the line's
// end comes. After an error the entries of this chunk may be lost, but the
// file is whole and the next Write works again.
func (w *Writer) Write(stream byte, ts time.Time, chunk []byte) error {
	if stream != Stdout && stream != Stderr {
		return fmt.Errorf("logs: no such stream: %d", stream)
	}
	bp := bufs.Get().(*[]byte)
	defer bufs.Put(bp)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return os.ErrClosed
	}
	b := batch{w: w, buf: (*bp)[:0], stream: stream, ts: ts}
	if !w.local {
		b.tail = appendTail(b.tailBuf[:0], stream, w.attrs, ts)
	}
	p := &w.partial[stream-1]
	for len(chunk) > 0 {
		nl := bytes.IndexByte(chunk[:min(len(chunk), MaxLine-len(p.rest)+1)], '\n')
		switch {
		case nl >= 0 && nl < MaxLine && len(p.rest) == 0 && !p.more: // a whole line: the common case
			b.entry(chunk[:nl], nil, true, nil)
			chunk = chunk[nl+1:]
		case nl >= 0 && len(p.rest)+nl < MaxLine:
			b.entry(p.rest, chunk[:nl], true, p)
			*p = partial{rest: keep(p.rest)}
			chunk = chunk[nl+1:]
		case len(p.rest)+len(chunk) >= MaxLine: // a part without its end
			n := MaxLine - len(p.rest)
			if !p.more {
				p.more, p.ts = true, ts
			}
			b.entry(p.rest, chunk[:n], false, p)
			p.rest = keep(p.rest)
			chunk = chunk[n:]
		default:
			p.rest = append(p.rest, chunk...)
			chunk = nil
		}
	}
	err := b.flush()
	*bp = b.buf
	return err
}

// keep returns b's memory for reuse when it is small.
func keep(b []byte) []byte {
	if cap(b) > 1024 {
		return nil
	}
	return b[:0]
}

// batch collects encoded entries and writes them at once.
type batch struct {
	w       *Writer
	buf     []byte
	stream  byte
	ts      time.Time
	tail    []byte // json-file: what follows a line
	tailBuf [160]byte
	err     error // the first one
}

// entry encodes one entry, whose line is a followed by c. p is the unfinished
// line that it belongs to, nil for a whole one: all parts of a line bear the
// time of its first part.
func (b *batch) entry(a, c []byte, newline bool, p *partial) {
	w := b.w
	if w.opts.MaxSize > 0 && w.size+int64(len(b.buf)) >= w.opts.MaxSize {
		b.note(b.flush())
		b.note(w.rotate())
	} else if len(b.buf) >= flushAt {
		b.note(b.flush())
	}
	if w.local {
		ts, part := b.ts, Partial{}
		if p != nil && (p.more || !newline) {
			ts, part = p.ts, p.next(newline)
		}
		b.buf = appendLocal(b.buf, b.stream, ts, a, c, part, w.attrs)
		return
	}
	tail := b.tail
	if p != nil && p.more {
		tail = appendTail(nil, b.stream, w.attrs, p.ts)
	}
	b.buf = append(b.buf, entryHead...)
	b.buf = appendEscaped(b.buf, a)
	if len(c) > 0 {
		b.buf = b.join(a, c)
	}
	if newline {
		b.buf = append(b.buf, '\\', 'n')
	}
	b.buf = append(b.buf, tail...)
}

// join appends c, whose first bytes may complete a rune that a began.
func (b *batch) join(a, c []byte) []byte {
	if len(a) == 0 || a[len(a)-1] < 0x80 || c[0] < 0x80 {
		return appendEscaped(b.buf, c)
	}
	// rare: encode both as one
	whole := append(append(make([]byte, 0, len(a)+len(c)), a...), c...)
	b.buf = b.buf[:len(b.buf)-len(appendEscaped(nil, a))]
	return appendEscaped(b.buf, whole)
}

func (b *batch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

// flush writes the batch. A failed write is taken back, so that no torn line stays.
func (b *batch) flush() error {
	w := b.w
	out := b.buf
	b.buf = b.buf[:0]
	if len(out) == 0 {
		return b.err
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return errors.Join(b.err, err)
		}
	}
	if w.torn {
		if n, err := w.file.Write([]byte{'\n'}); n == 1 {
			w.size, w.torn = w.size+1, false
		} else {
			return errors.Join(b.err, err)
		}
	}
	n, err := w.file.Write(out)
	if err == nil {
		w.size += int64(n)
		return b.err
	}
	if terr := w.file.Truncate(w.size); terr != nil && n > 0 {
		w.size += int64(n)
		w.torn = !w.local && out[n-1] != '\n'
	}
	return errors.Join(b.err, err)
}

// Flush writes the unfinished lines, as entries without newline. What is
// written to the same stream later begins a new line.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flushLocked(time.Now())
}

func (w *Writer) flushLocked(now time.Time) error {
	if w.file == nil {
		return nil
	}
	b := batch{w: w}
	for i := range w.partial {
		p := &w.partial[i]
		if len(p.rest) > 0 {
			if !p.more {
				p.more, p.ts = true, now
			}
			b.stream = byte(i) + 1
			b.entry(p.rest, nil, false, p)
		}
		*p = partial{}
	}
	return b.flush()
}

// Close flushes and closes the file. A compression under way is given up, and
// done by the next writer. It may be called again.
func (w *Writer) Close() error {
	w.closing.Store(true)
	w.mu.Lock()
	err := w.flushLocked(time.Now())
	if w.file != nil {
		err = errors.Join(err, w.file.Close())
		w.file = nil
	}
	w.mu.Unlock()
	w.squeeze.Wait()
	return err
}
