// Package logstest is the conformance suite of log drivers: what each keeps of
// a container's output, whether it goes to a file or over a network.
//
//	logstest.Run(t, logstest.Driver{New: func(t *testing.T, attrs map[string]string) logstest.Log { … }})
package logstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
)

// Line is one entry as it arrived, without its newline.
type Line struct {
	Stream byte // 0 where the driver does not tell
	Text   string
	Time   time.Time
	Part   logs.Partial
	Attrs  map[string]string
}

// Log is one container's log.
type Log interface {
	// Open opens the writing side, as the keeper does at a start.
	Open(t *testing.T) logs.Sink
	// Lines waits for n entries and returns all.
	Lines(t *testing.T, n int) []Line
	// Path is the file that is written to first.
	Path() string
}

// Driver is what the suite is run over.
type Driver struct {
	New       func(t *testing.T, attrs map[string]string) Log
	Options   logs.Options  // of the file
	Text      bool          // what is no UTF-8 is replaced
	Parts     bool          // the parts of long lines are told
	NoAttrs   bool          // labels and variables are not told
	Precision time.Duration // of times; 0 keeps nanoseconds
	NoTimes   bool
}

var t0 = time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)

// Run runs the suite.
func Run(t *testing.T, d Driver) {
	t.Run("order", d.order)
	t.Run("long lines", d.long)
	t.Run("bytes", d.bytes)
	t.Run("end without newline", d.end)
	t.Run("restart", d.restart)
	t.Run("handed over", d.resume)
	t.Run("killed writer", d.killed)
}

func write(t *testing.T, s logs.Sink, stream byte, ts time.Time, text string) {
	t.Helper()
	if err := s.Write(stream, ts, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func done(t *testing.T, s logs.Sink) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func texts(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%q ", l.Text)
	}
	return b.String()
}

func (d Driver) order(t *testing.T) {
	attrs := map[string]string{"color": "blue & <red>", "shape": "ring"}
	l := d.New(t, attrs)
	s := l.Open(t)
	const n = 60
	for i := range n {
		text := fmt.Sprintf("line %d\n", i)
		stream := byte(1 + i%2)
		at := t0.Add(time.Duration(i) * time.Second)
		write(t, s, stream, at, text[:i%7])
		write(t, s, stream, at, text[i%7:])
	}
	done(t, s)
	lines := l.Lines(t, n)
	if len(lines) != n {
		t.Fatalf("%d lines: %s", len(lines), texts(lines))
	}
	for i, g := range lines {
		if g.Text != fmt.Sprintf("line %d", i) || g.Stream != 0 && g.Stream != byte(1+i%2) || g.Part.Ordinal != 0 {
			t.Fatalf("line %d: %+v", i, g)
		}
		want := t0.Add(time.Duration(i) * time.Second)
		if diff := want.Sub(g.Time); !d.NoTimes && (diff < 0 || diff > d.Precision) {
			t.Errorf("line %d: time %v, want %v", i, g.Time, want)
		}
		if !d.NoAttrs && (g.Attrs["color"] != attrs["color"] || g.Attrs["shape"] != "ring") {
			t.Fatalf("line %d: attributes %v", i, g.Attrs)
		}
	}
}

func (d Driver) long(t *testing.T) {
	l := d.New(t, nil)
	s := l.Open(t)
	long := strings.Repeat("0123456789abcdef", 2*logs.MaxLine/16) + "tail"
	write(t, s, logs.Stdout, t0, long[:20000])
	write(t, s, logs.Stderr, t0.Add(time.Second), "between\n")
	write(t, s, logs.Stdout, t0.Add(time.Hour), long[20000:]+"\nshort\n")
	done(t, s)
	lines := l.Lines(t, 5)
	if len(lines) != 5 || lines[1].Text != "between" || lines[4].Text != "short" {
		t.Fatalf("%d lines: %.200s", len(lines), texts(lines))
	}
	if lines[0].Text+lines[2].Text+lines[3].Text != long {
		t.Fatal("the parts are not the line")
	}
	if !d.Parts {
		return
	}
	for i, at := range []int{0, 2, 3} {
		p := lines[at].Part
		if p.Ordinal != i+1 || p.Last != (i == 2) || p.ID == "" || p.ID != lines[0].Part.ID {
			t.Errorf("part %d: %+v", i, p)
		}
	}
	if lines[4].Part.Ordinal != 0 {
		t.Errorf("after it: %+v", lines[4].Part)
	}
}

func (d Driver) bytes(t *testing.T) {
	l := d.New(t, nil)
	s := l.Open(t)
	in := []string{"", "\x00\x01\x1b[1m\x7f", "tab\tquote\"back\\slash", "é \U0001f600 \u2028", "\xff\xfe\x80", "\x00\x00\x00\x08stdout\x06", "<&>%s{}", "\r"}
	for _, text := range in {
		write(t, s, logs.Stdout, t0, text+"\n")
	}
	done(t, s)
	lines := l.Lines(t, len(in))
	if len(lines) != len(in) {
		t.Fatalf("%d lines: %s", len(lines), texts(lines))
	}
	for i, want := range in {
		if d.Text {
			want = strings.ToValidUTF8(strings.Join(strings.Split(want, ""), ""), "\ufffd")
			if strings.Contains(want, "\ufffd") { // as many as there were bytes, or one
				want = strings.ReplaceAll(want, "\ufffd", "")
				lines[i].Text = strings.ReplaceAll(lines[i].Text, "\ufffd", "")
			}
		}
		if lines[i].Text != want {
			t.Errorf("%q arrived as %q", in[i], lines[i].Text)
		}
	}
}

func (d Driver) end(t *testing.T) {
	l := d.New(t, nil)
	s := l.Open(t)
	write(t, s, logs.Stdout, t0, "one\nrest")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, s, logs.Stdout, t0, "new\nend")
	write(t, s, logs.Stderr, t0, "err")
	done(t, s)
	done(t, s) // again does no harm
	lines := l.Lines(t, 5)
	if got := texts(lines); got != `"one" "rest" "new" "end" "err" ` {
		t.Fatal(got)
	}
}

