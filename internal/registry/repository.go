package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
)

// Bounds of what is read into memory.
const (
	MaxManifest = 4 << 20
	maxTags     = 100_000
)

// Repository is one repository at one endpoint. It is safe for use by several
// goroutines.
type Repository struct {
	ep      *endpoint
	path    string
	actions string
	auth    registry.AuthConfig

	mu        sync.Mutex
	challenge challenge

	tokenMu sync.Mutex
	tokens  map[string]token
}

// Mirror reports whether this is not the registry itself.
func (r *Repository) Mirror() bool { return r.ep.mirror }

func (r *Repository) scope() []string {
	if r.path == "" {
		return nil
	}
	return []string{"repository:" + r.path + ":" + r.actions}
}

// ping asks whether a registry is there, and for its challenge.
func (r *Repository) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.ep.base.JoinPath("/v2/").String(), nil)
	if err != nil {
		return err
	}
	res, err := r.ep.send(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, maxErrorBody) // so that the connection is used again
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		if list := challenges(res.Header); len(list) > 0 {
			r.challenge = list[0]
		}
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests:
		return answerError(res)
	}
	return nil // what it says to the first real question counts
}

// url is an address below the repository.
func (r *Repository) url(elem string) string {
	return r.ep.base.JoinPath("/v2/", r.path).String() + "/" + elem
}

// do sends a request, once more with a new token when the first is refused. The caller
// closes the answer's body. body may be nil.
func (r *Repository) do(ctx context.Context, method, to string, h http.Header, body func() io.Reader, scopes ...string) (*http.Response, error) {
	scopes = append(r.scope(), scopes...)
	for again := false; ; again = true {
		var b io.Reader
		if body != nil {
			b = body()
		}
		req, err := http.NewRequestWithContext(ctx, method, to, b)
		if err != nil {
			return nil, err
		}
		for k, v := range h {
			req.Header[k] = v
		}
		if !sameHost(req.URL, r.ep.base) {
			if err := checkLed(r.ep.base, req.URL); err != nil {
				return nil, err
			}
			req = req.WithContext(leading(ctx, r.ep.base, req.URL))
		}
		if err := r.authorize(ctx, req, scopes); err != nil {
			return nil, err
		}
		res, err := r.ep.send(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode != http.StatusUnauthorized || again || !sameOrigin(res.Request.URL, r.ep.base) {
			return res, nil
		}
		list := challenges(res.Header)
		r.mu.Lock()
		before := r.challenge.scheme
		if len(list) > 0 {
			r.challenge = list[0]
		}
		now := r.challenge.scheme
		r.mu.Unlock()
		if now != "bearer" && now == before || now == "" || r.auth.RegistryToken != "" {
			return res, nil // the same again gives the same again
		}
		_ = res.Body.Close()
		r.forget()
	}
}

// accepted are the kinds of manifests that are understood.
var accepted = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, oci.DockerManifestList, oci.DockerManifest, "*/*;q=0.1",
}, ", ")

// Manifest is a document as it came, with the type that the registry calls it.
type Manifest struct {
	MediaType string
	Digest    digest.Digest // of Raw
	Raw       []byte
}

// Manifest fetches a manifest by tag or digest. One by digest has that digest.
func (r *Repository) Manifest(ctx context.Context, reference string) (*Manifest, error) {
	res, err := r.do(ctx, http.MethodGet, r.url("manifests/"+reference), http.Header{"Accept": {accepted}}, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, answerError(res)
	}
	defer res.Body.Close()
	raw, err := readAll(res.Body, MaxManifest, "manifest "+reference)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Raw: raw, Digest: digest.FromBytes(raw)}
	m.MediaType, _, _ = strings.Cut(res.Header.Get("Content-Type"), ";")
	m.MediaType = strings.TrimSpace(m.MediaType)
	if want, err := digest.Parse(reference); err == nil && strings.Contains(reference, ":") {
		if want.Algorithm() != digest.SHA256 {
			if m.Digest = want.Algorithm().FromBytes(raw); m.Digest != want {
				return nil, errs.New(errs.Invalid, "manifest verification failed for digest %s", want)
			}
			return m, nil
		}
		if m.Digest != want {
			return nil, errs.New(errs.Invalid, "manifest verification failed for digest %s", want)
		}
	}
	return m, nil
}

func readAll(r io.Reader, limit int64, what string) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, errs.New(errs.Invalid, "%s is larger than %d bytes", what, limit)
	}
	return raw, nil
}

// PutManifest stores a manifest under a tag or its digest.
func (r *Repository) PutManifest(ctx context.Context, reference, mediaType string, raw []byte) error {
	res, err := r.do(ctx, http.MethodPut, r.url("manifests/"+reference), http.Header{"Content-Type": {mediaType}}, func() io.Reader { return bytes.NewReader(raw) })
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return answerError(res)
	}
	return res.Body.Close()
}

// Tags lists the tags.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	var list []string
	seen := map[string]bool{}
	for to := r.url("tags/list"); to != ""; {
		if seen[to] {
			return list, nil
		}
		seen[to] = true
		res, err := r.do(ctx, http.MethodGet, to, nil, nil)
		if err != nil {
			return nil, err
		}
		if res.StatusCode != http.StatusOK {
			return nil, answerError(res)
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		raw, err := readAll(res.Body, 4*MaxManifest, "list of tags")
		_ = res.Body.Close()
		if err == nil {
			err = json.Unmarshal(raw, &page)
		}
		if err != nil {
			return nil, errs.New(errs.Unavailable, "cannot read the list of tags: %w", err)
		}
		if list = append(list, page.Tags...); len(list) > maxTags {
			return nil, errs.New(errs.Invalid, "repository has more than %d tags", maxTags)
		}
		to = nextPage(res)
	}
	return list, nil
}

