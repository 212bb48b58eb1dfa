package client

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// Over ssh a client runs "docker system dial-stdio" (or berth's) on the other
// side. The ssh of this test runs it here, in a shell that knows one of the two.
func TestSSH(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	for _, remote := range []string{"docker", "berth"} {
		dir := t.TempDir()
		there := filepath.Join(dir, "there")
		if err := os.Mkdir(there, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, tool := range []string{"sh"} {
			if err := os.Symlink("/bin/"+tool, filepath.Join(there, tool)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(filepath.Join(e.Bin, "berth"), filepath.Join(there, remote)); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\n" +
			"echo \"$@\" >>" + dir + "/calls\n" +
			"while [ \"$1\" != -- ]; do shift; done; shift 2\n" + // up to the host
			"export DOCKER_HOST=unix://" + e.Socket + " PATH=" + there + "\n" +
			"exec sh -c \"$*\"\n"
		if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		e.Each(t, func(t *testing.T, c *enginetest.Client) {
			if c.Name == "docker" && remote == "berth" {
				return // it asks for docker on the other side
			}
			run := func(in string, args ...string) string {
				t.Helper()
				cmd := c.Command(append([]string{"-H", "ssh://me@elsewhere:2222"}, args...)...)
				cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
				cmd.Stdin = strings.NewReader(in)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%q: %v", args, err)
				}
				return strings.TrimSpace(string(out))
			}
			if got := run("", "run", "--rm", img, "echo", "from afar"); got != "from afar" {
				t.Errorf("run says %q", got)
			}
			if got := run("sent", "run", "-i", "--rm", img, "cat"); got != "sent" {
				t.Errorf("run -i says %q", got)
			}
			calls, _ := os.ReadFile(filepath.Join(dir, "calls"))
			if !strings.Contains(string(calls), "-l me") || !strings.Contains(string(calls), "-p 2222") || !strings.Contains(string(calls), "elsewhere") {
				t.Errorf("ssh was called so: %s", calls)
			}
		})
	}
}

// SIGHUP takes up what may change, tells of it, and leaves running containers alone.
func TestReload(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "daemon.json")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"labels": ["a=1"]}`)
	e := enginetest.Start(t, enginetest.WithArgs("--config-file", file))
	c := e.Client("docker")
	c.Must("run", "-d", "--name", "stays", img, "sleep", "100")
	pid := c.Inspect("stays", "{{.State.Pid}}")
	since := time.Now().Add(-time.Millisecond).Format(time.RFC3339Nano)
	write(`{"labels": ["a=2", "b=3"], "debug": true, "default-shm-size": "1m", "max-concurrent-downloads": 7, "shutdown-timeout": 3, "log-driver": "none"}`)
	e.Reload()
	enginetest.Eventually(t, "new labels", func() bool { return c.Must("info", "--format", "{{.Labels}} {{.Debug}}") == "[a=2 b=3] true" })
	if got := c.Must("run", "--rm", img, "sh", "-c", "df -k /dev/shm | tail -1"); !strings.Contains(got, "1024") {
		t.Errorf("/dev/shm after the reload: %s", got)
	}
	if got := c.Must("info", "--format", "{{.LoggingDriver}}"); got != "json-file" {
		t.Errorf("the log driver is not among what a reload changes: %s", got)
	}
	if got := c.Inspect("stays", "{{.State.Pid}}"); got != pid {
		t.Error("the container was disturbed")
	}
	out := c.Must("events", "--since", since, "--until", time.Now().Format(time.RFC3339Nano), "--filter", "type=daemon", "--format", "{{json .}}")
	var ev struct {
		Action string
		Actor  struct{ Attributes map[string]string }
	}
	if err := json.Unmarshal([]byte(out), &ev); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	at := ev.Actor.Attributes
	if ev.Action != "reload" || at["labels"] != `["a=2","b=3"]` || at["debug"] != "true" || at["max-concurrent-downloads"] != "7" || at["shutdown-timeout"] != "3" || at["live-restore"] != "true" {
		t.Errorf("the event: %+v", ev)
	}
	write(`{"labels": ["no equals sign"]}`) // an error changes nothing
	e.Reload()
	enginetest.Eventually(t, "the error in the log", func() bool { return strings.Contains(e.Log(), "error reconfiguring the daemon") })
	if got := c.Must("info", "--format", "{{.Labels}}"); got != "[a=2 b=3]" {
		t.Errorf("after a broken file: %s", got)
	}
}
