package archive

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// The skeleton file:
//
//	"BSKEL1\n\x00"
//	one zstd frame of records:
//	    'r' length bytes        bytes of the tar as they are
//	    'f' length path size    the content of a regular file of the tree
//	side records, uncompressed, for contents that a later entry of the same tar replaced:
//	    length path size bytes
//	uint64, little endian: where the side records start
//
// Lengths and sizes are unsigned varints. The n-th 'f' record of a path takes
// the n-th side record of that path; when there are no more, the tree's file.
const skeletonMagic = "BSKEL1\n\x00"

const maxRaw = 64 << 10

// SkeletonWriter writes a skeleton into a file.
type SkeletonWriter struct {
	f    *os.File
	out  *countWriter
	z    *zstd.Encoder
	w    *bufio.Writer
	side *os.File // unlinked; nil until needed
	sbuf *bufio.Writer
	err  error
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// NewSkeletonWriter starts a skeleton at the beginning of f, which stays the
// caller's.
func NewSkeletonWriter(f *os.File) (*SkeletonWriter, error) {
	s := &SkeletonWriter{f: f, out: &countWriter{w: f}}
	if _, err := s.out.Write([]byte(skeletonMagic)); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(s.out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, err
	}
	s.z, s.w = z, bufio.NewWriterSize(z, 128<<10)
	return s, nil
}

func (s *SkeletonWriter) raw(p []byte) {
	if len(p) == 0 || s.err != nil {
		return
	}
	var head [1 + binary.MaxVarintLen64]byte
	head[0] = 'r'
	n := binary.PutUvarint(head[1:], uint64(len(p)))
	_, _ = s.w.Write(head[:1+n])
	_, s.err = s.w.Write(p) // bufio errors stick
}

func (s *SkeletonWriter) file(path string, size int64) {
	if s.err != nil {
		return
	}
	_ = s.w.WriteByte('f')
	s.err = writeNamed(s.w, path, size)
}

func writeNamed(w *bufio.Writer, path string, size int64) error {
	var b [binary.MaxVarintLen64]byte
	_, _ = w.Write(b[:binary.PutUvarint(b[:], uint64(len(path)))])
	_, _ = w.WriteString(path)
	_, err := w.Write(b[:binary.PutUvarint(b[:], uint64(size))])
	return err
}

// replaced keeps the content of a file that is about to go.
func (s *SkeletonWriter) replaced(path string, content io.Reader, size int64) error {
	if s.side == nil {
		f, err := os.CreateTemp(filepath.Dir(s.f.Name()), ".side*")
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			_ = f.Close()
			return err
		}
		s.side, s.sbuf = f, bufio.NewWriterSize(f, 64<<10)
	}
	if err := writeNamed(s.sbuf, path, size); err != nil {
		return err
	}
	_, err := io.CopyN(s.sbuf, content, size)
	return err
}

// Close completes the skeleton. The file stays open.
func (s *SkeletonWriter) Close() error {
	err := s.err
	if ferr := s.w.Flush(); err == nil {
		err = ferr
	}
	if cerr := s.z.Close(); err == nil {
		err = cerr
	}
	at := s.out.n
	if s.side != nil {
		defer s.side.Close()
		if ferr := s.sbuf.Flush(); err == nil {
			err = ferr
		}
		if _, serr := s.side.Seek(0, io.SeekStart); err == nil {
			err = serr
		}
		if err == nil {
			_, err = io.Copy(s.out, s.side)
		}
	}
	if err != nil {
		return err
	}
	return binary.Write(s.out, binary.LittleEndian, uint64(at))
}

// recorder is the reader below a tar.Reader: what passes while it captures
// goes to the skeleton as it is.
type recorder struct {
	src      io.Reader
	sk       *SkeletonWriter // nil: record nothing
	buf      []byte
	captured bool
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.captured && r.sk != nil {
		r.buf = append(r.buf, p[:n]...)
		if len(r.buf) >= maxRaw {
			r.flush()
		}
	}
	return n, err
}

func (r *recorder) flush() {
	r.sk.raw(r.buf)
	r.buf = r.buf[:0]
}

// content tells that the next size bytes are those of the file at path.
func (r *recorder) content(path string, size int64) {
	r.captured = false
	if r.sk != nil {
		r.flush()
		r.sk.file(path, size)
	}
}

func (r *recorder) capture() { r.captured = true }

