package httpapi

import "github.com/moby/moby/api/types/volume"

type volumesAPI struct{ backend Volumes }

func (a volumesAPI) list(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	res, err := a.backend.List(r.Context(), f)
	if err != nil {
		return done(err)
	}
	if res.Volumes == nil {
		res.Volumes = []volume.Volume{}
	}
	return ok(res)
}

func (a volumesAPI) inspect(r *request) (response, error) {
	v, err := a.backend.Inspect(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	return ok(v)
}

func (a volumesAPI) remove(r *request) (response, error) {
	return done(a.backend.Remove(r.Context(), r.name, r.flag("force")))
}
