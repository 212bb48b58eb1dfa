package survive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// Logs of each kind lose no line and double none when the keeper takes over
// from itself; those that are not only in memory not when it is killed either.
func TestLogKinds(t *testing.T) {
	t.Parallel()
	next := t.TempDir()
	bin := enginetest.Binaries(t)
	for _, name := range []string{"berth", "berthd"} {
		if err := os.Link(filepath.Join(bin, name), filepath.Join(next, name)); err != nil {
			if err := copyFile(filepath.Join(bin, name), filepath.Join(next, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	otherKeeper(t, bin, filepath.Join(next, "berth-keeper"))

	e := enginetest.Start(t)
	c := e.Client("berth")
	const script = "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); printf 'line '; echo $i; usleep 1000; done"
	kinds := map[string]string{
		"local":   "--log-driver local --log-opt max-size=5k --log-opt max-file=50",
		"ring":    "--log-driver local --log-opt mode=non-blocking --log-opt max-buffer-size=64k",
		"ring-js": "--log-opt mode=non-blocking --log-opt max-size=10k --log-opt max-file=50",
	}
	for name, opts := range kinds {
		c.Must(append(append([]string{"run", "-d", "--name", name}, strings.Fields(opts)...), img, "sh", "-c", script)...)
	}
	time.Sleep(300 * time.Millisecond)
	e.SetBin(next)
	e.Restart() // with another keeper program
	for name := range kinds {
		if got := c.Must("wait", name); got != "0" {
			t.Errorf("%s: exit code %s", name, got)
		}
		checkLines(t, c.Must("logs", name), 1500)
	}

	c.Must("run", "-d", "--name", "killed", "--log-driver", "local", "--log-opt", "max-size=5k", "--log-opt", "max-file=50",
		img, "sh", "-c", "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; usleep 1000; done")
	time.Sleep(300 * time.Millisecond)
	e.KillKeeper()
	c.Must("wait", "killed")
	checkLines(t, c.Must("logs", "killed"), 1000)
}
