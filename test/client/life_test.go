package client

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		id := c.Must("create", "--name", "box", "-it", img, "sh")
		state := func() string { return c.Inspect("box", "{{.State.Status}}") }
		expect := func(want string) {
			t.Helper()
			if got := state(); got != want {
				t.Fatalf("state %q, want %q", got, want)
			}
		}
		expect("created")
		if got := c.Must("start", "box"); got != "box" {
			t.Errorf("start says %q", got)
		}
		expect("running")
		c.Must("start", "box") // is running: no error
		c.Must("pause", "box")
		expect("paused")
		if r := c.Run("exec", "box", "true"); r.Code == 0 || !strings.Contains(r.Err, "is paused, unpause the container before exec") {
			t.Errorf("exec in a paused container: %d %q", r.Code, r.Err)
		}
		c.Must("unpause", "box")
		expect("running")
		if r := c.Run("rm", "box"); r.Code == 0 || !strings.Contains(r.Err, "container is running") {
			t.Errorf("rm of a running container: %d %q", r.Code, r.Err)
		}
		pid := c.Inspect("box", "{{.State.Pid}}")
		c.Must("restart", "-t", "0", "box")
		expect("running")
		if again := c.Inspect("box", "{{.State.Pid}}"); again == pid {
			t.Error("restart has kept the process")
		}
		c.Must("stop", "-t", "0", "box")
		expect("exited")
		if code := c.Inspect("box", "{{.State.ExitCode}}"); code != "137" {
			t.Errorf("exit code %s, want 137", code)
		}
		if got := c.Must("wait", "box"); got != "137" {
			t.Errorf("wait says %s", got)
		}
		c.Must("start", "box")
		c.Must("kill", "box")
		enginetest.Eventually(t, "the container is dead", func() bool { return state() == "exited" })
		c.Must("rm", id[:10])
	})
}

func TestSignals(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	const trap = `trap 'echo got TERM; exit 3' TERM; trap 'echo got USR1' USR1; trap 'echo got HUP; exit 4' HUP; echo ready; while :; do sleep 0.05; done`
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		ready := func(name string) {
			t.Helper()
			enginetest.Eventually(t, "ready", func() bool { return strings.Contains(c.Must("logs", name), "ready") })
		}
		c.Must("run", "-d", "--name", "term", img, "sh", "-c", trap)
		ready("term")
		c.Must("kill", "-s", "USR1", "term")
		enginetest.Eventually(t, "USR1", func() bool { return strings.Contains(c.Must("logs", "term"), "got USR1") })
		c.Must("stop", "term")
		if code := c.Inspect("term", "{{.State.ExitCode}}"); code != "3" {
			t.Errorf("stop: exit code %s, want 3", code)
		}
		c.Must("run", "-d", "--name", "hup", "--stop-signal", "HUP", img, "sh", "-c", trap)
		ready("hup")
		c.Must("stop", "hup")
		if code := c.Inspect("hup", "{{.State.ExitCode}}"); code != "4" {
			t.Errorf("stop with another signal: exit code %s, want 4", code)
		}
		c.Must("run", "-d", "--name", "deaf", img, "sh", "-c", `trap '' TERM; while :; do sleep 0.1; done`)
		begin := time.Now()
		c.Must("stop", "-t", "1", "deaf")
		if took := time.Since(begin); took < 900*time.Millisecond || took > 5*time.Second {
			t.Errorf("stop -t 1 took %s", took)
		}
		if code := c.Inspect("deaf", "{{.State.ExitCode}}"); code != "137" {
			t.Errorf("a deaf one: exit code %s", code)
		}
		if r := c.Run("kill", "deaf"); r.Code == 0 || !strings.Contains(r.Err, "is not running") {
			t.Errorf("kill of a stopped one: %d %q", r.Code, r.Err)
		}
		c.Must("rm", "term", "hup", "deaf")
	})
}

// The client passes its signals on.
func TestSignalProxy(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		cmd := c.Command("run", "--rm", "--name", "proxy", img, "sh", "-c", `trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done`)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		enginetest.Eventually(t, "ready", func() bool { return strings.Contains(c.Run("logs", "proxy").Out, "ready") })
		terminate(t, cmd)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	})
}