func (d Driver) restart(t *testing.T) {
	l := d.New(t, nil)
	for i := range 3 {
		s := l.Open(t)
		write(t, s, logs.Stdout, t0, fmt.Sprintf("run %d\n", i))
		done(t, s)
		if lines := l.Lines(t, i+1); len(lines) != i+1 || lines[i].Text != fmt.Sprintf("run %d", i) {
			t.Fatalf("run %d: %s", i, texts(lines))
		}
	}
}

func (d Driver) resume(t *testing.T) {
	l := d.New(t, nil)
	s := l.Open(t)
	long := strings.Repeat("x", logs.MaxLine)
	write(t, s, logs.Stdout, t0, long+"be")
	write(t, s, logs.Stderr, t0, "err")
	s2, err := logs.Resume(s.State())
	if err != nil {
		t.Fatal(err)
	}
	write(t, s2, logs.Stdout, t0, "gun\n")
	write(t, s2, logs.Stderr, t0, "or\n")
	done(t, s2)
	lines := l.Lines(t, 3)
	if len(lines) != 3 || lines[0].Text != long || lines[1].Text != "begun" || lines[2].Text != "error" {
		t.Fatalf("%.100s", texts(lines))
	}
	if d.Parts && (lines[1].Part.Ordinal != 2 || lines[1].Part.ID != lines[0].Part.ID) {
		t.Errorf("parts %+v, %+v", lines[0].Part, lines[1].Part)
	}
}

func (d Driver) killed(t *testing.T) {
	l := d.New(t, nil)
	s := l.Open(t)
	write(t, s, logs.Stdout, t0, "whole\n")
	write(t, s, logs.Stdout, t0, "torn line\n")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.Path(), st.Size()-6); err != nil { // a write that was cut
		t.Fatal(err)
	}
	s = l.Open(t)
	write(t, s, logs.Stdout, t0, "next\n")
	done(t, s)
	if got := texts(l.Lines(t, 2)); got != `"whole" "next" ` {
		t.Fatal(got)
	}
}

