package container

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDetachKeys(t *testing.T) {
	for in, want := range map[string][]byte{
		"": {16, 17}, "ctrl-p,ctrl-q": {16, 17}, "a": {'a'}, "a,b,c": {'a', 'b', 'c'}, "ctrl-a": {1}, "ctrl-z": {26}, "ctrl-@": {0}, "ctrl-[": {27},
		"ctrl-\\": {28}, "ctrl-]": {29}, "ctrl-^": {30}, "ctrl-_": {31}, ",": {','}, "x,ctrl-c": {'x', 3},
	} {
		got, err := detachKeys(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-A", "ctrl-pp", "ab", "ctrl-1", "ctrl-p,nonsense", "a,,b", "alt-a", "a, b"} {
		if got, err := detachKeys(in); err == nil || err.Error() != "Invalid detach keys ("+in+") provided" {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
}

func TestFeed(t *testing.T) {
	pq := []byte{16, 17}
	cases := []struct {
		name, in string
		keys     []byte
		out      string
		detached bool
	}{
		{"no keys", "abc\x10\x11", nil, "abc\x10\x11", false},
		{"none typed", "abc", pq, "abc", false},
		{"typed", "abc\x10\x11def", pq, "abc", true},
		{"begun only", "abc\x10", pq, "abc\x10", false},
		{"begun, then another", "a\x10b", pq, "a\x10b", false},
		{"begun twice", "\x10\x10\x11", pq, "\x10", true},
		{"second first", "\x11\x10", pq, "\x11\x10", false},
		{"one key", "xyz", []byte("y"), "x", true},
		{"begun, then one that ends another try", "\x10\x11", []byte{16, 16, 17}, "\x10\x11", false},
		{"three", "aabaac", []byte("aac"), "aab", true},
		{"empty", "", pq, "", false},
	}
	for _, c := range cases {
		for how, r := range map[string]io.Reader{
			"whole": strings.NewReader(c.in), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in)), "with the end": iotest.DataErrReader(strings.NewReader(c.in)),
		} {
			var out bytes.Buffer
			if got := feed(&out, r, c.keys); got != c.detached || out.String() != c.out {
				t.Errorf("%s, %s: %v, %q; want %v, %q", c.name, how, got, out.String(), c.detached, c.out)
			}
		}
	}
}

// Whatever is typed, what goes through is what was typed up to the keys.
func FuzzFeed(f *testing.F) {
	f.Add([]byte("ab\x10\x11"), []byte{16, 17})
	f.Fuzz(func(t *testing.T, in, keys []byte) {
		if len(keys) == 0 || len(keys) > 8 {
			return
		}
		var a, b bytes.Buffer
		da := feed(&a, bytes.NewReader(in), keys)
		db := feed(&b, iotest.OneByteReader(bytes.NewReader(in)), keys)
		if da != db || !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Fatalf("it matters how the input comes: %v %q, %v %q", da, a.Bytes(), db, b.Bytes())
		}
		if !da && !bytes.Equal(a.Bytes(), in) {
			t.Fatalf("%q came through of %q", a.Bytes(), in)
		}
		if da && !bytes.HasPrefix(in, append(slices.Clone(a.Bytes()), keys...)) {
			t.Fatalf("%q came through of %q with %q", a.Bytes(), in, keys)
		}
	})
}
