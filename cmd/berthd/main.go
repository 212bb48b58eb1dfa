// Command berthd is the engine. Started under the name dockerd it looks for
// dockerd's configuration file; under the name registry, or with that word first, it is a
// registry of images and no engine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"berth.dev/berth/internal/daemon"
)

func main() {
	// The first thread is the process to those who look from outside, by /proc/PID/ns.
	// Work in the namespaces of containers is done by threads that end with it, which
	// the first one cannot: it is kept for this goroutine.
	runtime.LockOSThread()
	program, args := filepath.Base(os.Args[0]), os.Args[1:]
	named := program == "registry"
	if named || len(args) > 0 && args[0] == "registry" {
		if !named {
			args = args[1:]
		}
		runtime.UnlockOSThread() // a registry joins no namespaces
		os.Exit(daemon.Registry(context.Background(), args, os.Stdout, os.Stderr))
	}
	c, err := daemon.Parse(program, args, os.Stdout)
	switch {
	case errors.Is(err, daemon.ErrHelp):
		return
	case errors.Is(err, daemon.ErrVersion):
		fmt.Printf("Berth version %s, build %s\n", daemon.Version, daemon.GitCommit)
		return
	case err == nil && c.Validate:
		fmt.Fprintln(os.Stderr, "configuration OK")
		return
	case err == nil:
		err = daemon.Run(context.Background(), c, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
