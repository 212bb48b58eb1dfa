package registryd

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

func blobURL(name string, d digest.Digest) string { return "/v2/" + name + "/blobs/" + d.String() }

func (s *Server) blobGet(r *request) error {
	d, err := parseDigest(r.ref)
	if err != nil {
		return err
	}
	if s.proxy != nil {
		if done, err := s.proxy.blob(r, d); done || err != nil {
			return err
		}
	}
	f, st, err := s.store.openBlob(r.name, d)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.Method == http.MethodHead && time.Since(st.ModTime()) > time.Minute && !s.c.Storage.Maintenance.ReadOnly.Enabled {
		s.store.use(d) // a client that finds it here does not send it, and names it soon
	}
	h := r.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", `"`+d.String()+`"`)
	h.Set("Cache-Control", "max-age=31536000")
	http.ServeContent(r.w, r.Request, "", time.Time{}, f)
	if r.Method == http.MethodGet {
		s.events.blob("pull", r, d, st.Size(), "")
	}
	return nil
}

func (s *Server) blobDelete(r *request) error {
	d, err := parseDigest(r.ref)
	if err != nil {
		return err
	}
	if err := s.store.unlinkBlob(r.name, d); err != nil {
		return err
	}
	s.events.blob("delete", r, d, 0, "")
	r.w.Header().Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// uploadStart begins a session, mounts a blob, or takes a whole one.
func (s *Server) uploadStart(r *request) error {
	q := r.URL.Query()
	if m := q.Get("mount"); m != "" {
		done, err := s.mount(r, m, q.Get("from"))
		if done || err != nil {
			return err
		}
	}
	if s.store.quota.room(r.name) == 0 {
		return s.store.quota.add(r.name, 1, 1)
	}
	u, err := s.store.newUpload(r.name)
	if err != nil {
		return err
	}
	if q.Get("digest") != "" {
		d, err := parseDigest(q.Get("digest"))
		if err != nil {
			u.cancel()
			return err
		}
		if err := s.take(r, u); err != nil {
			u.cancel()
			return err
		}
		return s.finish(r, u, d)
	}
	u.close()
	s.session(r, u, http.StatusAccepted)
	return nil
}

// mount reports whether it answered. When it did not, the client uploads.
func (s *Server) mount(r *request, mount, from string) (bool, error) {
	d, err := parseDigest(mount)
	if err != nil || from != "" && !validName(from) {
		return false, nil
	}
	if s.auth != nil && !s.auth.mayMount(r.Request, from) {
		return false, nil
	}
	size, err := s.store.mount(r.name, from, d)
	if err != nil {
		if e, ok := err.(*Error); ok && e.Code == "BLOB_UNKNOWN" { //nolint:errorlint // made just now
			return false, nil
		}
		return false, err
	}
	s.events.blob("mount", r, d, size, from)
	s.created(r, d)
	return true, nil
}

func (s *Server) created(r *request, d digest.Digest) {
	h := r.w.Header()
	h.Set("Location", s.url(blobURL(r.name, d)))
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusCreated)
}

// session answers with where an upload is and how much of it is here. Clients know an
// empty one as 0-0.
func (s *Server) session(r *request, u *upload, status int) {
	s.sessionHeader(r, u)
	r.w.Header().Set("Content-Length", "0")
	r.w.WriteHeader(status)
}

func (s *Server) sessionHeader(r *request, u *upload) {
	h := r.w.Header()
	h.Set("Location", s.url("/v2/"+r.name+"/blobs/uploads/"+u.id))
	h.Set("Range", "0-"+strconv.FormatInt(max(0, u.size-1), 10))
	h.Set("Docker-Upload-Uuid", u.id)
}

func (s *Server) uploadStatus(r *request) error {
	u, err := s.store.openUpload(r.name, r.ref)
	if err != nil {
		return err
	}
	u.close()
	s.sessionHeader(r, u)
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) uploadChunk(r *request) error {
	u, err := s.store.openUpload(r.name, r.ref)
	if err != nil {
		return err
	}
	defer u.close()
	if err := s.take(r, u); err != nil {
		return err
	}
	s.session(r, u, http.StatusAccepted)
	return nil
}

// take appends a request's body, if that is where the upload goes on.
func (s *Server) take(r *request, u *upload) error {
	if v := r.Header.Get("Content-Range"); v != "" {
		first, last, ok := parseContentRange(v)
		if !ok || first != u.size || r.ContentLength >= 0 && last-first+1 != r.ContentLength {
			s.sessionHeader(r, u)
			return uploadInvalid(http.StatusRequestedRangeNotSatisfiable, "the range does not go on where the upload ended, or is not as long as the body")
		}
	}
	if r.Body == nil {
		return nil
	}
	_, err := u.append(r.Body)
	return err
}

// parseContentRange reads "FIRST-LAST", also in HTTP's own form "bytes FIRST-LAST/SIZE".
func parseContentRange(v string) (first, last int64, ok bool) {
	v = strings.TrimPrefix(v, "bytes ")
	v, _, _ = strings.Cut(v, "/")
	a, b, ok := strings.Cut(v, "-")
	if !ok {
		return 0, 0, false
	}
	x, err := strconv.ParseUint(a, 10, 62)
	if err != nil {
		return 0, 0, false
	}
	y, err := strconv.ParseUint(b, 10, 62)
	if err != nil || y < x {
		return 0, 0, false
	}
	return int64(x), int64(y), true
}

func (s *Server) uploadFinish(r *request) error {
	u, err := s.store.openUpload(r.name, r.ref)
	if err != nil {
		return err
	}
	d, err := parseDigest(r.URL.Query().Get("digest"))
	if err != nil {
		u.close()
		return err
	}
	if err := s.take(r, u); err != nil {
		u.close()
		return err
	}
	return s.finish(r, u, d)
}

func (s *Server) finish(r *request, u *upload, d digest.Digest) error {
	if err := u.commit(d); err != nil {
		return err
	}
	s.events.blob("push", r, d, u.size, "")
	s.created(r, d)
	return nil
}

func (s *Server) uploadCancel(r *request) error {
	u, err := s.store.openUpload(r.name, r.ref)
	if err != nil {
		return err
	}
	u.cancel()
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// page is the part of a list that a client asked for by n and last.
func page(q url.Values, limit int, list []string, compare func(a, b string) int) (part []string, more bool, err error) {
	n := limit
	if v := q.Get("n"); v != "" {
		n, err = strconv.Atoi(v)
		if err != nil || n < 0 {
			return nil, false, fail(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", map[string]string{"n": v})
		}
		if limit > 0 {
			n = min(n, limit)
		}
	} else if limit == 0 {
		n = len(list)
	}
	if last := q.Get("last"); last != "" {
		i := 0
		for i < len(list) && compare(list[i], last) <= 0 {
			i++
		}
		list = list[i:]
	}
	if n >= len(list) {
		return list, false, nil
	}
	return list[:n], n > 0, nil
}
