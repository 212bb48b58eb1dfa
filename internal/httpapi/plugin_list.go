package httpapi

// pluginList is what an engine without managed plugins has to show: clients ask
// for the list before they do anything else, and an engine that does not know
// the question looks broken to them.
func pluginList(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	if err := f.Validate("enabled", "capability"); err != nil {
		return done(err)
	}
	if _, err := f.Bool("enabled", false); err != nil {
		return done(err)
	}
	return ok([]struct{}{})
}
