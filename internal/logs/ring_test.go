package logs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A file that takes nothing stops neither Write nor, for long, Close; the
// newest lines are kept.
func TestRingStuck(t *testing.T) {
	w, path := newWriter(t, Options{})
	r := newRing(w, 4000)
	w.mu.Lock() // as if write(2) did not return
	for i := range 1000 {
		if err := r.Write(Stdout, t0, fmt.Appendf(nil, "line %04d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	_ = r.Close()
	if d := time.Since(begin); d > 3*patience {
		t.Errorf("Close took %v", d)
	}
	if r.size > 4000 || r.dropped == 0 {
		t.Errorf("%d bytes are kept, %d lines dropped", r.size, r.dropped)
	}
	w.mu.Unlock()
	<-r.done
	got := readAll(t, path, ReadOptions{Tail: -1})
	if n := len(got); n < 300 || n > 402 || got[n-1] != "line 0999\n" || got[n-2] != "line 0998\n" {
		t.Fatalf("%d lines, the last %q", len(got), got[len(got)-1])
	}
	for _, g := range got {
		if len(g) != len("line 0000\n") {
			t.Fatalf("a line was cut: %q", g)
		}
	}
}

func TestRingWritesAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	s, err := Open(DriverLocal, path, Options{NonBlocking: true})
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range 500 {
		line := fmt.Sprintf("%d %s", i, strings.Repeat("x", i*40))
		want.WriteString(line + "\n")
		for _, part := range []string{line[:len(line)/2], line[len(line)/2:] + "\n"} {
			_ = s.Write(Stdout, t0, []byte(part))
		}
		if i%20 == 0 {
			_ = s.Flush()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(readAll(t, path, ReadOptions{Driver: DriverLocal, Tail: -1}), ""); got != want.String() {
		t.Fatalf("%d bytes, want %d", len(got), want.Len())
	}
}

// One inotify instance serves all who follow, and goes with the last.
func TestOneWatcher(t *testing.T) {
	var cancels []func()
	for range 200 { // more than a user may have instances
		_, cancel, err := subscribe(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		cancels = append(cancels, cancel)
	}
	dir := t.TempDir()
	a, cancelA, _ := subscribe(dir)
	b, cancelB, _ := subscribe(dir)
	cancels = append(cancels, cancelA, cancelB)
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	<-a
	<-b
	for _, c := range cancels {
		c()
	}
	notifyMu.Lock()
	defer notifyMu.Unlock()
	if notify != nil {
		t.Error("the instance is still there")
	}
}
