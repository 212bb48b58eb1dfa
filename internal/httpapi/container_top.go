package httpapi

type topAPI struct{ backend Topper }

func (a topAPI) top(r *request) (response, error) {
	res, err := a.backend.Top(r.Context(), r.name, r.get("ps_args"))
	if err != nil {
		return done(err)
	}
	return ok(res)
}
