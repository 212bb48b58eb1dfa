package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// console writes the log for a terminal: a coloured level, the time, the message, and
// behind it the attributes, as dockerd does.
type console struct {
	out   *consoleOut
	attrs slog.Handler // writes the attributes into out.line
}

type consoleOut struct {
	mu   sync.Mutex
	w    io.Writer
	line bytes.Buffer
}

// messageWidth is where the attributes begin, unless a message is longer.
const messageWidth = 44

func newConsole(w io.Writer, level slog.Leveler) *console {
	out := &consoleOut{w: w}
	attrs := slog.NewTextHandler(&out.line, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}})
	return &console{out, attrs}
}

// Enabled implements slog.Handler.
func (c *console) Enabled(ctx context.Context, l slog.Level) bool { return c.attrs.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (c *console) WithAttrs(a []slog.Attr) slog.Handler {
	return &console{c.out, c.attrs.WithAttrs(a)}
}

// WithGroup implements slog.Handler.
func (c *console) WithGroup(name string) slog.Handler {
	return &console{c.out, c.attrs.WithGroup(name)}
}

// Handle implements slog.Handler.
func (c *console) Handle(ctx context.Context, r slog.Record) error {
	name, colour := "ERRO", 31
	switch {
	case r.Level < slog.LevelInfo:
		name, colour = "DEBU", 37
	case r.Level < slog.LevelWarn:
		name, colour = "INFO", 36
	case r.Level < slog.LevelError:
		name, colour = "WARN", 33
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.line.Reset()
	if err := c.attrs.Handle(ctx, r); err != nil {
		return err
	}
	attrs := bytes.TrimSpace(c.out.line.Bytes())
	head := fmt.Sprintf("\x1b[%dm%s\x1b[0m[%s] ", colour, name, r.Time.Format(time.RFC3339))
	if len(attrs) == 0 {
		_, err := fmt.Fprintf(c.out.w, "%s%s\n", head, r.Message)
		return err
	}
	_, err := fmt.Fprintf(c.out.w, "%s%-*s %s\n", head, messageWidth, r.Message, attrs)
	return err
}

// isTerminal reports whether a file is one.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
