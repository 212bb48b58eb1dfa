package httpapi

import "github.com/moby/moby/api/types/container"

type changesAPI struct{ backend Differ }

func (a changesAPI) changes(r *request) (response, error) {
	res, err := a.backend.Changes(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	if res == nil {
		res = []container.FilesystemChange{}
	}
	return ok(res)
}
