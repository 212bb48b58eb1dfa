package httpapi

import (
	"io"

	"github.com/moby/moby/api/types"
)

type streamsAPI struct{ backend Streams }

func attachOptions(r *request) AttachOptions {
	return AttachOptions{
		Stdin: r.flag("stdin"), Stdout: r.flag("stdout"), Stderr: r.flag("stderr"),
		Stream: r.flag("stream"), Logs: r.flag("logs"), DetachKeys: r.get("detachKeys"),
	}
}

func (a streamsAPI) attach(r *request) (response, error) {
	take, release := r.hijackOnce()
	defer release()
	err := a.backend.Attach(r.Context(), r.name, attachOptions(r), take)
	if err != nil {
		r.refuseStream(err)
	}
	return done(err)
}

// refuseStream answers a request for a stream with an error. Those who ask have
// always got it as text, where the stream would have come.
func (r *request) refuseStream(err error) {
	if r.begun {
		return // the stream has carried what there was to say
	}
	r.begun = true
	r.w.Header().Set("Content-Type", types.MediaTypeRawStream)
	r.w.WriteHeader(statusOf(err))
	_, _ = io.WriteString(r.w, err.Error()+"\r\n")
}
