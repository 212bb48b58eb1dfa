package registryd

import (
	"encoding/json"
	"errors"
	"net/http"
	"syscall"
)

// Error is an answer other than success. Its JSON form is the specification's.
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func fail(status int, code, message string, detail any) *Error {
	return &Error{status, code, message, detail}
}

func blobUnknown(d any) *Error {
	return fail(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry", d)
}

func uploadUnknown(id string) *Error {
	return fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", map[string]string{"uuid": id})
}

func uploadInvalid(status int, why string) *Error {
	return fail(status, "BLOB_UPLOAD_INVALID", "blob upload invalid: "+why, nil)
}

func digestInvalid(why string, detail any) *Error {
	return fail(http.StatusBadRequest, "DIGEST_INVALID", why, detail)
}

func manifestUnknown(ref string) *Error {
	return fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown", map[string]string{"reference": ref})
}

func manifestInvalid(why string) *Error {
	return fail(http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid: "+why, nil)
}

func nameInvalid(name string) *Error {
	return fail(http.StatusBadRequest, "NAME_INVALID", "invalid repository name", map[string]string{"name": name})
}

func nameUnknown(name string) *Error {
	return fail(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry", map[string]string{"name": name})
}

func unsupported(why string) *Error {
	return fail(http.StatusMethodNotAllowed, "UNSUPPORTED", why, nil)
}

func denied(why string) *Error {
	return fail(http.StatusForbidden, "DENIED", why, nil)
}

// errorList is what several errors at once are answered with.
type errorList []*Error

func (l errorList) Error() string { return l[0].Error() }

// writeError answers with err. What is not an Error is ours, and its text stays here.
func writeError(w http.ResponseWriter, err error) {
	var list errorList
	var one *Error
	switch {
	case errors.As(err, &list):
	case errors.As(err, &one):
		list = errorList{one}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		list = errorList{fail(http.StatusInsufficientStorage, "DENIED", "the registry's disk is full", nil)}
	default:
		list = errorList{fail(http.StatusInternalServerError, "UNKNOWN", "unknown error", nil)}
	}
	b, _ := json.Marshal(map[string]any{"errors": list})
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(list[0].Status)
	_, _ = w.Write(append(b, '\n'))
}
