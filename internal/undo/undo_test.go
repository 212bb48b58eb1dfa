package undo

import (
	"slices"
	"testing"
)

func TestStack(t *testing.T) {
	var got []int
	var s Stack
	add := func(n int) { s.Add(func() { got = append(got, n) }) }
	add(1)
	add(2)
	s.Add(func() { add(3) }) // what a step adds while it is undone is undone too
	s.Run()
	if !slices.Equal(got, []int{3, 2, 1}) {
		t.Errorf("%v", got)
	}
	s.Run()
	if len(got) != 3 {
		t.Error("run twice")
	}
	add(4)
	s.Release()
	s.Run()
	if len(got) != 3 {
		t.Error("a released step was undone")
	}
}

// A step that panics does not keep the others from a second Run.
func TestPanic(t *testing.T) {
	ran := false
	var s Stack
	s.Add(func() { ran = true })
	s.Add(func() { panic("x") })
	func() {
		defer func() { _ = recover() }()
		s.Run()
	}()
	s.Run()
	if !ran {
		t.Error("a step was lost")
	}
}
