package survive

import (
	"os"
	"strconv"
	"syscall"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// What each restart policy does when the engine comes back: after its own
// restart alone nothing is touched; after a reboot what ran is started again
// where its policy says so, and what a user had stopped only with "always".
func TestRestartPolicies(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	policies := []string{"no", "on-failure", "unless-stopped", "always"}
	pids := map[string]int{}
	for _, p := range policies {
		c.Must("run", "-d", "--name", p+"-runs", "--restart", p, img, "sleep", "1000")
		c.Must("run", "-d", "--name", p+"-stopped", "--restart", p, img, "sleep", "1000")
		c.Must("stop", "-t", "0", p+"-stopped")
		pid, err := strconv.Atoi(c.Inspect(p+"-runs", "{{.State.Pid}}"))
		if err != nil {
			t.Fatal(err)
		}
		pids[p] = pid
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		for name, status := range want {
			enginetest.Eventually(t, when+": "+name+" is "+status, func() bool { return c.Inspect(name, "{{.State.Status}}") == status })
		}
	}
	// The engine alone ends and comes back, as in an upgrade.
	e.StopDaemon()
	e.StartDaemon()
	want := map[string]string{"always-stopped": "running"} // started with the engine, as its policy says
	for _, p := range policies {
		want[p+"-runs"] = "running"
		if p != "always" {
			want[p+"-stopped"] = "exited"
		}
	}
	check("after a restart of the engine", want)
	for _, p := range policies {
		if got := c.Inspect(p+"-runs", "{{.State.Pid}} {{.RestartCount}}"); got != strconv.Itoa(pids[p])+" 0" {
			t.Errorf("%s-runs was disturbed: %s, was %d", p, got, pids[p])
		}
	}
	// A reboot.
	last, err := strconv.Atoi(c.Inspect("always-stopped", "{{.State.Pid}}"))
	if err != nil {
		t.Fatal(err)
	}
	e.Kill9Daemon()
	e.KillKeeper()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = syscall.Kill(last, syscall.SIGKILL)
	if err := os.RemoveAll(e.ExecRoot); err != nil {
		t.Fatal(err)
	}
	e.StartDaemon()
	check("after a reboot", map[string]string{
		"no-runs": "exited", "on-failure-runs": "running", "unless-stopped-runs": "running", "always-runs": "running",
		"no-stopped": "exited", "on-failure-stopped": "exited", "unless-stopped-stopped": "exited", "always-stopped": "running",
	})
	// A policy can be taken back while it acts.
	c.Must("run", "-d", "--name", "loops", "--restart", "always", img, "false")
	enginetest.Eventually(t, "two restarts", func() bool { n, _ := strconv.Atoi(c.Inspect("loops", "{{.RestartCount}}")); return n >= 2 })
	c.Must("update", "--restart", "no", "loops")
	enginetest.Eventually(t, "the end of the loop", func() bool { return c.Inspect("loops", "{{.State.Status}}") == "exited" })
	for _, p := range policies {
		c.Must("rm", "-f", p+"-runs", p+"-stopped")
	}
	c.Must("rm", "-f", "loops")
}
