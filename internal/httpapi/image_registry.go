package httpapi

import (
	"encoding/json"

	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
)

type registryAPI struct{ backend Registry }

func (a registryAPI) push(r *request) (response, error) {
	auth, err := authHeader(r)
	if err != nil {
		return done(err)
	}
	o := PushOptions{Repo: r.name, Tag: r.get("tag"), Auth: auth}
	if text := r.get("platform"); text != "" && r.version >= 46 {
		o.Platform = new(ocispec.Platform)
		if err := json.Unmarshal([]byte(text), o.Platform); err != nil || o.Platform.OS == "" {
			return done(errs.New(errs.Invalid, "failed to parse platform: %s", text))
		}
	}
	p := r.progress()
	return p.finish(a.backend.Push(r.Context(), o, p.send))
}

func (a registryAPI) login(r *request) (response, error) {
	var c registry.AuthConfig
	if err := r.decode(&c); err != nil {
		return done(err)
	}
	token, err := a.backend.Login(r.Context(), &c)
	if err != nil {
		return done(err)
	}
	return ok(registry.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}

func (a registryAPI) search(r *request) (response, error) {
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	limit, err := r.optInt("limit")
	if err != nil {
		return done(err)
	}
	n := 0
	if limit != nil {
		n = *limit
	}
	auth, err := authHeader(r)
	if err != nil {
		auth = nil // as in Docker: a search goes without
	}
	list, err := a.backend.Search(r.Context(), r.get("term"), n, f, auth)
	if err != nil {
		return done(err)
	}
	return ok(list)
}

func (a registryAPI) distribution(r *request) (response, error) {
	auth, err := authHeader(r)
	if err != nil {
		return done(err)
	}
	d, err := a.backend.Distribution(r.Context(), r.name, auth)
	if err != nil {
		return done(err)
	}
	return ok(d)
}
