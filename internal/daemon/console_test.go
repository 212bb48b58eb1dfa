package daemon

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestConsole(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(newConsole(&b, slog.LevelInfo)).With("id", 7)
	log.Debug("unseen")
	log.Warn("short", "a", "b c")
	slog.New(newConsole(&b, slog.LevelInfo)).Info("bare")
	lines := strings.Split(b.String(), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "\x1b[33mWARN\x1b[0m[") || !strings.HasSuffix(lines[0], "] short"+strings.Repeat(" ", 39)+` id=7 a="b c"`) {
		t.Errorf("%q", lines)
	}
	if !strings.HasPrefix(lines[1], "\x1b[36mINFO\x1b[0m[") || !strings.HasSuffix(lines[1], "] bare") {
		t.Errorf("%q", lines[1])
	}
}
