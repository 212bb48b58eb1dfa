package archive

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
)

// gzipped packs with the standard library, so that two implementations meet.
func gzipped(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		w, err := stdgzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
		_, _ = w.Write(p)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// samples are contents that take every way through the decoder.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 700_000) // long codes
	for i := range skewed {
		skewed[i] = byte(min(r.ExpFloat64()*9, 255))
	}
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, "), 30_000)
	mixed := bytes.Clone(text)
	for i := 0; i < len(mixed); i += 1 + int(r.Uint32N(300)) {
		mixed[i] = byte(r.Uint32())
	}
	var turns []byte // coded and stored blocks in turns
	for i := range 40 {
		turns = append(turns, noise[i*7000:i*7000+6000+i*25]...)
		turns = append(turns, text[:i*3000]...)
	}
	exe, _ := os.ReadFile("/proc/self/exe")
	return map[string][]byte{
		"nothing": {}, "one": {'x'}, "run": make([]byte, 1<<20), "pairs": bytes.Repeat([]byte("ab"), 1<<18), "sevens": bytes.Repeat([]byte("1234567"), 99_999),
		"noise": noise, "skewed": skewed, "text": text, "mixed": mixed, "turns": turns, "program": exe[:min(len(exe), 3<<20)],
	}
}

func TestGunzip(t *testing.T) {
	for name, raw := range samples() {
		for level := stdgzip.HuffmanOnly; level <= stdgzip.BestCompression; level++ {
			packed := gzipped(t, level, raw)
			g, err := newGunzip(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(name, level, err)
			}
			got, err := io.ReadAll(g)
			if err != nil || !bytes.Equal(got, raw) {
				t.Fatalf("%s at level %d: %v, %d bytes of %d", name, level, err, len(got), len(raw))
			}
		}
	}
	packed := gzipped(t, 6, []byte("one "), nil, []byte("two"), make([]byte, 100_000))
	g, err := newGunzip(iotest.OneByteReader(bytes.NewReader(packed)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(g); err != nil || len(got) != 100_007 || string(got[:7]) != "one two" {
		t.Fatal(len(got), err)
	}
}

func TestGunzipRefuses(t *testing.T) {
	raw := samples()["mixed"][:50_000]
	packed := gzipped(t, 6, raw)
	for cut := range len(packed) {
		if cut > 300 && cut < len(packed)-300 && cut%97 != 0 {
			continue
		}
		if g, err := newGunzip(bytes.NewReader(packed[:cut])); err == nil {
			if _, err := io.ReadAll(g); err == nil {
				t.Fatal("cut off at", cut, "and not noticed")
			}
		}
	}
	for _, bad := range [][]byte{append(bytes.Clone(packed), "rubbish"...), append(bytes.Clone(packed), 0)} {
		g, err := newGunzip(bytes.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(g); err == nil {
			t.Fatal("rubbish after the end was taken")
		}
	}
}

// FuzzGunzip holds the decoder against the standard library's: the same bytes, or
// an error from both.
func FuzzGunzip(f *testing.F) {
	for _, raw := range samples() {
		raw = raw[:min(len(raw), 5000)]
		for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 9} {
			f.Add(gzipped(f, level, raw)[40:])
		}
	}
	head := gzipped(f, 1, []byte("x"))[:10]
	head[3] = 0
	f.Fuzz(func(t *testing.T, body []byte) {
		packed := append(bytes.Clone(head), body...)
		var want []byte
		s, werr := stdgzip.NewReader(bytes.NewReader(packed))
		if werr == nil {
			want, werr = io.ReadAll(io.LimitReader(s, 1<<22))
		}
		if len(want) == 1<<22 {
			return
		}
		g, err := newGunzip(bytes.NewReader(packed))
		var got []byte
		if err == nil {
			got, err = io.ReadAll(g)
		}
		if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, %v; want %d, %v", len(got), err, len(want), werr)
		}
		if !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Fatal("what came before the error differs")
		}
	})
}

func BenchmarkGunzip(b *testing.B) {
	raw := samples()["program"]
	packed := gzipped(b, 6, raw)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		g, err := newGunzip(bytes.NewReader(packed))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, g); err != nil {
			b.Fatal(err)
		}
	}
}
