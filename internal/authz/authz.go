// Package authz asks authorization plugins about the API's requests and answers.
//
// The API hands over what it has itself: the request's body as it has read it,
// before a handler sees it, so that a plugin never judges other bytes than those
// that are acted on. Each plugin is asked in the order of the configuration; the
// first that refuses, or that cannot be asked, ends the request.
// The protocol: https://docs.docker.com/engine/extend/plugins_authorization/.
package authz

import (
	"context"
	"net/http"
	"sync/atomic"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/httpapi"
	"berth.dev/berth/internal/plugin"
)

const iface = "authz"

// Chain is the configured plugins. Its zero value allows everything.
type Chain struct {
	list atomic.Pointer[[]*plugin.Plugin]
}

// Set replaces the plugins by those named; one that stays keeps its connection.
func (c *Chain) Set(names []string, dirs plugin.Dirs) {
	old := map[string]*plugin.Plugin{}
	if l := c.list.Load(); l != nil {
		for _, p := range *l {
			old[p.Name] = p
		}
	}
	var list []*plugin.Plugin
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			continue
		}
		seen[n] = true
		p := old[n]
		if p == nil {
			p = plugin.New(n, dirs)
		}
		list = append(list, p)
	}
	c.list.Store(&list)
}

// Check activates every plugin, so that an engine does not start with one that
// is missing.
func (c *Chain) Check(ctx context.Context) error {
	for _, p := range c.plugins() {
		if err := p.Activate(ctx, iface); err != nil {
			return errs.Wrap(errs.Unavailable, err, "Error validating authorization plugin")
		}
	}
	return nil
}

func (c *Chain) plugins() []*plugin.Plugin {
	if l := c.list.Load(); l != nil {
		return *l
	}
	return nil
}

// Active reports whether there is anybody to ask.
func (c *Chain) Active() bool { return len(c.plugins()) > 0 }

// question is the body of both calls.
type question struct {
	User            string `json:",omitempty"`
	UserAuthNMethod string `json:",omitempty"`
	RequestMethod   string
	RequestURI      string            `json:"RequestUri"`
	RequestBody     []byte            `json:",omitempty"`
	RequestHeaders  map[string]string `json:",omitempty"`

	ResponseStatusCode int               `json:",omitempty"`
	ResponseBody       []byte            `json:",omitempty"`
	ResponseHeaders    map[string]string `json:",omitempty"`
}

type answer struct {
	Allow    bool
	Msg, Err string
}

// Request asks about a request before its handler runs.
func (c *Chain) Request(ctx context.Context, r *httpapi.AuthRequest) error {
	return c.ask(ctx, "AuthZPlugin.AuthZReq", about(r))
}

// Response asks about an answer before the client gets it.
func (c *Chain) Response(ctx context.Context, r *httpapi.AuthRequest, a *httpapi.AuthResponse) error {
	q := about(r)
	q.ResponseStatusCode, q.ResponseBody, q.ResponseHeaders = a.Status, a.Body, flat(a.Header)
	return c.ask(ctx, "AuthZPlugin.AuthZRes", q)
}

func about(r *httpapi.AuthRequest) *question {
	return &question{
		User: r.User, UserAuthNMethod: r.UserMethod, RequestMethod: r.Method, RequestURI: r.URI, RequestBody: r.Body, RequestHeaders: flat(r.Header),
	}
}

// flat keeps one value of each header, as the protocol has it, and never the
// registry's credentials.
func flat(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for k, v := range h {
		if http.CanonicalHeaderKey(k) == "X-Registry-Config" || http.CanonicalHeaderKey(k) == "X-Registry-Auth" {
			continue
		}
		for _, s := range v {
			out[k] = s // the last one counts
		}
	}
	return out
}

func (c *Chain) ask(ctx context.Context, method string, q *question) error {
	for _, p := range c.plugins() {
		var a answer
		if err := p.Call(ctx, iface, method, q, &a); err != nil {
			return errs.New(errs.Internal, "plugin %s failed with error: %s: %v", p.Name, method, err)
		}
		if a.Err != "" {
			return errs.New(errs.Internal, "plugin %s failed with error: %s", p.Name, a.Err)
		}
		if !a.Allow {
			return errs.New(errs.Forbidden, "authorization denied by plugin %s: %s", p.Name, a.Msg)
		}
	}
	return nil
}
