package httpapi

func (a imagesAPI) tag(r *request) (response, error) {
	if err := a.backend.Tag(r.Context(), r.name, r.get("repo"), r.get("tag")); err != nil {
		return done(err)
	}
	return response{status: 201}, nil
}
