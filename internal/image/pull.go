package image

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/registry"
	"berth.dev/berth/internal/state"
)

const (
	maxIndexDepth = 4
	maxLayers     = 1000 // of a manifest
)

// PullOptions says what to pull.
type PullOptions struct {
	Ref      string // with its tag or digest; without one when All
	Platform string // "os/arch[/variant]"; "" is this machine's
	All      bool   // every tag
	Auth     *apiregistry.AuthConfig
}

// Pull brings an image here, or all of a repository.
func (r *Remote) Pull(ctx context.Context, o PullOptions, progress func(jsonstream.Message)) error {
	n, err := ref.Parse(o.Ref)
	if err != nil {
		return err
	}
	if o.All && ref.HasTagOrDigest(o.Ref) {
		return errs.New(errs.Invalid, "tag can't be used with --all-tags/-a")
	}
	want := oci.Host()
	if o.Platform != "" {
		if want, err = oci.ParsePlatform(o.Platform); err != nil {
			return err
		}
	}
	rep := newReporter(progress)
	defer rep.close()
	if _, ok := r.s.builtin[n.String()]; ok && !o.All {
		if _, err := r.s.Resolve(ctx, n.String()); err != nil {
			return err
		}
		rep.say("", "Status: Image is up to date for %s", n.Familiar())
		return nil
	}
	defer r.dl.sweep()
	newer, at := false, n
	err = r.c.Each(ctx, n, o.Auth, registry.Pull, func(repo *registry.Repository) error {
		p := &pull{Remote: r, repo: repo, rep: rep, want: want, asked: o.Platform}
		if !o.All {
			var err error
			newer, err = p.one(ctx, n)
			if err == nil {
				moveEvent(r.s, events.ActionPull, p.pulled, n.Familiar(), n)
			}
			return err
		}
		tags, err := repo.Tags(ctx)
		if err != nil {
			return err
		}
		if len(tags) == 0 {
			return &registry.Error{Status: 404, Code: registry.NameUnknown, Message: "no tags in the repository"}
		}
		for _, t := range tags {
			if at, err = ref.ParseRepository(n.Repository(), t); err != nil {
				return err
			}
			more, err := p.one(ctx, at)
			if err != nil {
				return err
			}
			newer = newer || more
		}
		moveEvent(r.s, events.ActionPull, p.pulled, n.FamiliarRepository(), n)
		return nil
	})
	if err != nil {
		return pullError(err, at)
	}
	name := n.Familiar()
	if o.All {
		name = n.FamiliarRepository()
	}
	if newer {
		rep.say("", "Status: Downloaded newer image for %s", name)
	} else {
		rep.say("", "Status: Image is up to date for %s", name)
	}
	return nil
}

// pullError says a registry's answer in the words that people know.
func pullError(err error, n ref.Name) error {
	switch {
	case registry.Is(err, registry.Denied):
		return errs.New(errs.NotFound, "pull access denied for %s, repository does not exist or may require 'docker login': %w", n.FamiliarRepository(), err)
	case registry.Is(err, registry.ManifestUnknown):
		return errs.New(errs.NotFound, "manifest for %s not found: %w", n.Familiar(), err)
	case registry.Is(err, registry.NameUnknown):
		return errs.New(errs.NotFound, "repository %s not found: %w", n.FamiliarRepository(), err)
	}
	return err
}

// pull is a pull from one endpoint.
type pull struct {
	*Remote
	repo  *registry.Repository
	rep   *reporter
	want  ocispec.Platform
	asked string // the platform as it was asked for, "" when it was not

	pulled *Image // the last one
}

