package httpapi

type controlAPI struct{ backend Control }

func (a controlAPI) pause(r *request) (response, error) {
	return done(a.backend.Pause(r.Context(), r.name))
}

func (a controlAPI) unpause(r *request) (response, error) {
	return done(a.backend.Unpause(r.Context(), r.name))
}