func TestRestartPolicy(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "-d", "--name", "fails", "--restart", "on-failure:2", img, "false")
		enginetest.Eventually(t, "two restarts", func() bool {
			return c.Inspect("fails", "{{.RestartCount}} {{.State.Status}}") == "2 exited"
		})
		c.Must("run", "-d", "--name", "always", "--restart", "always", img, "sh", "-c", "sleep 0.2")
		enginetest.Eventually(t, "a restart", func() bool { return c.Inspect("always", "{{.RestartCount}}") != "0" })
		c.Must("stop", "-t", "0", "always")
		n := c.Inspect("always", "{{.RestartCount}}")
		time.Sleep(600 * time.Millisecond)
		if got := c.Inspect("always", "{{.RestartCount}} {{.State.Status}}"); got != n+" exited" {
			t.Errorf("after stop: %s, want %s exited", got, n)
		}
		c.Must("run", "-d", "--name", "no", img, "false")
		time.Sleep(300 * time.Millisecond)
		if got := c.Inspect("no", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}"); got != "0 exited 1" {
			t.Errorf("without a policy: %s", got)
		}
		c.Must("rm", "-f", "fails", "always", "no")
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		since := time.Now().Add(-time.Millisecond).Format(time.RFC3339Nano)
		c.Must("run", "--rm", "--name", "eventful", "--network", "none", img, "true")
		var actions []string
		enginetest.Eventually(t, "the destroy event", func() bool {
			until := time.Now().Format(time.RFC3339Nano)
			out := c.Must("events", "--since", since, "--until", until, "--filter", "container=eventful", "--filter", "type=container", "--format", "{{json .}}")
			actions = nil
			for line := range strings.Lines(out) {
				var m struct{ Action string }
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				actions = append(actions, m.Action)
			}
			return len(actions) > 0 && actions[len(actions)-1] == "destroy"
		})
		if got, want := strings.Join(actions, " "), "create attach start die destroy"; got != want {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}

func TestPs(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Berth("run", "-d", "--name", "runs", "-l", "tier=web", img, "sleep", "100")
	e.Berth("run", "-d", "--name", "sleeps", "-l", "tier=db", img, "sleep", "100")
	e.Berth("pause", "sleeps")
	e.Client("berth").Run("run", "--name", "failed", img, "sh", "-c", "exit 5")
	e.Berth("create", "--name", "made", img, "true")
	cases := []struct {
		args []string
		want string
	}{
		{nil, "sleeps runs"},
		{[]string{"-a"}, "made failed sleeps runs"},
		{[]string{"-n", "2"}, "made failed"},
		{[]string{"-l"}, "made"},
		{[]string{"-f", "status=paused"}, "sleeps"},
		{[]string{"-f", "status=created"}, "made"},
		{[]string{"-a", "-f", "exited=5"}, "failed"},
		{[]string{"-f", "label=tier"}, "sleeps runs"},
		{[]string{"-f", "label=tier=web"}, "runs"},
		{[]string{"-a", "-f", "name=ma"}, "made"},
		{[]string{"-a", "-f", "name=^fail"}, "failed"},
		{[]string{"-a", "-f", "ancestor=" + img}, "made failed sleeps runs"},
		{[]string{"-a", "-f", "before=failed"}, "sleeps runs"},
		{[]string{"-a", "-f", "since=sleeps"}, "made failed"},
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, tc := range cases {
			args := append([]string{"ps", "--format", "{{.Names}}"}, tc.args...)
			if got := strings.Join(strings.Fields(c.Must(args...)), " "); got != tc.want {
				t.Errorf("%q: %q, want %q", args, got, tc.want)
			}
		}
		table := c.Must("ps", "-a")
		for _, want := range []string{"CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "(Paused)", "Exited (5)", "Created", `"sleep 100"`} {
			if !strings.Contains(table, want) {
				t.Errorf("no %q in\n%s", want, table)
			}
		}
		if got := c.Must("container", "ls", "-q", "--no-trunc"); len(strings.Fields(got)) != 2 || len(strings.Fields(got)[0]) != 64 {
			t.Errorf("ps -q --no-trunc: %q", got)
		}
		if got := c.Must("ps", "-as", "--format", "{{.Size}}"); !strings.Contains(got, "virtual") {
			t.Errorf("sizes: %q", got)
		}
	})
	// Both show the same table. It has times: the two may fall into different seconds.
	var d, b string
	for range 20 {
		if d, b = e.Docker("ps", "-a"), e.Berth("ps", "-a"); d == b {
			return
		}
	}
	t.Errorf("docker ps:\n%s\nberth ps:\n%s", d, b)
}

