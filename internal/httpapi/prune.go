package httpapi

import (
	"context"

	"berth.dev/berth/internal/filter"
)

// prune answers a prune of any kind of object.
func prune[T any](f func(context.Context, filter.Args) (T, error)) handler {
	return func(r *request) (response, error) {
		args, err := r.filters()
		if err != nil {
			return done(err)
		}
		res, err := f(r.Context(), args)
		if err != nil {
			return done(err)
		}
		return ok(res)
	}
}
