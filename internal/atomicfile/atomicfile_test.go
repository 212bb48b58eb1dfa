package atomicfile

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i, text := range []string{"one", "", "three"} {
		mode := os.FileMode(0o600 + i*0o44)
		if err := Write(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		fi, serr := os.Stat(path)
		if err != nil || serr != nil || string(got) != text || fi.Mode().Perm() != mode {
			t.Errorf("%q %v %v", got, err, fi.Mode())
		}
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 1 {
		t.Errorf("left behind: %v %v", e, err)
	}
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	if err := Write(filepath.Join(dir, "no", "f"), nil, 0o600); err == nil {
		t.Error("written into a directory that is not there")
	}
	target := filepath.Join(dir, "d")
	if err := os.MkdirAll(target+"/x", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(target, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 1 {
		t.Errorf("left behind: %v %v", e, err)
	}
}

// A link is replaced, not followed.
func TestWriteOverLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/victim", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("victim", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := WriteNoSync(dir+"/link", []byte("new"), 0o600, false); err != nil {
		t.Fatal(err)
	}
	if raw, _ := os.ReadFile(dir + "/victim"); string(raw) != "old" {
		t.Errorf("%s", raw)
	}
}

// A reader sees one whole version or another.
func TestReadersSeeWholeFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	version := func(b byte) []byte { return bytes.Repeat([]byte{b}, 100_000) }
	if err := WriteNoSync(path, version(0), 0o600, false); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					if err := WriteNoSync(path, version(byte(2*i+w)), 0o600, false); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}()
	}
	for range 500 {
		raw, err := os.ReadFile(path)
		if err != nil || len(raw) != 100_000 || !bytes.Equal(raw, version(raw[0])) {
			t.Fatalf("%d bytes, %v", len(raw), err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); err == nil {
		t.Error("locked twice")
	}
	// A child that outlives us must not hold it.
	cmd := exec.Command("/bin/sleep", "30")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	unlock()
	again, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
