package httpapi

import "github.com/moby/moby/api/types/image"

func (a imagesAPI) inspect(r *request) (response, error) {
	i, err := a.backend.Inspect(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	if r.version < 48 || !r.flag("manifests") {
		i.Manifests = nil
	}
	return ok(imageFor(r.version, &i))
}

func (a imagesAPI) history(r *request) (response, error) {
	h, err := a.backend.History(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	if h == nil {
		h = []image.HistoryResponseItem{}
	}
	return ok(h)
}
