package client

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/moby/moby/api/types/jsonstream"
)

// Messages calls each for every message of a progress stream. A message that
// carries an error ends the stream with that error.
func Messages(r io.Reader, each func(jsonstream.Message) error) error {
	dec := json.NewDecoder(r)
	for {
		var m jsonstream.Message
		if err := dec.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if m.Error != nil {
			return m.Error
		}
		if err := each(m); err != nil {
			return err
		}
	}
}
