package client

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

type health struct {
	Status        string
	FailingStreak int
	Log           []struct {
		ExitCode int
		Output   string
	}
}

func healthOf(t *testing.T, c *enginetest.Client, name string) health {
	t.Helper()
	var h health
	if err := json.Unmarshal([]byte(c.Inspect(name, "{{json .State.Health}}")), &h); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHealth(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		since := time.Now().Add(-time.Millisecond).Format(time.RFC3339Nano)
		c.Must("run", "-d", "--name", "well", "--health-cmd", "echo probed; test -f /well", "--health-interval", "100ms", "--health-retries", "2", img, "sleep", "100")
		status := func(want string) {
			t.Helper()
			enginetest.Eventually(t, want, func() bool { return healthOf(t, c, "well").Status == want })
			if got := c.Must("ps", "--filter", "health="+want, "--format", "{{.Status}}"); !strings.Contains(got, want) {
				t.Errorf("ps says %q, want %s", got, want)
			}
		}
		status("unhealthy")
		h := healthOf(t, c, "well")
		if h.FailingStreak < 2 || len(h.Log) == 0 || h.Log[0].ExitCode != 1 || h.Log[0].Output != "probed\n" {
			t.Errorf("unhealthy: %+v", h)
		}
		c.Must("exec", "well", "touch", "/well")
		status("healthy")
		if h := healthOf(t, c, "well"); h.FailingStreak != 0 || len(h.Log) > 5 {
			t.Errorf("healthy: %+v", h)
		}
		out := c.Must("events", "--since", since, "--until", time.Now().Format(time.RFC3339Nano), "--filter", "event=health_status", "--filter", "container=well")
		if bad, good := strings.Index(out, "health_status: unhealthy"), strings.Index(out, "health_status: healthy"); bad < 0 || good < bad {
			t.Errorf("events: %s", out)
		}
		// An engine that is killed does not forget it; one that checks no more does not call it healthy.
		e.Restart()
		status("healthy")
		c.Must("stop", "-t", "0", "well")
		if h := healthOf(t, c, "well"); h.Status != "unhealthy" {
			t.Errorf("stopped: %+v", h)
		}
		c.Must("rm", "well")
	})
}

func TestHealthForms(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	c.Must("run", "-d", "--name", "slow", "--health-cmd", "echo begun; exec sleep 20", "--health-interval", "50ms", "--health-timeout", "100ms", "--health-retries", "1", img, "sleep", "100")
	enginetest.Eventually(t, "a probe that is too slow", func() bool { return healthOf(t, c, "slow").Status == "unhealthy" })
	if h := healthOf(t, c, "slow"); h.Log[0].ExitCode != -1 || h.Log[0].Output != "Health check exceeded timeout (100ms): begun\n" {
		t.Errorf("slow: %+v", h.Log[0])
	}
	// Failures in the start period do not count, one success ends it.
	c.Must("run", "-d", "--name", "starts", "--health-cmd", "test -f /up", "--health-interval", "1h", "--health-start-period", "30s", "--health-start-interval", "50ms",
		"--health-retries", "1", img, "sleep", "100")
	enginetest.Eventually(t, "probes of the start period", func() bool { return len(healthOf(t, c, "starts").Log) > 2 })
	if h := healthOf(t, c, "starts"); h.Status != "starting" || h.FailingStreak != 0 {
		t.Errorf("in the start period: %+v", h)
	}
	c.Must("exec", "starts", "touch", "/up")
	enginetest.Eventually(t, "healthy", func() bool { return healthOf(t, c, "starts").Status == "healthy" })
	// A flood of output is cut, and its writer never waits.
	c.Must("run", "-d", "--name", "loud", "--health-cmd", "yes | head -c 1000000", "--health-interval", "50ms", img, "sleep", "100")
	enginetest.Eventually(t, "healthy", func() bool { return healthOf(t, c, "loud").Status == "healthy" })
	if out := healthOf(t, c, "loud").Log[0].Output; len(out) != 4096+3 || !strings.HasSuffix(out, "...") {
		t.Errorf("%d bytes are kept of a flood", len(out))
	}
	for _, bad := range [][2]string{{"--health-interval=1us", "Interval in Healthcheck cannot be less than 1ms"}, {"--health-timeout=1us", "Timeout in Healthcheck cannot be less than 1ms"}} {
		if r := c.Run("run", "--health-cmd", "true", bad[0], img, "true"); r.Code != 125 || !strings.Contains(r.Err, bad[1]) {
			t.Errorf("%s: %d %q", bad[0], r.Code, r.Err)
		}
	}
	c.Must("run", "-d", "--name", "off", "--no-healthcheck", img, "sleep", "100")
	if got := c.Inspect("off", "{{.State.Health}}"); got != "<nil>" {
		t.Errorf("--no-healthcheck: %s", got)
	}
	if got := c.Must("ps", "--filter", "health=none", "--format", "{{.Names}}"); got != "off" {
		t.Errorf("health=none: %q", got)
	}
	c.Must("rm", "-f", "slow", "starts", "loud", "off")
}
