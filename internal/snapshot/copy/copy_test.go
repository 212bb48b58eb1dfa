package copy

import (
	"testing"

	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/snapshot/snapshottest"
)

func TestConformance(t *testing.T) {
	snapshottest.Run(t, func(root string) (snapshot.Driver, error) { return Open(root) })
}
