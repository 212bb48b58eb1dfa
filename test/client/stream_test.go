package client

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

func terminate(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "--name", "writer", img, "sh", "-c", "for i in 1 2 3 4 5; do echo out $i; done; echo err >&2")
		r := c.Run("logs", "writer")
		if r.Out != "out 1\nout 2\nout 3\nout 4\nout 5\n" || r.Err != "err\n" {
			t.Errorf("logs: %q and %q", r.Out, r.Err)
		}
		if out := c.Run("logs", "--tail", "2", "writer"); strings.Count(out.Out+out.Err, "\n") != 2 {
			t.Errorf("--tail 2: %q %q", out.Out, out.Err)
		}
		if out := c.Run("logs", "-n", "0", "writer"); out.Out+out.Err != "" {
			t.Errorf("-n 0: %q", out.Out+out.Err)
		}
		line, _, _ := strings.Cut(c.Must("logs", "-t", "writer"), "\n")
		stamp, text, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || text != "out 1" {
			t.Errorf("-t: %q", line)
		}

		c.Must("run", "-d", "--name", "slow", img, "sh", "-c", "echo early; sleep 1.2; echo late; sleep 0.3")
		if out := c.Must("logs", "-f", "slow"); out != "early\nlate" {
			t.Errorf("-f: %q", out)
		}
		if out := c.Must("logs", "--since", "1h", "slow"); out != "early\nlate" {
			t.Errorf("--since 1h: %q", out)
		}
		stamp, _, _ = strings.Cut(c.Must("logs", "-t", "--tail", "1", "slow"), " ")
		if out := c.Must("logs", "--since", stamp, "slow"); out != "late" {
			t.Errorf("--since %s: %q", stamp, out)
		}
		when, _ := time.Parse(time.RFC3339Nano, stamp)
		if out := c.Must("logs", "--until", when.Add(-time.Millisecond).Format(time.RFC3339Nano), "slow"); out != "early" {
			t.Errorf("--until: %q", out)
		}
		c.Must("rm", "writer", "slow")
	})
}

// Logs are bounded unless the user says otherwise, and rotate without a loss.
func TestLogRotation(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "--name", "much", "--log-opt", "max-size=20k", "--log-opt", "max-file=3", img, "sh", "-c", "for i in $(seq 2000); do echo line $i; done")
	lines := strings.Fields(strings.ReplaceAll(c.Must("logs", "much"), "line ", ""))
	if n := len(lines); n < 300 || n > 1500 || lines[n-1] != "2000" {
		t.Fatalf("%d lines are kept, the last is %q", n, lines[n-1])
	}
	for i, l := range lines {
		if want := 2000 - len(lines) + 1 + i; l != fmt.Sprint(want) {
			t.Fatalf("line %d is %s, want %d", i, l, want)
		}
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "-d", "--name", "target", "-e", "FROM=create", "-w", "/home", img, "sleep", "1000")
		for _, tc := range []struct {
			args []string
			in   string
			out  string
			err  string
			code int
		}{
			{args: []string{"target", "echo", "hi"}, out: "hi"},
			{args: []string{"target", "pwd"}, out: "/home"},
			{args: []string{"-w", "/tmp", "target", "pwd"}, out: "/tmp"},
			{args: []string{"-e", "X=y", "target", "sh", "-c", "echo $FROM $X"}, out: "create y"},
			{args: []string{"-u", "berth", "target", "id", "-un"}, out: "berth"},
			{args: []string{"-u", "1000:2000", "target", "id", "-g"}, out: "2000"},
			{args: []string{"-i", "target", "cat"}, in: "typed", out: "typed"},
			{args: []string{"target", "sh", "-c", "exit 9"}, code: 9},
			{args: []string{"target", "sh", "-c", "kill -9 $$"}, code: 137}, // not pid 1: it may
			{args: []string{"target", "no-such-command"}, code: 127, err: "executable file not found in $PATH"},
			{args: []string{"target", "/etc/passwd"}, code: 126, err: "permission denied"},
			{args: []string{"--privileged", "target", "sh", "-c", "grep CapEff /proc/self/status"}, out: capabilities(t)},
		} {
			r := c.RunIn(strings.NewReader(tc.in), append([]string{"exec"}, tc.args...)...)
			if r.Code != tc.code || tc.out != "" && strings.TrimSpace(r.Out) != tc.out || !strings.Contains(r.Err+r.Out, tc.err) {
				t.Errorf("%q: %d %q %q; want %d %q %q", r.Args, r.Code, r.Out, r.Err, tc.code, tc.out, tc.err)
			}
		}
		c.Must("exec", "-d", "target", "sh", "-c", "echo done > /tmp/detached")
		enginetest.Eventually(t, "the detached exec", func() bool { return c.Run("exec", "target", "cat", "/tmp/detached").Out == "done\n" })

		con := c.Console(t, "exec", "-it", "target", "sh")
		con.Send("tty; stty size; echo $((6*7))\n")
		con.Expect("/dev/pts/")
		con.Expect("24 80")
		con.Expect("42")
		con.Resize(30, 111)
		con.Send("until [ \"$(stty size)\" = '30 111' ]; do sleep 0.05; done; echo resi''zed\n")
		con.Expect("resized")
		con.Send("exit 5\n")
		if code := con.Wait(); code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
		c.Must("rm", "-f", "target")
		if r := c.Run("exec", "target", "true"); r.Code != 1 || !strings.Contains(r.Err, "No such container: target") {
			t.Errorf("exec in a removed one: %d %q", r.Code, r.Err)
		}
	})
}

