// Package client holds the tests of everyday use: each starts an engine of its
// own and drives it with the unmodified docker client and with berth, one
// success case for each feature.
package client
