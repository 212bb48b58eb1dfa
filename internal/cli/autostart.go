package cli

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Where the engine that we start keeps its log, and how long it may take.
const (
	engineLog   = "/run/berth/berthd.log"
	engineLimit = 10 * time.Second
)

// autostart starts berthd when nothing listens on the default socket, and
// returns when it answers. Two commands that do so at once start one engine:
// the second loses the engine's own lock and exits, while its socket answers.
func (cli *CLI) autostart(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("Cannot connect to the Berth daemon at unix://%s. Is the berth daemon running?\n"+ //nolint:staticcheck // Docker's words
			"berth: only root can start the engine; run this command as root, or start berthd first", defaultSocket)
	}
	path, err := enginePath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(engineLog), 0o711); err != nil {
		return err
	}
	log, err := os.OpenFile(engineLog, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	begin, _ := log.Seek(0, 2)
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the engine: %w", err)
	}
	fmt.Fprintf(cli.Err, "berth: started the engine (berthd, pid %d); logs in %s\n", cmd.Process.Pid, engineLog)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	deadline := time.NewTimer(engineLimit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", defaultSocket); err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-exited:
			if conn, derr := net.Dial("unix", defaultSocket); derr == nil { // another command's engine won
				conn.Close()
				return nil
			}
			return fmt.Errorf("the engine ended at once (%s); the last lines of %s:\n%s", exitText(err), engineLog, lastLines(engineLog, begin, 10))
		case <-deadline.C:
			return fmt.Errorf("the engine does not answer on %s after %s; the last lines of %s:\n%s",
				defaultSocket, engineLimit, engineLog, lastLines(engineLog, begin, 10))
		case <-tick.C:
		}
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// enginePath finds berthd beside our own program, else in PATH.
func enginePath() (string, error) {
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		p := filepath.Join(filepath.Dir(self), "berthd")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	p, err := exec.LookPath("berthd")
	if err != nil {
		return "", fmt.Errorf("Cannot connect to the Berth daemon at unix://%s. Is the berth daemon running?\n"+ //nolint:staticcheck // Docker's words
			"berth: the program berthd is neither beside berth nor in PATH", defaultSocket)
	}
	return p, nil
}

// lastLines returns up to n lines of the file after offset from.
func lastLines(path string, from int64, n int) string {
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) < from {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(bytes.TrimSpace(b[from:])), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
