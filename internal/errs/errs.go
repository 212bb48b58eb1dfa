// Package errs is the one error taxonomy of the engine.
//
// Every error that a user can see carries a Kind. Services return errors made
// here; only the API edge turns a Kind into an HTTP status, and nothing in the
// engine tells errors apart by their text.
package errs

import (
	"context"
	"errors"
	"fmt"
)

// Kind is the closed list of what can be wrong, as a caller sees it.
type Kind uint8

// The kinds, each with the HTTP status that the API edge gives it.
const (
	Internal       Kind = iota // 500: a fault of the engine or of the machine
	Invalid                    // 400: the request makes no sense
	Unauthorized               // 401: credentials are missing or wrong
	Forbidden                  // 403: the request is understood and refused
	NotFound                   // 404: no such object
	Conflict                   // 409: the object's state does not allow it now
	NotModified                // 304: there is nothing to do
	NotImplemented             // 501: this engine cannot do that
	Unavailable                // 503: something needed is not there now
	Canceled                   // the caller went away
)

var kindNames = [...]string{
	"internal", "invalid", "unauthorized", "forbidden", "not found", "conflict",
	"not modified", "not implemented", "unavailable", "canceled",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Error is an error with a Kind. Msg is what the user reads; Op names the
// operation for the log and is not shown to the user; Err is the cause.
type Error struct {
	Kind Kind
	Op   string
	Msg  string
	Err  error
}

// Error returns the user's text: Msg, then the cause where there is one.
func (e *Error) Error() string {
	switch {
	case e.Err == nil, isSilent(e.Err):
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	default:
		return e.Msg + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind with a formatted message. A %w verb works as in
// fmt.Errorf.
func New(kind Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Msg: err.Error(), Err: hidden(errors.Unwrap(err))}
}

// Wrap gives err a kind and a context text. It returns nil for a nil err.
func Wrap(kind Kind, err error, msg string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Msg: msg, Err: err}
}

// KindOf returns the kind of the outermost Error in err's chain. A cancelled
// context is Canceled; anything else is Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) {
		return Canceled
	}
	return Internal
}

// Is reports whether err is of kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// hidden keeps a %w cause reachable by errors.As without printing it twice:
// the message of New holds its text already.
func hidden(err error) error {
	if err == nil {
		return nil
	}
	return silent{err}
}

type silent struct{ err error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.err }

func isSilent(err error) bool { _, ok := err.(silent); return ok } //nolint:errorlint // the wrapper itself is meant