// FileLog is the log of a driver that keeps files.
func FileLog(driver string, opts logs.Options) func(t *testing.T, attrs map[string]string) Log {
	return func(t *testing.T, attrs map[string]string) Log {
		opts.Attrs = attrs
		return &fileLog{driver: driver, path: filepath.Join(t.TempDir(), "x.log"), opts: opts}
	}
}

type fileLog struct {
	driver, path string
	opts         logs.Options
}

func (l *fileLog) Path() string { return l.path }

func (l *fileLog) Open(t *testing.T) logs.Sink {
	t.Helper()
	s, err := logs.Open(l.driver, l.path, l.opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (l *fileLog) Lines(t *testing.T, _ int) []Line {
	t.Helper()
	r := logs.Read(t.Context(), l.path, logs.ReadOptions{Driver: l.driver, Tail: -1, Attrs: true})
	defer r.Close()
	var out []Line
	for {
		m, err := r.Next()
		if err != nil {
			return out
		}
		out = append(out, Line{Stream: m.Stream, Text: strings.TrimSuffix(string(m.Line), "\n"), Time: m.Time, Part: m.Partial, Attrs: m.Attrs})
	}
}

// Inbox is what a remote has received.
type Inbox struct {
	mu    sync.Mutex
	lines []Line
}

// Add takes one entry.
func (b *Inbox) Add(l Line) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, l)
}

// Wait waits for n entries, and returns all.
func (b *Inbox) Wait(t *testing.T, n int) []Line {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		lines := append([]Line(nil), b.lines...)
		b.mu.Unlock()
		if len(lines) >= n || time.Now().After(end) {
			return lines
		}
	}
}

// Info is a container for tests, with labels that the options tell.
func Info(config, labels map[string]string) *ship.Info {
	opts := map[string]string{"labels": "color,shape"}
	for k, v := range config {
		opts[k] = v
	}
	return &ship.Info{
		Config: opts, ContainerID: strings.Repeat("0123456789abcdef", 4), ContainerName: "/web", ContainerEntrypoint: "sh",
		ContainerArgs: []string{"-c", "true"}, ContainerImageID: "sha256:" + strings.Repeat("f", 64), ContainerImageName: "busybox",
		ContainerCreated: t0, ContainerEnv: []string{"A=1", "B=2"}, ContainerLabels: labels, DaemonName: "docker",
	}
}

// RemoteLog is the log of a driver that sends to a remote: a spool, and
// shipments to what open connects to.
type RemoteLog struct {
	Inbox *Inbox
	Conn  func() (ship.Remote, error)

	dir   string
	ships ship.Shipments
}

// NewRemoteLog returns a log whose entries come out at inbox.
func NewRemoteLog(t *testing.T, inbox *Inbox, conn func() (ship.Remote, error)) *RemoteLog {
	l := &RemoteLog{Inbox: inbox, Conn: conn, dir: t.TempDir()}
	t.Cleanup(l.ships.Close)
	return l
}

// Path is the spool.
func (l *RemoteLog) Path() string { return filepath.Join(l.dir, "spool.log") }

// Open opens the spool.
func (l *RemoteLog) Open(t *testing.T) logs.Sink {
	t.Helper()
	s, err := logs.Open(logs.DriverLocal, l.Path(), logs.Options{Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Lines sends what is in the spool and not sent yet.
func (l *RemoteLog) Lines(t *testing.T, n int) []Line {
	t.Helper()
	ended := make(chan struct{})
	close(ended)
	l.ships.Start(ship.Order{ID: "x", Spool: l.Path(), Cursor: filepath.Join(l.dir, "cursor"), Open: l.Conn, Stopped: ended})
	l.ships.Finish("x", 5*time.Second)
	return l.Inbox.Wait(t, n)
}
