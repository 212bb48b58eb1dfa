package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openFor returns a writer of driver.
func openFor(t testing.TB, driver string, o Options) (*Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.log")
	w, err := openWriter(driver, path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, path
}

// fill writes n lines, one each step.
func fill(t testing.TB, w *Writer, n int, start time.Time, step time.Duration) {
	t.Helper()
	text := strings.Repeat("abcdefghij", 8)
	for i := range n {
		if err := w.Write(Stdout, start.Add(time.Duration(i)*step), fmt.Appendf(nil, "%d %s\n", i, text)); err != nil {
			t.Fatal(err)
		}
	}
}

// query reads with o and returns the first and last line's numbers, the count
// and the bytes that were read.
func query(t testing.TB, path string, o ReadOptions) (first, last, count int, read int64) {
	t.Helper()
	r := Read(context.Background(), path, o)
	defer r.Close()
	first = -1
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			return first, last, count, r.nread
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(m.Line), &last); err != nil {
			t.Fatalf("%q: %v", m.Line, err)
		}
		if first < 0 {
			first = last
		}
		count++
	}
}

var both = []string{DriverJSONFile, DriverLocal}

func TestSeekReadsLittle(t *testing.T) {
	const n = 60_000 // about 9 MB
	for _, driver := range both {
		t.Run(driver, func(t *testing.T) {
			w, path := openFor(t, driver, Options{MaxSize: -1})
			fill(t, w, n, t0, time.Second)
			for _, tc := range []struct {
				name        string
				o           ReadOptions
				first, last int
				most        int64
			}{
				{"since the middle until a little later", ReadOptions{Tail: -1, Since: t0.Add(n / 2 * time.Second), Until: t0.Add((n/2 + 9) * time.Second)}, n / 2, n/2 + 9, 2 << 20},
				{"since nearly the end", ReadOptions{Tail: -1, Since: t0.Add((n - 10) * time.Second)}, n - 10, n - 1, 2 << 20},
				{"since after the end", ReadOptions{Tail: -1, Since: t0.Add(2 * n * time.Second)}, -1, 0, 2 << 20},
				{"until the start", ReadOptions{Tail: -1, Until: t0.Add(2 * time.Second)}, 0, 2, 1 << 20},
				{"tail", ReadOptions{Tail: 10}, n - 10, n - 1, 256 << 10},
				{"tail since", ReadOptions{Tail: 1000, Since: t0.Add((n - 5) * time.Second)}, n - 5, n - 1, 2 << 20},
				{"tail before since's place", ReadOptions{Tail: 5, Since: t0.Add((n - 1000) * time.Second)}, n - 5, n - 1, 2 << 20},
			} {
				tc.o.Driver = driver
				first, last, count, read := query(t, path, tc.o)
				if first != tc.first || last != tc.last || tc.first >= 0 && count != last-first+1 {
					t.Errorf("%s: %d to %d, %d entries; want %d to %d", tc.name, first, last, count, tc.first, tc.last)
				}
				if read > tc.most {
					t.Errorf("%s: %d bytes were read", tc.name, read)
				}
			}
		})
	}
}

// Every time as a limit gives exactly what a scan gives, in rotated and
// compressed logs too.
func TestSeekEqualsScan(t *testing.T) {
	for _, driver := range both {
		for _, o := range []Options{{MaxSize: -1}, {MaxSize: 20 << 10, MaxFile: 100}, {MaxSize: 20 << 10, MaxFile: 100, Compress: true}} {
			w, path := openFor(t, driver, o)
			fill(t, w, 2000, t0, time.Second)
			w.squeeze.Wait()
			for i := -1; i <= 2001; i += 77 {
				since := t0.Add(time.Duration(i) * time.Second)
				first, last, count, _ := query(t, path, ReadOptions{Driver: driver, Tail: -1, Since: since, Until: since.Add(20 * time.Second)})
				wantFirst, wantLast := max(0, i), min(1999, i+20)
				if i > 1999 {
					wantFirst, wantLast = -1, 0
				}
				if first != wantFirst || last != wantLast || count != max(0, wantLast-wantFirst+1) && i <= 1999 {
					t.Fatalf("%s %+v since %d: %d to %d (%d)", driver, o, i, first, last, count)
				}
			}
		}
	}
}