// one pulls one tag or digest, and reports whether the name has got another image.
func (p *pull) one(ctx context.Context, n ref.Name) (newer bool, err error) {
	reference, shown := n.Tag(), n.Tag()
	if n.Digest() != "" {
		reference, shown = string(n.Digest()), n.String()
	}
	top, err := p.repo.Manifest(ctx, reference)
	if err != nil {
		return false, err
	}
	if top.Digest.Algorithm() != digest.SHA256 {
		top.Digest = digest.FromBytes(top.Raw)
	}
	p.rep.say(shown, "Pulling from %s", n.Path())
	byDigest, err := n.WithDigest(top.Digest)
	if err != nil {
		return false, err
	}
	tags := []ref.Name{byDigest}
	if n.Digest() == "" {
		tags = append(tags, n)
	} else if n.Digest() != top.Digest { // by another algorithm
		if n, err = n.WithDigest(n.Digest()); err != nil {
			return false, err
		}
		tags = append(tags, n)
	}
	im, raw, m, err := p.image(ctx, top, n)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			_, _ = p.s.layers.collect(ctx) // what this pull brought and nobody needs
		}
	}()
	pinned, err := p.layers(ctx, im, m, n.Repository())
	defer func() { p.s.layers.unpin(pinned...) }()
	if err != nil {
		return false, err
	}
	p.rep.say("", "Digest: %s", top.Digest)
	if newer = differs(p.s, im.ID, tags); newer {
		row := manifest{MediaType: raw.MediaType, Raw: raw.Raw}
		if _, err := p.s.put(im, tags, func(tx *state.Tx) error { return tx.Put("manifest", manifestKey(im.ID, raw.Digest), row) }); err != nil {
			return false, err
		}
	}
	if have := configPlatform(im); p.asked != "" && oci.PlatformRank(p.want, have) == 0 {
		p.rep.say("", "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", n.Familiar(), oci.FormatPlatform(have), oci.FormatPlatform(p.want))
	}
	p.pulled = im
	return newer, nil
}

func configPlatform(im *Image) ocispec.Platform {
	return ocispec.Platform{OS: im.Config.OS, Architecture: im.Config.Architecture, Variant: im.Config.Variant}
}

// differs reports whether a name of names is not an image's yet.
func differs(s *Service, id digest.Digest, names []ref.Name) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.ContainsFunc(names, func(n ref.Name) bool { return s.tags[n.String()] != id })
}

// image follows a manifest to the one for the platform, and reads the configuration.
func (p *pull) image(ctx context.Context, m *registry.Manifest, n ref.Name) (*Image, *registry.Manifest, *oci.Manifest, error) {
	for range maxIndexDepth {
		doc := new(oci.Manifest)
		if err := json.Unmarshal(m.Raw, doc); err != nil {
			return nil, nil, nil, errs.New(errs.Invalid, "manifest %s: %w", m.Digest, err)
		}
		kind, err := kindOf(m, doc, n)
		if err != nil {
			return nil, nil, nil, err
		}
		m.MediaType = kind
		if !oci.IsIndex(kind) {
			im, err := p.config(ctx, doc)
			return im, m, doc, err
		}
		d, ok := choose(doc.Manifests, p.want)
		if !ok {
			return nil, nil, nil, errs.New(errs.NotFound, "no matching manifest for %s in the manifest list entries", oci.FormatPlatform(p.want))
		}
		if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
			return nil, nil, nil, errs.New(errs.Invalid, "manifest %s: invalid digest %q", m.Digest, string(d.Digest))
		}
		if m, err = p.repo.Manifest(ctx, string(d.Digest)); err != nil {
			return nil, nil, nil, err
		}
	}
	return nil, nil, nil, errs.New(errs.Invalid, "indexes within indexes of %s are nested too deep", n.Familiar())
}

// choose picks the entry of an index for a platform.
func choose(list []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, bool) {
	best, rank := -1, 0
	for i, d := range list {
		if !oci.IsManifest(d.MediaType) && !oci.IsIndex(d.MediaType) {
			continue
		}
		r := 1 // one that does not say is better than none
		if d.Platform != nil {
			if r = oci.PlatformRank(want, *d.Platform); r > 0 {
				r++
			}
		}
		if r > rank {
			best, rank = i, r
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, false
	}
	return list[best], true
}

// config reads and checks an image's configuration, and the manifest against it.
func (p *pull) config(ctx context.Context, m *oci.Manifest) (*Image, error) {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, oci.DockerConfig, "application/octet-stream", "":
	default:
		return nil, errs.New(errs.Invalid, "unsupported media type %s: this is no image for containers", m.Config.MediaType)
	}
	d := m.Config.Digest
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return nil, errs.New(errs.Invalid, "invalid manifest: invalid digest %q", string(d))
	}
	p.s.mu.RLock()
	im := p.s.images[d]
	p.s.mu.RUnlock()
	if im != nil && !im.deleted {
		known := *im
		im = &known
	} else {
		raw, err := p.repo.ReadBlob(ctx, d, maxConfig)
		if err != nil {
			return nil, err
		}
		if im, err = parseImage(raw); err != nil {
			return nil, err
		}
	}
	if im.Config.OS != "linux" {
		return nil, errs.New(errs.Invalid, "image operating system %q cannot be used on this platform: operating system is not supported", im.Config.OS)
	}
	if len(m.Layers) != len(im.Layers) || len(m.Layers) > maxLayers {
		return nil, errs.New(errs.Invalid, "layers from manifest don't match image configuration")
	}
	for _, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil || l.Digest.Algorithm() != digest.SHA256 || l.Size <= 0 {
			return nil, errs.New(errs.Invalid, "invalid manifest: invalid layer %q of %d bytes", string(l.Digest), l.Size)
		}
		if !isLayerType(l.MediaType) {
			return nil, errs.New(errs.Invalid, "invalid manifest: unsupported layer media type %q", l.MediaType)
		}
	}
	return im, nil
}

