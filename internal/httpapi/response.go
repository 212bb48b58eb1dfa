package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"

	"berth.dev/berth/internal/errs"
)

// response is a handler's answer: a status and, unless body is nil, a JSON
// body. The zero value is "204 No Content".
type response struct {
	status int
	body   any
}

func ok(body any) (response, error)      { return response{http.StatusOK, body}, nil }
func created(body any) (response, error) { return response{http.StatusCreated, body}, nil }

// done is the answer of a call that has nothing to say, and of one that has
// written its answer itself.
func done(err error) (response, error) { return response{}, err }

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooled is the largest buffer that is kept for the next response.
const maxPooled = 256 << 10

func (res response) write(r *request) {
	if res.body == nil {
		if res.status == 0 {
			res.status = http.StatusNoContent
		}
		r.w.WriteHeader(res.status)
		return
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxPooled {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(res.body); err != nil {
		buf.Reset()
		writeError(r, errs.Wrap(errs.Internal, err, "cannot encode the response"))
		return
	}
	h := r.w.Header()
	h["Content-Type"] = hdrJSON
	h["Content-Length"] = []string{strconv.Itoa(buf.Len())}
	r.w.WriteHeader(res.status)
	_, _ = r.w.Write(buf.Bytes())
}

var errPageNotFound = errs.New(errs.NotFound, "page not found")

// statuses maps each kind of error to its HTTP status.
var statuses = [...]int{
	errs.Internal:       http.StatusInternalServerError,
	errs.Invalid:        http.StatusBadRequest,
	errs.Unauthorized:   http.StatusUnauthorized,
	errs.Forbidden:      http.StatusForbidden,
	errs.NotFound:       http.StatusNotFound,
	errs.Conflict:       http.StatusConflict,
	errs.NotModified:    http.StatusNotModified,
	errs.NotImplemented: http.StatusNotImplemented,
	errs.Unavailable:    http.StatusServiceUnavailable,
	errs.Canceled:       statusClientClosed,
}

// statusClientClosed is what the log shows for a client that went away; nobody receives it.
const statusClientClosed = 499

func statusOf(err error) int {
	if k := errs.KindOf(err); int(k) < len(statuses) {
		return statuses[k]
	}
	return http.StatusInternalServerError
}

// errorBody is the JSON form of an error.
type errorBody struct {
	Message string `json:"message"`
}

// writeError answers with err's message and the status of its kind.
func writeError(r *request, err error) {
	status := statusOf(err)
	if status == http.StatusNotModified {
		r.w.WriteHeader(status)
		return
	}
	if status >= http.StatusInternalServerError && !errors.Is(err, r.Context().Err()) {
		var e *errs.Error
		op := ""
		if errors.As(err, &e) {
			op = e.Op
		}
		slog.ErrorContext(r.Context(), "Handler for "+r.Method+" "+r.URL.Path+" returned error: "+err.Error(), "op", op)
	}
	if r.Method == http.MethodHead {
		r.w.WriteHeader(status)
		return
	}
	response{status, errorBody{err.Error()}}.write(r)
}
