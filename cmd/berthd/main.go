// Command berthd is the engine. Started under the name dockerd it looks for
// dockerd's configuration file.
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
	program := filepath.Base(os.Args[0])
	c, err := daemon.Parse(program, os.Args[1:], os.Stdout)
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
