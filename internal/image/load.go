package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
)

// LoadOptions says how to load.
type LoadOptions struct {
	Quiet     bool               // no progress, only what was loaded
	Platforms []ocispec.Platform // of an image with several; empty: this machine's
}

// Progress is told what a long operation does; nil is told nothing.
type Progress func(jsonstream.Message)

// incoming is an image found in an archive.
type incoming struct {
	config []byte
	layers []string // names of members
	tags   []ref.Name
	parent digest.Digest
}

// Load stores the images of an archive: Docker's, of any version that has a
// manifest.json, or an OCI image layout; compressed or not.
func (s *Service) Load(ctx context.Context, r io.Reader, opts LoadOptions, progress func(jsonstream.Message)) error {
	if progress == nil {
		progress = func(jsonstream.Message) {}
	}
	b, err := readBundle(ctx, r, s.tmp())
	if err != nil {
		return err
	}
	defer b.close()
	var list []incoming
	switch {
	case b.find(oci.FileManifest) != nil:
		list, err = dockerImages(b)
	case b.find(oci.FileIndex) != nil:
		list, err = layoutImages(b, opts.Platforms)
	default:
		err = errs.New(errs.Invalid, "invalid archive: does not contain a %s", oci.FileManifest)
	}
	if err != nil {
		return err
	}
	for _, in := range list {
		if err := s.loadOne(ctx, b, in, opts.Quiet, progress); err != nil {
			return err
		}
	}
	return nil
}

// dockerImages reads manifest.json.
func dockerImages(b *bundle) ([]incoming, error) {
	var items []oci.ArchiveItem
	if err := b.json(oci.FileManifest, &items); err != nil {
		return nil, err
	}
	var list []incoming
	for _, item := range items {
		in := incoming{layers: item.Layers, parent: item.Parent}
		var err error
		if in.config, err = b.bytes(item.Config); err != nil {
			return nil, err
		}
		for _, t := range item.RepoTags {
			n, err := ref.Parse(t)
			if err != nil {
				return nil, err
			}
			if n.Tag() == "" {
				return nil, errs.New(errs.Invalid, "invalid tag %q", t)
			}
			in.tags = append(in.tags, n)
		}
		list = append(list, in)
	}
	return list, nil
}

// layoutImages reads index.json and what it leads to.
func layoutImages(b *bundle, platforms []ocispec.Platform) ([]incoming, error) {
	var index oci.Manifest
	if err := b.json(oci.FileIndex, &index); err != nil {
		return nil, err
	}
	var list []incoming
	for _, d := range index.Manifests {
		m, err := pickManifest(b, d, platforms, 0)
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		var in incoming
		if in.config, err = b.blob(m.Config.Digest); err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			name, err := blobName(l.Digest)
			if err != nil {
				return nil, err
			}
			in.layers = append(in.layers, name)
		}
		if n, ok := layoutName(d.Annotations); ok {
			in.tags = []ref.Name{n}
		}
		// One image may stand in the index once for each of its names.
		at := slices.IndexFunc(list, func(o incoming) bool { return string(o.config) == string(in.config) })
		if at >= 0 {
			list[at].tags = append(list[at].tags, in.tags...)
			continue
		}
		list = append(list, in)
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Invalid, "invalid archive: no image for this platform in %s", oci.FileIndex)
	}
	return list, nil
}

func layoutName(a map[string]string) (ref.Name, bool) {
	for _, key := range []string{oci.AnnotationImageName, oci.AnnotationRefName} {
		v := a[key]
		if v == "" || key == oci.AnnotationRefName && !strings.ContainsAny(v, "/:") {
			continue // a bare tag names no repository
		}
		if n, err := ref.Parse(v); err == nil && n.Tag() != "" && n.Digest() == "" {
			return n, true
		}
	}
	return ref.Name{}, false
}

