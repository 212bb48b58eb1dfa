package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/moby/moby/api/types"
	wire "github.com/moby/moby/api/types/events"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/events"
)

type eventsAPI struct{ backend Events }

// legacyEvent is an event with the fields of 1.21, which were sent until 1.51.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	*events.Message
}

func (a eventsAPI) stream(r *request) (response, error) {
	since, err := r.timestamp("since")
	if err != nil {
		return done(err)
	}
	until, err := r.timestamp("until")
	if err != nil {
		return done(err)
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return done(errs.New(errs.Invalid, "`since` time (%s) cannot be after `until` time (%s)", r.get("since"), r.get("until")))
	}
	f, err := r.filters()
	if err != nil {
		return done(err)
	}
	sub := a.backend.Subscribe(since, until, f)
	defer sub.Close()

	kind := eventsType(r)
	w := r.begin(kind)
	r.flush() // the client learns that it is listening
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		m, err := sub.Next(r.Context())
		if errors.Is(err, io.EOF) || r.Context().Err() != nil {
			return done(nil)
		}
		if err != nil {
			return done(err)
		}
		if kind == types.MediaTypeJSONSequence {
			if _, err := w.Write([]byte{0x1e}); err != nil {
				return done(err)
			}
		}
		if err := enc.Encode(eventFor(r.version, &m)); err != nil {
			return done(err)
		}
	}
}

func eventFor(v Version, m *events.Message) any {
	if v >= 52 {
		return m
	}
	l := legacyEvent{Message: m}
	switch m.Type {
	case wire.ContainerEventType:
		l.Status, l.ID, l.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case wire.ImageEventType:
		l.Status, l.ID = string(m.Action), m.Actor.ID
	}
	return l
}

// eventsType negotiates the stream's format: the first of the client's types
// that is spoken.
func eventsType(r *request) string {
	if r.version >= 52 {
		for _, want := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
			want, params, _ := strings.Cut(want, ";")
			if strings.TrimSpace(params) == "q=0" {
				continue
			}
			switch want = strings.TrimSpace(want); {
			case want == types.MediaTypeNDJSON, want == types.MediaTypeJSONSequence, want == types.MediaTypeJSON,
				want == types.MediaTypeJSONLines && r.version >= 53:
				return want
			}
		}
	}
	return types.MediaTypeJSON
}
