// Package memory sets how a long-lived process of the engine uses its heap: it
// collects rarely while there is work, and gives back what it does not need
// when there is none.
package memory

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// percent is how far the heap may grow over what is live before it is
	// collected. The heap of an idle engine is small, so this costs a few
	// megabytes during a burst.
	percent = 400
	every   = time.Second
	// busy is the number of bytes allocated in one interval below which the
	// process counts as idle.
	busy = 256 << 10
	// worth is the number of bytes that must have been allocated since the last
	// time for giving memory back to be worth a collection.
	worth = 1 << 20
)

// Tend adjusts the collector and starts to give memory back in quiet moments,
// until the process ends.
func Tend() {
	debug.SetGCPercent(percent)
	go func() {
		sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
		read := func() uint64 {
			metrics.Read(sample)
			return sample[0].Value.Uint64()
		}
		last := read()
		trimmed := last
		for range time.Tick(every) {
			now := read()
			if now-last < busy && now-trimmed > worth {
				debug.FreeOSMemory()
				trimmed = read()
				now = trimmed
			}
			last = now
		}
	}()
}