// pickManifest follows a descriptor to the manifest for the wanted platform, nil for none.
func pickManifest(b *bundle, d ocispec.Descriptor, platforms []ocispec.Platform, depth int) (*oci.Manifest, error) {
	if depth > 4 {
		return nil, errs.New(errs.Invalid, "invalid archive: indexes within indexes")
	}
	raw, err := b.blob(d.Digest)
	if err != nil {
		return nil, err
	}
	var m oci.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errs.New(errs.Invalid, "invalid archive: manifest %s: %w", d.Digest, err)
	}
	kind := d.MediaType
	if m.MediaType != "" && kind != "" && m.MediaType != kind {
		return nil, errs.New(errs.Invalid, "invalid archive: manifest %s is of type %q, not %q", d.Digest, m.MediaType, kind)
	}
	if len(m.Manifests) > 0 && (len(m.Layers) > 0 || m.Config.Digest != "") {
		return nil, errs.New(errs.Invalid, "invalid archive: manifest %s is both an image and an index", d.Digest)
	}
	switch {
	case oci.IsIndex(kind):
		best, rank := -1, 0
		for i, c := range m.Manifests {
			if r := platformRank(c.Platform, platforms); r > rank {
				best, rank = i, r
			}
		}
		if best < 0 {
			return nil, nil
		}
		return pickManifest(b, m.Manifests[best], platforms, depth+1)
	case oci.IsManifest(kind):
		return &m, nil
	}
	return nil, errs.New(errs.Invalid, "invalid archive: unknown manifest type %q", kind)
}

// platformRank tells how well a manifest suits: 0 not at all.
func platformRank(p *ocispec.Platform, want []ocispec.Platform) int {
	if p == nil {
		return 1
	}
	if len(want) == 0 {
		want = []ocispec.Platform{{OS: "linux", Architecture: runtime.GOARCH}}
	}
	for _, w := range want {
		if p.OS == w.OS && p.Architecture == w.Architecture && (w.Variant == "" || w.Variant == p.Variant) {
			return 2
		}
	}
	return 0
}

// loadOne stores one image of an archive.
func (s *Service) loadOne(ctx context.Context, b *bundle, in incoming, quiet bool, progress Progress) error {
	im, err := parseImage(in.config)
	if err != nil {
		return err
	}
	diffs := im.Config.RootFS.DiffIDs
	if len(in.layers) != len(diffs) {
		return errs.New(errs.Invalid, "invalid manifest, layers length mismatch: expected %d, got %d", len(in.layers), len(diffs))
	}
	if im.Config.OS != "linux" {
		return errs.New(errs.Invalid, "cannot load %s image on linux", im.Config.OS)
	}
	var pinned []digest.Digest
	defer func() {
		s.layers.unpin(pinned...)
		if err != nil {
			_, _ = s.layers.collect(ctx) // what this load brought and nobody needs
		}
	}()
	parent := digest.Digest("")
	for i, diff := range diffs {
		id := im.Layers[i]
		if !s.layers.pin(id) {
			m := b.find(in.layers[i])
			if m == nil {
				err = errs.New(errs.Invalid, "invalid archive: %s is missing", in.layers[i])
				return err
			}
			r := m.open()
			if !quiet {
				r = &progressReader{r: r, to: progress, id: ref.Short(diff.Encoded()), action: "Loading layer", total: m.size}
			}
			if _, _, err = s.layers.add(ctx, parent, diff, r); err != nil {
				return err
			}
		}
		pinned = append(pinned, id)
		parent = id
	}
	if s.validParent(im, in.parent) {
		im.Parent = in.parent
	}
	moved, err := s.put(im, in.tags)
	if err != nil {
		return err
	}
	for _, t := range in.tags {
		name := t.Familiar()
		if prev, ok := moved[name]; ok {
			progress(jsonstream.Message{Stream: fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string\n", name, prev)})
		}
		progress(jsonstream.Message{Stream: fmt.Sprintf("Loaded image: %s\n", name)})
	}
	if len(in.tags) == 0 {
		progress(jsonstream.Message{Stream: fmt.Sprintf("Loaded image ID: %s\n", im.ID)})
	}
	s.event(events.ActionLoad, im, string(im.ID))
	return nil
}

// validParent reports whether an image says truly that it was built on another: what
// it has begins with what the other has.
func (s *Service) validParent(im *Image, parent digest.Digest) bool {
	if parent == "" {
		return false
	}
	s.mu.RLock()
	p := s.images[parent]
	s.mu.RUnlock()
	if p == nil || p.deleted {
		return false
	}
	return len(im.Layers) >= len(p.Layers) && slices.Equal(im.Layers[:len(p.Layers)], p.Layers) &&
		len(im.Config.History) > len(p.Config.History)
}

// progressReader tells how much of a member was read, a few times a second.
type progressReader struct {
	r      io.Reader
	to     Progress
	id     string
	action string
	total  int64

	n    int64
	last time.Time
	done bool
}

const progressEvery = 100 * time.Millisecond

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	end := err != nil || p.n == p.total
	if now := time.Now(); !p.done && (end || now.Sub(p.last) >= progressEvery) {
		p.last, p.done = now, end
		p.to(jsonstream.Message{Status: p.action, ID: p.id, Progress: &jsonstream.Progress{Current: p.n, Total: p.total}})
	}
	return n, err
}
