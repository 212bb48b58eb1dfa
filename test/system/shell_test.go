package system

import (
	"os"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// A person at a shell: job control, a window that changes its size, leaving and
// coming back, the exit code.
func TestShell(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	importDebian(t, e.Client("berth"))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		name := "shell-" + c.Name
		con := c.Console(t, "run", "-it", "--name", name, "--network", "none", "-e", "PS1=box# ", debian, "bash", "--norc", "--noprofile")
		con.Expect("box# ")
		con.Send("tty; stty size\r")
		con.Expect("/dev/pts/0")
		con.Expect("24 80")

		// The state of the job as the kernel has it, and whether the terminal is its own.
		sleep := func(state string, foreground bool) {
			t.Helper()
			enginetest.Eventually(t, "sleep in the state "+state, func() bool {
				for line := range strings.Lines(c.Run("top", name, "-o", "pid,args").Out) {
					pid, args, _ := strings.Cut(strings.TrimSpace(line), " ")
					if strings.TrimSpace(args) != "sleep 100" {
						continue
					}
					stat, _ := os.ReadFile("/proc/" + pid + "/stat")
					_, rest, _ := strings.Cut(string(stat), ") ")
					// state, parent, process group, session, terminal, its foreground group
					f := strings.Fields(rest)
					return len(f) > 5 && f[0] == state && (f[2] == f[5]) == foreground
				}
				return false
			})
		}
		con.Send("sleep 100\r")
		sleep("S", true)
		con.Send("\x1a")
		con.Expect("Stopped")
		con.Expect("box# ")
		sleep("T", false)
		con.Send("jobs -l\r")
		con.Expect("Stopped")
		con.Expect("sleep 100")
		con.Expect("box# ")
		con.Send("bg\r")
		con.Expect("sleep 100 &")
		con.Expect("box# ")
		sleep("S", false)
		con.Send("jobs\r")
		con.Expect("Running")
		con.Expect("box# ")
		con.Send("fg\r")
		con.Expect("sleep 100")
		sleep("S", true)
		con.Send("\x03")
		con.Expect("^C")
		con.Expect("box# ")
		con.Send("echo code-$?\r")
		con.Expect("code-130")

		con.Resize(40, 120)
		con.Send("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo resized-$((1+1))\r")
		con.Expect("resized-2")
		con.Expect("box# ")

		con.Send("keep=$((40+2))\r")
		con.Expect("box# ")
		con.Send("\x10\x11")
		if code := con.Wait(); code != 0 {
			t.Errorf("detached with %d:\n%s", code, con.Output())
		}
		if got := c.Inspect(name, "{{.State.Running}}"); got != "true" {
			t.Fatalf("running after detach: %s", got)
		}
		con = c.Console(t, "attach", name)
		con.Send("\r")
		con.Expect("box# ")
		con.Send("echo kept-$keep\r")
		con.Expect("kept-42")
		con.Send("exit 7\r")
		if code := con.Wait(); code != 7 {
			t.Errorf("ended with %d:\n%s", code, con.Output())
		}
		if got := c.Inspect(name, "{{.State.Running}} {{.State.ExitCode}}"); got != "false 7" {
			t.Errorf("state: %s", got)
		}
		c.Must("rm", name)
	})
}
