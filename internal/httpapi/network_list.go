package httpapi

import (
	"github.com/moby/moby/api/types/network"
)

type networksAPI struct{ backend Networks }

func (a networksAPI) list(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	list, err := a.backend.List(r.Context(), f)
	if err != nil {
		return done(err)
	}
	if list == nil {
		list = []network.Inspect{}
	}
	if r.version >= 52 {
		out := make([]network.Summary, 0, len(list))
		for i := range list {
			out = append(out, network.Summary{Network: list[i].Network})
		}
		return ok(out)
	}
	for i := range list {
		if r.version >= 28 { // a list tells nothing about the containers
			list[i].Containers, list[i].Services = map[string]network.EndpointResource{}, nil
		}
		list[i].Status = nil
	}
	return ok(list)
}

func (a networksAPI) inspect(r *request) (response, error) {
	n, err := a.backend.Inspect(r.Context(), r.name, NetworkInspectOptions{Verbose: r.version >= 28 && r.flag("verbose"), Scope: r.get("scope")})
	if err != nil {
		return done(err)
	}
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	if r.version < 52 {
		n.Status = nil
	}
	return ok(n)
}

func (a networksAPI) remove(r *request) (response, error) {
	return done(a.backend.Remove(r.Context(), r.name))
}
