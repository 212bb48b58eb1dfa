package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"

	"berth.dev/berth/internal/errs"
)

type transferAPI struct {
	backend Transfer
	puller  Puller
}

func (a transferAPI) save(r *request) (response, error) { return a.saveAll(r, []string{r.name}) }

func (a transferAPI) saveSeveral(r *request) (response, error) {
	return a.saveAll(r, r.values()["names"])
}

func (a transferAPI) saveAll(r *request, names []string) (response, error) {
	w := &beginWriter{r: r, contentType: "application/x-tar"}
	if err := a.backend.Save(r.Context(), names, w); err != nil {
		return r.broken(err)
	}
	r.beginPlain(w.contentType)
	return done(nil)
}

func (a transferAPI) load(r *request) (response, error) {
	o := ImageLoadOptions{Quiet: r.flagOr("quiet", true)}
	if r.version >= 48 {
		for _, text := range r.values()["platform"] {
			var p Platform
			if err := json.Unmarshal([]byte(text), &p); err != nil || p.OS == "" || p.Architecture == "" {
				return done(errs.New(errs.Invalid, "failed to parse platform: %s", text))
			}
			o.Platforms = append(o.Platforms, p)
		}
		if len(o.Platforms) > 1 && r.version < 52 {
			return done(errs.New(errs.Invalid, "multiple platforms parameters not supported"))
		}
	}
	p := r.progress()
	return p.finish(a.backend.Load(r.Context(), r.Body, o, p.send))
}

// create makes an image: from an archive (fromSrc) or from a registry (fromImage).
func (a transferAPI) create(r *request) (response, error) {
	platform := ""
	if r.version >= 32 {
		platform = r.get("platform")
	}
	p := r.progress()
	if name := r.get("fromImage"); name != "" {
		return a.pull(r, p, name, platform)
	}
	if a.backend == nil {
		return done(errPageNotFound)
	}
	body, err := a.source(r, p)
	if err != nil {
		return p.finish(err)
	}
	defer body.Close()
	message := r.get("message")
	if message == "" {
		message = "Imported from " + r.get("fromSrc")
	}
	send := p.send
	if r.get("fromSrc") == "-" {
		// A client that sends the archive itself knows how far it is, and takes
		// the first message that comes for the image's id.
		send = func(m jsonstream.Message) {
			if m.Progress == nil {
				p.send(m)
			}
		}
	}
	_, err = a.backend.Import(r.Context(), body, ImageImportOptions{
		Repo: r.get("repo"), Tag: r.get("tag"), Message: message, Changes: r.values()["changes"], Platform: platform,
	}, send)
	return p.finish(err) // the image's id was the last message
}

// source opens what fromSrc names: the request's body, or a URL.
func (a transferAPI) source(r *request, p *progress) (io.ReadCloser, error) {
	src := r.get("fromSrc")
	switch {
	case src == "-":
		return r.Body, nil
	case src == "":
		return nil, errs.New(errs.Invalid, "either fromImage or fromSrc must be given")
	case !strings.Contains(src, "://"):
		src = "http://" + src
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, src, nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "invalid URL: %v", err)
	}
	p.send(jsonstream.Message{Status: "Downloading from " + src})
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "cannot download "+src)
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, errs.New(errs.Unavailable, "cannot download %s: %s", src, res.Status)
	}
	return res.Body, nil
}

func (a transferAPI) pull(r *request, p *progress, name, platform string) (response, error) {
	if a.puller == nil {
		return done(errPageNotFound)
	}
	auth, err := authHeader(r)
	if err != nil {
		return done(err)
	}
	o := PullOptions{Ref: name, Platform: platform, Auth: auth}
	switch tag := r.get("tag"); {
	case strings.Contains(tag, ":"): // a digest
		o.Ref += "@" + tag
	case tag != "":
		o.Ref += ":" + tag
	default:
		last := name[strings.LastIndexByte(name, '/')+1:]
		o.All = !strings.ContainsAny(last, ":@")
	}
	return p.finish(a.puller.Pull(r.Context(), o, p.send))
}

// authHeader reads the credentials that a client sends with a pull.
func authHeader(r *request) (*registry.AuthConfig, error) {
	text := r.Header.Get("X-Registry-Auth")
	if text == "" {
		return nil, nil //nolint:nilnil // anonymous
	}
	b, err := base64.URLEncoding.DecodeString(text)
	if err != nil {
		if b, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "=")); err != nil {
			return nil, errs.New(errs.Invalid, "invalid X-Registry-Auth header: %v", err)
		}
	}
	var c registry.AuthConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, errs.New(errs.Invalid, "invalid X-Registry-Auth header: %v", err)
	}
	if c == (registry.AuthConfig{}) {
		return nil, nil //nolint:nilnil // "{}" is anonymous too
	}
	return &c, nil
}
