package httpapi

import (
	"errors"
	"io"

	"github.com/moby/moby/api/types/volume"

	"berth.dev/berth/internal/errs"
)

type volumesAPI struct{ backend Volumes }

func (a volumesAPI) list(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	res, err := a.backend.List(r.Context(), f)
	if err != nil {
		return done(err)
	}
	if res.Volumes == nil {
		res.Volumes = []volume.Volume{}
	}
	return ok(res)
}

func (a volumesAPI) inspect(r *request) (response, error) {
	v, err := a.backend.Inspect(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	return ok(v)
}

func (a volumesAPI) remove(r *request) (response, error) {
	return done(a.backend.Remove(r.Context(), r.name, r.flag("force")))
}

func (a volumesAPI) create(r *request) (response, error) {
	if err := r.checkJSON(); err != nil {
		return done(err)
	}
	var body volume.CreateRequest
	if err := r.decodeBody(&body); err != nil {
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Invalid, "invalid JSON: got EOF while reading request body")
		}
		return done(err)
	}
	if body.ClusterVolumeSpec != nil && r.version >= 42 {
		return done(errs.New(errs.Unavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`))
	}
	v, err := a.backend.Create(r.Context(), body)
	if err != nil {
		return done(err)
	}
	return created(v)
}

// update changes volumes of a swarm only.
func (volumesAPI) update(*request) (response, error) {
	return done(errs.New(errs.Unavailable, "volume update only valid for cluster volumes, but swarm is unavailable"))
}

// prune removes all unused volumes for clients that do not know of another way.
func (a volumesAPI) prune(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	if r.version < 42 {
		f.Add("all", "true")
	}
	rep, err := a.backend.Prune(r.Context(), f)
	if err != nil {
		return done(err)
	}
	return ok(rep)
}
