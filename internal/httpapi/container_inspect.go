package httpapi

func (a queryAPI) inspect(r *request) (response, error) {
	c, err := a.backend.Inspect(r.Context(), r.name, r.flag("size"))
	if err != nil {
		return done(err)
	}
	return ok(containerFor(r.version, &c))
}
