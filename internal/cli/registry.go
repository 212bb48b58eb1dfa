package cli

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"
)

// registryCmd hands "berth registry COMMAND" over to berthd, which has the registry and
// knows its options; this program goes on without what they need.
func registryCmd(_ *CLI, c *cobra.Command) {
	c.DisableFlagParsing = true
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := enginePath()
		if err != nil {
			return err
		}
		err = syscall.Exec(path, append([]string{"berthd", "registry", c.Name()}, args...), os.Environ())
		return fmt.Errorf("cannot run %s: %w", path, err)
	}
}
