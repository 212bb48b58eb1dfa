package httpapi

import (
	"strconv"

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
	h, err := strconv.ParseUint(r.get("h"), 10, 32)
	if err != nil {
		return 0, 0, errs.New(errs.Invalid, "invalid resize height %q: %v", r.get("h"), err)
	}
	w, err := strconv.ParseUint(r.get("w"), 10, 32)
	if err != nil {
		return 0, 0, errs.New(errs.Invalid, "invalid resize width %q: %v", r.get("w"), err)
	}
	return uint(h), uint(w), nil
}
