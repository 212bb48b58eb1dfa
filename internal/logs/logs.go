// Package logs writes container output to log files and reads it back.
//
// # Words
//
// A writer (Sink) is given whatever chunks the container printed. It finds
// the lines, keeps an unfinished one per stream, and appends entries to the
// log file. A line longer than 16 KiB becomes several entries, all but the
// last without the newline. A Reader yields the entries again: all or the
// last n, between two times, and then those still to come.
//
// # On disk (driver json-file)
//
// One JSON object a line, byte for byte as Docker writes it:
//
//	{"log":"hello\n","stream":"stdout","time":"2026-01-02T15:04:05.123456789Z"}
//	{"log":"hello\n","stream":"stderr","attrs":{"k":"v"},"time":"…"}
//
// When the file has reached max-size it is renamed to path.1, path.1 to
// path.2 and so on; path and its rotated ones are never more than max-file.
// With compress, path.N becomes path.N.gz in the background; the gzip header's
// Extra field holds {"lastTime":…,"ino":…}: the last entry's time and the inode
// that the file had before. Unless told otherwise a container's log is
// bounded at five files of 20 MiB.
//
// # On disk (driver local)
//
// Docker's frames of protobuf, see local.go; rotation is the same, compress the
// default. The drivers that send to a remote (packages below ship) keep their
// entries in such files too, from which the engine sends them.
//
// # mode=non-blocking
//
// A ring in memory (max-buffer-size, 1 MiB) stands before the file. The
// container never waits for the file; when the ring is full the oldest lines go.
// The end of a container waits for at most a second for it.
//
// # Time
//
// Reading since a time does not scan: within a file the place is found by
// bisection, see seek.go for what holds when the clock was set back.
//
// # Who holds what
//
// Writer and readers share nothing but the files, and live in different
// processes: the keeper writes, the engine reads. A reader takes no lock and
// sends nothing back, so a stalled one costs the writer nothing. It keeps its
// place across rotation by the inode of the file it reads: files are only
// ever appended to, so once the path names another inode the old one is
// complete, and the one after it in the chain is next.
//
// A crash may leave the last line torn. A reader passes over a line that it
// cannot decode, and a writer that opens a file which does not end in a
// newline puts one first.
//
// This package imports the standard library and x/sys only.
package logs

import (
	"time"

	"berth.dev/berth/internal/errs"
)

// The streams, numbered as in the attach protocol.
const (
	Stdout byte = 1
	Stderr byte = 2
)

// MaxLine is the longest line in bytes that becomes one entry.
const MaxLine = 16 << 10

// Driver names.
const (
	DriverJSONFile = "json-file"
	DriverLocal    = "local"
	DriverNone     = "none"
)

// Sink is a log driver's writing side. Its methods may be called from several
// goroutines.
type Sink interface {
	// Write takes any chunk of a stream's output, stamped with ts.
	Write(stream byte, ts time.Time, chunk []byte) error
	// Flush writes what is kept of unfinished lines, as entries without newline.
	Flush() error
	// State returns what Resume needs. The sink must not be written to after.
	State() State
	// Close flushes and releases the sink.
	Close() error
}

// Message is one entry. Line holds the newline unless the entry is the first
// part of a longer line. Line and Attrs are valid until the next call of Next.
type Message struct {
	Stream byte
	Time   time.Time
	Line   []byte
	Attrs  map[string]string

	Partial Partial // driver local only: json-file does not keep it
}

// Partial tells which part of a line longer than MaxLine an entry is.
type Partial struct {
	ID      string // the line's, 64 hexadecimal digits
	Ordinal int    // from 1; 0 for an entry that is a whole line
	Last    bool
}

// ErrNotReadable is what reading the logs of a driver without a reading side
// gives, such as "none".
var ErrNotReadable = errs.New(errs.NotImplemented, "configured logging driver does not support reading")

type discard struct{}

func (discard) Write(byte, time.Time, []byte) error { return nil }
func (discard) Flush() error                        { return nil }
func (discard) State() State                        { return State{Driver: DriverNone} }
func (discard) Close() error                        { return nil }

// Discard is the sink of the driver "none".
func Discard() Sink { return discard{} }

// Open opens the sink of driver for a log file at path.
func Open(driver, path string, opts Options) (Sink, error) {
	if driver == DriverNone {
		return Discard(), nil
	}
	w, err := openWriter(driver, path, opts)
	if err != nil {
		return nil, err
	}
	if opts.NonBlocking {
		return newRing(w, opts.Buffer), nil
	}
	return w, nil
}

// Resume opens a sink that goes on where the one that gave st stopped.
func Resume(st State) (Sink, error) {
	sink, err := Open(st.Driver, st.Path, st.Options)
	if err != nil {
		return nil, err
	}
	switch s := sink.(type) {
	case *Writer:
		s.resume(st.Partial)
	case *ring:
		s.w.resume(st.Partial)
	}
	return sink, nil
}

func unknownDriver(name string) error {
	return errs.New(errs.Invalid, "logger: no log driver named '%s' is registered", name)
}