// capabilities is the line of all capabilities that there are to have here.
func capabilities(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "CapBnd"); ok {
			return "CapEff" + strings.TrimSpace(rest)
		}
	}
	t.Fatal("no capabilities in /proc/self/status")
	return ""
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		con := c.Console(t, "run", "-it", "--name", "shell", "-e", "PS1=> ", img, "sh")
		con.Expect("> ")
		con.Send("stty size; echo one-$((1+1))\n")
		con.Expect("24 80")
		con.Expect("one-2")
		con.Resize(40, 120)
		con.Send("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo resi''zed\n")
		con.Expect("resized")
		con.Send("sleep 100\n") // job control: Ctrl-C ends the job, not the shell
		time.Sleep(300 * time.Millisecond)
		con.Send("\x03")
		con.Send("echo still-$((2+2))\n")
		con.Expect("still-4")
		con.Send("\x10\x11") // detach: Ctrl-P Ctrl-Q
		if code := con.Wait(); code != 0 {
			t.Errorf("detaching: exit code %d", code)
		}
		if got := c.Inspect("shell", "{{.State.Running}}"); got != "true" {
			t.Fatal("detaching has ended the container")
		}

		con = c.Console(t, "attach", "--detach-keys", "ctrl-x,d", "shell")
		con.Send("echo back-$((3+3))\n")
		con.Expect("back-6")
		con.Send("\x18d")
		con.Wait()

		con = c.Console(t, "attach", "shell")
		con.Send("exit 6\n")
		if code := con.Wait(); code != 6 {
			t.Errorf("attach: exit code %d, want 6", code)
		}
		con = c.Console(t, "start", "-ai", "shell")
		con.Send("echo again-$((4+4)); exit 2\n")
		con.Expect("again-8")
		if code := con.Wait(); code != 2 {
			t.Errorf("start -ai: exit code %d, want 2", code)
		}
		c.Must("rm", "shell")
	})
}

func TestAttach(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "-di", "--name", "cat", img, "sh", "-c", `while read l && [ $l != end ]; do echo "out $l"; echo "err $l" >&2; done; exit 3`)
		r := c.RunIn(strings.NewReader("a\nb\nend\n"), "attach", "cat")
		if r.Out != "out a\nout b\n" || r.Err != "err a\nerr b\n" || r.Code != 3 {
			t.Errorf("attach: %d %q and %q", r.Code, r.Out, r.Err)
		}
		c.Must("rm", "-f", "cat")
		c.Must("create", "--name", "once", "-i", img, "cat")
		if got := c.MustIn("hello\n", "start", "-ai", "once"); got != "hello" {
			t.Errorf("start -ai: %q", got)
		}
		c.Must("rm", "once")
	})
}
