package image

import (
	"context"
	"io"
	"os"
	"testing"
)

// BenchmarkLoad loads the docker archive named by BERTH_BENCH_LOAD.
func BenchmarkLoad(b *testing.B) {
	benchFile(b, "BERTH_BENCH_LOAD", func(st *store, r io.Reader) error {
		return st.Load(context.Background(), r, LoadOptions{Quiet: true}, nil)
	})
}

// BenchmarkImport imports the tar named by BERTH_BENCH_TAR.
func BenchmarkImport(b *testing.B) {
	benchFile(b, "BERTH_BENCH_TAR", func(st *store, r io.Reader) error {
		_, err := st.Import(context.Background(), r, ImportOptions{}, nil)
		return err
	})
}

func benchFile(b *testing.B, env string, fn func(st *store, r io.Reader) error) {
	name := os.Getenv(env)
	if name == "" {
		b.Skip(env + " names no archive")
	}
	for b.Loop() {
		b.StopTimer()
		st := newStore(b, "overlay2")
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := fn(st, f); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = f.Close()
		st.shut()
		b.StartTimer()
	}
}

func BenchmarkResolve(b *testing.B) {
	st := newStore(b, "overlay2")
	base, _ := sample(b)
	st.load(dockerArchive(b, nil, base))
	b.ResetTimer()
	for b.Loop() {
		if _, err := st.Resolve(context.Background(), "base:1"); err != nil {
			b.Fatal(err)
		}
	}
}
