package survive

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

const img = enginetest.Image

// Containers run on, and their logs lose no line and double none, while berthd
// is killed again and again.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Berth("run", "-d", "--name", "counter", img, "sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; usleep 500; done")
	e.Berth("run", "-d", "--name", "quick", img, "sh", "-c", "sleep 0.7; exit 33")
	e.Berth("run", "-d", "--rm", "--name", "gone", img, "sleep", "0.7")
	pid := e.Client("berth").Inspect("counter", "{{.State.Pid}}")
	for range 4 {
		e.Kill9Daemon()
		time.Sleep(250 * time.Millisecond)
		e.StartDaemon()
	}
	c := e.Client("berth")
	if got := c.Inspect("counter", "{{.State.Pid}}"); got != pid && got != "0" {
		t.Errorf("the container has another process: %s, was %s", got, pid)
	}
	if got := c.Must("wait", "quick"); got != "33" {
		t.Errorf("the exit code from the time without an engine: %s, want 33", got)
	}
	enginetest.Eventually(t, "the --rm container is removed", func() bool { return c.Run("inspect", "gone").Code != 0 })
	if got := c.Must("wait", "counter"); got != "0" {
		t.Errorf("counter ended with %s", got)
	}
	checkLines(t, c.Must("logs", "counter"), 3000)
}

func checkLines(t *testing.T, text string, want int) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		if l != fmt.Sprint("line ", i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
	if len(lines) != want {
		t.Fatalf("%d lines, want %d", len(lines), want)
	}
}

// A killed keeper takes no container with it: the next one adopts them.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "counter", img, "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; usleep 1000; done; exit 12")
	c.Must("run", "-d", "--name", "stays", img, "sleep", "1000")
	pid := c.Inspect("stays", "{{.State.Pid}}")
	time.Sleep(300 * time.Millisecond)
	e.KillKeeper()
	enginetest.Eventually(t, "a new keeper", func() bool { return len(e.KeeperPIDs()) == 1 })
	if got := c.Inspect("stays", "{{.State.Status}} {{.State.Pid}}"); got != "running "+pid {
		t.Fatalf("after the keeper's death: %s, want running %s", got, pid)
	}
	if got := c.Must("exec", "stays", "echo", "alive"); got != "alive" {
		t.Errorf("exec: %q", got)
	}
	if got := c.Must("run", "--rm", img, "echo", "new"); got != "new" {
		t.Errorf("a new container: %q", got)
	}
	// An older kernel tells the exit code of a process to its parent alone, which is gone: then it is known
	// only if nobody has asked for it yet.
	if got := c.Must("wait", "counter"); got != "12" && (got != "255" || enginetest.KernelAtLeast(6, 15)) {
		t.Errorf("the exit code of an adopted container: %s, want 12", got)
	}
	checkLines(t, c.Must("logs", "counter"), 2000)
	c.Must("stop", "-t", "0", "stays")
	if got := c.Inspect("stays", "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 137" {
		t.Errorf("after stop: %s", got)
	}
}

// Both at once: nobody is left who knows, but the containers run.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "stays", img, "sleep", "1000")
	pid := c.Inspect("stays", "{{.State.Pid}}")
	e.Kill9Daemon()
	e.KillKeeper()
	e.StartDaemon()
	if got := c.Inspect("stays", "{{.State.Status}} {{.State.Pid}}"); got != "running "+pid {
		t.Errorf("%s, want running %s", got, pid)
	}
	c.Must("rm", "-f", "stays")
	// A dead process may stay a zombie of the machine's init for a while.
	if b, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("the process is still there: %s", b)
	}
}

// After a reboot nothing runs, the records tell so, and what shall run again does.
func TestReboot(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "plain", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "again", "--restart", "always", img, "sleep", "1000")
	c.Must("run", "-d", "--rm", "--name", "volatile", img, "sleep", "1000")
	c.Must("create", "--name", "made", img, "true")
	c.Run("run", "--name", "ended", img, "sh", "-c", "exit 4")
	var pids []int
	for _, name := range []string{"plain", "again", "volatile"} {
		n, err := strconv.Atoi(c.Inspect(name, "{{.State.Pid}}"))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, n)
	}
	e.Kill9Daemon()
	e.KillKeeper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(e.ExecRoot); err != nil {
		t.Fatal(err)
	}
	e.StartDaemon()
	if got := c.Inspect("plain", "{{.State.Status}} {{.State.Running}} {{.State.Pid}}"); got != "exited false 0" {
		t.Errorf("plain: %s", got)
	}
	enginetest.Eventually(t, "the restart policy's effect", func() bool { return c.Inspect("again", "{{.State.Status}}") == "running" })
	if got := c.Inspect("ended", "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 4" {
		t.Errorf("ended: %s", got)
	}
	if got := c.Inspect("made", "{{.State.Status}}"); got != "created" {
		t.Errorf("made: %s", got)
	}
	enginetest.Eventually(t, "the --rm container is removed", func() bool { return c.Run("inspect", "volatile").Code != 0 })
	c.Must("start", "plain")
	c.Must("exec", "plain", "true")
}

// A new keeper program takes over from the old one, with all containers,
// attached sessions and logs.
func TestKeeperUpgrade(t *testing.T) {
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
	c.Must("run", "-d", "--name", "counter", img, "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; usleep 1000; done; exit 21")
	c.Must("run", "-dit", "--name", "shell", img, "sh")
	keeper := e.KeeperPIDs()[0]
	program := func() string { p, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", keeper)); return p }
	before := program()
	e.SetBin(next)
	e.Restart()
	if got := e.KeeperPIDs(); len(got) != 1 || got[0] != keeper {
		t.Fatalf("keepers %v, want the process %d", got, keeper)
	}
	if after := program(); after == before {
		t.Errorf("the keeper still runs %s", after)
	}
	con := c.Console(t, "attach", "shell")
	con.Send("echo works-$((1+1)); exit 8\n")
	con.Expect("works-2")
	if code := con.Wait(); code != 8 {
		t.Errorf("attach: exit code %d, want 8", code)
	}
	if got := c.Must("wait", "counter"); got != "21" {
		t.Errorf("exit code %s, want 21", got)
	}
	checkLines(t, c.Must("logs", "counter"), 2000)
}

// otherKeeper makes a keeper with another build id: the one that stands ready
// beside the programs, as on a machine without Go, or a new one.
func otherKeeper(t *testing.T, bin, to string) {
	t.Helper()
	if err := copyFile(filepath.Join(bin, "other", "berth-keeper"), to); err == nil {
		return
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=another", "-o", to, "./cmd/berth-keeper")
	build.Dir = enginetest.Root()
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// Kills between create, start and remove leave either the whole or nothing.
func TestKilledAtWork(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	stop := make(chan struct{})
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			c := e.Client("berth")
			for {
				select {
				case <-stop:
					return
				default:
					c.Run("run", "--rm", img, "true") // fails while there is no engine
				}
			}
		})
	}
	for i := range 6 {
		time.Sleep(time.Duration(100+37*i) * time.Millisecond)
		e.Restart()
	}
	close(stop)
	work.Wait()
	e.Restart()
	if got := e.Berth("run", "--rm", img, "echo", "fine"); got != "fine" {
		t.Errorf("afterwards: %q", got)
	}
}
