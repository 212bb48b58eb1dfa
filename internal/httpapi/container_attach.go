package httpapi

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
	return done(a.backend.Attach(r.Context(), r.name, attachOptions(r), take))
}
