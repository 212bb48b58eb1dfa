package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// runHook runs one hook with the state on its stdin (runtime.md, config.md
// "POSIX-platform Hooks").
func runHook(h *specs.Hook, st *specs.State) error {
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(raw), &out, &out
	cmd.WaitDelay = time.Second // a grandchild may hold the output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("error running hook: hook ran past specified timeout of %.1fs", time.Duration(*h.Timeout*int(time.Second)).Seconds())
		}
		return fmt.Errorf("error running hook: %w, stdout and stderr: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