func TestTopStatsUpdate(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "-d", "--name", "busy", "-m", "64m", img, "sleep", "1234")
		if out := c.Must("top", "busy"); !strings.Contains(out, "sleep 1234") || !strings.Contains(out, "PID") {
			t.Errorf("top: %s", out)
		}
		if out := c.Must("top", "busy", "-o", "pid,comm"); !strings.Contains(out, "COMMAND") || !strings.Contains(out, "sleep") {
			t.Errorf("top -o: %s", out)
		}
		if out := c.Must("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "busy"); !strings.HasPrefix(out, "busy ") || !strings.Contains(out, "64MiB") || !strings.HasSuffix(out, " 1") {
			t.Errorf("stats: %q", out)
		}
		if out := c.Must("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}"); !strings.HasPrefix(out, "busy ") || !strings.Contains(out, "64MiB") || !strings.HasSuffix(out, " 1") {
			t.Errorf("stats of all: %q", out)
		}
		c.Must("update", "-m", "128m", "--memory-swap", "-1", "--restart", "no", "busy")
		if got := c.Inspect("busy", "{{.HostConfig.Memory}}"); got != "134217728" {
			t.Errorf("memory after update: %s", got)
		}
		c.Must("rm", "-f", "busy")
	})
}

func TestPrune(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		id := c.Must("create", img, "true")
		c.Must("run", "-d", "--name", "stays", img, "sleep", "100")
		if out := c.Must("container", "prune", "-f"); !strings.Contains(out, id) || !strings.Contains(out, "Total reclaimed space") {
			t.Errorf("prune: %s", out)
		}
		if got := c.Must("ps", "-a", "--format", "{{.Names}}"); got != "stays" {
			t.Errorf("after prune: %s", got)
		}
		// Of everything: containers by label and age, and what no container uses.
		labelled := c.Must("create", "-l", "keep=yes", img, "true")
		plain := c.Must("create", img, "true")
		if out := c.Must("system", "prune", "-f", "--filter", "until=1h"); strings.Contains(out, plain) {
			t.Errorf("system prune of old ones: %s", out)
		}
		if out := c.Must("system", "prune", "-f", "--volumes", "--filter", "label!=keep"); !strings.Contains(out, plain) || strings.Contains(out, labelled) {
			t.Errorf("system prune: %s", out)
		}
		if r := c.Run("system", "prune", "-f", "--filter", "bad=1"); r.Code == 0 || !strings.Contains(r.Err, "invalid filter 'bad'") {
			t.Errorf("system prune with a bad filter: %+v", r)
		}
		c.Must("rm", labelled)
		for _, kind := range []string{"network", "volume", "image"} {
			if out := c.Must(kind, "prune", "-f"); !strings.Contains(out, "Total reclaimed space: 0B") && kind != "network" {
				t.Errorf("%s prune: %s", kind, out)
			}
		}
		c.Must("rm", "-f", "stays")
	})
}

func TestVersions(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	var v struct{ ApiVersion, MinAPIVersion string } //nolint:revive // the API's names
	e.Call(http.MethodGet, "/version", nil, &v)
	if v.MinAPIVersion != "1.24" || v.ApiVersion == "" {
		t.Errorf("versions %+v", v)
	}
	for _, path := range []string{"/v1.24/containers/json", "/v1.30/info", "/v1.41/images/json", "/v" + v.ApiVersion + "/containers/json", "/containers/json"} {
		if status, body := e.Call(http.MethodGet, path, nil, nil); status != http.StatusOK {
			t.Errorf("GET %s: %d %s", path, status, body)
		}
	}
	for path, want := range map[string]int{
		"/v1.23/info": http.StatusBadRequest, "/v1.999/info": http.StatusBadRequest, "/no/such/page": http.StatusNotFound, "/containers/nobody/json": http.StatusNotFound,
	} {
		status, body := e.Call(http.MethodGet, path, nil, nil)
		var m struct{ Message string }
		if err := json.Unmarshal([]byte(body), &m); status != want || err != nil || m.Message == "" {
			t.Errorf("GET %s: %d %s, want %d and a message", path, status, body, want)
		}
	}
	resp, err := e.HTTP.Head("http://berth/_ping")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, h := range []string{"Api-Version", "Ostype", "Docker-Experimental", "Server"} {
		if resp.Header.Get(h) == "" {
			t.Errorf("no header %s in the answer to _ping", h)
		}
	}
	for _, c := range e.Clients() {
		if out := c.Must("version", "--format", "{{.Server.Os}}"); out != "linux" {
			t.Errorf("version: %q", out)
		}
		if out := c.Must("info", "--format", "{{.Driver}} {{.OSType}}"); !strings.HasSuffix(out, " linux") {
			t.Errorf("info: %q", out)
		}
	}
}

// A removal that comes while a restart policy starts the container once more.
func TestRemoveRestarting(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	for i := range 24 {
		c.Must("run", "-d", "--name", "again", "--restart", "always", img, "false")
		time.Sleep(time.Duration(95+i%12) * time.Millisecond) // the first restart comes after 100 ms
		c.Must("rm", "-f", "again")
	}
}
