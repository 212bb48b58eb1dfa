package httpapi

func (a controlAPI) rename(r *request) (response, error) {
	return done(a.backend.Rename(r.Context(), r.name, r.get("name")))
}
