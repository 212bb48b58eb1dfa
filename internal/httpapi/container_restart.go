package httpapi

func (a lifecycleAPI) restart(r *request) (response, error) {
	o, err := stopOptions(r)
	if err != nil {
		return done(err)
	}
	return done(a.backend.Restart(r.Context(), r.name, o))
}
