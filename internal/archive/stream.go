package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/ulikunitz/xz"

	"berth.dev/berth/internal/errs"
)

const (
	chunkSize  = 256 << 10
	chunkCount = 8
	maxWindow  = 128 << 20 // bytes of history that a compressed stream may ask for
)

// Compression is a way a stream is compressed.
type Compression string

// The compressions that Decompress knows.
const (
	None  Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Bzip2 Compression = "bzip2"
	Xz    Compression = "xz"
)

// DetectCompression tells the compression of a stream by its first bytes.
func DetectCompression(head []byte) Compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return Zstd
	case len(head) >= 4 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18 && head[0]&0xf0 == 0x50:
		return Zstd // a skippable frame comes first
	case bytes.HasPrefix(head, []byte("BZh")):
		return Bzip2
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return Xz
	}
	return None
}

// Decompress returns the content of r, whichever way it is compressed.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	br := bufio.NewReaderSize(r, chunkSize)
	head, err := br.Peek(64)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, None, err
	}
	kind := DetectCompression(head)
	switch kind {
	case Gzip:
		z, err := newGunzip(br)
		if err != nil {
			return nil, kind, errs.New(errs.Invalid, "cannot read gzip stream: %w", err)
		}
		return io.NopCloser(z), kind, nil
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, kind, errs.New(errs.Invalid, "cannot read zstd stream: %w", err)
		}
		return z.IOReadCloser(), kind, nil
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(br)), kind, nil
	case Xz:
		if w := xzWindow(head); w > maxWindow {
			return nil, kind, errs.New(errs.Invalid, "cannot read xz stream: it asks for %d bytes of memory", w)
		}
		z, err := xz.NewReader(br)
		if err != nil {
			return nil, kind, errs.New(errs.Invalid, "cannot read xz stream: %w", err)
		}
		return io.NopCloser(z), kind, nil
	}
	return io.NopCloser(br), None, nil
}

// xzWindow is the dictionary size that the first block of an xz stream
// declares: after the 12 bytes of the stream header come the block's size,
// its flags, optional sizes, then filters; LZMA2 is filter 0x21 with one byte.
func xzWindow(head []byte) int64 {
	if len(head) < 18 || head[13]&0xc0 != 0 {
		return 0
	}
	for i := 14; i+2 < len(head); i++ {
		if head[i] == 0x21 && head[i+1] == 1 {
			bits := head[i+2] & 0x3f
			return int64(2|bits&1) << (bits/2 + 11)
		}
	}
	return 0
}

// Stream reads a tar, decompressing and hashing it in the background, so that
// who unpacks it does only that. Read until io.EOF, then ask for the digest.
type Stream struct {
	full  chan []byte // to the reader, hashed
	free  chan []byte
	stop  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
	cur   []byte // unread part of last
	last  []byte
	err   error // set before full is closed
	sum   hash.Hash
	size  int64
	ended bool
	kind  Compression
}

// NewStream starts reading r. Close must be called.
func NewStream(ctx context.Context, r io.Reader) *Stream {
	s := &Stream{full: make(chan []byte, chunkCount), free: make(chan []byte, chunkCount), stop: make(chan struct{}), sum: sha256.New()}
	for range chunkCount {
		s.free <- nil
	}
	raw := make(chan []byte, chunkCount)
	var rerr error
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		defer close(raw)
		z, kind, err := Decompress(r)
		s.kind = kind
		if err != nil {
			rerr = err
			return
		}
		defer z.Close()
		rerr = s.fill(ctx, z, raw)
	}()
	go func() {
		defer s.wg.Done()
		defer close(s.full)
		for b := range raw {
			s.sum.Write(b)
			s.size += int64(len(b))
			select {
			case s.full <- b:
			case <-s.stop:
			}
		}
		s.err = rerr
	}()
	return s
}

func (s *Stream) fill(ctx context.Context, z io.Reader, raw chan<- []byte) error {
	for {
		var b []byte
		select {
		case b = <-s.free:
		case <-s.stop:
			return context.Canceled
		case <-ctx.Done():
			return ctx.Err()
		}
		if b == nil {
			b = make([]byte, chunkSize)
		}
		n, err := io.ReadFull(z, b[:chunkSize])
		if n > 0 {
			raw <- b[:n]
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && s.cleanEnd(z) {
			return nil
		}
		if err != nil {
			return errs.New(errs.Invalid, "cannot read archive: %w", err)
		}
	}
}

// cleanEnd tells the end of a stream, after a short io.ReadFull, from one that
// is cut off: a decompressor gives its own unexpected EOF again.
func (s *Stream) cleanEnd(z io.Reader) bool {
	var one [1]byte
	n, err := z.Read(one[:])
	return n == 0 && errors.Is(err, io.EOF)
}

// Read reads the uncompressed tar.
func (s *Stream) Read(p []byte) (int, error) {
	for len(s.cur) == 0 {
		if s.ended {
			if s.err != nil {
				return 0, s.err
			}
			return 0, io.EOF
		}
		if s.last != nil {
			s.free <- s.last[:0:cap(s.last)]
			s.last = nil
		}
		b, ok := <-s.full
		if !ok {
			s.ended = true
			continue
		}
		s.cur, s.last = b, b
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	return n, nil
}

// Digest is the digest of the uncompressed bytes; valid after Read gave io.EOF.
func (s *Stream) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.sum) }

// Size is the number of uncompressed bytes; valid after Read gave io.EOF.
func (s *Stream) Size() int64 { return s.size }

// Compression is how the stream was compressed; valid after the first Read.
func (s *Stream) Compression() Compression { return s.kind }

// Close ends the background work. It waits for a read of the source that is
// under way only when the stream has come to its end.
func (s *Stream) Close() error {
	s.once.Do(func() { close(s.stop) })
	if s.ended {
		s.wg.Wait()
	}
	return nil
}
