package logs

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// chainFile is one file of a log, opened: the current one or a rotated one.
type chainFile struct {
	f     *os.File
	ino   uint64 // of f
	gz    bool
	extra gzExtra // of a compressed file: what it was made from
	size  int64   // when it was opened
	first int64   // the time of its first entry in ns, once asked for
	nread *int64  // counts the bytes read
	local bool    // its format
}

func (c *chainFile) close() { _ = c.f.Close() }

// same reports whether c holds the entries of done, a file that has been read
// to its end and is open still. An open file's inode is not given to another
// one; the inode of a file that has been compressed may be, so that one is
// known by its time as well.
func (c *chainFile) same(done *chainFile) bool {
	switch {
	case !c.gz:
		return !done.gz && c.ino == done.ino
	case done.gz:
		return c.ino == done.ino || c.extra.Ino == done.extra.Ino && c.extra.Mtime == done.extra.Mtime
	}
	fi, err := done.f.Stat()
	return err == nil && c.extra.Ino == done.ino && c.extra.Mtime == fi.ModTime().UnixNano()
}

func closeAll(files []*chainFile) {
	for _, c := range files {
		c.close()
	}
}

// maxChain bounds the rotated files that a reader looks for.
const maxChain = 1000

// openChain opens the files of the log at path, the newest first: all of one
// moment, although a writer may rotate them meanwhile. current is false when
// path itself does not exist (between the two renames of a rotation, or
// because the container never logged).
func openChain(path string) (files []*chainFile, current bool, err error) {
	for try := 0; ; try++ {
		files, current, err = tryOpenChain(path)
		if err != nil {
			return nil, false, err
		}
		if stable(path, files, current) || try >= maxTries {
			return files, current, nil
		}
		closeAll(files)
		time.Sleep(time.Duration(try) * 100 * time.Microsecond)
	}
}

// maxTries bounds how long (20 ms) a chain with a gap is taken for a rotation
// under way; after that somebody has removed a file by hand.
const maxTries = 20

// stable reports that no rotation fell between the opening of the files. A
// rotation begins at the oldest file, so for a while the chain has a gap, and
// ends with a new inode at path; a file opened under two names shows it too.
func stable(path string, files []*chainFile, current bool) bool {
	seen := map[uint64]bool{}
	for _, c := range files {
		if seen[c.ino] {
			return false
		}
		seen[c.ino] = true
	}
	ino, ok := pathInode(path)
	if ok != current || ok && ino != files[0].ino {
		return false
	}
	next := len(files) // the first rotated name that does not exist
	if !current {
		next++
	}
	for _, suffix := range [...]string{"", gzSuffix} {
		if _, err := os.Lstat(rotated(path, next+1) + suffix); err == nil {
			return false
		}
	}
	return true
}

func tryOpenChain(path string) (files []*chainFile, current bool, err error) {
	for i := 0; i < maxChain; i++ {
		name := path
		if i > 0 {
			name = rotated(path, i)
		}
		c, err := openOne(name, i > 0)
		switch {
		case err == nil:
			files = append(files, c)
			current = current || i == 0
		case !errors.Is(err, fs.ErrNotExist):
			closeAll(files)
			return nil, false, err
		case i > 0:
			return files, current, nil
		}
	}
	return files, current, nil
}

// openOne opens name or its compressed form. Compression may end between the
// two looks, so the plain name is tried once more.
func openOne(name string, maybeGz bool) (*chainFile, error) {
	f, err := os.Open(name)
	if err == nil || !maybeGz || !errors.Is(err, fs.ErrNotExist) {
		return describe(f, err)
	}
	if f, gerr := os.Open(name + gzSuffix); gerr == nil {
		c, err := describe(f, nil)
		if err != nil {
			return nil, err
		}
		c.gz = true
		if zr, err := gzip.NewReader(bufio.NewReaderSize(f, 512)); err == nil {
			if json.Unmarshal(zr.Extra, &c.extra) != nil {
				c.extra = gzExtra{}
			}
		}
		_, err = f.Seek(0, io.SeekStart)
		return c, err
	}
	f, err = os.Open(name)
	return describe(f, err)
}

func describe(f *os.File, err error) (*chainFile, error) {
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &chainFile{f: f, ino: inode(f), size: fi.Size()}, nil
}

// pathInode returns the inode that path names now.
func pathInode(path string) (uint64, bool) {
	f, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return inodeOf(f), true
}

// ReadAt makes the file an io.ReaderAt that counts.
func (c *chainFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.f.ReadAt(b, off)
	if c.nread != nil {
		*c.nread += int64(n)
	}
	return n, err
}

// tail is tailOffset for the file's format.
func (c *chainFile) tail(n int) (off int64, entries int, err error) {
	if !c.local {
		return tailOffset(c, c.size, n)
	}
	off = lastFrame(c, c.size)
	for entries < n && off > 0 {
		l := frameEnding(c, off)
		if l == 0 { // damaged in the middle: what is before it is not shown
			break
		}
		off -= l
		entries++
	}
	return off, entries, nil
}

// countFrames counts the entries of a compressed file of the driver local.
func countFrames(src io.Reader) int {
	r := &Reader{ctx: context.Background(), local: true, begun: true, cur: &chainFile{gz: true}, src: src}
	n := 0
	for {
		if _, err := r.frame(); err != nil {
			return n
		}
		n++
	}
}

// tailOffset returns where in the file the last n lines begin, and how many
// lines there are after it (n, or fewer when the file has no more). A last
// line without newline does not count; it is left to whoever reads on.
func tailOffset(f io.ReaderAt, size int64, n int) (off int64, lines int, err error) {
	if n <= 0 {
		// after the last newline
		n = 0
	}
	const step = 64 << 10
	buf := make([]byte, min(size, step))
	seen := -1 // newlines passed but for the one that ends the last line
	for end := size; end > 0; {
		begin := max(0, end-step)
		b := buf[:end-begin]
		if _, err := f.ReadAt(b, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for {
			i := lastNewline(b)
			if i < 0 {
				break
			}
			if seen++; seen == n {
				return begin + int64(i) + 1, n, nil
			}
			b = b[:i]
		}
		end = begin
	}
	return 0, seen + 1, nil
}

// countLines counts the lines of a compressed file.
func countLines(r io.Reader) (int, error) {
	buf := make([]byte, 64<<10)
	n := 0
	for {
		m, err := r.Read(buf)
		n += countNewlines(buf[:m])
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
