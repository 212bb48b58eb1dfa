package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"berth.dev/berth/internal/errs"
)

// Codes of the distribution specification that something depends on.
const (
	Denied          = "DENIED"
	Unauthorized    = "UNAUTHORIZED"
	ManifestUnknown = "MANIFEST_UNKNOWN"
	NameUnknown     = "NAME_UNKNOWN"
	BlobUnknown     = "BLOB_UNKNOWN"
	TooMany         = "TOOMANYREQUESTS"
)

// Error is what a registry has answered. Its text is "denied: requested access to the
// resource is denied": the code in lower case, then the message.
type Error struct {
	Status  int
	Code    string
	Message string
}

func (e *Error) Error() string {
	if e.Code == "" {
		return e.Message
	}
	code := strings.ToLower(strings.ReplaceAll(e.Code, "_", " "))
	if e.Message == "" {
		return code
	}
	return code + ": " + e.Message
}

// Is reports whether err is a registry's answer with one of some codes.
func Is(err error, codes ...string) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// Temporary reports whether trying again may help: the connection was lost, or the
// registry has too much to do. An answer is an answer.
func Temporary(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
	}
	return err != nil && errs.KindOf(err) != errs.Invalid && errs.KindOf(err) != errs.Canceled && !errors.Is(err, errNoBasic)
}

const maxErrorBody = 64 << 10

// answerError reads what a registry says is wrong. It closes the body.
func answerError(res *http.Response) error {
	defer res.Body.Close()
	e := &Error{Status: res.StatusCode}
	for _, c := range challenges(res.Header) {
		if c.scheme == "bearer" && res.StatusCode == http.StatusUnauthorized && c.params["error"] == "insufficient_scope" {
			e.Code, e.Message = Denied, "requested access to the resource is denied"
			return e
		}
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody)) // what came is what there is
	var doc struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
		Details string `json:"details"`
		Message string `json:"message"`
	}
	_ = json.Unmarshal(body, &doc) // another shape leaves it empty
	if len(doc.Errors) > 0 && doc.Errors[0].Code != "" {
		e.Code, e.Message = clean(doc.Errors[0].Code), clean(doc.Errors[0].Message)
		return e
	}
	said := doc.Details
	if said == "" {
		said = doc.Message
	}
	switch res.StatusCode {
	case http.StatusUnauthorized:
		e.Code, e.Message = Unauthorized, "authentication required"
	case http.StatusForbidden:
		e.Code, e.Message = Denied, "requested access to the resource is denied"
	case http.StatusTooManyRequests:
		e.Code, e.Message = TooMany, "too many requests"
	case http.StatusNotFound:
		path := res.Request.URL.Path
		switch {
		case strings.Contains(path, "/manifests/"):
			e.Code, e.Message = ManifestUnknown, "manifest unknown"
		case strings.Contains(path, "/blobs/"):
			e.Code, e.Message = BlobUnknown, "blob unknown to registry"
		case strings.HasSuffix(path, "/tags/list"):
			e.Code, e.Message = NameUnknown, "repository name not known to registry"
		}
	}
	if said = clean(said); said != "" && e.Code != "" {
		e.Message = said
	}
	if e.Code == "" {
		e.Message = fmt.Sprintf("received unexpected HTTP status: %s", clean(res.Status))
	}
	return e
}

// clean makes a registry's words fit for a terminal and a log.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
	const most = 1000
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
