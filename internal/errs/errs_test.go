package errs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestText(t *testing.T) {
	for want, err := range map[string]error{
		"plain 5":            New(Invalid, "plain %d", 5),
		"with EOF inside":    New(Invalid, "with %w inside", io.EOF),
		"context: EOF":       Wrap(NotFound, io.EOF, "context"),
		"EOF":                Wrap(NotFound, io.EOF, ""),
		"outer: inner: EOF":  Wrap(Conflict, Wrap(NotFound, io.EOF, "inner"), "outer"),
		"outer: said of EOF": Wrap(Conflict, New(NotFound, "said of %w", io.EOF), "outer"),
		"only message":       &Error{Msg: "only message"},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
	}
	if Wrap(Internal, nil, "x") != nil {
		t.Error("nil became an error")
	}
}

func TestKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{New(NotFound, "x"), NotFound},
		{fmt.Errorf("a: %w", New(Conflict, "x")), Conflict},
		{io.EOF, Internal},
		{nil, Internal},
		{Wrap(Invalid, New(NotFound, "x"), "outermost counts"), Invalid},
		{context.Canceled, Canceled},
		{fmt.Errorf("a: %w", context.Canceled), Canceled},
		{Wrap(Unavailable, context.Canceled, ""), Unavailable},
		{errors.Join(io.EOF, New(Forbidden, "x")), Forbidden},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	if Is(nil, Internal) || !Is(io.EOF, Internal) || Is(io.EOF, Invalid) {
		t.Error("Is")
	}
}

func TestCauseIsReachable(t *testing.T) {
	for _, err := range []error{New(Invalid, "x %w", io.EOF), Wrap(Invalid, io.EOF, "x"), Wrap(Internal, New(Invalid, "y %w", io.EOF), "x")} {
		if !errors.Is(err, io.EOF) {
			t.Errorf("%v lost its cause", err)
		}
	}
}

func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for k := Internal; k <= Canceled; k++ {
		if n := k.String(); n == "unknown" || seen[n] {
			t.Errorf("%d is %q", k, n)
		}
		seen[k.String()] = true
	}
	if Kind(99).String() != "unknown" {
		t.Error("a kind that is none")
	}
}
