// Package survive holds the tests of crashes: berthd and the keeper are killed,
// replaced and started anew under running containers, and nothing may be lost.
package survive
