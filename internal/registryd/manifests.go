package registryd

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func (s *Server) manifestGet(r *request) error {
	if s.proxy != nil {
		if err := s.proxy.manifest(r); err != nil {
			return err
		}
	}
	m, err := s.store.getManifest(r.name, r.ref)
	if err != nil {
		return err
	}
	h := r.w.Header()
	etag := `"` + m.digest.String() + `"`
	h.Set("Docker-Content-Digest", m.digest.String())
	h.Set("Etag", etag)
	if v := r.Header.Get("If-None-Match"); v != "" && (v == etag || v == m.digest.String() || v == "*") {
		r.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", m.mediaType)
	h.Set("Content-Length", strconv.Itoa(len(m.body)))
	r.w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	_, _ = r.w.Write(m.body)
	s.events.manifest("pull", r, m.digest, m.mediaType, int64(len(m.body)), tagOf(r.ref), nil)
	return nil
}

// tagOf returns a reference when it is a tag.
func tagOf(ref string) string {
	if strings.Contains(ref, ":") {
		return ""
	}
	return ref
}

func (s *Server) manifestPut(r *request) error {
	tag := ""
	var want digest.Digest
	var err error
	if strings.Contains(r.ref, ":") {
		if want, err = parseDigest(r.ref); err != nil {
			return err
		}
	} else {
		if tag = r.ref; !validTag(tag) {
			return fail(http.StatusBadRequest, "TAG_INVALID", "manifest tag did not match URI", map[string]string{"tag": tag})
		}
		if q := r.URL.Query().Get("digest"); q != "" {
			if want, err = parseDigest(q); err != nil {
				return err
			}
		}
	}
	if r.ContentLength > maxManifest {
		return tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
	switch {
	case err != nil:
		return manifestInvalid("the body ended early")
	case len(body) > maxManifest:
		return tooLarge()
	}
	d := digest.FromBytes(body)
	if want != "" {
		if d = want.Algorithm().FromBytes(body); d != want {
			return digestInvalid("provided digest did not match uploaded content", map[string]string{"digest": want.String(), "content": d.String()})
		}
	}
	m, kind, err := parseManifest(body, r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if err := s.store.putManifest(r.name, tag, d, kind, m, body, !s.c.Validation.Disabled); err != nil {
		return err
	}
	s.events.manifest("push", r, d, kind, int64(len(body)), tag, m.descriptors())
	h := r.w.Header()
	h.Set("Location", s.url("/v2/"+r.name+"/manifests/"+d.String()))
	h.Set("Docker-Content-Digest", d.String())
	if m.Subject != nil {
		h.Set("OCI-Subject", m.Subject.Digest.String())
	}
	h.Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusCreated)
	return nil
}

func tooLarge() *Error {
	return fail(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "manifest invalid: it is larger than 4 MiB", nil)
}

func (s *Server) manifestDelete(r *request) error {
	if tag := tagOf(r.ref); tag != "" {
		if !validTag(tag) {
			return fail(http.StatusBadRequest, "TAG_INVALID", "manifest tag did not match URI", map[string]string{"tag": tag})
		}
		if !s.store.hasRepo(r.name) {
			return nameUnknown(r.name)
		}
		if err := s.store.deleteTag(r.name, tag); err != nil {
			return err
		}
		s.events.manifest("delete", r, "", "", 0, tag, nil)
	} else {
		d, err := parseDigest(r.ref)
		if err != nil {
			return err
		}
		if err := s.store.deleteManifest(r.name, d); err != nil {
			return err
		}
		s.events.manifest("delete", r, d, "", 0, "", nil)
	}
	r.w.Header().Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (s *Server) tagList(r *request) error {
	if s.proxy != nil {
		if done, err := s.proxy.tags(r); done || err != nil {
			return err
		}
	}
	if !s.store.hasRepo(r.name) {
		return nameUnknown(r.name)
	}
	all, err := s.store.tags(r.name)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	part, more, err := page(q, 0, all, compareTags)
	if err != nil {
		return err
	}
	if more {
		s.next(r, "/v2/"+r.name+"/tags/list", part, q.Get("n"))
	}
	return writeJSON(r.w, "application/json; charset=utf-8", map[string]any{"name": r.name, "tags": part})
}

// next says where a list goes on.
func (s *Server) next(r *request, path string, part []string, n string) {
	v := url.Values{"last": {part[len(part)-1]}}
	if n != "" {
		v.Set("n", n)
	}
	r.w.Header().Set("Link", "<"+s.url(path)+"?"+v.Encode()+`>; rel="next"`)
}

func (s *Server) catalog(r *request) error {
	all, err := s.store.catalog()
	if err != nil {
		return err
	}
	q := r.URL.Query()
	part, more, err := page(q, s.c.Catalog.MaxEntries, all, strings.Compare)
	if err != nil {
		return err
	}
	if more {
		s.next(r, "/v2/_catalog", part, q.Get("n"))
	}
	return writeJSON(r.w, "application/json; charset=utf-8", map[string]any{"repositories": part})
}

// maxReferrers is how many descriptors one page of referrers has at most; and
// maxReferrersSize about how many bytes, as what lists them is a manifest to clients.
const (
	maxReferrers     = 1000
	maxReferrersSize = maxManifest / 2
)

func (s *Server) referrers(r *request) error {
	d, err := parseDigest(r.ref)
	if err != nil {
		return err
	}
	all, err := s.store.referrers(r.name, d)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	kind, last := q.Get("artifactType"), q.Get("last")
	list, size := []ocispec.Descriptor{}, 0
	for _, x := range all {
		if kind != "" && x.ArtifactType != kind || last != "" && x.Digest.String() <= last {
			continue
		}
		b, _ := json.Marshal(x)
		if size += len(b); len(list) > 0 && (len(list) == maxReferrers || size > maxReferrersSize) {
			v := url.Values{"last": {list[len(list)-1].Digest.String()}}
			if kind != "" {
				v.Set("artifactType", kind)
			}
			r.w.Header().Set("Link", "<"+s.url("/v2/"+r.name+"/referrers/"+d.String())+"?"+v.Encode()+`>; rel="next"`)
			break
		}
		list = append(list, x)
	}
	if kind != "" {
		r.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(r.w, ocispec.MediaTypeImageIndex, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": list})
}

func writeJSON(w http.ResponseWriter, kind string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
	return nil
}
