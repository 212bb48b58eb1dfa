package httpapi

func (a lifecycleAPI) kill(r *request) (response, error) {
	return done(a.backend.Kill(r.Context(), r.name, r.get("signal")))
}
