package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 3, 4, 5, 6, 7, 123456000, time.UTC)

func newWriter(t testing.TB, o Options) (*Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x-json.log")
	w, err := OpenWriter(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w, path
}

func put(t testing.TB, w *Writer, stream byte, ts time.Time, s string) {
	t.Helper()
	if err := w.Write(stream, ts, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, path string, o ReadOptions) []string {
	t.Helper()
	r := Read(context.Background(), path, o)
	defer r.Close()
	var out []string
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(m.Line))
	}
}

func TestExactBytes(t *testing.T) {
	w, path := newWriter(t, Options{Attrs: map[string]string{"b": "<2>", "a": "1"}})
	put(t, w, Stdout, t0, "hello\n")
	put(t, w, Stderr, t0, "a\tb\"\\<&>\x01\x7f\xff\u2028é\r\n")
	put(t, w, Stdout, t0, "no newline")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	lines := strings.SplitAfter(string(b), "\n")
	want := []string{
		`{"log":"hello\n","stream":"stdout","attrs":{"a":"1","b":"\u003c2\u003e"},"time":"2026-03-04T05:06:07.123456Z"}` + "\n",
		`{"log":"a\u0009b\"\\\u003c\u0026\u003e\u0001` + "\x7f" + `\ufffd\u2028é\r\n","stream":"stderr","attrs":{"a":"1","b":"\u003c2\u003e"},"time":"2026-03-04T05:06:07.123456Z"}` + "\n",
	}
	for i := range want {
		if lines[i] != want[i] {
			t.Errorf("line %d\n got %s\nwant %s", i, lines[i], want[i])
		}
	}
	if !strings.HasPrefix(lines[2], `{"log":"no newline","stream":"stdout"`) {
		t.Errorf("rest: %s", lines[2])
	}
}

func TestLongLines(t *testing.T) {
	for _, n := range []int{0, 1, MaxLine - 1, MaxLine, MaxLine + 1, 2*MaxLine - 1, 2 * MaxLine, 3*MaxLine + 7} {
		for _, step := range []int{1 << 20, 1, 1000, MaxLine} {
			if step == 1 && n > MaxLine+1 {
				continue
			}
			w, path := newWriter(t, Options{})
			in := strings.Repeat("é", n)[:n] + "\nnext\n"
			for i := 0; i < len(in); i += step {
				put(t, w, Stdout, t0.Add(time.Duration(i)), in[i:min(len(in), i+step)])
			}
			got := readAll(t, path, ReadOptions{Tail: -1})
			if len(got) != n/MaxLine+2 {
				t.Fatalf("n=%d step=%d: %d entries", n, step, len(got))
			}
			for _, g := range got[:n/MaxLine] {
				if strings.HasSuffix(g, "\n") {
					t.Errorf("n=%d: a part ends in a newline", n)
				}
			}
			if strings.ToValidUTF8(strings.Join(got, ""), "\ufffd") != strings.Join(got, "") || got[len(got)-1] != "next\n" {
				t.Errorf("n=%d step=%d: text differs", n, step)
			}
		}
	}
}

func TestEncodeDecodeRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := []byte("abc \"\\\t\r<>&\x00\x1f\x7f\x80\xc3\xa9\xe2\x80\xa8\xf0\x9f\x98\x80")
	for range 400 {
		s := make([]byte, rng.IntN(60))
		for i := range s {
			s[i] = alphabet[rng.IntN(len(alphabet))]
		}
		cut := rng.IntN(len(s) + 1)
		w, path := newWriter(t, Options{})
		put(t, w, Stdout, t0, string(s[:cut]))
		put(t, w, Stdout, t0, string(s[cut:])+"\n")
		b, _ := os.ReadFile(path)
		var ref struct{ Log string }
		if err := json.Unmarshal(b, &ref); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if want := strings.ReplaceAll(string(bytes.ToValidUTF8(s, []byte("?"))), "?", "?"); strings.Count(ref.Log, "\ufffd") == 0 && ref.Log != want+"\n" {
			t.Fatalf("%q became %q", s, ref.Log)
		}
		var d decoder
		if !d.decode(bytes.TrimSuffix(b, []byte("\n"))) || string(d.msg.Line) != ref.Log || !d.msg.Time.Equal(t0) {
			t.Fatalf("%s decoded as %q", b, d.msg.Line)
		}
		_ = w.Close()
	}
}

func TestRotationNames(t *testing.T) {
	w, path := newWriter(t, Options{MaxSize: 200, MaxFile: 3})
	for i := range 40 {
		put(t, w, Stdout, t0, fmt.Sprintf("line %02d\n", i))
	}
	names, _ := filepath.Glob(path + "*")
	if len(names) != 3 || names[1] != path+".1" || names[2] != path+".2" {
		t.Fatalf("files: %v", names)
	}
	got := readAll(t, path, ReadOptions{Tail: -1})
	if len(got) < 6 || got[len(got)-1] != "line 39\n" {
		t.Fatalf("read %q", got)
	}
	for n := range len(got) + 3 {
		tail := readAll(t, path, ReadOptions{Tail: n})
		if len(tail) != min(n, len(got)) || n > 0 && tail[len(tail)-1] != "line 39\n" {
			t.Fatalf("tail %d = %q", n, tail)
		}
	}
}

