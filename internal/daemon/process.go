package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/atomicfile"
)

// setLog makes the process's log what c says. The returned variable changes
// its level later.
func setLog(c *Config) *slog.LevelVar {
	level := &slog.LevelVar{}
	level.Set(logLevel(c))
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: levelName}
	var h slog.Handler
	switch {
	case c.Log.Format == "json":
		h = slog.NewJSONHandler(os.Stderr, o)
	case !c.Log.Raw && isTerminal(os.Stderr):
		h = newConsole(os.Stderr, level)
	default:
		h = slog.NewTextHandler(os.Stderr, o)
	}
	slog.SetDefault(slog.New(h))
	return level
}

// levelName writes levels as dockerd does: what reads its log reads this one.
func levelName(groups []string, a slog.Attr) slog.Attr {
	if a.Key != slog.LevelKey || len(groups) > 0 {
		return a
	}
	switch l, _ := a.Value.Any().(slog.Level); {
	case l < slog.LevelInfo:
		a.Value = slog.StringValue("debug")
	case l < slog.LevelWarn:
		a.Value = slog.StringValue("info")
	case l < slog.LevelError:
		a.Value = slog.StringValue("warning")
	default:
		a.Value = slog.StringValue("error")
	}
	return a
}

func logLevel(c *Config) slog.Level {
	if c.Debug {
		return slog.LevelDebug
	}
	switch c.Log.Level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	case "fatal":
		return slog.LevelError + 4
	default:
		return slog.LevelInfo
	}
}

// writePidFile claims path for this process, or fails when the process that it
// names is alive.
func writePidFile(path string) (remove func(), err error) {
	if b, err := os.ReadFile(path); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err == nil && pid != os.Getpid() && isEngine(pid) {
			return nil, fmt.Errorf("failed to start daemon, ensure docker is not running or delete %s: process with PID %d is still running", path, pid)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := atomicfile.WriteNoSync(path, []byte(strconv.Itoa(os.Getpid())), 0o644, false); err != nil {
		return nil, fmt.Errorf("failed to start daemon: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil
}

// isEngine reports whether pid is alive and not a process that got an old
// engine's number by chance.
func isEngine(pid int) bool {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return false // gone, or a zombie: it holds nothing any more
	}
	own, err := os.Executable()
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return err != nil || name == filepath.Base(own) || name == "dockerd" || name == "berthd"
}

// dumpStacks writes the stacks of all goroutines to a file below dir.
func dumpStacks(dir string) (string, error) {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= 256<<20 {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	path := filepath.Join(dir, "goroutine-stacks-"+strings.ReplaceAll(time.Now().Format(time.RFC3339), ":", "")+".log")
	return path, os.WriteFile(path, buf, 0o600)
}
