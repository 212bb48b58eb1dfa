// Package stdmux is the framing that puts a container's stdout and stderr on
// one connection, as the Engine API defines it ("Stream format" of the attach
// call).
//
// A frame is an eight-byte header and its payload:
//
//	byte 0     stream: 0 stdin, 1 stdout, 2 stderr, 3 the engine's own error
//	byte 1–3   zero
//	byte 4–7   length of the payload, big endian
//
// A writer builds a whole frame in one buffer, so that one frame is one write
// and two writers that share a lock never tear each other's frames.
package stdmux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The streams of a frame.
const (
	Stdin  byte = 0
	Stdout byte = 1
	Stderr byte = 2
	System byte = 3 // an error of the engine; the payload is its text
)

// HeaderLen is the length of a frame's header in bytes.
const HeaderLen = 8

// MaxFrame is the longest payload that a Writer puts into one frame.
const MaxFrame = 1 << 20

// AppendHeader appends the header of a frame with n bytes of payload.
func AppendHeader(dst []byte, stream byte, n int) []byte {
	dst = append(dst, stream, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(n))
}

// Writer returns a writer whose every Write becomes one frame of stream on w,
// given to w in one call (a Write longer than MaxFrame becomes several).
// It is not safe for concurrent use; w's lock is its caller's affair.
func Writer(w io.Writer, stream byte) io.Writer { return &writer{w: w, stream: stream} }

type writer struct {
	w      io.Writer
	stream byte
	buf    []byte
}

// keepBuf is the largest frame buffer that a writer keeps between writes.
const keepBuf = 64 << 10

func (w *writer) Write(p []byte) (int, error) {
	done := 0
	for {
		part := p[done:]
		if len(part) > MaxFrame {
			part = part[:MaxFrame]
		}
		w.buf = append(AppendHeader(w.buf[:0], w.stream, len(part)), part...)
		n, err := w.w.Write(w.buf)
		if cap(w.buf) > keepBuf {
			w.buf = nil
		}
		if n = n - HeaderLen; n > 0 {
			done += min(n, len(part))
		}
		if err != nil {
			return done, err
		}
		if n < len(part) {
			return done, io.ErrShortWrite
		}
		if done == len(p) {
			return done, nil
		}
	}
}

// SystemError is the text of a System frame.
type SystemError struct{ Msg string }

// Error returns the text as the CLI prints it.
func (e SystemError) Error() string { return "error from daemon in stream: " + e.Msg }

// maxSystem bounds the text of a System frame; what exceeds it is dropped.
const maxSystem = 64 << 10

// Copy takes the frames of src apart until its end. The payload of stdin and
// stdout frames goes to stdout, that of stderr frames to stderr; a System
// frame ends the copy with a SystemError. Memory is bounded whatever length
// a header announces. A src that ends inside a frame is io.ErrUnexpectedEOF.
func Copy(stdout, stderr io.Writer, src io.Reader) error {
	buf := make([]byte, 32<<10)
	var hdr [HeaderLen]byte
	for {
		if _, err := io.ReadFull(src, hdr[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n := int64(binary.BigEndian.Uint32(hdr[4:]))
		var out io.Writer
		switch hdr[0] {
		case Stdin, Stdout:
			out = stdout
		case Stderr:
			out = stderr
		case System:
			msg, err := io.ReadAll(io.LimitReader(src, min(n, maxSystem)))
			if err != nil {
				return err
			}
			return SystemError{string(msg)}
		default:
			return fmt.Errorf("unrecognized stream: %d", hdr[0])
		}
		if err := copyN(out, src, n, buf); err != nil {
			return err
		}
	}
}

func copyN(dst io.Writer, src io.Reader, n int64, buf []byte) error {
	for n > 0 {
		m, err := src.Read(buf[:min(n, int64(len(buf)))])
		if m > 0 {
			w, werr := dst.Write(buf[:m])
			if werr != nil {
				return werr
			}
			if w != m {
				return io.ErrShortWrite
			}
			n -= int64(m)
		}
		if err != nil && n > 0 {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
