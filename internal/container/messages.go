package container

import (
	"fmt"

	"github.com/moby/moby/api/types/events"

	"berth.dev/berth/internal/errs"
)

// The texts that clients match, in Docker's words. A golden test holds them.

const eventType = events.ContainerEventType

func errNoContainer(ref string) error { return errs.New(errs.NotFound, "No such container: %s", ref) }

func errNotRunning(c *Container) error {
	return errs.New(errs.Conflict, "container %s is not running", c.Record().ID)
}

func errPaused(c *Container) error {
	return errs.New(errs.Conflict, "Container %s is paused, unpause the container before exec", c.Record().ID)
}

func errBusyRemoving(c *Container) error {
	return errs.New(errs.Conflict, "removal of container %s is already in progress", c.Record().ID)
}

// createText is how a specification that the runtime refuses reads.
func createText(reason string) string {
	return fmt.Sprintf("failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: %s: unknown", reason)
}

// startText is how a runtime's failure reads, in run and in exec.
func startText(what, reason string) string {
	if what == "exec" {
		return fmt.Sprintf("OCI runtime exec failed: exec failed: unable to start container process: %s: unknown", reason)
	}
	return fmt.Sprintf("failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: %s: unknown", reason)
}
