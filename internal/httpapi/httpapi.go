// Package httpapi is the Docker Engine API over HTTP: the only package that
// knows about requests, statuses and API versions.
//
// # A request's way
//
//	Server.ServeHTTP    common headers, version prefix, the table (routes.go)
//	handler             decode → version shim → one backend call → value
//	response.write      encode; or writeError: errs.Kind → status
//
// A handler returns a response value or an error and never writes an ordinary
// answer itself. Those that stream (logs, events, progress, archives) or take
// the connection over (attach, exec) say so with request.begin or
// request.hijack; from then on an error can only end the stream.
//
// # Versions
//
// Clients speak 1.24 to 1.56, with or without a /v1.N prefix; without one they
// get the newest. What differed in the past is put right at this edge: on the
// way in in the verb's own file, on the way out in the legacy_*.go files. The
// services behind know only today's shapes.
//
// # Backends
//
// The services are seen through small interfaces (backends.go), grouped in
// Backends. A group that is nil has no routes.
package httpapi

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"
)

// Options is what the API tells about the engine, and its limits.
type Options struct {
	ServerVersion  string // of the engine; for the Server header
	Experimental   bool
	BuilderVersion string // "1" or "2": the builder that clients should use; default "1"
	SwarmStatus    string // default "inactive"
	DefaultNetwork string // what the network mode "default" means; default "bridge"
	CgroupV2       bool   // decides a default that clients before 1.41 expect

	// Authorize, when set, is asked before each handler runs.
	Authorize func(ctx context.Context, a Access) error
	// Authorizer, when set and active, sees requests and answers whole.
	Authorizer Authorizer
}

// Access is a request as an access check sees it: parsed, so that the check
// and the handler cannot read it differently.
type Access struct {
	Class   AccessClass
	Method  string
	Pattern string // of the route, such as "/containers/{id}/start"
	Name    string // what stands for {id} or {name}
}

// AccessClass says what a route can do.
type AccessClass uint8

// The access classes.
const (
	Open  AccessClass = iota // reveals nothing: ping
	Read                     // looks only
	Write                    // changes something, or runs or copies something
)

// Server is the API's http.Handler.
type Server struct {
	opts   Options
	table  map[string][]*route // by the path's first segment
	server []string            // header values, shared by all responses
	exp    []string
}

// New returns the API over b.
func New(b Backends, o Options) *Server {
	if o.BuilderVersion == "" {
		o.BuilderVersion = "1"
	}
	if o.SwarmStatus == "" {
		o.SwarmStatus = "inactive"
	}
	if o.DefaultNetwork == "" {
		o.DefaultNetwork = "bridge"
	}
	s := &Server{opts: o, table: map[string][]*route{}}
	s.server = []string{"Berth/" + o.ServerVersion + " (linux)"}
	s.exp = []string{"false"}
	if o.Experimental {
		s.exp = []string{"true"}
	}
	for _, rt := range routes(b, o) {
		rt := rt.compile()
		s.table[rt.segments[0]] = append(s.table[rt.segments[0]], rt)
	}
	return s
}

var (
	hdrAPIVersion = []string{MaxVersion.String()}
	hdrOSType     = []string{"linux"}
	hdrJSON       = []string{"application/json"}
)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	h := w.Header()
	h["Api-Version"] = hdrAPIVersion
	h["Docker-Experimental"] = s.exp
	h["Ostype"] = hdrOSType
	h["Server"] = s.server

	r := &request{Request: hr, w: w, version: MaxVersion}
	path, err := r.cutVersion()
	if err != nil {
		writeError(r, err)
		return
	}
	rt := s.find(r, path)
	if rt == nil {
		writeError(r, errPageNotFound)
		return
	}
	if s.opts.Authorize != nil {
		if err := s.opts.Authorize(hr.Context(), Access{Class: rt.access, Method: rt.method, Pattern: rt.pattern, Name: r.name}); err != nil {
			writeError(r, err)
			return
		}
	}
	if slog.Default().Enabled(hr.Context(), slog.LevelDebug) {
		slog.DebugContext(hr.Context(), "Calling "+hr.Method+" "+hr.URL.Path)
	}
	var res response
	if s.opts.Authorizer != nil && s.opts.Authorizer.Active() {
		res, err = s.authorize(r, rt)
	} else {
		res, err = rt.handle(r)
		r.end()
	}
	switch {
	case err != nil && r.begun:
		slog.DebugContext(hr.Context(), "the stream ended with an error", "method", hr.Method, "path", hr.URL.Path, "error", err)
	case err != nil:
		writeError(r, err)
	case !r.begun:
		res.write(r)
	}
}

// find returns the route for the request's method and path; nil for none.
func (s *Server) find(r *request, path string) *route {
	if len(path) < 2 || path[0] != '/' {
		return nil
	}
	first, _, _ := strings.Cut(path[1:], "/")
	for _, rt := range s.table[first] {
		if rt.method != r.Method || r.version < rt.min {
			continue
		}
		if name, ok := rt.match(path); ok {
			r.name = name
			return rt
		}
	}
	return nil
}

// HTTPServer returns a server for h with the engine's limits. It sets no
// timeout on bodies and responses: attach, events and pulls may last for days.
func HTTPServer(h http.Handler, base context.Context) *http.Server { //nolint:revive // base is a value here
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: time.Minute,
		MaxHeaderBytes:    256 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
}
