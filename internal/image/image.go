// Package image is the engine's image store: from names to configurations and
// layers, and all that moves images in and out.
//
// # Words
//
// An image is a configuration, kept byte for byte and named by its digest, on a
// stack of layers. A layer is named by its chain id, shared by all images that
// have it, and kept unpacked as a committed snapshot together with a skeleton, from
// which its tar comes back byte for byte. A tag is a full reference that points to an
// image. A holder is who uses an image, a container for example: it writes the row RefKey
// in its own transaction, and takes it away in the same manner.
//
// # Rows
//
//	image  <image id>    → Record
//	tag    <reference>   → image id; "…@sha256:…" for a registry's digest
//	layer  <chain id>    → Layer
//	manifest <image id>/<digest> → manifest, as a registry gave or got it
//	ref    image/<image id>/<holder> → written by the holder
//
// # On disk
//
//	<root>/skeleton/<digits of the chain id>
//	<root>/tmp/                              uploads; emptied at Open
//	<root>/download/<digits of the digest>   layers on their way here; see Remote
//
// # Crashes
//
// A layer comes into being in this order: active snapshot and temporary skeleton,
// skeleton renamed, snapshot committed, row. An image: its layers, then one
// transaction with its row and its tags. Removal goes the other way. So a row is never
// without its data, and Open removes data without a row. After a power cut, layers that
// were not known to be on disk are proven by their digest, and images that lost one go.
//
// # Locks
//
// change, then layers.mu, then mu. mu guards the index in memory and is held for
// memory work only; Resolve takes nothing else.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/state"
)

const maxConfig = 8 << 20 // bytes of a configuration or a manifest

// Image is one image, as it is in memory. It never changes.
type Image struct {
	ID      digest.Digest
	Config  dockerspec.DockerOCIImage
	Raw     []byte          // the configuration as it came
	Layers  []digest.Digest // chain ids, lowest first
	Created time.Time       // zero when the configuration does not say
	Parent  digest.Digest   // the image that it was built from here, or ""
	Comment string
	Size    int64 // bytes in the files of its layers

	tagged  time.Time
	deleted bool // gone for users; its layers are still held
}

// Top is the snapshot to put a container on: "" for an image without layers.
func (i *Image) Top() string {
	if len(i.Layers) == 0 {
		return ""
	}
	return string(i.Layers[len(i.Layers)-1])
}

// Record is an image's row.
type Record struct {
	Config  []byte        `json:"config"`
	Parent  digest.Digest `json:"parent,omitempty"`
	Tagged  time.Time     `json:"tagged,omitzero"`
	Deleted bool          `json:"deleted,omitempty"`
}

// RefKey is the key, in the bucket "ref", of the row by which holder keeps an image.
func RefKey(id digest.Digest, holder string) string { return "image/" + string(id) + "/" + holder }

// Options are what the service is built from.
type Options struct {
	Root      string // directory of the service's own files
	DB        *state.DB
	Snapshots *snapshot.Store
	Log       *slog.Logger // nil: discard

	// Running tells whether a holder is a running container; nil: none is.
	Running func(holder string) bool

	// Event is told what happened to an image; nil: nobody is.
	Event func(action events.Action, id string, attributes map[string]string)

	// Builtin are archives of images that come with the engine, by familiar name, loaded
	// when a name is asked for and not there.
	Builtin map[string]func() (io.ReadCloser, error)
}

// Service is the image store.
type Service struct {
	o      Options
	layers *layerStore

	change sync.Mutex // one change of images and tags at a time

	mu       sync.RWMutex
	images   map[digest.Digest]*Image
	tags     map[string]digest.Digest     // by full reference
	names    map[digest.Digest][]ref.Name // of each image, sorted
	resolved map[string]*Image            // answers of Resolve, until anything changes

	builtin   map[string]func() (io.ReadCloser, error) // by full reference
	builtinMu sync.Mutex
}

