package httpapi

import (
	"errors"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/network"

	"berth.dev/berth/internal/errs"
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

// createNetworkBody is the body of a create call, with the field that clients before
// 1.44 send.
type createNetworkBody struct {
	network.CreateRequest
	CheckDuplicate bool
}

func (a networksAPI) create(r *request) (response, error) {
	if err := r.checkJSON(); err != nil {
		return done(err)
	}
	var body createNetworkBody
	if err := r.decodeBody(&body); err != nil {
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Invalid, "invalid JSON: got EOF while reading request body")
		}
		return done(err)
	}
	if r.version < 47 {
		body.EnableIPv4 = nil
	}
	id, warning, err := a.backend.Create(r.Context(), body.CreateRequest)
	if err != nil {
		return done(err)
	}
	return created(network.CreateResponse{ID: id, Warning: warning})
}

type connectAPI struct{ backend Connector }

func (a connectAPI) connect(r *request) (response, error) {
	var body network.ConnectRequest
	if err := r.decode(&body); err != nil {
		return done(err)
	}
	return response{status: http.StatusOK}, a.backend.Connect(r.Context(), r.name, body)
}

func (a connectAPI) disconnect(r *request) (response, error) {
	var body network.DisconnectRequest
	if err := r.decode(&body); err != nil {
		return done(err)
	}
	return response{status: http.StatusOK}, a.backend.Disconnect(r.Context(), r.name, body)
}
