package archive

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkUnpack unpacks the archive named by BERTH_BENCH_TAR, which may be compressed.
func BenchmarkUnpack(b *testing.B) {
	src := os.Getenv("BERTH_BENCH_TAR")
	if src == "" {
		b.Skip("BERTH_BENCH_TAR names no archive")
	}
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		f, err := os.Open(src)
		if err != nil {
			b.Fatal(err)
		}
		sk, err := os.Create(filepath.Join(dir, "skeleton"))
		if err != nil {
			b.Fatal(err)
		}
		out := filepath.Join(dir, "out")
		_ = os.Mkdir(out, 0o755)
		root, err := OpenRoot(out)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		start := time.Now()
		s := NewStream(context.Background(), f)
		w, err := NewSkeletonWriter(sk)
		if err != nil {
			b.Fatal(err)
		}
		res, err := Unpack(context.Background(), s, root, UnpackOptions{Whiteouts: Overlay, Skeleton: w})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		st, _ := sk.Stat()
		b.Logf("%v: %d entries, %d bytes, skeleton %d bytes, %s", time.Since(start), res.Entries, res.Size, st.Size(), s.Digest())
		_ = s.Close()
		_ = f.Close()
		_ = sk.Close()
	}
}
