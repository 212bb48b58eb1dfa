// Package stress holds the long test of the life cycle: many containers, many
// clients, random order, an engine that is killed all the time.
package stress
