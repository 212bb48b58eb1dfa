package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/state"
)

// RemoveOptions says how far a removal goes.
type RemoveOptions struct {
	Force   bool // also with several names, and under stopped containers
	NoPrune bool // leave parents that have no name
}

// Remove removes a name and, with the last one, the image. An id removes the
// image with all its names, when they are of one repository or with Force.
func (s *Service) Remove(ctx context.Context, name string, opts RemoveOptions) ([]image.DeleteResponse, error) {
	s.change.Lock()
	defer s.change.Unlock()
	im, err := s.find(name)
	if err != nil {
		return nil, err
	}
	rm := &removal{s: s, ctx: ctx, records: []image.DeleteResponse{}}
	names := s.namesOf(im.ID)
	byName := !ref.IsIDPrefix(im.ID, name)
	if byName {
		more, err := rm.untagOne(im, name, names, opts.Force)
		if err != nil || more {
			return rm.records, err
		}
	} else if oneRepository(names) {
		// All names go with the image: that it has some is no conflict.
		if err := s.conflict(im.ID, !opts.Force, false); err != nil {
			return nil, err
		}
		for _, n := range names {
			if err := rm.untag(im, n); err != nil {
				return nil, err
			}
		}
	}
	if err := rm.delete(im.ID, opts.Force, !opts.NoPrune, byName); err != nil {
		return nil, err
	}
	return rm.records, nil
}

// removal is one Remove under way. The change lock is held.
type removal struct {
	s       *Service
	ctx     context.Context
	records []image.DeleteResponse
}

// untagOne takes the name that was given from an image and reports whether the image
// keeps others.
func (rm *removal) untagOne(im *Image, name string, names []ref.Name, force bool) (more bool, err error) {
	s := rm.s
	if holders := s.holders(im.ID); !force && len(holders) > 0 && oneRepository(names) {
		return false, errs.New(errs.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			name, ref.Short(holders[0]), ref.Short(string(im.ID)))
	}
	n, err := ref.Parse(name)
	if err != nil {
		return false, err
	}
	if n.Digest() != "" && n.Tag() != "" {
		if n, err = n.WithDigest(n.Digest()); err != nil {
			return false, err
		}
	}
	if err := rm.untag(im, n); err != nil {
		return false, err
	}
	// With a repository's last tag go the digests that it is known by.
	rest := s.namesOf(im.ID)
	if n.Digest() == "" && !slices.ContainsFunc(rest, func(m ref.Name) bool { return m.Digest() == "" && m.Repository() == n.Repository() }) {
		for _, m := range rest {
			if m.Repository() == n.Repository() {
				if err := rm.untag(im, m); err != nil {
					return false, err
				}
			}
		}
		rest = s.namesOf(im.ID)
	}
	return len(rest) > 0, nil
}

func (rm *removal) untag(im *Image, n ref.Name) error {
	s := rm.s
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error { tx.Delete("tag", n.String()); return nil })
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.clearTag(n)
	clear(s.resolved)
	s.mu.Unlock()
	rm.records = append(rm.records, image.DeleteResponse{Untagged: n.Familiar()})
	s.event(events.ActionUnTag, im, string(im.ID))
	return nil
}

// delete removes an image that nothing speaks against, and parents that only led
// to it. When quiet, a conflict just ends it: the name was all that could go.
func (rm *removal) delete(id digest.Digest, force, prune, quiet bool) error {
	s := rm.s
	if err := s.conflict(id, !force, !force); err != nil {
		dangling := len(s.namesOf(id)) == 0
		if quiet && (!dangling || len(s.holders(id)) > 0) {
			return nil
		}
		return err
	}
	s.mu.RLock()
	im := s.images[id]
	s.mu.RUnlock()
	for _, n := range s.namesOf(id) {
		if err := rm.untag(im, n); err != nil {
			return err
		}
	}
	held := len(s.holders(id)) > 0
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if held {
			return tx.Put("image", string(id), Record{Config: im.Raw, Parent: im.Parent, Tagged: im.tagged, Deleted: true})
		}
		tx.Delete("image", string(id))
		dropManifests(s, tx, id)
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	if held {
		gone := *im
		gone.deleted = true
		s.images[id] = &gone
	} else {
		delete(s.images, id)
	}
	clear(s.resolved)
	s.mu.Unlock()
	rm.records = append(rm.records, image.DeleteResponse{Deleted: string(id)})
	s.event(events.ActionDelete, im, string(id))
	if !held {
		s.layers.unhold(im.Layers)
		layers, err := s.layers.collect(rm.ctx)
		for _, l := range layers {
			rm.records = append(rm.records, image.DeleteResponse{Deleted: string(l)})
		}
		if err != nil {
			return fmt.Errorf("cannot remove layers of image %s: %w", ref.Short(string(id)), err)
		}
	}
	if !prune || im.Parent == "" || !s.exists(im.Parent) {
		return nil
	}
	return rm.delete(im.Parent, false, true, true)
}

