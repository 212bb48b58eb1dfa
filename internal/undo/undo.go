// Package undo is the clean-up stack of work done in numbered steps.
//
//	var u undo.Stack
//	defer u.Run()          // on every early return: newest first
//	… step …; u.Add(func() { … })
//	u.Release()            // all went well: keep what was made
package undo

// Stack holds clean-up functions. The zero value is ready. It is not safe for
// use by several goroutines.
type Stack struct{ fns []func() }

// Add pushes fn, to be run before everything added so far.
func (s *Stack) Add(fn func()) { s.fns = append(s.fns, fn) }

// Run calls the functions, newest first, and empties the stack.
func (s *Stack) Run() {
	for len(s.fns) > 0 {
		fn := s.fns[len(s.fns)-1]
		s.fns = s.fns[:len(s.fns)-1]
		fn()
	}
}

// Release empties the stack without calling anything.
func (s *Stack) Release() { s.fns = nil }
