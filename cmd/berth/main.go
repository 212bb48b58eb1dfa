// A command is over before it matters how many threads it may use: the runtime
// neither applies a CPU limit to it nor starts to look for changes of one.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Berth is the command line of the engine.
package main

import (
	"context"
	"os"

	"berth.dev/berth/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}
