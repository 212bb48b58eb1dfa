package httpapi

import "github.com/moby/moby/api/types/container"

type updateAPI struct{ backend Updater }

func (a updateAPI) update(r *request) (response, error) {
	var cfg container.UpdateConfig
	if err := r.decode(&cfg); err != nil {
		return done(err)
	}
	if r.version < 40 {
		cfg.PidsLimit = nil
	}
	if r.version < 55 { // in the schema before, but without effect
		cfg.BlkioWeightDevice = nil
		cfg.BlkioDeviceReadBps, cfg.BlkioDeviceWriteBps = nil, nil
		cfg.BlkioDeviceReadIOps, cfg.BlkioDeviceWriteIOps = nil, nil
	}
	res, err := a.backend.Update(r.Context(), r.name, cfg)
	if err != nil {
		return done(err)
	}
	return ok(res)
}
