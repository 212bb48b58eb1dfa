// Command berth-runtime is an OCI runtime: other engines run containers with it.
package main

import (
	"os"

	"berth.dev/berth/internal/bundle"
)

func main() { os.Exit(bundle.Main(os.Args[1:])) }
