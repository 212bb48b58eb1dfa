package httpapi

// stopOptions reads the options that stop and restart share.
func stopOptions(r *request) (StopOptions, error) {
	var o StopOptions
	var err error
	if r.version >= 42 {
		o.Signal = r.get("signal")
	}
	o.Timeout, err = r.optInt("t")
	return o, err
}

func (a lifecycleAPI) stop(r *request) (response, error) {
	o, err := stopOptions(r)
	if err != nil {
		return done(err)
	}
	return done(a.backend.Stop(r.Context(), r.name, o))
}
