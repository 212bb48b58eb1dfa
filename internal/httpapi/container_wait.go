package httpapi

import (
	"encoding/json"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

type waitAPI struct{ backend WaitFunc }

// wait answers in two steps: the headers as soon as the wait is accepted, so
// that a client knows that it cannot miss the exit, then the result.
func (a waitAPI) wait(r *request) (response, error) {
	cond := container.WaitConditionNotRunning
	if r.version >= 30 {
		switch c := container.WaitCondition(r.get("condition")); c {
		case container.WaitConditionNextExit, container.WaitConditionRemoved:
			cond = c
		case "", container.WaitConditionNotRunning:
		default:
			return done(errs.New(errs.Invalid, "invalid condition: %q", string(c)))
		}
	}
	waiter, err := a.backend(r.Context(), r.name, cond)
	if err != nil {
		return done(err)
	}
	if r.version < 30 {
		res, err := waiter.Result(r.Context())
		if err != nil {
			return done(err)
		}
		return ok(res)
	}
	w := r.begin("application/json")
	r.flush()
	res, err := waiter.Result(r.Context())
	if err != nil {
		if r.Context().Err() != nil {
			return done(err)
		}
		res = container.WaitResponse{StatusCode: -1, Error: &container.WaitExitError{Message: err.Error()}}
	}
	return done(json.NewEncoder(w).Encode(res))
}