func (s *Service) exists(id digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	im := s.images[id]
	return im != nil && !im.deleted
}

// conflict returns what speaks against deleting an image: always its children
// and running containers; with stopped, stopped containers; with named, its names.
func (s *Service) conflict(id digest.Digest, stopped, named bool) error {
	refuse := func(how, why string, args ...any) error {
		return errs.New(errs.Conflict, "conflict: unable to delete %s (%s) - %s", ref.Short(string(id)), how, fmt.Sprintf(why, args...))
	}
	const hard, soft = "cannot be forced", "must be forced"
	if s.children()[id] > 0 {
		return refuse(hard, "image has dependent child images")
	}
	holders := s.holders(id)
	for _, h := range holders {
		if s.o.Running(h) {
			return refuse(hard, "image is being used by running container %s", ref.Short(h))
		}
	}
	if named && len(s.namesOf(id)) > 0 {
		return refuse(soft, "image is referenced in multiple repositories")
	}
	if stopped && len(holders) > 0 {
		return refuse(soft, "image is being used by stopped container %s", ref.Short(holders[0]))
	}
	return nil
}

// oneRepository reports whether names are at most one tag, with digests of the
// same repository.
func oneRepository(names []ref.Name) bool {
	if len(names) <= 1 {
		return true
	}
	var single ref.Name
	digests := map[string]bool{}
	for _, n := range names {
		switch {
		case n.Digest() != "":
			digests[n.Repository()] = true
		case single.IsZero():
			single = n
		default:
			return false
		}
	}
	if single.IsZero() {
		single = names[0]
	}
	return len(digests) == 1 && digests[single.Repository()]
}

// PruneReport is what Prune removed.
type PruneReport struct {
	ImagesDeleted  []image.DeleteResponse
	SpaceReclaimed uint64
}

// Prune removes images without a tag or, with dangling=false, all that no
// container uses.
func (s *Service) Prune(ctx context.Context, args filter.Args) (PruneReport, error) {
	if err := args.Validate("dangling", "label", "label!", "until"); err != nil {
		return PruneReport{}, err
	}
	danglingOnly, err := args.Bool("dangling", true)
	if err != nil {
		return PruneReport{}, err
	}
	sub := filter.Args{}
	for _, k := range []string{"label", "label!", "until"} {
		if args.Has(k) {
			sub[k] = args[k]
		}
	}
	f, err := s.parseFilters(sub)
	if err != nil {
		return PruneReport{}, err
	}
	var rep PruneReport
	before := s.layers.total()
	children := s.children()
	list := s.all()
	slices.SortFunc(list, func(a, b *Image) int { return b.Created.Compare(a.Created) })
	for _, im := range list {
		if err := ctx.Err(); err != nil {
			return rep, err
		}
		names := s.namesOf(im.ID)
		hasTag := slices.ContainsFunc(names, func(n ref.Name) bool { return n.Tag() != "" })
		if children[im.ID] > 0 && (len(names) == 0 || danglingOnly) || danglingOnly && hasTag || !f.match(im) || len(s.holders(im.ID)) > 0 {
			continue
		}
		targets := []string{im.ID.Encoded()}
		if len(names) > 0 {
			targets = targets[:0]
			for _, n := range names {
				targets = append(targets, n.String())
			}
		}
		for _, t := range targets {
			deleted, err := s.Remove(ctx, t, RemoveOptions{})
			if errs.Is(err, errs.Conflict) || errs.Is(err, errs.NotFound) {
				continue // taken into use meanwhile, or gone
			}
			if err != nil {
				return rep, err
			}
			rep.ImagesDeleted = append(rep.ImagesDeleted, deleted...)
		}
	}
	rep.SpaceReclaimed = uint64(max(before-s.layers.total(), 0))
	s.o.Event(events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(rep.SpaceReclaimed)})
	return rep, nil
}