// drain reads to the end of the stream, past the end mark of the tar.
func (r *recorder) drain() error {
	buf := make([]byte, 64<<10)
	for {
		if _, err := r.Read(buf); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if r.sk != nil {
		r.flush()
		return r.sk.err
	}
	return nil
}

// sideRecord is where a replaced content lies in the skeleton file.
type sideRecord struct{ at, size int64 }

// Reassemble writes the tar that skeleton was made from, with the contents of
// its files taken from the tree below rootfd. A tree that changed since then
// is an error, or shows by the digest of what is written.
func Reassemble(ctx context.Context, w io.Writer, rootfd int, skeleton *os.File) error {
	side, start, end, err := readSide(skeleton)
	if err != nil {
		return fmt.Errorf("cannot read layer skeleton: %w", err)
	}
	z, err := zstd.NewReader(io.NewSectionReader(skeleton, start, end-start), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	out := bufio.NewWriterSize(w, chunkSize)
	a := &assembler{in: bufio.NewReaderSize(z, 128<<10), out: out, skeleton: skeleton, side: side, dirs: newDirCache(rootfd), buf: make([]byte, chunkSize)}
	defer a.dirs.flush()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		more, err := a.record()
		if err != nil {
			return err
		}
		if !more {
			return out.Flush()
		}
	}
}

type assembler struct {
	in       *bufio.Reader
	out      *bufio.Writer
	skeleton *os.File
	side     map[string][]sideRecord
	dirs     *dirCache
	buf      []byte
}

func (a *assembler) record() (bool, error) {
	kind, err := a.in.ReadByte()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := binary.ReadUvarint(a.in)
	if err != nil {
		return false, err
	}
	if kind == 'r' {
		_, err := io.CopyN(a.out, a.in, int64(n))
		return true, err
	}
	if kind != 'f' || n > unix.PathMax {
		return false, errs.New(errs.Internal, "damaged layer skeleton")
	}
	name := make([]byte, n)
	if _, err := io.ReadFull(a.in, name); err != nil {
		return false, err
	}
	size, err := binary.ReadUvarint(a.in)
	if err != nil {
		return false, err
	}
	return true, a.file(string(name), int64(size))
}

func (a *assembler) file(name string, size int64) error {
	if s := a.side[name]; len(s) > 0 {
		a.side[name] = s[1:]
		if s[0].size != size {
			return errs.New(errs.Internal, "damaged layer skeleton at %q", name)
		}
		_, err := io.Copy(a.out, io.NewSectionReader(a.skeleton, s[0].at, size))
		return err
	}
	dir, base := split(name)
	d, err := a.dirs.open(dir)
	if err != nil {
		return pathError("open", dir, err)
	}
	fd, err := unix.Openat(d.fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	for left := size; left > 0; {
		n, err := unix.Read(fd, a.buf[:min(left, int64(len(a.buf)))])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathError("read", name, err)
		}
		if n == 0 {
			return errs.New(errs.Internal, "layer file %q is shorter than when it was unpacked", name)
		}
		left -= int64(n)
		if _, err := a.out.Write(a.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// readSide checks the file's frame and indexes the side records.
func readSide(f *os.File) (side map[string][]sideRecord, start, end int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, 0, err
	}
	var head [len(skeletonMagic)]byte
	var tail [8]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[:]) != skeletonMagic {
		return nil, 0, 0, errs.New(errs.Internal, "not a skeleton")
	}
	last := st.Size() - 8
	if _, err := f.ReadAt(tail[:], last); err != nil {
		return nil, 0, 0, err
	}
	end = int64(binary.LittleEndian.Uint64(tail[:]))
	if end < int64(len(head)) || end > last {
		return nil, 0, 0, errs.New(errs.Internal, "damaged frame")
	}
	for at := end; at < last; {
		r := bufio.NewReaderSize(io.NewSectionReader(f, at, last-at), 4096+32)
		n, err := binary.ReadUvarint(r)
		if err != nil || n > unix.PathMax {
			return nil, 0, 0, errs.New(errs.Internal, "damaged side record")
		}
		name := make([]byte, n)
		if _, err := io.ReadFull(r, name); err != nil {
			return nil, 0, 0, err
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, 0, 0, err
		}
		at += int64(uvarintLen(n)) + int64(n) + int64(uvarintLen(size))
		if side == nil {
			side = map[string][]sideRecord{}
		}
		side[string(name)] = append(side[string(name)], sideRecord{at, int64(size)})
		at += int64(size)
	}
	return side, int64(len(head)), end, nil
}

func uvarintLen(v uint64) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], v)
}
