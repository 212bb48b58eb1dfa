package client

import (
	"net/http"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// A kernel without bridges, or without a part of what the firewall's rules are made
// of: the engine runs, says what to load, and has the networks that need neither.
func TestWithoutBridges(t *testing.T) {
	t.Parallel()
	if !enginetest.WithoutBridges() {
		enginetest.Skip(t, enginetest.NeedsNoBridges)
	}
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		if got := c.Must("run", "--rm", "--network", "none", img, "ls", "/sys/class/net"); got != "lo" {
			t.Errorf("interfaces with --network none: %q", got)
		}
		c.Must("run", "--rm", "--network", "host", img, "true")
		for _, args := range [][]string{
			{"run", "--rm", img, "true"},
			{"run", "--rm", "-p", "80:80", img, "true"},
			{"network", "create", "more"},
		} {
			if r := c.Run(args...); r.Code == 0 || !strings.Contains(r.Err, "modprobe -a bridge") {
				t.Errorf("%q does not say what to load: %+v", args, r)
			}
		}
		e.Restart()
		if starts, n := strings.Count(e.Log(), "Daemon has completed"), strings.Count(e.Log(), "no bridge networks"); n == 0 || n != starts {
			t.Errorf("the log tells it %d times at %d starts\n%s", n, starts, e.Log())
		}
	})
	var list []struct{ Name string }
	if status, _ := e.Call(http.MethodGet, "/networks", nil, &list); status != http.StatusOK || len(list) != 3 {
		t.Errorf("networks: %v", list)
	}
}
