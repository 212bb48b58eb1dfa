package cli

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestParseRef(t *testing.T) {
	for in, want := range map[string]string{
		"alpine": "docker.io/library/alpine", "alpine:3": "docker.io/library/alpine:3", "a/b": "docker.io/a/b", "localhost/x": "localhost/x",
		"reg:5000/x/y:tag": "reg:5000/x/y:tag", "Reg.io/x": "Reg.io/x", "[::1]:5000/x": "[::1]:5000/x", "index.docker.io/x": "docker.io/library/x",
		"UP": "!invalid reference format: repository name (library/UP) must be lowercase", "a b": "!invalid reference format", "": "!invalid reference format",
		"a:": "!invalid reference format", "a__b": "docker.io/library/a__b", "a___b": "!invalid reference format", "a--b": "docker.io/library/a--b", "a.-b": "!invalid reference format",
		"a..b": "!invalid reference format", "-a": "!invalid reference format", "a@sha256:1": "!invalid reference format", "a//b": "!invalid reference format",
	} {
		r, err := parseRef(in)
		got := r.String()
		if err != nil {
			got = "!" + err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestCopyPlace(t *testing.T) {
	for _, c := range []struct {
		t                 target
		srcDir            bool
		dir, rename, fail string
	}{
		{target{"/d", true, true}, false, "/d", "", ""},
		{target{"/d/f", true, false}, false, "/d", "f", ""},
		{target{"/d/f", true, false}, true, "", "", "cannot copy directory"},
		{target{"/d/new", false, false}, false, "/d", "new", ""},
		{target{"/d/new/", false, false}, false, "", "", "no such directory"},
		{target{"/d/new/", false, false}, true, "/d", "new", ""},
	} {
		dir, rename, err := c.t.place(c.srcDir)
		msg := ""
		if err != nil {
			msg = err.Error()
		}
		if dir != c.dir || rename != c.rename || msg != c.fail {
			t.Errorf("%+v dir=%v: %q %q %q", c.t, c.srcDir, dir, rename, msg)
		}
	}
}

func tarOf(t *testing.T, hs ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		body := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			body = []byte("text")
			h.Size = 4
		}
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return &b
}

func TestExtractRenames(t *testing.T) {
	dir := t.TempDir()
	_, err := extractLocal(tarOf(t, tar.Header{Name: "src/", Typeflag: tar.TypeDir}, tar.Header{Name: "src/a/f", Typeflag: tar.TypeReg},
		tar.Header{Name: "src/l", Linkname: "src/a/f", Typeflag: tar.TypeLink}, tar.Header{Name: "src/s", Linkname: "a/f", Typeflag: tar.TypeSymlink}), dir, "dst", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"dst/a/f", "dst/l", "dst/s"} {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(b) != "text" {
			t.Errorf("%s: %q %v", f, b, err)
		}
	}
}

// A container's tar never writes outside the destination.
func TestExtractStaysInside(t *testing.T) {
	for name, hs := range map[string][]tar.Header{
		"dotdot":  {{Name: "../evil", Typeflag: tar.TypeReg}},
		"symlink": {{Name: "x", Linkname: "..", Typeflag: tar.TypeSymlink}, {Name: "x/evil", Typeflag: tar.TypeReg}},
		"link":    {{Name: "y", Linkname: "../secret", Typeflag: tar.TypeLink}},
	} {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outer, "secret"), []byte("s"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := extractLocal(tarOf(t, hs...), dir, "", false); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(filepath.Join(outer, "evil")); err == nil {
			t.Errorf("%s: wrote outside", name)
		}
	}
}

func TestSplitCopyArg(t *testing.T) {
	for in, want := range map[string][2]string{
		"c:/p": {"c", "/p"}, "/abs:x": {"", "/abs:x"}, "./a:b": {"", "./a:b"}, "plain": {"", "plain"}, "c:rel": {"c", "rel"}, "-": {"", "-"},
	} {
		if c, p := splitCopyArg(in); c != want[0] || p != want[1] {
			t.Errorf("%q: %q %q", in, c, p)
		}
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"": "unix:///run/berth.sock", "unix://": "unix:///run/berth.sock", "tcp://h": "tcp://h:2375", "tcp://:1": "tcp://localhost:1", "h:5": "tcp://h:5",
		"tcp://h:1/base": "tcp://h:1/base", "ssh://me@h": "ssh://me@h", "tcp://[::1]": "tcp://[::1]:2375",
	} {
		if got, err := parseHost(in, false); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	if _, err := parseHost("npipe://x", false); err == nil {
		t.Error("npipe: no error")
	}
}