// Open reads the rows, repairs what a crash left, and returns the service.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Event == nil {
		o.Event = func(events.Action, string, map[string]string) {}
	}
	if o.Running == nil {
		o.Running = func(string) bool { return false }
	}
	s := &Service{
		o: o, images: map[digest.Digest]*Image{}, tags: map[string]digest.Digest{},
		names: map[digest.Digest][]ref.Name{}, resolved: map[string]*Image{},
		builtin: map[string]func() (io.ReadCloser, error){},
	}
	for name, open := range o.Builtin {
		n, err := ref.Parse(name)
		if err != nil {
			return nil, err
		}
		s.builtin[n.String()] = open
	}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.tmp(), 0o700); err != nil {
		return nil, err
	}
	var err error
	if s.layers, err = openLayers(ctx, o); err != nil {
		return nil, err
	}
	if err := s.readRows(); err != nil {
		return nil, err
	}
	if err := s.sweep(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Close waits for background work.
func (s *Service) Close() error { return s.layers.close() }

func (s *Service) tmp() string { return filepath.Join(s.o.Root, "tmp") }

// readRows fills the index, and drops images whose layers are not all there.
func (s *Service) readRows() error {
	var lost []digest.Digest
	err := s.o.DB.Each("image", func(key string, raw []byte) error {
		var rec Record
		if err := json.Unmarshal(raw, &rec); err != nil {
			return fmt.Errorf("image %s: %w", key, err)
		}
		im, err := parseImage(rec.Config)
		if err == nil && string(im.ID) != key {
			err = errs.New(errs.Internal, "the configuration has another digest")
		}
		if err == nil {
			err = s.layers.check(im.Layers)
		}
		if err != nil {
			s.o.Log.Error("image is damaged and is dropped", "id", key, "err", err)
			lost = append(lost, digest.Digest(key))
			return nil
		}
		im.Parent, im.tagged, im.deleted = rec.Parent, rec.Tagged, rec.Deleted
		im.Size = s.layers.size(im.Layers)
		s.images[im.ID] = im
		s.layers.hold(im.Layers)
		return nil
	})
	if err != nil {
		return err
	}
	var dangling []string
	err = s.o.DB.Each("tag", func(key string, raw []byte) error {
		var id digest.Digest
		if err := json.Unmarshal(raw, &id); err != nil {
			return fmt.Errorf("tag %s: %w", key, err)
		}
		n, err := ref.Parse(key)
		if im := s.images[id]; err != nil || im == nil || im.deleted {
			dangling = append(dangling, key)
			return nil
		}
		s.setTag(n, id)
		return nil
	})
	if err != nil || len(lost)+len(dangling) == 0 {
		return err
	}
	return s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		for _, id := range lost {
			tx.Delete("image", string(id))
			dropManifests(s, tx, id)
		}
		for _, t := range dangling {
			tx.Delete("tag", t)
		}
		return nil
	})
}

// sweep removes what no row accounts for.
func (s *Service) sweep(ctx context.Context) error {
	var unheld []digest.Digest
	for id, im := range s.images {
		if im.deleted && len(s.holders(id)) == 0 {
			unheld = append(unheld, id)
		}
	}
	for _, id := range unheld {
		if err := s.dropDeleted(ctx, id); err != nil {
			return err
		}
	}
	if _, err := s.layers.collect(ctx); err != nil {
		return err
	}
	return s.layers.sweep(ctx)
}

// holders are those who use an image, sorted.
func (s *Service) holders(id digest.Digest) []string {
	prefix := RefKey(id, "")
	keys := s.o.DB.Keys("ref", prefix)
	for i, k := range keys {
		keys[i] = k[len(prefix):]
	}
	return keys
}

