package httpapi

import (
	"errors"
	"strconv"
	"strings"

	"berth.dev/berth/internal/errs"
)

func (a controlAPI) resize(r *request) (response, error) {
	h, w, err := terminalSize(r)
	if err != nil {
		return done(err)
	}
	if err := a.backend.Resize(r.Context(), r.name, h, w); err != nil {
		return done(err)
	}
	return response{status: 200}, nil
}

// terminalSize reads the size that the resize calls share.
func terminalSize(r *request) (height, width uint, err error) {
	h, err := parseUint32(r.get("h"))
	if err != nil {
		return 0, 0, errs.New(errs.Invalid, "invalid resize height %q: %v", r.get("h"), err)
	}
	w, err := parseUint32(r.get("w"))
	if err != nil {
		return 0, 0, errs.New(errs.Invalid, "invalid resize width %q: %v", r.get("w"), err)
	}
	return uint(h), uint(w), nil
}

// parseUint32 reads a number. Its errors are strconv's bare ones; a negative
// number is out of range.
func parseUint32(s string) (uint64, error) {
	digits, negative := strings.CutPrefix(s, "-")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 0, errors.Unwrap(err)
	}
	if negative {
		return 0, strconv.ErrRange
	}
	return n, nil
}
