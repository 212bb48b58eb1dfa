package httpapi

func (a lifecycleAPI) remove(r *request) (response, error) {
	return done(a.backend.Remove(r.Context(), r.name, RemoveOptions{Force: r.flag("force"), Volumes: r.flag("v"), Link: r.flag("link")}))
}
