package image

import (
	"context"
	"encoding/json"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/ref"
)

// ImportOptions says how to make an image from a tree.
type ImportOptions struct {
	Repo, Tag string
	Message   string
	Changes   []string // Dockerfile instructions
	Platform  string   // os/architecture[/variant]; "" is this machine's
}

// CommitOptions says what a new image is: the image Parent ("" for none) and one layer.
type CommitOptions struct {
	Repo, Tag string
	Author    string
	Comment   string
	Config    *dockerspec.DockerOCIImageConfig // nil: the parent's
	Changes   []string                         // Dockerfile instructions applied to it
	Parent    digest.Digest
	Layer     io.Reader // tar of the changes; nil: none
	CreatedBy string    // what made the layer, for the history
	Created   time.Time // zero: now
	Container string    // the container's id, as Docker notes it; may be ""
	Platform  string    // without a parent: os/architecture[/variant]
	KeepLink  bool      // remember Parent as the image that this one was built on
}

// document is a configuration that the engine writes. The order of its keys is Docker's.
type document struct {
	Architecture string                          `json:"architecture"`
	Author       string                          `json:"author,omitempty"`
	Variant      string                          `json:"variant,omitempty"`
	Comment      string                          `json:"comment,omitempty"`
	Config       dockerspec.DockerOCIImageConfig `json:"config"`
	Container    string                          `json:"container,omitempty"`
	Created      time.Time                       `json:"created"`
	History      []ocispec.History               `json:"history"`
	OS           string                          `json:"os"`
	OSVersion    string                          `json:"os.version,omitempty"`
	RootFS       ocispec.RootFS                  `json:"rootfs"`
}

// Import makes an image of one layer from the tar of a tree, however
// compressed.
func (s *Service) Import(ctx context.Context, r io.Reader, opts ImportOptions, progress func(jsonstream.Message)) (digest.Digest, error) {
	var config dockerspec.DockerOCIImageConfig
	if err := ApplyChanges(&config, opts.Changes); err != nil {
		return "", err
	}
	if progress != nil {
		r = &progressReader{r: r, to: progress, action: "Importing"}
	}
	im, err := s.build(ctx, CommitOptions{
		Repo: opts.Repo, Tag: opts.Tag, Comment: opts.Message, Config: &config, Layer: r, Platform: opts.Platform,
	})
	if err != nil {
		return "", err
	}
	if progress != nil {
		progress(jsonstream.Message{Status: string(im.ID)})
	}
	s.event(events.ActionImport, im, string(im.ID))
	return im.ID, nil
}

// Commit makes an image from a parent and a layer.
func (s *Service) Commit(ctx context.Context, opts CommitOptions) (digest.Digest, error) {
	im, err := s.build(ctx, opts)
	if err != nil {
		return "", err
	}
	return im.ID, nil
}

func (s *Service) build(ctx context.Context, opts CommitOptions) (im *Image, err error) {
	var tags []ref.Name
	if opts.Repo != "" {
		n, err := ref.ParseRepository(opts.Repo, opts.Tag)
		if err != nil {
			return nil, err
		}
		tags = []ref.Name{n}
	}
	doc := document{Author: opts.Author, Comment: opts.Comment, Container: opts.Container, Created: opts.Created, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	if doc.Created.IsZero() {
		doc.Created = time.Now().UTC()
	}
	if err := doc.platform(opts.Platform); err != nil {
		return nil, err
	}
	var pinned []digest.Digest
	unused := false // the layer turned out to be empty
	defer func() {
		s.layers.unpin(pinned...)
		if err != nil || unused {
			_, _ = s.layers.collect(ctx)
		}
	}()
	top := digest.Digest("")
	if opts.Parent != "" {
		s.mu.RLock()
		parent := s.images[opts.Parent] // also one that is only held: a container's
		s.mu.RUnlock()
		if parent == nil {
			return nil, errs.New(errs.NotFound, "No such image: %s", opts.Parent)
		}
		for _, id := range parent.Layers {
			if !s.layers.pin(id) {
				return nil, errs.New(errs.NotFound, "No such image: %s", opts.Parent)
			}
			pinned = append(pinned, id)
			top = id
		}
		doc.inherit(parent)
	}
	if opts.Config != nil {
		doc.Config = *opts.Config
	}
	if opts.Parent != "" || len(opts.Changes) > 0 {
		if err := ApplyChanges(&doc.Config, opts.Changes); err != nil {
			return nil, err
		}
	}
	h := ocispec.History{Created: &doc.Created, CreatedBy: opts.CreatedBy, Author: opts.Author, Comment: opts.Comment, EmptyLayer: true}
	if opts.Layer != nil {
		id, row, err := s.layers.add(ctx, top, "", opts.Layer)
		if err != nil {
			return nil, err
		}
		pinned = append(pinned, id)
		if opts.Parent == "" || !isEmptyLayer(row.DiffID) {
			doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, row.DiffID)
			h.EmptyLayer = false
		} else {
			unused = true
		}
	}
	doc.History = append(doc.History, h)
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	if im, err = parseImage(raw); err != nil {
		return nil, err
	}
	if opts.KeepLink {
		im.Parent = opts.Parent
	}
	if _, err = s.put(im, tags); err != nil {
		return nil, err
	}
	for _, t := range tags {
		s.event(events.ActionTag, im, t.Familiar())
	}
	return im, nil
}

func (d *document) platform(p string) error {
	d.OS, d.Architecture = "linux", runtime.GOARCH
	if p == "" {
		return nil
	}
	parts := strings.Split(strings.ToLower(p), "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return errs.New(errs.Invalid, "%q: invalid platform", p)
	}
	if len(parts) == 1 {
		if parts[0] != "linux" {
			d.Architecture = parts[0]
		}
		return nil
	}
	d.OS, d.Architecture = parts[0], parts[1]
	if len(parts) == 3 {
		d.Variant = parts[2]
	}
	if d.OS != "linux" {
		return errs.New(errs.Invalid, "operating system is not supported: %s", d.OS)
	}
	return nil
}

// inherit takes over what a child image has from its parent.
func (d *document) inherit(p *Image) {
	c := p.Config
	d.Architecture, d.Variant, d.OS, d.OSVersion = c.Architecture, c.Variant, c.OS, c.OSVersion
	d.Config = cloneConfig(c.Config)
	d.RootFS.DiffIDs = slices.Clone(c.RootFS.DiffIDs)
	d.History = slices.Clone(c.History)
}