// Release is called after a holder's row is gone: it frees what a removed
// image still kept for the holder.
func (s *Service) Release(ctx context.Context, id digest.Digest) error {
	s.mu.RLock()
	im := s.images[id]
	s.mu.RUnlock()
	if im == nil || !im.deleted {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	im = s.images[id]
	s.mu.RUnlock()
	if im == nil || !im.deleted || len(s.holders(id)) > 0 {
		return nil
	}
	if err := s.dropDeleted(ctx, id); err != nil {
		return err
	}
	_, err := s.layers.collect(ctx)
	return err
}

func (s *Service) dropDeleted(_ context.Context, id digest.Digest) error {
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		tx.Delete("image", string(id))
		dropManifests(s, tx, id)
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	im := s.images[id]
	delete(s.images, id)
	clear(s.resolved)
	s.mu.Unlock()
	s.layers.unhold(im.Layers)
	return nil
}

// parseImage reads a configuration.
func parseImage(raw []byte) (*Image, error) {
	if len(raw) > maxConfig {
		return nil, errs.New(errs.Invalid, "image configuration is larger than %d bytes", maxConfig)
	}
	im := &Image{ID: digest.FromBytes(raw), Raw: raw}
	if err := json.Unmarshal(raw, &im.Config); err != nil {
		return nil, errs.New(errs.Invalid, "invalid image configuration: %w", err)
	}
	var extra struct {
		Comment string `json:"comment"`
	}
	if err := json.Unmarshal(raw, &extra); err != nil {
		return nil, errs.New(errs.Invalid, "invalid image configuration: %w", err)
	}
	if im.Config.RootFS.Type != "layers" {
		return nil, errs.New(errs.Invalid, "invalid image configuration: no rootfs key")
	}
	for _, d := range im.Config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, errs.New(errs.Invalid, "invalid image configuration: invalid layer digest %q", string(d))
		}
	}
	im.Layers = oci.ChainIDs(im.Config.RootFS.DiffIDs)
	im.Comment = extra.Comment
	if im.Comment == "" && len(im.Config.History) > 0 {
		im.Comment = im.Config.History[len(im.Config.History)-1].Comment
	}
	if im.Config.Created != nil {
		im.Created = *im.Config.Created
	}
	if im.Config.OS == "" {
		im.Config.OS = "linux"
	}
	if im.Config.Architecture == "" {
		im.Config.Architecture = runtime.GOARCH
	}
	return im, nil
}

// put writes an image whose layers are pinned, with its tags, and puts it into the
// index. It returns the tags that pointed elsewhere before, by familiar name. What also
// writes goes into the same transaction.
func (s *Service) put(im *Image, tags []ref.Name, also ...func(*state.Tx) error) (moved map[string]digest.Digest, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	old := s.images[im.ID]
	moved = map[string]digest.Digest{}
	for _, t := range tags {
		if prev, ok := s.tags[t.String()]; ok && prev != im.ID {
			moved[t.Familiar()] = prev
		}
	}
	s.mu.RUnlock()
	if len(tags) > 0 {
		im.tagged = time.Now().UTC()
	} else if old != nil {
		im.tagged = old.tagged
	}
	if im.Parent == "" && old != nil {
		im.Parent = old.Parent
	}
	im.Size = s.layers.size(im.Layers)
	err = s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if err := tx.Put("image", string(im.ID), Record{Config: im.Raw, Parent: im.Parent, Tagged: im.tagged}); err != nil {
			return err
		}
		for _, t := range tags {
			if err := tx.Put("tag", t.String(), im.ID); err != nil {
				return err
			}
		}
		for _, fn := range also {
			if err := fn(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if old == nil {
		s.layers.hold(im.Layers)
	}
	s.mu.Lock()
	s.images[im.ID] = im
	for _, t := range tags {
		s.setTag(t, im.ID)
	}
	clear(s.resolved)
	s.mu.Unlock()
	s.layers.settleSoon()
	return moved, nil
}

func (s *Service) event(action events.Action, im *Image, name string) {
	attrs := map[string]string{}
	for k, v := range im.Config.Config.Labels {
		attrs[k] = v
	}
	if name != "" {
		attrs["name"] = name
	}
	s.o.Event(action, string(im.ID), attrs)
}
