package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/snapshot/snapshottest"
)

func TestConformance(t *testing.T) {
	snapshottest.Run(t, func(root string) (snapshot.Driver, error) { return Open(root) })
}

// A data root whose path does not fit into a mount option.
func TestLongRoot(t *testing.T) {
	root := t.TempDir()
	for range 3 {
		root = filepath.Join(root, fmt.Sprintf("%0100d", 0))
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root); err != nil {
		t.Fatal(err)
	}
}

func prepared(b *testing.B, layers int) *Driver {
	d, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	ctx, parent := context.Background(), ""
	for i := range layers {
		if err := d.Prepare(ctx, "l", parent); err != nil {
			b.Fatal(err)
		}
		parent = fmt.Sprintf("sha256:%064x", i)
		if err := d.Commit(ctx, parent, "l"); err != nil {
			b.Fatal(err)
		}
	}
	if err := d.Prepare(ctx, "x", parent); err != nil {
		b.Fatal(err)
	}
	return d
}

// BenchmarkAttach reports Mounts and Attach alone, without the unmount.
func BenchmarkAttach(b *testing.B) {
	d := prepared(b, 5)
	var spent time.Duration
	for b.Loop() {
		start := time.Now()
		m, err := d.Mounts(context.Background(), "x")
		if err != nil {
			b.Fatal(err)
		}
		fd, err := snapshot.Attach(m, false)
		spent += time.Since(start)
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(fd)
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "attach-ns/op")
}

func BenchmarkPrepare(b *testing.B) {
	d := prepared(b, 5)
	i := 0
	for b.Loop() {
		i++
		if err := d.Prepare(context.Background(), fmt.Sprintf("c%d", i), fmt.Sprintf("sha256:%064x", 4)); err != nil {
			b.Fatal(err)
		}
	}
}
