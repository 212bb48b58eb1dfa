// Package system holds the tests with a real system in a container: a Debian that
// debootstrap has made, a person at its shell, a package manager, a daemon.
package system
