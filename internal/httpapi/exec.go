package httpapi

import (
	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

type execAPI struct{ backend Exec }

func (a execAPI) create(r *request) (response, error) {
	var req container.ExecCreateRequest
	if err := r.decode(&req); err != nil {
		return done(err)
	}
	if len(req.Cmd) == 0 {
		return done(errs.New(errs.Invalid, "No exec command specified"))
	}
	if r.version < 42 {
		req.ConsoleSize = nil
	}
	id, err := a.backend.ExecCreate(r.Context(), r.name, req)
	if err != nil {
		return done(err)
	}
	return created(container.ExecCreateResponse{ID: id})
}

func (a execAPI) start(r *request) (response, error) {
	var req container.ExecStartRequest
	if err := r.decode(&req); err != nil {
		return done(err)
	}
	if r.version < 42 {
		req.ConsoleSize = nil
	}
	take, release := r.hijackOnce()
	defer release()
	err := a.backend.ExecStart(r.Context(), r.name, ExecStartOptions{Detach: req.Detach, Tty: req.Tty, ConsoleSize: req.ConsoleSize}, take)
	if err != nil {
		return done(err)
	}
	return response{status: 200}, nil
}

func (a execAPI) inspect(r *request) (response, error) {
	res, err := a.backend.ExecInspect(r.Context(), r.name)
	if err != nil {
		return done(err)
	}
	return ok(res)
}

func (a execAPI) resize(r *request) (response, error) {
	h, w, err := terminalSize(r)
	if err != nil {
		return done(err)
	}
	if err := a.backend.ExecResize(r.Context(), r.name, h, w); err != nil {
		return done(err)
	}
	return response{status: 200}, nil
}
