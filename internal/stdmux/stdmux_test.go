package stdmux

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestRoundTrip(t *testing.T) {
	var conn bytes.Buffer
	out, errw := Writer(&conn, Stdout), Writer(&conn, Stderr)
	var wantOut, wantErr strings.Builder
	for i := range 50 {
		s := strings.Repeat("x", i*331)
		if n, err := io.WriteString(out, s); n != len(s) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		wantOut.WriteString(s)
		_, _ = io.WriteString(errw, "e")
		wantErr.WriteString("e")
	}
	var o, e bytes.Buffer
	if err := Copy(&o, &e, iotest.HalfReader(&conn)); err != nil {
		t.Fatal(err)
	}
	if o.String() != wantOut.String() || e.String() != wantErr.String() {
		t.Fatal("payload differs")
	}
}

func TestOneWritePerFrame(t *testing.T) {
	c := &counter{}
	w := Writer(c, Stdout)
	_, _ = w.Write(make([]byte, 100))
	if c.calls != 1 || c.bytes != 108 {
		t.Fatalf("got %+v", c)
	}
	n, err := w.Write(make([]byte, MaxFrame+5))
	if n != MaxFrame+5 || err != nil || c.calls != 3 {
		t.Fatalf("Write = %d, %v; %+v", n, err, c)
	}
}

type counter struct{ calls, bytes int }

func (c *counter) Write(p []byte) (int, error) { c.calls++; c.bytes += len(p); return len(p), nil }

func TestCopyErrors(t *testing.T) {
	sys := AppendHeader(nil, System, 4)
	sys = append(sys, "oops"...)
	var se SystemError
	if err := Copy(io.Discard, io.Discard, bytes.NewReader(sys)); !errors.As(err, &se) || se.Msg != "oops" {
		t.Errorf("system frame: %v", err)
	}
	if err := Copy(io.Discard, io.Discard, bytes.NewReader(AppendHeader(nil, Stdout, 9))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut payload: %v", err)
	}
	if err := Copy(io.Discard, io.Discard, strings.NewReader("abc")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut header: %v", err)
	}
	if err := Copy(io.Discard, io.Discard, bytes.NewReader(AppendHeader(nil, 9, 0))); err == nil {
		t.Error("unknown stream accepted")
	}
}

func FuzzCopy(f *testing.F) {
	f.Add(append(AppendHeader(nil, Stdout, 2), 'a', 'b'))
	f.Fuzz(func(t *testing.T, b []byte) { _ = Copy(io.Discard, io.Discard, bytes.NewReader(b)) })
}

func BenchmarkWriter(b *testing.B) {
	w := Writer(io.Discard, Stdout)
	p := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		_, _ = w.Write(p)
	}
}
