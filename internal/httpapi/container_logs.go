package httpapi

import (
	"io"
	"strconv"

	"github.com/moby/moby/api/types"

	"berth.dev/berth/internal/errs"
)

func (a streamsAPI) logs(r *request) (response, error) {
	o := LogsOptions{
		Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Follow: r.flag("follow"),
		Timestamps: r.flag("timestamps"), Details: r.flag("details"), Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return done(errs.New(errs.Invalid, "Bad parameters: you must choose at least one stream"))
	}
	var err error
	if o.Since, err = r.timestamp("since"); err != nil {
		return done(err)
	}
	if r.version >= 35 {
		if o.Until, err = r.timestamp("until"); err != nil {
			return done(err)
		}
	}
	if n, err := strconv.Atoi(r.get("tail")); err == nil && n >= 0 { // "all", and what is no number, is all
		o.Tail = n
	}
	began := false
	err = a.backend.Logs(r.Context(), r.name, o, func(tty bool) io.Writer {
		began = true
		kind := types.MediaTypeRawStream
		if !tty && r.version >= 42 {
			kind = types.MediaTypeMultiplexedStream
		}
		w := r.begin(kind)
		r.flush()
		return w
	})
	if err == nil && !began {
		r.begin(types.MediaTypeRawStream)
	}
	return done(err)
}
