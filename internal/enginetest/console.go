package enginetest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Console is a command on a pseudo terminal, as a person would use it.
type Console struct {
	t    testing.TB
	cmd  *exec.Cmd
	pty  *os.File
	done chan struct{}

	mu  sync.Mutex
	out strings.Builder
	at  int // what Expect has passed
}

// Console starts a client's command on a new terminal of 80 columns and 24 rows.
func (c *Client) Console(t testing.TB, args ...string) *Console {
	t.Helper()
	master, slave, err := openPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd := c.Command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	con := &Console{t: t, cmd: cmd, pty: master, done: make(chan struct{})}
	con.Resize(24, 80)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go con.read()
	go func() { _ = cmd.Wait(); close(con.done) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-con.done
		_ = master.Close()
	})
	return con
}

func (c *Console) read() {
	b := make([]byte, 4096)
	for {
		n, err := c.pty.Read(b)
		c.mu.Lock()
		c.out.Write(b[:n])
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Send types.
func (c *Console) Send(s string) {
	c.t.Helper()
	if _, err := c.pty.WriteString(s); err != nil {
		c.t.Fatal(err)
	}
}

// Expect waits until the text appears behind what was expected before.
func (c *Console) Expect(s string) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		i := strings.Index(c.out.String()[c.at:], s)
		if i >= 0 {
			c.at += i + len(s)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
	c.t.Fatalf("%q does not show; the terminal holds:\n%s", s, c.Output())
}

// Output is all that the terminal has shown.
func (c *Console) Output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// Wait waits for the command's end and returns its exit code.
func (c *Console) Wait() int {
	c.t.Helper()
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%q does not end; the terminal holds:\n%s", c.cmd.Args, c.Output())
		return -1
	}
}

// Resize changes the terminal's size, and tells the command, as a window does.
func (c *Console) Resize(rows, columns uint16) {
	c.t.Helper()
	if err := unix.IoctlSetWinsize(int(c.pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		c.t.Fatal(err)
	}
}

func openPTY() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		var n uint32
		if n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		_ = master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}
