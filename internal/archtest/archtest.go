// Package archtest holds the rules of the house that a compiler does not: which
// package may import which, and how large a file or a type may grow. The rules
// are the tables of archtest_test.go; docs/architecture.md explains them.
package archtest
