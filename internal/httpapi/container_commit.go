package httpapi

import (
	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

type commitAPI struct{ backend Committer }

func (a commitAPI) commit(r *request) (response, error) {
	var cfg *container.Config
	if err := r.decode(&cfg); err != nil {
		return done(err)
	}
	ref := r.get("container")
	if ref == "" {
		return done(errs.New(errs.Invalid, "bad parameter: container cannot be empty"))
	}
	id, err := a.backend.Commit(r.Context(), CommitOptions{
		Ref: ref, Repo: r.get("repo"), Tag: r.get("tag"), Author: r.get("author"), Comment: r.get("comment"),
		Pause: r.get("pause") == "" || r.flag("pause"), Changes: r.values()["changes"], Config: cfg,
	})
	if err != nil {
		return done(err)
	}
	return created(container.CommitResponse{ID: id})
}
