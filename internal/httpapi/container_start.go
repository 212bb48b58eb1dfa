package httpapi

import "berth.dev/berth/internal/errs"

func (a lifecycleAPI) start(r *request) (response, error) {
	// A host configuration in the body was allowed until 1.23. Some clients
	// still send "{}" or the like.
	if r.ContentLength > 7 || r.ContentLength == -1 {
		return done(errs.New(errs.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"))
	}
	return done(a.backend.Start(r.Context(), r.name))
}
