package httpapi

import (
	"strings"

	"github.com/moby/moby/api/types/image"

	"berth.dev/berth/internal/errs"
)

func (a imagesAPI) remove(r *request) (response, error) {
	if strings.TrimSpace(r.name) == "" {
		return done(errs.New(errs.Invalid, "image name cannot be blank"))
	}
	list, err := a.backend.Remove(r.Context(), r.name, ImageRemoveOptions{Force: r.flag("force"), NoPrune: r.flag("noprune")})
	if err != nil {
		return done(err)
	}
	if list == nil {
		list = []image.DeleteResponse{}
	}
	return ok(list)
}

func (a imagesAPI) prune(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	res, err := a.backend.Prune(r.Context(), f)
	if err != nil {
		return done(err)
	}
	return ok(image.PruneReport(res))
}
