package container

import (
	"context"
	"strings"

	"github.com/moby/moby/api/types/events"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/state"
)

// Rename gives a container another name.
func (s Edits) Rename(_ context.Context, ref, name string) error {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return errs.New(errs.Invalid, "Neither old nor new names may be empty")
	}
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.Record()
	if old.Name == name {
		return errs.New(errs.Invalid, "Renaming a container with the same name as its current name")
	}
	if _, err := s.reserve(name, old.ID); err != nil {
		return errs.Wrap(errs.KindOf(err), err, "Error when allocating new name")
	}
	r := *old
	r.Name = name
	err = s.o.DB.Update(state.Sync, func(tx *state.Tx) error {
		tx.Delete("name", old.Name)
		if err := tx.Put("name", name, r.ID); err != nil {
			return err
		}
		return putRecord(tx, &r)
	})
	if err != nil {
		s.release(name, old.ID)
		return err
	}
	c.rec.Store(&r)
	s.o.Networks.Rename(string(r.ID), r.Name)
	s.release(old.Name, old.ID)
	s.event(c, events.ActionRename, "oldName", "/"+old.Name)
	return nil
}
