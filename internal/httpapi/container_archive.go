package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"io"

	"github.com/moby/moby/api/types/container"

	"berth.dev/berth/internal/errs"
)

type archiveAPI struct{ backend Archive }

const statHeader = "X-Docker-Container-Path-Stat"

func archivePath(r *request) (string, error) {
	p := r.get("path")
	if p == "" {
		return "", errs.New(errs.Invalid, "bad parameter: path cannot be empty")
	}
	return p, nil
}

func setStat(r *request, st container.PathStat) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	r.w.Header().Set(statHeader, base64.StdEncoding.EncodeToString(b))
	return nil
}

func (a archiveAPI) stat(r *request) (response, error) {
	p, err := archivePath(r)
	if err != nil {
		return done(err)
	}
	st, err := a.backend.ArchiveStat(r.Context(), r.name, p)
	if err != nil {
		return done(err)
	}
	return response{status: 200}, setStat(r, st)
}

func (a archiveAPI) get(r *request) (response, error) {
	p, err := archivePath(r)
	if err != nil {
		return done(err)
	}
	w := &beginWriter{r: r, contentType: "application/x-tar"}
	err = a.backend.ArchiveGet(r.Context(), r.name, p, func(st container.PathStat) io.Writer {
		if setStat(r, st) != nil {
			return io.Discard // a stat always marshals
		}
		return w
	})
	if err != nil {
		return r.broken(err)
	}
	r.beginPlain(w.contentType)
	return done(nil)
}

func (a archiveAPI) put(r *request) (response, error) {
	p, err := archivePath(r)
	if err != nil {
		return done(err)
	}
	err = a.backend.ArchivePut(r.Context(), r.name, p, r.Body, ArchivePutOptions{
		NoOverwriteDirNonDir: r.flag("noOverwriteDirNonDir"), CopyUIDGID: r.flag("copyUIDGID"),
	})
	if err != nil {
		return done(err)
	}
	return response{status: 200}, nil
}
