package httpapi

import (
	"net/http"

	"berth.dev/berth/internal/errs"
	engine "berth.dev/berth/internal/system"
)

type systemAPI struct {
	backend System
	opts    Options
}

func (a systemAPI) ping(r *request) (response, error) {
	h := r.w.Header()
	h.Set("Builder-Version", a.opts.BuilderVersion)
	h.Set("Swarm", a.opts.SwarmStatus)
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	r.begun = true
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		r.w.WriteHeader(http.StatusOK)
		return done(nil)
	}
	h.Set("Content-Length", "2")
	r.w.WriteHeader(http.StatusOK)
	_, err := r.w.Write([]byte("OK"))
	return done(err)
}

func (a systemAPI) info(r *request) (response, error) {
	i, err := a.backend.Info(r.Context())
	if err != nil {
		return done(err)
	}
	return ok(infoFor(r.version, &i))
}

func (a systemAPI) engineVersion(r *request) (response, error) {
	v, err := a.backend.Version(r.Context())
	if err != nil {
		return done(err)
	}
	return ok(v)
}

func (a systemAPI) diskUsage(r *request) (response, error) {
	var o engine.DiskUsageOptions
	kinds := r.values()["type"]
	if len(kinds) == 0 || r.version < 42 {
		kinds = []string{"container", "image", "volume", "build-cache"}
	}
	for _, kind := range kinds {
		switch kind {
		case "container":
			o.Containers = true
		case "image":
			o.Images = true
		case "volume":
			o.Volumes = true
		case "build-cache":
			o.BuildCache = true
		default:
			return done(errs.New(errs.Invalid, "unknown object type: %s", kind))
		}
	}
	du, err := a.backend.DiskUsage(r.Context(), o)
	if err != nil {
		return done(err)
	}
	return ok(diskUsageFor(r.version, r.flag("verbose"), o, &du))
}
