package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// ReadOptions selects what a Reader yields. Zero times do not limit.
type ReadOptions struct {
	Driver       string          // of the files: json-file ("") or local
	Since, Until time.Time       // entries in [Since, Until]
	Tail         int             // the last Tail entries; < 0 means all, 0 none of those there are
	Follow       bool            // wait for more after the last one
	Stopped      <-chan struct{} // closed when nothing more will be written: ends Follow
	Attrs        bool            // fill Message.Attrs
	After        *Position       // entries after this one; Tail and Since are not looked at
}

// Reader yields the entries of a log, oldest first. It belongs to one goroutine.
type Reader struct {
	ctx  context.Context //nolint:containedctx // a reader is one long call, cut into pulls
	path string
	opts ReadOptions
	dec  decoder

	local bool  // the files hold frames, not lines
	nread int64 // bytes read from files
	late  int64 // bytes of entries after Until

	queue []*chainFile // files to read after cur, the newest first
	cur   *chainFile   // nil before the first file and when none exists
	src   io.Reader    // of cur
	begun bool         // the chain has been opened
	skip  int          // lines to pass over in cur (tail in a compressed file)

	buf        []byte // buf[pos:end] is read and not yet yielded
	pos, end   int
	filled     bool  // the last read got as much as it asked for
	base       int64 // where in the file, uncompressed, buf begins
	scanned    int   // buf[pos:pos+scanned] holds no newline
	discarding bool  // inside a line longer than maxEntry
	atEOF      bool

	watch *watcher // when following
	err   error    // what Next goes on returning
}

// maxEntry is the longest line of a log file that is taken for an entry: a full
// line of escapes, and attributes.
const maxEntry = 1 << 20

// readSize is the size of the buffer for a long read; one who only follows has
// firstRead, since there may be many.
const (
	firstRead = 8 << 10
	readSize  = 128 << 10
)

// Read returns a reader of the log at path. A missing file is an empty log.
// Errors appear at the first Next. The reader must be closed.
func Read(ctx context.Context, path string, opts ReadOptions) *Reader {
	return &Reader{ctx: ctx, path: path, opts: opts, local: opts.Driver == DriverLocal, dec: decoder{wantAttrs: opts.Attrs}}
}

// Close releases the files. Next must not be running.
func (r *Reader) Close() error {
	if r.cur != nil {
		r.cur.close()
		r.cur = nil
	}
	closeAll(r.queue)
	r.queue = nil
	if r.watch != nil {
		r.watch.close()
		r.watch = nil
	}
	if r.err == nil {
		r.err = os.ErrClosed
	}
	return nil
}

// Next returns the next entry, waiting for it when following. It returns
// io.EOF after the last one, and the context's error when that ended first.
// The message is valid until the next call.
func (r *Reader) Next() (*Message, error) {
	for r.err == nil {
		line, err := r.line()
		if err != nil {
			r.err = err
			break
		}
		if !r.decode(line) {
			continue
		}
		m := &r.dec.msg
		if !r.opts.Since.IsZero() && m.Time.Before(r.opts.Since) {
			continue
		}
		if !r.opts.Until.IsZero() && m.Time.After(r.opts.Until) {
			if r.late += int64(len(line)); r.late > disorder {
				r.err = io.EOF
			}
			continue
		}
		return m, nil
	}
	return nil, r.err
}

func (r *Reader) decode(line []byte) bool {
	if r.local {
		return r.dec.decodeLocal(line)
	}
	return r.dec.decode(line)
}