func isLayerType(t string) bool {
	t = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(t, "+gzip"), "+zstd"), ".gzip")
	switch t {
	case ocispec.MediaTypeImageLayer, oci.DockerLayer, "application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar", "application/octet-stream":
		return true
	}
	return false
}

// layer is a layer that has to be fetched.
type layer struct {
	at     int
	desc   ocispec.Descriptor
	ticket *ticket
}

// layers brings all layers of an image here and pins them.
func (p *pull) layers(ctx context.Context, im *Image, m *oci.Manifest, repo string) (pinned []digest.Digest, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	store := p.s.layers
	known := p.s.exists(im.ID) // all is here: nothing is listed
	var missing []*layer
	defer func() {
		for _, l := range missing {
			if l.ticket != nil {
				l.ticket.leave()
			}
		}
	}()
	for i, chain := range im.Layers {
		id := ref.Short(m.Layers[i].Digest.Encoded())
		if store.pin(chain) {
			pinned = append(pinned, chain)
			if !known {
				p.rep.step(id, "Already exists")
			}
			continue
		}
		p.rep.step(id, "Pulling fs layer")
		missing = append(missing, &layer{at: i, desc: m.Layers[i]})
	}
	for _, l := range missing {
		if l.ticket, err = p.dl.join(p.repo, l.desc, p.tries(), p.rep.send); err != nil {
			return pinned, err
		}
		go func() {
			if err := l.ticket.wait(ctx); err != nil {
				cancel(err) // no use in unpacking what is below
			}
		}()
	}
	for _, l := range missing {
		parent := digest.Digest("")
		if l.at > 0 {
			parent = im.Layers[l.at-1]
		}
		chain := im.Layers[l.at]
		if err = p.unpack(ctx, l, parent, chain, im.Config.RootFS.DiffIDs[l.at]); err != nil {
			if errs.Is(err, errs.Invalid) {
				l.ticket.setStored() // nobody needs it a second time
			}
			if derr := l.ticket.failure(); derr != nil {
				err = derr
			} else if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			return pinned, err
		}
		pinned = append(pinned, chain)
		l.ticket.setStored()
		p.rep.step(ref.Short(l.desc.Digest.Encoded()), "Pull complete")
	}
	for i, chain := range im.Layers {
		if p.repo.Mirror() {
			break // what it has is known by another name
		}
		if err = store.noteBlob(chain, m.Layers[i], repo); err != nil {
			return pinned, err
		}
	}
	return pinned, nil
}

func (d *download) setStored() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stored = true
}

// unpack makes a layer of a download, unless another pull does: then it waits for
// that one. The layer is pinned.
func (p *pull) unpack(ctx context.Context, l *layer, parent, chain, diff digest.Digest) error {
	for {
		if p.s.layers.pin(chain) {
			return nil
		}
		ch, mine := p.claim(chain)
		if mine {
			break
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer p.unclaim(chain)
	var told time.Time
	id, total := ref.Short(l.desc.Digest.Encoded()), l.desc.Size
	r := &layerReader{d: l.ticket.download, ctx: ctx, tell: func(n int64) {
		if now := time.Now(); n == total && !told.Equal(time.Unix(1, 0)) || now.Sub(told) >= progressEvery && n < total {
			if told = now; n == total {
				told = time.Unix(1, 0) // the end is told once
			}
			p.rep.send(jsonstream.Message{ID: id, Status: "Extracting", Progress: &jsonstream.Progress{Current: n, Total: total}})
		}
	}}
	if _, _, err := p.s.layers.add(ctx, parent, diff, r); err != nil {
		return err
	}
	// What follows the end of the archive counts too.
	return l.ticket.wait(ctx)
}
