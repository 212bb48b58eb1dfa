package httpapi

import (
	"encoding/json"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

type statsAPI struct{ backend StatsSource }

func (a statsAPI) stats(r *request) (response, error) {
	o := StatsOptions{Stream: r.flagOr("stream", true)}
	if r.version >= 41 {
		o.OneShot = r.flag("one-shot")
	}
	if o.Stream && o.OneShot {
		return done(errs.New(errs.Invalid, "cannot have stream=true and one-shot=true"))
	}
	var enc *json.Encoder
	return done(a.backend.Stats(r.Context(), r.name, o, func(s container.StatsResponse) error {
		if enc == nil {
			enc = json.NewEncoder(r.begin("application/json"))
		}
		if r.version < 52 {
			s.OSType = ""
		}
		return enc.Encode(s)
	}))
}

// now answers with one JSON object a line for each running container.
func (a statsAPI) now(r *request) (response, error) {
	enc := json.NewEncoder(r.begin("application/json"))
	return done(a.backend.StatsNow(r.Context(), func(s container.StatsResponse) error { return enc.Encode(s) }))
}