// frame returns the payload of the next whole frame. What is no frame is
// passed over.
func (r *Reader) frame() ([]byte, error) {
	for {
		b := r.buf[r.pos:r.end]
		payload, n := frameAt(b)
		switch {
		case n > 0:
			r.pos += n
			if r.skip > 0 {
				r.skip--
				continue
			}
			return payload, nil
		case n < 0:
			if next := nextFrame(b, 1); next > 0 {
				r.pos += next
				continue
			}
			r.pos = max(r.pos+1, r.end-4-len(frameMark))
		case len(b) > frameExtra:
			// A whole frame inside of what was begun: the beginning is damaged.
			if next := nextFrame(b, 1); next > 0 {
				if _, n := frameAt(b[next:]); n > 0 {
					r.pos += next
					continue
				}
			}
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// line returns the next whole line, without its newline, or frame.
func (r *Reader) line() ([]byte, error) {
	if r.local {
		return r.frame()
	}
	for {
		if i := indexNewline(r.buf[r.pos+r.scanned : r.end]); i >= 0 {
			line := r.buf[r.pos : r.pos+r.scanned+i]
			r.pos += r.scanned + i + 1
			r.scanned = 0
			if r.discarding {
				r.discarding = false
				continue
			}
			if r.skip > 0 {
				r.skip--
				continue
			}
			return line, nil
		}
		r.scanned = r.end - r.pos
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more of the current file, going to the next file or waiting as needed.
func (r *Reader) fill() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if !r.begun {
		r.begun = true
		if err := r.begin(); err != nil {
			return err
		}
	}
	for {
		if r.cur != nil {
			n, err := r.readMore()
			if n > 0 || err != nil {
				return err
			}
		}
		if more, err := r.advance(); err != nil || !more {
			if err == nil {
				err = io.EOF
			}
			return err
		}
	}
}

// readMore reads once; 0 is the file's end for now.
func (r *Reader) readMore() (int, error) {
	if r.pos > 0 && r.pos == r.end {
		r.base += int64(r.end)
		r.pos, r.end = 0, 0
	}
	if r.filled && len(r.buf) < readSize { // there is much to read
		r.buf = append(r.buf, make([]byte, readSize-len(r.buf))...)
	}
	if r.end == len(r.buf) {
		switch {
		case r.pos > 0:
			r.base += int64(r.pos)
			r.end = copy(r.buf, r.buf[r.pos:r.end])
			r.pos = 0
		case len(r.buf) >= maxEntry+frameExtra: // no entry is that long: drop it up to its newline
			r.discarding = true
			r.base += int64(r.end)
			r.pos, r.end, r.scanned = 0, 0, 0
		default:
			r.buf = append(r.buf, make([]byte, max(firstRead, len(r.buf)))...)
		}
	}
	space := r.buf[r.end:]
	n, err := r.src.Read(space)
	r.filled = n == len(space)
	r.end += n
	r.nread += int64(n)
	if n > 0 || errors.Is(err, io.EOF) || err == nil {
		return n, nil
	}
	if r.cur.gz { // a damaged archive: what could be read is all there is
		return 0, nil
	}
	return 0, err
}

// begin opens the chain and goes to where reading starts.
func (r *Reader) begin() error {
	if r.opts.Follow {
		w, err := newWatcher(r.ctx, r.path, r.opts.Stopped, r.opts.Until)
		if err != nil {
			return err
		}
		r.watch = w
	}
	files, _, err := openChain(r.path)
	if err != nil {
		return err
	}
	for _, c := range files {
		c.nread, c.local = &r.nread, r.local
	}
	keep, offset, err := r.place(files)
	if err != nil {
		closeAll(files)
		return err
	}
	closeAll(files[keep:])
	r.queue = files[:keep]
	if keep > 0 {
		return r.next(offset)
	}
	return nil
}

// place tells where reading starts: in files[keep-1], at offset or, in a
// compressed file, after r.skip entries.
func (r *Reader) place(files []*chainFile) (keep int, offset int64, err error) {
	if len(files) == 0 {
		return 0, 0, nil
	}
	if r.opts.After != nil {
		keep, offset = findPosition(files, r.opts.After)
		return keep, offset, nil
	}
	keep = len(files)
	if r.opts.Tail >= 0 {
		if keep, offset, err = r.seekTail(files); err != nil {
			return 0, 0, err
		}
	}
	if !r.opts.Since.IsZero() {
		k, off := seekSince(files[:keep], r.opts.Since)
		switch {
		case k < keep:
			keep, offset, r.skip = k, off, 0
		case off > offset && r.skip == 0:
			offset = off
		}
	}
	return keep, offset, nil
}

// seekTail finds where the last Tail entries begin: in files[keep-1], at offset
// or, in a compressed file, after r.skip lines.
func (r *Reader) seekTail(files []*chainFile) (keep int, offset int64, err error) {
	want := r.opts.Tail
	for i, c := range files {
		keep = i + 1
		var lines int
		if c.gz {
			if lines, err = c.count(); err != nil {
				return 0, 0, err
			}
			if lines > want {
				r.skip = lines - want
				return keep, 0, nil
			}
		} else if offset, lines, err = c.tail(want); err != nil {
			return 0, 0, err
		}
		if want -= lines; want <= 0 {
			return keep, offset, nil
		}
	}
	return keep, offset, nil
}

// count counts a compressed file's lines and goes back to its start.
func (c *chainFile) count() (int, error) {
	zr, err := gzip.NewReader(c.f)
	if err != nil {
		return 0, nil //nolint:nilerr // not readable: it has no lines to show
	}
	n := 0
	if c.local {
		n = countFrames(zr)
	} else {
		n, _ = countLines(zr)
	}
	_, err = c.f.Seek(0, io.SeekStart)
	return n, err
}

// next makes the oldest file of the queue the current one.
func (r *Reader) next(offset int64) error {
	c := r.queue[len(r.queue)-1]
	r.queue = r.queue[:len(r.queue)-1]
	if r.cur != nil {
		r.cur.close()
	}
	r.cur = c
	r.pos, r.end, r.scanned, r.discarding = 0, 0, 0, false // a torn last line goes
	r.base = offset
	r.src = c.f
	if c.gz {
		zr, err := gzip.NewReader(c.f)
		if err != nil {
			r.src = bytes.NewReader(nil)
			return nil //nolint:nilerr // a damaged archive is passed over
		}
		r.src = zr
		if offset > 0 {
			if _, err := io.CopyN(io.Discard, zr, offset); err != nil {
				r.src = bytes.NewReader(nil)
			}
		}
		return nil
	}
	if !r.opts.Follow && len(r.queue) == 0 {
		r.src = io.LimitReader(c.f, c.size-offset) // up to now, however fast it grows
	}
	_, err := c.f.Seek(offset, io.SeekStart)
	return err
}

// advance is called at the end of the current file: it goes to the next one,
// or waits until there is something to read. It reports false when all is read.
func (r *Reader) advance() (bool, error) {
	if len(r.queue) > 0 {
		return true, r.next(0)
	}
	if !r.opts.Follow {
		return false, nil
	}
	// Rotated? Then the file is complete, but what was written between our
	// last read and the renaming is still to be read.
	ino, exists := pathInode(r.path)
	switch {
	case exists && r.cur != nil && ino == r.cur.ino && !r.cur.gz:
	case exists && r.cur != nil && !r.atEOF:
		r.atEOF = true
		return true, nil // once more
	case exists:
		r.atEOF = false
		return true, r.succeed()
	}
	if r.watch.stopped {
		return false, nil
	}
	if err := r.rewind(); err != nil {
		return false, err
	}
	if r.pos == r.end && len(r.buf) > firstRead {
		r.base += int64(r.end)
		r.buf, r.pos, r.end = nil, 0, 0
	}
	return true, r.watch.wait()
}

// rewind gives up what is read of an unfinished frame: a writer that opens the
// file again cuts it off and writes over it.
func (r *Reader) rewind() error {
	if !r.local || r.cur == nil || r.cur.gz || r.pos == r.end {
		return nil
	}
	r.base += int64(r.pos)
	r.pos, r.end = 0, 0
	_, err := r.cur.f.Seek(r.base, io.SeekStart)
	return err
}

// succeed opens the files that came after the current one.
func (r *Reader) succeed() error {
	files, current, err := openChain(r.path)
	if err != nil {
		return err
	}
	n := len(files)
	for i, c := range files {
		c.nread, c.local = &r.nread, r.local
		if r.cur != nil && c.same(r.cur) {
			n = i
			break
		}
	}
	closeAll(files[n:])
	r.queue = files[:n]
	if n == 0 || !current {
		// in the middle of a rotation: look again at the next change
		closeAll(r.queue)
		r.queue = nil
		return nil
	}
	return r.next(0)
}

func lastNewline(b []byte) int   { return bytes.LastIndexByte(b, '\n') }
func countNewlines(b []byte) int { return bytes.Count(b, []byte{'\n'}) }
