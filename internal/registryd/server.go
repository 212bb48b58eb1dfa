package registryd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// Server is the registry over HTTP.
type Server struct {
	c       *Config
	log     *slog.Logger
	store   *store
	auth    authenticator // nil: everybody may do everything
	proxy   *proxy        // nil: not a mirror
	events  *notifier     // nil: nobody is told
	metrics *metrics
	tokens  *tokenIssuer // nil: others issue tokens, if any
	healthy atomic.Bool
	ids     atomic.Uint64
}

// New opens the store and makes the server. Serve runs it.
func New(c *Config, log *slog.Logger) (*Server, error) {
	st, err := openStore(c.Storage.Filesystem.RootDirectory, log)
	if err != nil {
		return nil, err
	}
	s := &Server{c: c, log: log, store: st, metrics: newMetrics()}
	s.healthy.Store(true)
	if q := c.Storage.Quota; q.Total > 0 || q.Repository > 0 {
		st.quota = &quota{total: int64(q.Total), repo: int64(q.Repository)}
		if err := st.quota.count(st); err != nil {
			return nil, err
		}
	}
	if s.auth, s.tokens, err = newAuthenticator(c, log); err != nil {
		return nil, err
	}
	if s.proxy, err = newProxy(c, st, log, s.metrics); err != nil {
		return nil, err
	}
	s.events = newNotifier(c, log, s.metrics)
	return s, nil
}

// request is one request below /v2/, with what was found out about it.
type request struct {
	*http.Request
	route
	w    http.ResponseWriter
	user string
	id   uint64
}

// recorder remembers what was answered. It hands files to the connection, which sends
// them without copying.
type recorder struct {
	http.ResponseWriter
	status int
	n      int64
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.n += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom, for sendfile.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := io.Copy(r.ResponseWriter, src)
	r.n += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	for k, v := range s.c.HTTP.Headers {
		w.Header()[http.CanonicalHeaderKey(k)] = v
	}
	path := r.URL.Path
	if p := strings.TrimSuffix(s.c.HTTP.Prefix, "/"); p != "" {
		var ok bool
		if path, ok = strings.CutPrefix(path, p); !ok {
			http.NotFound(w, r)
			return
		}
	}
	rec := &recorder{ResponseWriter: w}
	req := &request{Request: r, route: parsePath(path), w: rec, id: s.ids.Add(1)}
	s.metrics.inFlight.Add(1)
	var err error
	switch {
	case strings.HasPrefix(path, "/v2/") || path == "/v2":
		err = s.v2(rec, req)
	case strings.HasPrefix(path, "/v1/"):
		err = s.v1(rec, req, path)
	case path == tokenPath && s.tokens != nil:
		err = s.tokens.serve(rec, r)
	case path == "/":
		rec.Header().Set("Cache-Control", "no-cache")
		rec.WriteHeader(http.StatusOK)
	default:
		http.NotFound(rec, r)
	}
	begun := rec.status != 0
	if err != nil {
		if !begun {
			// A client that is still sending would see a broken connection and no answer.
			if r.Header.Get("Expect") == "" && r.ContentLength != 0 {
				_, _ = io.CopyN(io.Discard, r.Body, maxDrain)
			}
			writeError(rec, err)
		}
		var one *Error
		var list errorList
		if !errors.As(err, &one) && !errors.As(err, &list) && r.Context().Err() == nil {
			s.log.Error("cannot answer", "method", r.Method, "path", r.URL.Path, "err", err)
		}
	}
	s.metrics.inFlight.Add(-1)
	took := time.Since(start)
	s.metrics.request(req.kind, r.Method, rec.status, took)
	if !s.c.Log.AccessLog.Disabled {
		s.log.Info("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.n, "took", took.Round(time.Microsecond), "remote", r.RemoteAddr, "user", req.user, "agent", r.UserAgent())
	}
	if begun && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler) // what was sent is not whole, and must not look so
	}
}

const maxDrain = 16 << 20 // of a body that is refused

// access is a right that a request needs.
type access struct{ kind, name, action string }

// needs returns the rights of a request.
func (r *request) needs() []access {
	switch r.kind {
	case routeBase:
		return nil
	case routeCatalog:
		return []access{{"registry", "catalog", "*"}}
	}
	repo := func(action string) access { return access{"repository", r.name, action} }
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if r.kind == routeUpload {
			return []access{repo("pull"), repo("push")}
		}
		return []access{repo("pull")}
	case http.MethodDelete:
		if r.kind == routeUpload {
			return []access{repo("pull"), repo("push")}
		}
		return []access{repo("delete")}
	}
	return []access{repo("pull"), repo("push")}
}

func (s *Server) v2(w http.ResponseWriter, r *request) error {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.kind == routeNone {
		return fail(http.StatusNotFound, "UNSUPPORTED", "there is nothing at this path", nil)
	}
	if r.kind != routeBase && r.kind != routeCatalog && !validName(r.name) {
		return nameInvalid(r.name)
	}
	if s.auth != nil {
		user, err := s.auth.authorize(w, r.Request, r.needs())
		if err != nil {
			return err
		}
		r.user = user
	}
	methods, handle := s.handler(r)
	if handle == nil {
		w.Header().Set("Allow", methods)
		return unsupported("the method is not allowed here")
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		switch {
		case s.proxy != nil:
			return unsupported("this registry is a mirror: nothing can be changed in it")
		case s.c.Storage.Maintenance.ReadOnly.Enabled:
			return unsupported("the registry is in read-only mode")
		case r.Method == http.MethodDelete && r.kind != routeUpload && !s.c.Storage.Delete.Enabled:
			return unsupported("deletion is disabled: storage.delete.enabled is not set")
		}
	}
	return handle(r)
}

// handler returns what answers a request, or nil when the method is none of methods.
func (s *Server) handler(r *request) (methods string, handle func(*request) error) {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	pick := func(methods string, table map[string]func(*request) error) (string, func(*request) error) {
		return methods, table[r.Method]
	}
	readOnly := func(h func(*request) error) (string, func(*request) error) {
		if get {
			return "GET, HEAD", h
		}
		return "GET, HEAD", nil
	}
	type table = map[string]func(*request) error
	switch r.kind {
	case routeBase:
		return readOnly(s.base)
	case routeCatalog:
		return readOnly(s.catalog)
	case routeTags:
		return readOnly(s.tagList)
	case routeReferrers:
		return readOnly(s.referrers)
	case routeManifest:
		return pick("GET, HEAD, PUT, DELETE", table{"GET": s.manifestGet, "HEAD": s.manifestGet, "PUT": s.manifestPut, "DELETE": s.manifestDelete})
	case routeBlob:
		return pick("GET, HEAD, DELETE", table{"GET": s.blobGet, "HEAD": s.blobGet, "DELETE": s.blobDelete})
	case routeUploads:
		return pick("POST", table{"POST": s.uploadStart})
	case routeUpload:
		return pick("GET, HEAD, PATCH, PUT, DELETE", table{"GET": s.uploadStatus, "HEAD": s.uploadStatus, "PATCH": s.uploadChunk, "PUT": s.uploadFinish, "DELETE": s.uploadCancel})
	}
	return "", nil
}

// url returns the address of a path: the path alone, which every client resolves
// against what it asked, unless the configuration names the host.
func (s *Server) url(path string) string {
	return strings.TrimSuffix(s.c.HTTP.Host, "/") + strings.TrimSuffix(s.c.HTTP.Prefix, "/") + path
}

func (s *Server) base(r *request) error {
	r.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, err := io.WriteString(r.w, "{}")
	return err
}

// every calls f at once and then at each interval, until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
