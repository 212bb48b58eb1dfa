// Command berth-keeper is the parent of every container. berthd starts it.
package main

import (
	"os"

	"berth.dev/berth/internal/keeper"
)

func main() { os.Exit(keeper.Main(os.Args[1:])) }
