package state

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Whatever the journal holds, opening it ends in an error or in a database
// that takes and keeps what is written next.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	db, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 5 {
		err := db.Update(Sync, func(tx *Tx) error { return tx.Put("b", fmt.Sprint(i), i) })
		if err != nil {
			f.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{})
	f.Add(append(whole[:len(whole):len(whole)], 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "journal"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(dir)
		if err != nil {
			return
		}
		if err := db.Update(Sync, func(tx *Tx) error { return tx.Put("b", "new", "kept") }); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(dir); err != nil {
			t.Fatalf("it was opened, written and cannot be opened again: %v", err)
		}
		defer db.Close()
		var got string
		if ok, err := db.Get("b", "new", &got); !ok || err != nil || got != "kept" {
			t.Fatalf("%v %v %q", ok, err, got)
		}
	})
}
