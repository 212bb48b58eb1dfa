package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// An engine killed in the middle of a create has filled the volume whole or not at
// all, and has nothing of a volume that was made for the container alone.
func TestFillKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	const files = 600
	c.Must("run", "--name", "maker", img, "sh", "-c", fmt.Sprintf("mkdir /data; for d in a b c; do mkdir /data/$d; i=0; while [ $i -lt %d ]; do echo $i >/data/$d/$i; i=$((i+1)); done; done", files/3))
	c.Must("commit", "maker", "many")
	c.Must("rm", "maker")
	c.Must("volume", "create", "kept")
	dir := filepath.Join(e.DataRoot, "volumes")
	count := func(v string) (n int) {
		_ = filepath.WalkDir(filepath.Join(dir, v, "_data"), func(_ string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
			}
			return nil
		})
		return n
	}
	halves := 0
	for wait := 4 * time.Millisecond; wait < 60*time.Millisecond; wait += 8 * time.Millisecond {
		run := c.Command("create", "--name", "box", "-v", "kept:/data", "-v", "made:/data2", "--mount", "type=volume,src=fresh,dst=/data/../data/a", "-v", "/data/b", "many", "true")
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		e.Kill9Daemon()
		_ = run.Wait()
		if list, _ := filepath.Glob(filepath.Join(dir, "*", "_fill")); len(list) > 0 {
			halves++
		}
		e.StartDaemon()
		if n := count("kept"); n != 0 && n != files {
			t.Errorf("killed after %v: %d files of %d", wait, n, files)
		}
		list := strings.Fields(c.Must("volume", "ls", "-q"))
		switch there := c.Run("inspect", "box").Code == 0; {
		case there && len(list) != 4, !there && strings.Join(list, " ") != "kept":
			t.Errorf("killed after %v: the container is there: %v, with the volumes %q", wait, there, list)
		case there:
			if a := count("fresh"); a != files/3 {
				t.Errorf("killed after %v: %d files of %d", wait, a, files/3)
			}
		}
		c.Run("rm", "-v", "box")
		c.Run("volume", "rm", "-f", "made", "fresh", "kept")
		c.Must("volume", "create", "kept")
	}
	t.Logf("killed in the middle of a copy %d times", halves)
	if got := c.Must("run", "--rm", "-v", "kept:/data", "many", "sh", "-c", "cat /data/*/* | wc -l"); got != fmt.Sprint(files) {
		t.Errorf("afterwards: %s files", got)
	}
	c.Must("volume", "rm", "kept")
	c.Must("rmi", "many")
}

// Removals that are killed end with the next start.
func TestVolumeRemoveKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	dir := filepath.Join(e.DataRoot, "volumes")
	for wait := time.Duration(0); wait < 20*time.Millisecond; wait += 4 * time.Millisecond {
		c.Must("run", "--rm", "-v", "v1:/v", img, "sh", "-c", "mkdir -p /v/a/b; i=0; while [ $i -lt 300 ]; do echo >/v/a/$i; i=$((i+1)); done")
		c.Must("create", "--name", "box", "-v", "/anon", img, "true")
		rm := c.Command("volume", "rm", "v1")
		rmBox := c.Command("rm", "-v", "box")
		if err := rm.Start(); err != nil {
			t.Fatal(err)
		}
		if err := rmBox.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		e.Kill9Daemon()
		_, _ = rm.Process.Wait()
		_, _ = rmBox.Process.Wait()
		e.StartDaemon()
		if c.Run("inspect", "box").Code == 0 {
			c.Must("rm", "-v", "box")
		}
		list := strings.Fields(c.Must("volume", "ls", "-q"))
		if len(list) == 1 && list[0] == "v1" {
			if found, err := os.ReadDir(filepath.Join(dir, "v1/_data/a")); err != nil || len(found) != 301 {
				t.Errorf("killed after %v: half a volume: %d files, %v", wait, len(found), err)
			}
			c.Must("volume", "rm", "v1")
		} else if len(list) != 0 {
			t.Errorf("killed after %v: left %q", wait, list)
		}
		enginetest.Eventually(t, "the files are gone", func() bool {
			left, err := os.ReadDir(dir)
			return err == nil && len(left) == 0
		})
	}
}
