package content

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
)

func TestPutOpenDelete(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	want := digest.FromString("hello")
	d, n, err := s.Put(context.Background(), strings.NewReader("hello"), want)
	if err != nil || d != want || n != 5 {
		t.Fatal(d, n, err)
	}
	f, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(f)
	f.Close()
	if string(got) != "hello" {
		t.Fatalf("%q", got)
	}
	if _, err := s.ReadFile(d, 4); !errs.Is(err, errs.Invalid) {
		t.Fatal("the limit did not hold:", err)
	}
	count := 0
	if err := s.Walk(func(digest.Digest, int64) error { count++; return nil }); err != nil || count != 1 {
		t.Fatal(count, err)
	}
	for range 2 { // a second time is no error
		if err := s.Delete(d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Open(d); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

func TestWrongDigestLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Put(context.Background(), strings.NewReader("hello"), digest.FromString("other"))
	if !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	for _, dir := range []string{"ingest", "blobs/sha256"} {
		if e, _ := os.ReadDir(filepath.Join(root, dir)); len(e) != 0 {
			t.Fatal(dir, "holds", e)
		}
	}
}

func TestOpenSweepsUnfinished(t *testing.T) {
	root := t.TempDir()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Ingest()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("half"))
	_ = w.f.Close() // as a crash leaves it
	if _, err := Open(root); err != nil {
		t.Fatal(err)
	}
	if e, _ := os.ReadDir(filepath.Join(root, "ingest")); len(e) != 0 {
		t.Fatal(e)
	}
}

func TestBadDigests(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []digest.Digest{"", "sha256:../../etc/passwd", "sha256:abc", "md5:x", "sha512:" + digest.Digest(strings.Repeat("a", 128))} {
		if _, err := s.Open(d); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", d, err)
		}
	}
}
