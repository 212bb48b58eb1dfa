package client

import (
	"os/exec"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// Other OCI runtimes run containers by the same commands: runc, crun, and the
// engine's own one by its command line.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	enginetest.RequireRoot(t)
	args := []string{"--add-runtime", "own=" + enginetest.Binaries(t) + "/berth-runtime", "--add-runtime", "gone=/nonexistent/runtime"}
	names := []string{"own"}
	for _, name := range []string{"runc", "crun"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%s is not installed: see scripts/install-test-deps", name)
		}
		if name == "crun" && !enginetest.CgroupV2() {
			continue // Debian's crun refuses the mixed hierarchies of this machine
		}
		args = append(args, "--add-runtime", name+"2="+path)
		names = append(names, name+"2")
	}
	e := enginetest.Start(t, enginetest.WithArgs(args...))
	for _, rt := range names {
		t.Run(rt, func(t *testing.T) {
			c := e.Client("docker")
			if r := c.Run("run", "--rm", "--runtime", rt, "-e", "A=b", "--hostname", "box", img, "sh", "-c", "echo $A; hostname; echo err >&2; exit 3"); r.Code != 3 || r.Out != "b\nbox\n" || r.Err != "err\n" {
				t.Errorf("run: %+v", r)
			}
			if got := c.MustIn("piped", "run", "--rm", "-i", "--runtime", rt, img, "cat"); got != "piped" {
				t.Errorf("stdin: %q", got)
			}
			if got := c.Must("run", "--rm", "-t", "--runtime", rt, img, "tty"); !strings.HasPrefix(got, "/dev/") {
				t.Errorf("terminal: %q", got)
			}
			if r := c.Run("run", "--rm", "--runtime", rt, img, "nope"); r.Code != 127 {
				t.Errorf("a program that is not there: %+v", r)
			}
			c.Must("run", "-d", "--name", "long", "--runtime", rt, "-m", "64m", "-v", "/tmp:/host:ro", img, "sleep", "100")
			if got := c.Inspect("long", "{{.HostConfig.Runtime}}"); got != rt {
				t.Errorf("inspect says %q", got)
			}
			if got := c.Must("exec", "long", "sh", "-c", "grep -c ' /host ' /proc/mounts; grep Seccomp: /proc/self/status; grep CapEff /proc/self/status"); got != "1\nSeccomp:\t2\nCapEff:\t00000000a80425fb" {
				t.Errorf("exec: %q", got)
			}
			if r := c.Run("exec", "long", "sh", "-c", "exit 5"); r.Code != 5 {
				t.Errorf("exec: %+v", r)
			}
			if got := c.Must("exec", "-t", "long", "tty"); !strings.HasPrefix(got, "/dev/") {
				t.Errorf("terminal of an exec: %q", got)
			}
			c.Must("pause", "long")
			c.Must("unpause", "long")
			c.Must("update", "-m", "80m", "--memory-swap", "160m", "long")
			if got := c.Must("stats", "--no-stream", "--format", "{{.MemUsage}}", "long"); !strings.Contains(got, "80MiB") {
				t.Errorf("limit after an update: %q", got)
			}
			if got := c.Must("top", "long", "-o", "pid,args"); !strings.Contains(got, "sleep 100") {
				t.Errorf("top: %q", got)
			}
			// The engine, then its keeper, are killed: the container goes on, and its end is seen.
			pid := c.Inspect("long", "{{.State.Pid}}")
			e.Restart()
			if got := c.Inspect("long", "{{.State.Running}} {{.State.Pid}}"); got != "true "+pid {
				t.Errorf("after a restart of the engine: %s", got)
			}
			e.KillKeeper()
			enginetest.Eventually(t, "a new keeper", func() bool { return c.Run("exec", "long", "true").Code == 0 })
			c.Must("kill", "long")
			enginetest.Eventually(t, "the end", func() bool { return c.Inspect("long", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137" })
			c.Must("start", "long")
			c.Must("rm", "-f", "long")
		})
	}
	c := e.Client("docker")
	if r := c.Run("run", "--rm", "--runtime", "nosuch", img, "true"); r.Code != 125 || !strings.Contains(r.Err, "unknown or invalid runtime name: nosuch") {
		t.Errorf("an unknown runtime: %+v", r)
	}
	if r := c.Run("run", "--rm", "--runtime", "gone", img, "true"); r.Code == 0 || !strings.Contains(r.Err, "/nonexistent/runtime") {
		t.Errorf("a runtime that is not there: %+v", r)
	}
	if got := c.Must("info", "--format", "{{range $k, $v := .Runtimes}}{{$k}} {{end}}"); !strings.Contains(got, "own") || !strings.Contains(got, "berth") {
		t.Errorf("info: %s", got)
	}
}
