package httpapi

type pruneAPI struct{ backend Pruner }

func (a pruneAPI) prune(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	res, err := a.backend.Prune(r.Context(), f)
	if err != nil {
		return done(err)
	}
	return ok(res)
}
