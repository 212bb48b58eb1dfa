package httpapi

type imagesAPI struct{ backend Images }

func (a imagesAPI) list(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	if name := r.get("filter"); name != "" && r.version < 41 {
		f.Add("reference", name)
	}
	o := ImageListOptions{All: r.flag("all"), Filters: f}
	if r.version >= 42 {
		o.SharedSize = r.flag("shared-size")
	}
	if r.version >= 47 {
		o.Manifests = r.flag("manifests")
	}
	list, err := a.backend.List(r.Context(), o)
	if err != nil {
		return done(err)
	}
	return ok(imagesFor(r.version, list, !o.Manifests, false))
}
