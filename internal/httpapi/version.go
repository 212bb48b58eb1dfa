package httpapi

import (
	"strconv"
	"strings"

	"berth.dev/berth/internal/errs"
)

// Version is an API version 1.N as the number N.
type Version int

// The versions that are spoken.
const (
	MinVersion Version = 24
	MaxVersion Version = 56
)

// String returns "1.N".
func (v Version) String() string { return "1." + strconv.Itoa(int(v)) }

// cutVersion takes a version prefix off the request's path and checks it. A
// path that begins with "/v" and something else is left as it is.
func (r *request) cutVersion() (string, error) {
	path := r.URL.Path
	if len(path) < 3 || path[0] != '/' || path[1] != 'v' || path[2] < '0' || path[2] > '9' {
		return path, nil
	}
	text, _, ok := strings.Cut(path[2:], "/")
	if !ok || strings.Trim(text, "0123456789.") != "" {
		return path, nil
	}
	major, minor, _ := strings.Cut(text, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	switch {
	case minor == "":
		b, err2 = 0, nil
	case strings.Contains(minor, "."):
		head, _, _ := strings.Cut(minor, ".")
		b, err2 = strconv.Atoi(head)
	}
	switch v := Version(b); {
	case err1 != nil, err2 != nil, a > 1, a == 1 && v > MaxVersion:
		return "", errs.New(errs.Invalid, "client version %s is too new. Maximum supported API version is %s", text, MaxVersion)
	case a < 1, v < MinVersion:
		return "", errs.New(errs.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", text, MinVersion)
	default:
		r.version = v
	}
	return path[2+len(text):], nil
}
