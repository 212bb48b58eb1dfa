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
