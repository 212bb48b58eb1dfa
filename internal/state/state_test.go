package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func open(t *testing.T, dir string) *DB {
	t.Helper()
	db, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func put(t *testing.T, db *DB, k, v string) {
	t.Helper()
	if err := db.Update(Async, func(tx *Tx) error { return tx.Put("b", k, v) }); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	db := open(t, t.TempDir())
	defer db.Close()
	put(t, db, "a", "1")
	boom := errors.New("boom")
	err := db.Update(Sync, func(tx *Tx) error {
		if err := tx.Put("b", "a", "2"); err != nil {
			return err
		}
		tx.Delete("b", "a")
		if tx.Has("b", "a") {
			t.Error("a transaction must see its own delete")
		}
		return boom
	})
	var got string
	if _, gerr := db.Get("b", "a", &got); !errors.Is(err, boom) || gerr != nil || got != "1" {
		t.Fatalf("err %v, value %q, %v", err, got, gerr)
	}
}

func TestReopenKeepsAllAndCutsTornEnd(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	for i := range 50 {
		put(t, db, fmt.Sprint("k", i), fmt.Sprint(i))
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "journal")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole) - 30; cut <= len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		db := open(t, dir)
		n := len(db.Keys("b", "k"))
		if want := 49; n < want {
			t.Fatalf("cut at %d: %d keys, want at least %d", cut, n, want)
		}
		put(t, db, "after", "x")
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, dir)
		if !db.Has("b", "after") {
			t.Fatalf("cut at %d: a write after the repair was lost", cut)
		}
		db.Close()
	}
}

func TestCompactKeepsContent(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	for i := range 1000 {
		put(t, db, "same", fmt.Sprint(i))
	}
	before := db.size
	if err := db.compact(true); err != nil {
		t.Fatal(err)
	}
	if db.size >= before {
		t.Fatalf("journal did not shrink: %d to %d", before, db.size)
	}
	put(t, db, "later", "y")
	db.Close()
	db = open(t, dir)
	defer db.Close()
	var got string
	if _, err := db.Get("b", "same", &got); err != nil || got != "999" || !db.Has("b", "later") {
		t.Fatalf("%q %v", got, err)
	}
}

func TestConcurrentSync(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 20 {
				if err := db.Update(Sync, func(tx *Tx) error { return tx.Put("b", fmt.Sprint(i, "/", j), j) }); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	db.Close()
	db = open(t, dir)
	defer db.Close()
	if n := len(db.Keys("b", "")); n != 320 {
		t.Fatalf("%d keys", n)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	defer db.Close()
	if _, err := Open(dir); err == nil {
		t.Fatal("two engines on one data root")
	}
}

func FuzzLoad(f *testing.F) {
	rec, _ := encode([]change{{B: "b", K: "k", V: []byte(`"v"`)}})
	f.Add(append([]byte(magic), rec...))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "journal"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if db, err := Open(dir); err == nil {
			db.Close()
		}
	})
}
