package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/state"
)

const maxResolved = 4096 // answers remembered

// Resolve finds an image by name, id, prefix of an id, or name and digest. An
// image that comes with the engine is loaded when its name is asked for.
func (s *Service) Resolve(ctx context.Context, name string) (*Image, error) {
	im, err := s.find(name)
	if err == nil || !errs.Is(err, errs.NotFound) || len(s.builtin) == 0 {
		return im, err
	}
	n, perr := ref.Parse(name)
	if perr != nil {
		return nil, err
	}
	open, ok := s.builtin[n.String()]
	if !ok {
		return nil, err
	}
	if lerr := s.loadBuiltin(ctx, name, open); lerr != nil {
		return nil, lerr
	}
	return s.find(name)
}

func (s *Service) loadBuiltin(ctx context.Context, name string, open func() (io.ReadCloser, error)) error {
	s.builtinMu.Lock()
	defer s.builtinMu.Unlock()
	if _, err := s.find(name); err == nil {
		return nil
	}
	rc, err := open()
	if err != nil {
		return fmt.Errorf("cannot load the built-in image %s: %w", name, err)
	}
	defer rc.Close()
	if err := s.Load(ctx, rc, LoadOptions{Quiet: true}, nil); err != nil {
		return fmt.Errorf("cannot load the built-in image %s: %w", name, err)
	}
	return nil
}

// find is Resolve among what is stored.
func (s *Service) find(name string) (*Image, error) {
	s.mu.RLock()
	im := s.resolved[name]
	s.mu.RUnlock()
	if im != nil {
		return im, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	im, err := s.findLocked(name)
	if err != nil {
		return nil, err
	}
	if len(s.resolved) >= maxResolved {
		clear(s.resolved)
	}
	s.resolved[name] = im
	return im, nil
}

func (s *Service) findLocked(name string) (*Image, error) {
	if id, ok := ref.ParseID(name); ok {
		if im := s.images[id]; im != nil && !im.deleted {
			return im, nil
		}
		return nil, errs.New(errs.NotFound, "No such image: %s", id)
	}
	n, err := ref.Parse(name)
	if err != nil {
		// "sha256:abc" is no name, and may be the start of an id.
		if im := s.searchID(name); im != nil {
			return im, nil
		}
		return nil, err
	}
	if id, ok := s.lookup(n); ok {
		return s.images[id], nil
	}
	if im := s.searchID(name); im != nil {
		return im, nil
	}
	return nil, errs.New(errs.NotFound, "No such image: %s", n.Familiar())
}

// lookup finds a reference among the tags. With a tag and a digest the digest counts.
func (s *Service) lookup(n ref.Name) (digest.Digest, bool) {
	if n.Digest() != "" && n.Tag() != "" {
		if c, err := n.WithDigest(n.Digest()); err == nil {
			n = c
		}
	}
	id, ok := s.tags[n.String()]
	return id, ok
}

// searchID finds the one image whose id starts with the digits of prefix.
func (s *Service) searchID(prefix string) *Image {
	hex, ok := ref.IDPrefix(prefix)
	if !ok {
		return nil
	}
	var found *Image
	for id, im := range s.images {
		if im.deleted || !strings.HasPrefix(id.Encoded(), hex) {
			continue
		}
		if found != nil {
			return nil
		}
		found = im
	}
	return found
}

// setTag points a reference to an image in the index. mu is held, or nobody else is there yet.
func (s *Service) setTag(n ref.Name, id digest.Digest) {
	full := n.String()
	if prev, ok := s.tags[full]; ok {
		if prev == id {
			return
		}
		s.clearTag(n)
	}
	s.tags[full] = id
	names := append(slices.Clone(s.names[id]), n)
	slices.SortFunc(names, func(a, b ref.Name) int { return strings.Compare(a.String(), b.String()) })
	s.names[id] = names
}

func (s *Service) clearTag(n ref.Name) {
	full := n.String()
	id := s.tags[full]
	delete(s.tags, full)
	names := slices.DeleteFunc(slices.Clone(s.names[id]), func(m ref.Name) bool { return m.String() == full })
	if len(names) == 0 {
		delete(s.names, id)
		return
	}
	s.names[id] = names
}

// namesOf returns the references of an image, sorted. It is not to be changed.
func (s *Service) namesOf(id digest.Digest) []ref.Name {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.names[id]
}

// all returns the images that users see.
func (s *Service) all() []*Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*Image, 0, len(s.images))
	for _, im := range s.images {
		if !im.deleted {
			list = append(list, im)
		}
	}
	return list
}

// children counts, for every image, those built on it.
func (s *Service) children() map[digest.Digest]int {
	n := map[digest.Digest]int{}
	for _, im := range s.all() {
		if im.Parent != "" {
			n[im.Parent]++
		}
	}
	return n
}

// Tag gives the image source another name. An empty tag means "latest".
func (s *Service) Tag(ctx context.Context, source, repo, tag string) error {
	im, err := s.Resolve(ctx, source)
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return errs.New(errs.Invalid, "%w", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
	}
	n, err := ref.ParseRepository(repo, tag)
	if err != nil {
		return err
	}
	if n.FamiliarRepository() == string(digest.SHA256) {
		return errs.New(errs.Invalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return s.tag(im.ID, n)
}

// tag points n to an image and remembers when.
func (s *Service) tag(id digest.Digest, n ref.Name) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	old := s.images[id]
	s.mu.RUnlock()
	if old == nil || old.deleted {
		return errs.New(errs.NotFound, "No such image: %s", id)
	}
	im := *old
	im.tagged = time.Now().UTC()
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if err := tx.Put("image", string(id), Record{Config: im.Raw, Parent: im.Parent, Tagged: im.tagged}); err != nil {
			return err
		}
		return tx.Put("tag", n.String(), id)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.images[id] = &im
	s.setTag(n, id)
	clear(s.resolved)
	s.mu.Unlock()
	s.event(events.ActionTag, &im, n.Familiar())
	return nil
}
