package survive

import (
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// What is started while the engine still takes stock of a new keeper is not
// taken for lost.
func TestStartsBehindNewKeeper(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	for range 10 {
		e.KillKeeper()
		enginetest.Eventually(t, "a new keeper", func() bool { return len(e.KeeperPIDs()) == 1 })
		if r := c.Run("run", "--rm", "--network", "none", img, "echo", "here"); r.Code != 0 || r.Out != "here\n" {
			t.Fatalf("%+v", r)
		}
	}
	if log := e.Log(); strings.Contains(log, "cannot be started again") {
		t.Error(log)
	}
}
