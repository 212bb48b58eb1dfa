package httpapi

type exportAPI struct{ backend Exporter }

func (a exportAPI) export(r *request) (response, error) {
	w := &beginWriter{r: r, contentType: "application/octet-stream"}
	if err := a.backend.Export(r.Context(), r.name, w); err != nil {
		return r.broken(err)
	}
	r.beginPlain(w.contentType)
	return done(nil)
}
