package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
)

// maxJSON bounds a JSON request body. The largest real ones (a create request
// with thousands of environment variables) are a fraction of it.
const maxJSON = 8 << 20

// request is one request on its way through a handler.
type request struct {
	*http.Request
	w       http.ResponseWriter
	version Version
	name    string // what stands for the pattern's variable
	query   url.Values
	begun   bool         // the handler has begun to stream or has hijacked
	out     *flushWriter // of a stream
}

func (r *request) values() url.Values {
	if r.query == nil {
		r.query = r.URL.Query()
	}
	return r.query
}

func (r *request) get(key string) string {
	if r.URL.RawQuery == "" {
		return ""
	}
	return r.values().Get(key)
}

// flag reads a boolean as Docker does: set and not one of its words for no.
func (r *request) flag(key string) bool { return r.flagOr(key, false) }

func (r *request) flagOr(key string, def bool) bool {
	if r.URL.RawQuery == "" || !r.values().Has(key) {
		return def
	}
	switch strings.ToLower(strings.TrimSpace(r.get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// seconds reads an optional whole number.
func (r *request) optInt(key string) (*int, error) {
	v := r.get(key)
	if v == "" {
		return nil, nil //nolint:nilnil // not given
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return nil, errs.New(errs.Invalid, "invalid value for %s: %v", key, err)
	}
	return &n, nil
}

func (r *request) filters() (filter.Args, error) { return filter.Parse(r.get("filters")) }

// timestamp reads "seconds[.nanoseconds]" since 1970 or RFC 3339; the zero
// time when it is not given or 0.
func (r *request) timestamp(key string) (time.Time, error) {
	v := r.get(key)
	if v == "" || v == "0" {
		return time.Time{}, nil
	}
	t, ok := parseTimestamp(v)
	if !ok {
		return time.Time{}, errs.New(errs.Invalid, "invalid value for %s: %q is not a timestamp", key, v)
	}
	return t, nil
}

func parseTimestamp(v string) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t, true
	}
	whole, frac, _ := strings.Cut(v, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(frac) > 0 && strings.Trim(frac, "0123456789") != "" {
		return time.Time{}, false
	}
	nsec, _ := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	return time.Unix(sec, nsec), true
}

// checkJSON fails, in Docker's words, when there is a body that is not JSON.
func (r *request) checkJSON() error {
	ct := r.Header.Get("Content-Type")
	if ct == "application/json" || ct == "" && (r.Body == nil || r.ContentLength == 0) {
		return nil
	}
	kind, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return errs.New(errs.Invalid, "malformed Content-Type header (%s): %v", ct, err)
	}
	if kind != "application/json" {
		return errs.New(errs.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// decode reads the JSON body into v. An empty body leaves v as it is.
func (r *request) decode(v any) error {
	if err := r.checkJSON(); err != nil {
		return err
	}
	if r.Body == nil || r.ContentLength == 0 {
		return nil
	}
	err := r.decodeBody(v)
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "invalid JSON: got EOF while reading request body")
	}
	return err
}

// decodeBody is decode for a body that must be there.
func (r *request) decodeBody(v any) error {
	body := &limited{r: r.Body, left: maxJSON}
	dec := json.NewDecoder(body)
	if err := dec.Decode(v); err != nil {
		switch {
		case errors.Is(err, io.EOF):
			return io.EOF
		case body.left < 0:
			return errTooLarge
		}
		return errs.New(errs.Invalid, "invalid JSON: %v", err)
	}
	if dec.More() {
		return errs.New(errs.Invalid, "unexpected content after JSON")
	}
	return nil
}

var errTooLarge = errs.New(errs.Invalid, "request body too large: the limit is %d bytes", maxJSON)

// limited is io.LimitReader that fails at its limit.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// begin starts a streamed answer and returns its writer, which brings what is
// written to the client soon by itself.
func (r *request) begin(contentType string) io.Writer {
	if r.out == nil {
		if contentType != "" {
			r.w.Header().Set("Content-Type", contentType)
		}
		r.begun = true
		r.w.WriteHeader(http.StatusOK)
		r.out = newFlushWriter(r.w)
	}
	return r.out
}

// flush sends what has been written to the stream, headers included.
func (r *request) flush() { r.out.flushNow() }

// end is called when the handler has returned.
func (r *request) end() {
	if r.out != nil {
		r.out.close()
	}
}
