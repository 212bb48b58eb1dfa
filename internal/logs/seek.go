package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"slices"
	"time"
)

// # Times that are out of order
//
// Entries are in the order in which they were written, and their times ascend
// as long as nobody sets the clock back. Bisection takes them as ascending; it
// goes wrong only by entries that are out of order. So reading starts disorder
// bytes before the place that was found, and goes on for as many bytes of
// entries after Until before it ends; each entry is still judged by its own time.
// After a step back an entry may be missed only when more than that was
// written between it and its place in order.
const disorder = 256 << 10

// A window is what is read at once to find an entry; it grows up to the
// longest one.
const (
	firstWindow = 8 << 10
	maxWindow   = 2 * (maxEntry + frameExtra)
)

// entryAt returns the first whole entry that begins at or after at and before
// size: where, and its time.
func (c *chainFile) entryAt(d *decoder, at int64) (off int64, ts time.Time, ok bool) {
	for window := int64(firstWindow); ; window *= 4 {
		begin := at
		if !c.local && at > 0 {
			begin = at - 1 // a line begins at at when a newline stands before it
		}
		n := min(window, c.size-begin)
		if n <= 0 {
			return 0, time.Time{}, false
		}
		buf := make([]byte, n)
		if m, err := c.ReadAt(buf, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, time.Time{}, false
		} else {
			buf = buf[:m]
		}
		if i, found := c.scan(d, buf, begin == at); found {
			return begin + int64(i), d.msg.Time, true
		}
		if begin+n >= c.size || window >= maxWindow {
			return 0, time.Time{}, false
		}
	}
}

// scan finds the first whole entry of buf; atStart tells that one may begin at its start.
func (c *chainFile) scan(d *decoder, buf []byte, atStart bool) (int, bool) {
	if c.local {
		for i := nextFrame(buf, 0); i >= 0; i = nextFrame(buf, i+1) {
			if payload, n := frameAt(buf[i:]); n > 0 && d.decodeLocal(payload) {
				return i, true
			}
		}
		return 0, false
	}
	i := 0
	if !atStart {
		if i = indexNewline(buf) + 1; i == 0 {
			return 0, false
		}
	}
	for {
		n := indexNewline(buf[i:])
		if n < 0 {
			return 0, false
		}
		if d.decode(buf[i : i+n]) {
			return i, true
		}
		i += n + 1
	}
}

// seekTime returns where an entry begins such that those before it are earlier
// than t, but for disorder.
func (c *chainFile) seekTime(t time.Time) int64 {
	var d decoder
	lo, hi := int64(0), c.size // what begins before lo is earlier; hi or after is not
	for hi-lo > firstWindow {
		mid := lo + (hi-lo)/2
		off, ts, ok := c.entryAt(&d, mid)
		switch {
		case !ok || off >= hi || !ts.Before(t):
			hi = mid
		default:
			lo = off
		}
	}
	if lo -= disorder; lo <= 0 {
		return 0
	}
	if off, _, ok := c.entryAt(&d, lo); ok {
		return off
	}
	return 0
}

// last returns the time of the file's last entry; zero when that is not known.
func (c *chainFile) last() time.Time {
	if c.gz {
		return c.extra.LastTime
	}
	return lastTime(c, c.size, c.local)
}

// seekSince returns where entries since t begin: in files[keep-1], at offset.
func seekSince(files []*chainFile, t time.Time) (keep int, offset int64) {
	keep = len(files)
	for i, c := range files {
		if last := c.last(); !last.IsZero() && last.Before(t) {
			keep = max(i, 1)
			break
		}
	}
	if c := files[keep-1]; !c.gz {
		offset = c.seekTime(t)
	}
	return keep, offset
}

// lastTime returns the time of a file's last whole entry; zero when there is none.
func lastTime(f io.ReaderAt, size int64, local bool) time.Time {
	var d decoder
	if local {
		end := lastFrame(f, size)
		n := frameEnding(f, end)
		if n == 0 {
			return time.Time{}
		}
		buf := make([]byte, n)
		if m, err := f.ReadAt(buf, end-n); int64(m) < n && err != nil {
			return time.Time{}
		}
		if payload, n := frameAt(buf); n > 0 && d.decodeLocal(payload) {
			return d.msg.Time
		}
		return time.Time{}
	}
	for window := int64(firstWindow); ; window *= 4 {
		n := min(window, size)
		buf := make([]byte, n)
		if m, err := f.ReadAt(buf, size-n); int64(m) < n && err != nil {
			return time.Time{}
		}
		whole := n == size
		for {
			i := lastNewline(buf)
			if i < 0 && !whole {
				break
			}
			if d.decode(buf[i+1:]) {
				return d.msg.Time
			}
			if i < 0 {
				return time.Time{}
			}
			buf = buf[:i]
		}
		if window >= maxWindow {
			return time.Time{}
		}
	}
}

// Position is the end of an entry in a log: what a reader that comes later goes
// on from. Rotation and compression do not change it.
type Position struct {
	Ino    uint64 `json:"ino"`   // of the file when it was written
	First  int64  `json:"first"` // the time of its first entry in ns
	Offset int64  `json:"off"`   // in the file, uncompressed
}

// Position returns the end of the entry that Next returned last.
func (r *Reader) Position() Position {
	if r.cur == nil {
		return Position{}
	}
	return Position{Ino: r.cur.origin(), First: r.cur.begins(), Offset: r.base + int64(r.pos)}
}

// origin is the inode that the file has, or had before it was compressed.
func (c *chainFile) origin() uint64 {
	if c.gz && c.extra.Ino != 0 {
		return c.extra.Ino
	}
	return c.ino
}

// begins returns the time of the file's first entry in ns, 0 when it has none.
func (c *chainFile) begins() int64 {
	if c.first != 0 {
		return c.first
	}
	var d decoder
	if !c.gz {
		now := *c
		if fi, err := c.f.Stat(); err == nil {
			now.size = fi.Size()
		}
		if _, ts, ok := now.entryAt(&d, 0); ok {
			c.first = ts.UnixNano()
		}
		return c.first
	}
	zr, err := gzip.NewReader(bufio.NewReader(io.NewSectionReader(c.f, 0, c.size)))
	if err != nil {
		return 0
	}
	var buf bytes.Buffer
	_, _ = io.CopyN(&buf, zr, maxEntry)
	if _, ok := c.scan(&d, buf.Bytes(), true); ok {
		c.first = d.msg.Time.UnixNano()
	}
	return c.first
}

// findPosition returns where p is: in files[keep-1], at offset. When its file
// was rotated away, all that is left comes after it.
func findPosition(files []*chainFile, p *Position) (keep int, offset int64) {
	i := slices.IndexFunc(files, func(c *chainFile) bool { return c.origin() == p.Ino && c.begins() == p.First })
	if i < 0 {
		// an inode may change when a log is copied
		i = slices.IndexFunc(files, func(c *chainFile) bool { return p.First != 0 && c.begins() == p.First })
	}
	switch {
	case i < 0:
		return len(files), 0
	case !files[i].gz && p.Offset > files[i].size:
		return i + 1, files[i].size
	}
	return i + 1, p.Offset
}