// A clock that is set back by an hour hides nothing that was written within
// the bound of disorder.
func TestSeekClockSetBack(t *testing.T) {
	for _, driver := range both {
		w, path := openFor(t, driver, Options{MaxSize: -1})
		fill(t, w, 20_000, t0, time.Second)
		end := t0.Add(20_000 * time.Second)
		for i := range 500 { // the clock says an hour before
			_ = w.Write(Stdout, end.Add(-time.Hour+time.Duration(i)*time.Second), fmt.Appendf(nil, "%d again\n", 20_000+i))
		}
		_, last, count, _ := query(t, path, ReadOptions{Driver: driver, Tail: -1, Since: end.Add(-time.Hour)})
		if count != 3600+500 || last != 20_499 {
			t.Errorf("%s: %d entries, the last %d", driver, count, last)
		}
		_, last, count, _ = query(t, path, ReadOptions{Driver: driver, Tail: -1, Since: end.Add(-10 * time.Second)})
		if count != 10 || last != 19_999 {
			t.Errorf("%s: since ten seconds: %d entries, the last %d", driver, count, last)
		}
	}
}

func TestTailBothDrivers(t *testing.T) {
	for _, driver := range both {
		for _, compress := range []bool{false, true} {
			w, path := openFor(t, driver, Options{MaxSize: 2000, MaxFile: 30, Compress: compress})
			fill(t, w, 200, t0, time.Second)
			w.squeeze.Wait()
			for n := range 201 {
				first, last, count, _ := query(t, path, ReadOptions{Driver: driver, Tail: n})
				if n == 0 && count != 0 || n > 0 && (first != 200-n || last != 199 || count != n) {
					t.Fatalf("%s compress %v tail %d: %d to %d (%d)", driver, compress, n, first, last, count)
				}
			}
		}
	}
}

// A reader goes on after the last entry that an earlier one returned, wherever
// the file has gone meanwhile.
func TestAfter(t *testing.T) {
	for _, compress := range []bool{false, true} {
		w, path := openFor(t, DriverLocal, Options{MaxSize: 3000, MaxFile: 10, Compress: compress})
		fill(t, w, 10, t0, time.Second)
		r := Read(t.Context(), path, ReadOptions{Driver: DriverLocal, Tail: -1})
		for range 5 {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		pos := r.Position()
		_ = r.Close()
		for round := range 20 {
			first, _, count, _ := query(t, path, ReadOptions{Driver: DriverLocal, After: &pos})
			rotatedOut := first != 5
			if rotatedOut && round < 4 || count == 0 {
				t.Fatalf("round %d: %d entries from %d on", round, count, first)
			}
			if rotatedOut { // then all that is left
				_, _, all, _ := query(t, path, ReadOptions{Driver: DriverLocal, Tail: -1})
				if count != all {
					t.Fatalf("round %d: %d of %d entries", round, count, all)
				}
			}
			fill(t, w, 20, t0.Add(time.Hour*time.Duration(round+1)), time.Second)
			w.squeeze.Wait()
		}
	}
}

// Docker's local driver wrote this: an entry, a part of a line, its last part, an attribute.
func TestDockerLocalFile(t *testing.T) {
	id := strings.Repeat("ab", 32)
	frame := func(payload string) string {
		n := len(payload)
		l := string([]byte{0, 0, byte(n >> 8), byte(n)})
		return l + payload + l
	}
	file := frame("\x0a\x06stdout\x10\x80\xa8\xd6\xb9\x07\x1a\x05hello") +
		frame("\x0a\x06stderr\x10\x81\xa8\xd6\xb9\x07\x1a\x03par\x20\x01\x2a\x44\x12\x40"+id+"\x18\x01") +
		frame("\x0a\x06stderr\x10\x81\xa8\xd6\xb9\x07\x1a\x01t\x20\x01\x2a\x46\x08\x01\x12\x40"+id+"\x18\x02") +
		frame("\x0a\x06stdout\x10\x82\xa8\xd6\xb9\x07\x1a\x00\x32\x06\x0a\x01k\x12\x01v") +
		frame("\x0a\x06stdout\x10\x83\xa8\xd6\xb9\x07\x3a\x02zz\x48\x05") // fields to come
	path := filepath.Join(t.TempDir(), "container.log")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Read(t.Context(), path, ReadOptions{Driver: DriverLocal, Tail: -1, Attrs: true})
	defer r.Close()
	for i, want := range []string{
		"1 hello\n  0 false map[]", "2 par " + id + " 1 false map[]", "2 t\n " + id + " 2 true map[]", "1 \n  0 false map[k:v]", "1 \n  0 false map[]",
	} {
		m, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d %s %s %d %t %v", m.Stream, m.Line, m.Partial.ID, m.Partial.Ordinal, m.Partial.Last, m.Attrs); got != want {
			t.Errorf("entry %d: %q, want %q", i, got, want)
		}
		if m.Time.Unix() != 2 && m.Time.UnixNano()-2e9 > 1e9 {
			t.Errorf("entry %d: time %v", i, m.Time)
		}
	}
	// and what is written is the same again
	var part partial
	part.id = id
	got := appendLocal(nil, Stdout, time.Unix(0, 2000000000), []byte("hel"), []byte("lo"), Partial{}, nil)
	got = appendLocal(got, Stderr, time.Unix(0, 2000000001), []byte("par"), nil, part.next(false), nil)
	got = appendLocal(got, Stderr, time.Unix(0, 2000000001), []byte("t"), nil, part.next(true), nil)
	got = appendLocal(got, Stdout, time.Unix(0, 2000000002), nil, nil, Partial{}, appendLocalAttrs(nil, map[string]string{"k": "v"}))
	if !strings.HasPrefix(file, string(got)) {
		t.Errorf("written\n%q\nwant\n%q", got, file)
	}
}