func TestCompressedTail(t *testing.T) {
	w, path := newWriter(t, Options{MaxSize: 500, MaxFile: 4, Compress: true})
	for i := range 100 {
		put(t, w, Stdout, t0.Add(time.Duration(i)*time.Second), fmt.Sprintf("line %02d\n", i))
		if i%7 == 0 {
			w.squeeze.Wait()
		}
	}
	w.squeeze.Wait()
	_ = w.Close()
	if names, _ := filepath.Glob(path + ".*"); len(names) != 3 || !strings.HasSuffix(names[0], ".gz") {
		t.Fatalf("files: %v", names)
	}
	all := readAll(t, path, ReadOptions{Tail: -1})
	for n := range len(all) + 1 {
		if got := readAll(t, path, ReadOptions{Tail: n}); strings.Join(got, "") != strings.Join(all[len(all)-n:], "") {
			t.Fatalf("tail %d = %q", n, got)
		}
	}
	if got := readAll(t, path, ReadOptions{Tail: -1, Since: t0.Add(95 * time.Second), Until: t0.Add(97 * time.Second)}); len(got) != 3 || got[0] != "line 95\n" {
		t.Fatalf("since/until: %q", got)
	}
}

func TestTornLines(t *testing.T) {
	w, path := newWriter(t, Options{})
	put(t, w, Stdout, t0, "one\n")
	_ = w.Close()
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	_, _ = f.WriteString(`{"log":"tor`)
	_ = f.Close()
	if got := readAll(t, path, ReadOptions{Tail: -1}); len(got) != 1 {
		t.Fatalf("with a torn end: %q", got)
	}
	if got := readAll(t, path, ReadOptions{Tail: 1}); len(got) != 1 || got[0] != "one\n" {
		t.Fatalf("tail with a torn end: %q", got)
	}
	w, err := OpenWriter(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, w, Stdout, t0, "two\n")
	_ = w.Close()
	if got := readAll(t, path, ReadOptions{Tail: -1}); strings.Join(got, "") != "one\ntwo\n" {
		t.Fatalf("after a torn line: %q", got)
	}
}

func TestResume(t *testing.T) {
	w, path := newWriter(t, Options{})
	put(t, w, Stdout, t0, strings.Repeat("x", MaxLine)+"be")
	put(t, w, Stderr, t0, "err")
	b, err := json.Marshal(w.State())
	if err != nil {
		t.Fatal(err)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		t.Fatal(err)
	}
	w2, err := Resume(st)
	if err != nil {
		t.Fatal(err)
	}
	defer w2.Close()
	put(t, w2.(*Writer), Stdout, t0.Add(time.Hour), "gun\n")
	put(t, w2.(*Writer), Stderr, t0, "or\n")
	got := readAll(t, path, ReadOptions{Tail: 2})
	if strings.Join(got, "") != "begun\nerror\n" {
		t.Fatalf("got %q", got)
	}
	if all, _ := os.ReadFile(path); bytes.Count(all, []byte(t0.Format(time.RFC3339Nano))) != 3 {
		t.Error("the parts of one line bear different times")
	}
}

// TestFollow writes with fast rotation while one reader keeps up and another
// stalls now and then, and checks that the first loses and doubles nothing.
func TestFollow(t *testing.T) {
	for i, o := range []Options{
		{MaxSize: 4000, MaxFile: 50},
		{MaxSize: 4000, MaxFile: 50, Compress: true},
		{MaxSize: 1 << 20, MaxFile: 1},
		{MaxSize: -1},
		{MaxSize: 4000, MaxFile: 50},
		{MaxSize: 4000, MaxFile: 50, Compress: true},
		{MaxSize: 1 << 20, MaxFile: 1},
		{MaxSize: -1},
	} {
		driver := both[i/4]
		t.Run(fmt.Sprintf("%s %+v", driver, o), func(t *testing.T) {
			t.Parallel()
			w, path := openFor(t, driver, o)
			const n = 3000
			stopped := make(chan struct{})
			go func() {
				for i := range n {
					_ = w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
					if i%50 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				close(stopped)
			}()
			r := Read(t.Context(), path, ReadOptions{Driver: driver, Tail: -1, Follow: true, Stopped: stopped})
			defer r.Close()
			for i := range n {
				m, err := r.Next()
				if err != nil {
					t.Fatalf("after %d: %v", i, err)
				}
				if string(m.Line) != fmt.Sprintf("%d\n", i) {
					t.Fatalf("entry %d is %q", i, m.Line)
				}
				if i%500 == 499 {
					time.Sleep(3 * time.Millisecond)
				}
			}
			if m, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Fatalf("at the end: %v, %v", m, err)
			}
		})
	}
}

func TestFollowCancelAndMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later.log")
	ctx, cancel := context.WithCancel(t.Context())
	r := Read(ctx, path, ReadOptions{Tail: 0, Follow: true})
	defer r.Close()
	go func() {
		time.Sleep(20 * time.Millisecond)
		w, err := OpenWriter(path, Options{})
		if err == nil {
			_ = w.Write(Stdout, t0, []byte("first\n"))
			_ = w.Close()
		}
	}()
	m, err := r.Next()
	if err != nil || string(m.Line) != "first\n" {
		t.Fatalf("Next = %v, %v", m, err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := r.Next(); !errors.Is(err, context.Canceled) {
		t.Fatalf("after cancel: %v", err)
	}
	if got := readAll(t, filepath.Join(t.TempDir(), "none"), ReadOptions{Tail: -1}); got != nil {
		t.Fatalf("missing file: %q", got)
	}
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		in   map[string]string
		want Options
		err  string
	}{
		{nil, Options{}, ""},
		{map[string]string{"max-size": "10m", "max-file": "3", "compress": "true"}, Options{MaxSize: 10_000_000, MaxFile: 3, Compress: true}, ""},
		{map[string]string{"max-size": "1.5k"}, Options{MaxSize: 1500}, ""},
		{map[string]string{"max-size": "-1"}, Options{MaxSize: -1}, ""},
		{map[string]string{"max-file": "0"}, Options{}, "max-file cannot be less than 1"},
		{map[string]string{"compress": "true", "max-file": "1"}, Options{}, "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{map[string]string{"foo": "1"}, Options{}, "unknown log opt 'foo' for json-file log driver"},
	} {
		got, err := ParseOptions(DriverJSONFile, tc.in)
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%v: %v", tc.in, err)
			}
			continue
		}
		if err != nil || got.MaxSize != tc.want.MaxSize || got.MaxFile != tc.want.MaxFile || got.Compress != tc.want.Compress {
			t.Errorf("%v = %+v, %v", tc.in, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stderr","attrs":{"a":"b"},"time":"2026-03-04T05:06:07.1Z"}`))
	f.Add([]byte(`{"log":"\ud83d\ude00\"\\\/","x":[1,{"y":null}],"time":"2026-03-04T05:06:07+02:00"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{wantAttrs: true}
		if !d.decode(b) {
			return
		}
		// encoding/json folds the case of names and lets the last of two win
		if bytes.Count(b, []byte(`"log"`)) != 1 || bytes.Count(bytes.ToLower(b), []byte(`log"`)) != 1 || bytes.Contains(b, []byte(`\u`)) {
			return
		}
		var ref struct {
			Log string `json:"log"`
		}
		if json.Unmarshal(b, &ref) == nil && ref.Log != strings.ToValidUTF8(string(d.msg.Line), "\ufffd") && !bytes.Contains(b, []byte{0xff}) && json.Valid(b) && validUTF8(b) {
			t.Fatalf("%q: got %q, want %q", b, d.msg.Line, ref.Log)
		}
	})
}

func validUTF8(b []byte) bool { return bytes.Equal(bytes.ToValidUTF8(b, []byte("?")), b) }

func benchChunk() []byte {
	return bytes.Repeat(append(bytes.Repeat([]byte("0123456789 abcdefghij klmnopqrs "), 3)[:79], '\n'), 32<<10/80)
}

func BenchmarkWrite(b *testing.B) {
	w, _ := newWriter(b, Options{})
	chunk := benchChunk()
	b.SetBytes(int64(len(chunk)))
	ts := time.Now()
	for b.Loop() {
		if err := w.Write(Stdout, ts, chunk); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteLineByLine(b *testing.B) {
	w, _ := newWriter(b, Options{})
	chunk := benchChunk()[:80]
	b.SetBytes(80)
	ts := time.Now()
	for b.Loop() {
		_ = w.Write(Stdout, ts, chunk)
	}
}

func BenchmarkEncode(b *testing.B) {
	chunk := benchChunk()[:79]
	buf := make([]byte, 0, 4096)
	b.SetBytes(80)
	for b.Loop() {
		buf = appendEscaped(buf[:0], chunk)
	}
}

func BenchmarkRead(b *testing.B) {
	w, path := newWriter(b, Options{MaxSize: -1})
	chunk := benchChunk()
	for range 1000 {
		_ = w.Write(Stdout, time.Now(), chunk)
	}
	fi, _ := os.Stat(path)
	b.SetBytes(fi.Size())
	for b.Loop() {
		r := Read(b.Context(), path, ReadOptions{Tail: -1})
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
		_ = r.Close()
	}
}
