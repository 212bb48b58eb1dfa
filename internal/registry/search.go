package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/registry"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
)

const maxFound = 4 << 20 // bytes of an answer

// Search finds repositories. A term may begin with a registry's host; without one
// the Hub is asked. A registry without a search has its catalog looked through. limit
// is 1 to 100; 0 leaves it to the registry.
func (c *Client) Search(ctx context.Context, term string, limit int, f filter.Args, auth *registry.AuthConfig) ([]registry.SearchResult, error) {
	match, err := searchFilter(f)
	if err != nil {
		return nil, err
	}
	switch {
	case limit < 0 || limit > 100:
		return nil, errs.New(errs.Invalid, "limit %d is outside the range of [1, 100]", limit)
	case strings.Contains(term, "://"):
		return nil, errs.New(errs.Invalid, "invalid repository name: repository name (%s) should not have a scheme", term)
	}
	domain := hubIndex
	if host, rest, ok := strings.Cut(term, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		domain, term = host, rest
		if domain == Hub {
			domain = hubIndex
		}
	}
	term = strings.TrimPrefix(term, "library/")
	cfg := c.config()
	insecure := cfg.insecure(ctx, domain)
	t, err := c.transport(cfg, domain, insecure)
	if err != nil {
		return nil, err
	}
	schemes := []string{"https"}
	if insecure {
		schemes = append(schemes, "http")
	}
	var found []registry.SearchResult
	for _, scheme := range schemes {
		e := &endpoint{base: &url.URL{Scheme: scheme, Host: domain}, http: t, agent: cfg.UserAgent}
		found, err = searchAt(ctx, e, term, limit, auth)
		var answer *Error
		if errors.As(err, &answer) && answer.Status == http.StatusNotFound && domain != hubIndex {
			found, err = catalog(ctx, e, term, auth)
		}
		if err == nil || errors.As(err, &answer) {
			break
		}
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "")
	}
	out := []registry.SearchResult{}
	for _, r := range found {
		if match(r) && (limit == 0 || len(out) < limit) {
			r.Name, r.Description = clean(r.Name), clean(r.Description)
			out = append(out, r)
		}
	}
	return out, nil
}

func searchFilter(f filter.Args) (func(registry.SearchResult) bool, error) {
	if err := f.Validate("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	automated, err := f.Bool("is-automated", false)
	if err != nil {
		return nil, err
	}
	official, err := f.Bool("is-official", false)
	if err != nil {
		return nil, err
	}
	stars := 0
	for _, v := range f["stars"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, errs.New(errs.Invalid, "invalid filter 'stars=%s'", v)
		}
		stars = max(stars, n)
	}
	return func(r registry.SearchResult) bool {
		return (!f.Has("is-automated") || r.IsAutomated == automated) && //nolint:staticcheck // old registries still say so
			(!f.Has("is-official") || r.IsOfficial == official) && r.StarCount >= stars
	}, nil
}

// searchAt asks the Hub's own search, of the first version of its API.
func searchAt(ctx context.Context, e *endpoint, term string, limit int, auth *registry.AuthConfig) ([]registry.SearchResult, error) {
	if limit == 0 {
		limit = 25
	}
	u := e.base.JoinPath("/v1/search")
	u.RawQuery = url.Values{"q": {term}, "n": {strconv.Itoa(limit)}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if auth != nil && auth.IdentityToken == "" && auth.Username != "" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	req.Header.Set("X-Docker-Token", "true")
	res, err := e.send(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, &Error{Status: res.StatusCode, Message: "Unexpected status code " + strconv.Itoa(res.StatusCode)}
	}
	defer res.Body.Close()
	var doc registry.SearchResults
	raw, err := readAll(res.Body, maxFound, "search result")
	if err == nil {
		err = json.Unmarshal(raw, &doc)
	}
	if err != nil {
		return nil, &Error{Status: res.StatusCode, Message: "error decoding registry search results"}
	}
	return doc.Results, nil
}

// catalog looks through the names of a registry that has no search.
func catalog(ctx context.Context, e *endpoint, term string, auth *registry.AuthConfig) ([]registry.SearchResult, error) {
	r := &Repository{ep: e, tokens: map[string]token{}}
	if auth != nil {
		r.auth = *auth
	}
	if err := r.ping(ctx); err != nil {
		return nil, err
	}
	var found []registry.SearchResult
	seen := 0
	for to := e.base.JoinPath("/v2/_catalog").String() + "?n=1000"; to != "" && seen < maxTags; {
		res, err := r.do(ctx, http.MethodGet, to, nil, nil, "registry:catalog:*")
		if err != nil {
			return nil, err
		}
		if res.StatusCode != http.StatusOK {
			return nil, answerError(res)
		}
		var page struct {
			Repositories []string `json:"repositories"`
		}
		raw, err := readAll(res.Body, maxFound, "catalog")
		_ = res.Body.Close()
		if err == nil {
			err = json.Unmarshal(raw, &page)
		}
		if err != nil {
			return nil, &Error{Status: res.StatusCode, Message: "error decoding registry search results"}
		}
		seen += len(page.Repositories) + 1
		for _, name := range page.Repositories {
			if strings.Contains(name, term) {
				found = append(found, registry.SearchResult{Name: e.base.Host + "/" + name})
			}
		}
		to = nextPage(res)
	}
	return found, nil
}
