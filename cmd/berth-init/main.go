// Command berth-init writes the init program of the machine's architecture, or
// of the one named by GOARCH in the first argument, to the file named last.
// The build calls it to make bin/berth-init, and nothing at run time needs that
// file: the keeper holds the same bytes.
package main

import (
	"fmt"
	"os"
	"runtime"

	"berth.dev/berth/internal/runtime/initprog"
)

func main() {
	arch, args := runtime.GOARCH, os.Args[1:]
	if len(args) == 2 {
		arch, args = args[0], args[1:]
	}
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "usage: berth-init [GOARCH] FILE")
		os.Exit(2)
	}
	b, err := initprog.ELF(arch)
	if err == nil {
		err = os.WriteFile(args[0], b, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth-init:", err)
		os.Exit(1)
	}
}
