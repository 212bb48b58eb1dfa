package archive

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

var errGzip = errors.New("invalid gzip stream")

// gunzip reads gzip (RFC 1952), any number of members one after the other, and checks
// their sums.
type gunzip struct {
	f    *inflater
	cur  []byte
	sum  uint32
	size uint32
	err  error
}

func newGunzip(r io.Reader) (*gunzip, error) {
	g := &gunzip{f: newInflater(r)}
	if err := g.header(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return g, nil
}

// Read implements io.Reader.
func (g *gunzip) Read(p []byte) (int, error) {
	for len(g.cur) == 0 {
		if g.err != nil {
			return 0, g.err
		}
		g.err = g.more()
	}
	n := copy(p, g.cur)
	g.cur = g.cur[n:]
	return n, nil
}

// more gets the next piece, past the end of a member if need be.
func (g *gunzip) more() error {
	b, err := g.f.next()
	if err == nil {
		g.sum = crc32.Update(g.sum, crc32.IEEETable, b)
		g.size += uint32(len(b))
		g.cur = b
		return nil
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	var tail [8]byte
	g.f.align()
	if err := g.f.bytes(tail[:]); err != nil {
		return io.ErrUnexpectedEOF
	}
	if binary.LittleEndian.Uint32(tail[:]) != g.sum || binary.LittleEndian.Uint32(tail[4:]) != g.size {
		return errors.New("invalid gzip checksum")
	}
	return g.header()
}

// header reads a member's header; io.EOF when there is no further member.
func (g *gunzip) header() error {
	const (
		hasCRC     = 1 << 1
		hasExtra   = 1 << 2
		hasName    = 1 << 3
		hasComment = 1 << 4
	)
	var h [10]byte
	if err := g.f.bytes(h[:1]); err != nil {
		return err // a clean end when that is io.EOF
	}
	if err := g.f.bytes(h[1:]); err != nil {
		return io.ErrUnexpectedEOF
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3]&0xe0 != 0 {
		return errGzip
	}
	if h[3]&hasExtra != 0 {
		var n [2]byte
		if err := g.f.bytes(n[:]); err != nil {
			return io.ErrUnexpectedEOF
		}
		for range binary.LittleEndian.Uint16(n[:]) {
			if err := g.f.bytes(n[:1]); err != nil {
				return io.ErrUnexpectedEOF
			}
		}
	}
	for _, flag := range [...]byte{hasName, hasComment} {
		if h[3]&flag == 0 {
			continue
		}
		for b, n := [1]byte{1}, 0; b[0] != 0; n++ {
			if err := g.f.bytes(b[:]); err != nil {
				return io.ErrUnexpectedEOF
			}
			if n > 64<<10 {
				return errGzip
			}
		}
	}
	if h[3]&hasCRC != 0 {
		if err := g.f.bytes(h[:2]); err != nil {
			return io.ErrUnexpectedEOF
		}
	}
	g.sum, g.size = 0, 0
	g.f.restart()
	return nil
}

// bytes reads input that is not compressed. No bits are at hand then.
func (f *inflater) bytes(p []byte) error {
	for i := range p {
		if err := f.fill(); err != nil {
			return err
		}
		if f.ip >= f.end {
			return io.EOF
		}
		p[i] = f.in[f.ip]
		f.ip++
	}
	return nil
}
