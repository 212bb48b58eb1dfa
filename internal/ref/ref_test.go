package ref

import (
	"strings"
	"testing"

	"berth.dev/berth/internal/errs"
)

func TestParse(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for _, c := range []struct{ in, full, familiar string }{
		{"mysql", "docker.io/library/mysql:latest", "mysql:latest"},
		{"mysql:8", "docker.io/library/mysql:8", "mysql:8"},
		{"me/x", "docker.io/me/x:latest", "me/x:latest"},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest"},
		{"r.io:5000/a/b:t", "r.io:5000/a/b:t", "r.io:5000/a/b:t"},
		{"x@sha256:" + hex, "docker.io/library/x@sha256:" + hex, "x@sha256:" + hex},
		{"x:t@sha256:" + hex, "docker.io/library/x:t@sha256:" + hex, "x:t@sha256:" + hex},
	} {
		n, err := Parse(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if n.String() != c.full || n.Familiar() != c.familiar {
			t.Errorf("%s: got %s, %s", c.in, n, n.Familiar())
		}
	}
}

func TestParseRefused(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "invalid reference format",
		"a b":                           "invalid reference format",
		"x:":                            "invalid reference format",
		"-x":                            "invalid reference format",
		"Foo":                           "invalid reference format: repository name (library/Foo) must be lowercase",
		strings.Repeat("0a", 32):        "invalid repository name (" + strings.Repeat("0a", 32) + "), cannot specify 64-byte hexadecimal strings",
		"x@sha256:abc":                  "invalid reference format",
		strings.Repeat("a", 256):        "repository name must not be more than 255 characters",
		"x:" + strings.Repeat("a", 129): "invalid reference format",
	} {
		_, err := Parse(in)
		if err == nil || err.Error() != want || !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

func TestParseRepository(t *testing.T) {
	n, err := ParseRepository("a/b", "t")
	if err != nil || n.Familiar() != "a/b:t" {
		t.Fatal(n, err)
	}
	if n, err = ParseRepository("a/b:x", ""); err != nil || n.Tag() != "x" {
		t.Fatal(n, err)
	}
	if _, err = ParseRepository("a/b", "no good"); err == nil {
		t.Fatal("a tag with a blank was taken")
	}
	if _, err = ParseRepository("a@sha256:"+strings.Repeat("0a", 32), ""); err == nil {
		t.Fatal("a digest was taken as a tag")
	}
}

func TestIDs(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for in, ok := range map[string]bool{hex: true, "sha256:" + hex: true, hex[1:]: false, "sha512:" + hex: false, "": false} {
		if _, got := ParseID(in); got != ok {
			t.Errorf("ParseID(%q) = %v", in, got)
		}
	}
	if Short("sha256:"+hex) != hex[:12] || Short("abc") != "abc" {
		t.Error("Short")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a/b:c@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(n.Familiar())
		if err != nil || again.String() != n.String() {
			t.Fatalf("%q → %q → %v %v", s, n, again, err)
		}
	})
}
