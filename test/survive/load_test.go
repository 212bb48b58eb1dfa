package survive

import (
	"path/filepath"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// An engine killed in the middle of a load has the image whole or not at all.
func TestLoadKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	tar := filepath.Join(t.TempDir(), "image.tar")
	c.Must("create", "--name", "box", img)
	c.Must("commit", "box", "copy:1")
	c.Must("save", "-o", tar, "copy:1")
	c.Must("rm", "box")
	c.Must("rmi", "copy:1")
	for wait := time.Duration(0); wait < 50*time.Millisecond; wait += 5 * time.Millisecond {
		load := c.Command("load", "-q", "-i", tar)
		if err := load.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		e.Kill9Daemon()
		_ = load.Wait() // it fails, unless it was faster
		e.StartDaemon()
		if c.Run("inspect", "copy:1").Code == 0 {
			c.Must("run", "--rm", "copy:1", "true")
			c.Must("rmi", "copy:1")
		}
	}
	c.Must("load", "-q", "-i", tar)
	c.Must("run", "--rm", "copy:1", "true")
}