// Whatever stands in a local file, reading ends, in bounded memory, and what is
// whole after the damage is found again.
func FuzzLocal(f *testing.F) {
	good := appendLocal(nil, Stdout, t0, []byte("good"), nil, Partial{}, nil)
	f.Add(good)
	f.Add([]byte("\x7f\xff\xff\xff\x0a\x06stdout"))
	f.Add([]byte("\x00\x10\x00\x00\x0a\x06stdout\x10"))
	f.Add(good[:len(good)-3])
	f.Add([]byte("\x00\x00\x00\x0c\x0a\x06stdout\x1a\xff\xff\xff\x00\x00\x00\x0c"))
	f.Fuzz(func(t *testing.T, b []byte) { // a damaged end may take the next entry with it
		path := filepath.Join(t.TempDir(), "x.log")
		if err := os.WriteFile(path, append(append(bytes.Clone(b), good...), good...), 0o600); err != nil {
			t.Fatal(err)
		}
		r := Read(t.Context(), path, ReadOptions{Driver: DriverLocal, Tail: -1, Attrs: true})
		defer r.Close()
		last := ""
		for {
			m, err := r.Next()
			if err != nil {
				break
			}
			last = string(m.Line)
		}
		if last != "good\n" {
			t.Errorf("%q: the entry after it is not read, but %q", b, last)
		}
		if cap(r.buf) > 4<<20 {
			t.Errorf("%d bytes of memory", cap(r.buf))
		}
		query := Read(t.Context(), path, ReadOptions{Driver: DriverLocal, Tail: 3, Since: t0})
		defer query.Close()
		for {
			if _, err := query.Next(); err != nil {
				break
			}
		}
	})
}

// BenchmarkSince asks for the end of a large log.
func BenchmarkSince(b *testing.B) {
	for _, driver := range both {
		b.Run(driver, func(b *testing.B) {
			w, path := openFor(b, driver, Options{MaxSize: -1})
			const n = 200_000
			for i := range 5 {
				fill(b, w, n, t0.Add(time.Duration(i*n)*time.Second), time.Second)
			}
			fi, _ := os.Stat(path)
			b.ReportMetric(float64(fi.Size())/1e6, "MB")
			for b.Loop() {
				query(b, path, ReadOptions{Driver: driver, Tail: -1, Since: t0.Add((5*n - 10) * time.Second)})
			}
		})
	}
}

func BenchmarkLocalWrite(b *testing.B) {
	w, _ := openFor(b, DriverLocal, Options{})
	chunk := benchChunk()
	b.SetBytes(int64(len(chunk)))
	ts := time.Now()
	for b.Loop() {
		if err := w.Write(Stdout, ts, chunk); err != nil {
			b.Fatal(err)
		}
	}
}