// nextPage is the address in "Link: <…>; rel=next", or "".
func nextPage(res *http.Response) string {
	for _, l := range res.Header.Values("Link") {
		at, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(l), "<"), ">")
		if !ok || !strings.Contains(rest, "next") {
			continue
		}
		u, err := res.Request.URL.Parse(at)
		if err == nil && sameOrigin(u, res.Request.URL) {
			return u.String()
		}
	}
	return ""
}

// Blob opens a blob from an offset on. at is where the answer begins: offset, or 0 when
// the registry gives only the whole.
func (r *Repository) Blob(ctx context.Context, d digest.Digest, offset int64) (body io.ReadCloser, at int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	h := http.Header{}
	if offset > 0 {
		h.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	res, err := r.do(ctx, http.MethodGet, r.url("blobs/"+string(d)), h, nil)
	if err != nil {
		cancel(nil)
		return nil, 0, err
	}
	switch {
	case res.StatusCode == http.StatusOK:
		return watchIdle(res.Body, cancel), 0, nil
	case res.StatusCode == http.StatusPartialContent && offset > 0 && strings.HasPrefix(res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		return watchIdle(res.Body, cancel), offset, nil
	case res.StatusCode == http.StatusPartialContent || res.StatusCode == http.StatusRequestedRangeNotSatisfiable && offset > 0:
		_ = res.Body.Close()
		cancel(nil)
		if offset == 0 {
			return nil, 0, errs.New(errs.Unavailable, "%s answers with a part that was not asked for", r.ep.base.Host)
		}
		return r.Blob(ctx, d, 0)
	}
	err = answerError(res)
	cancel(nil)
	return nil, 0, err
}

// ReadBlob returns a blob of at most limit bytes, verified.
func (r *Repository) ReadBlob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	body, _, err := r.Blob(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := readAll(body, limit, "blob "+string(d))
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, errs.New(errs.Invalid, "image config verification failed for digest %s", d)
	}
	return raw, nil
}

// Stat returns the size of a blob, -1 when the registry has none.
func (r *Repository) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	res, err := r.do(ctx, http.MethodHead, r.url("blobs/"+string(d)), nil, nil)
	if err != nil {
		return 0, err
	}
	switch res.StatusCode {
	case http.StatusOK:
		return max(res.ContentLength, 0), res.Body.Close()
	case http.StatusNotFound:
		return -1, res.Body.Close()
	}
	return 0, answerError(res)
}

// Upload is a blob on its way to a registry.
type Upload struct {
	r  *Repository
	at *url.URL
}

// Upload starts a blob. With a digest and a repository of the same registry, the
// registry may take it from there: then nothing is left to do, and the result is nil.
func (r *Repository) Upload(ctx context.Context, mount digest.Digest, from string) (*Upload, error) {
	to := r.url("blobs/uploads/")
	var scopes []string
	if from != "" {
		to += "?" + url.Values{"mount": {string(mount)}, "from": {from}}.Encode()
		scopes = []string{"repository:" + from + ":pull"}
	}
	res, err := r.do(ctx, http.MethodPost, to, nil, nil, scopes...)
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusCreated:
		if from != "" {
			return nil, res.Body.Close()
		}
	case http.StatusAccepted:
		_ = res.Body.Close()
		at, err := r.location(res)
		if err != nil {
			return nil, err
		}
		return &Upload{r, at}, nil
	}
	return nil, answerError(res)
}

// location is where an upload goes on.
func (r *Repository) location(res *http.Response) (*url.URL, error) {
	at, err := res.Location()
	if err != nil {
		return nil, errs.New(errs.Unavailable, "%s does not say where to upload to", r.ep.base.Host)
	}
	if err := checkLed(r.ep.base, at); err != nil {
		return nil, err
	}
	return at, nil
}

// Stream sends what there is, of any length.
func (u *Upload) Stream(ctx context.Context, body io.Reader) error {
	first := true
	res, err := u.r.do(ctx, http.MethodPatch, u.at.String(), http.Header{"Content-Type": {"application/octet-stream"}}, func() io.Reader {
		if !first {
			return errReader{errors.New("the upload was refused when it had begun")}
		}
		first = false
		return io.NopCloser(body)
	})
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return answerError(res)
	}
	_ = res.Body.Close()
	u.at, err = u.r.location(res)
	return err
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// Commit ends an upload with its last bytes; it fails when all have another digest.
func (u *Upload) Commit(ctx context.Context, d digest.Digest, rest []byte) error {
	to := *u.at
	q := to.Query()
	q.Set("digest", string(d))
	to.RawQuery = q.Encode()
	res, err := u.r.do(ctx, http.MethodPut, to.String(), http.Header{"Content-Type": {"application/octet-stream"}}, func() io.Reader { return bytes.NewReader(rest) })
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusNoContent {
		return answerError(res)
	}
	return res.Body.Close()
}

// Cancel gives an upload up.
func (u *Upload) Cancel(ctx context.Context) {
	if res, err := u.r.do(ctx, http.MethodDelete, u.at.String(), nil, nil); err == nil {
		_ = res.Body.Close()
	}
}
