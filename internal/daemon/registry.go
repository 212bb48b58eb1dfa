package daemon

import (
	"context"
	"io"

	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/registryd"
)

// Registry runs the registry's command line, without the program's name, and returns the
// exit code. It is in the engine's program because the built-in image registry is made
// of it, and because berth is to start in milliseconds.
func Registry(ctx context.Context, args []string, out, errOut io.Writer) int {
	return registryd.Main(ctx, args, out, errOut)
}

// builtinImages are those that come with the engine. The registry is this program.
func builtinImages() map[string]func() (io.ReadCloser, error) {
	m := image.Starter()
	if m == nil {
		m = map[string]func() (io.ReadCloser, error){}
	}
	m["registry"] = image.Registry("/proc/self/exe")
	return m
}
