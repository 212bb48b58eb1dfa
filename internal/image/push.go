package image

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/registry"
	"berth.dev/berth/internal/state"
)

const maxMounts = 4 // places that a registry is asked to take a layer from

// PushOptions says what to push.
type PushOptions struct {
	Repo     string            // without a tag
	Tag      string            // "": all that are here
	Platform *ocispec.Platform // that the image must have; nil: any
	Auth     *apiregistry.AuthConfig
}

// Push brings tags of a repository to its registry. A layer that came from a registry
// goes as it came, where the registry has it or can take it from another repository; then the
// manifest is the one that came, too. Otherwise a layer is compressed anew, which
// always gives the same bytes: those that Docker makes.
func (r *Remote) Push(ctx context.Context, o PushOptions, progress func(jsonstream.Message)) error {
	named, err := reference.ParseNormalizedNamed(o.Repo)
	if err != nil {
		return errs.New(errs.Invalid, "%w", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return errs.New(errs.Invalid, "cannot push a digest reference")
	}
	n, err := ref.ParseRepository(o.Repo, o.Tag)
	if err != nil {
		return err
	}
	rep := newReporter(progress)
	defer rep.close()
	rep.say("", "The push refers to repository [%s]", n.Repository())
	names := (saver{r.s}).tagsOf(n.Repository())
	if len(names) == 0 {
		return errs.New(errs.NotFound, "An image does not exist locally with the tag: %s", n.FamiliarRepository())
	}
	if o.Tag != "" || !reference.IsNameOnly(named) {
		if _, err := r.tagged(n); err != nil {
			return err
		}
		names = []ref.Name{n}
	}
	return r.c.Each(ctx, n, o.Auth, registry.Push, func(repo *registry.Repository) error {
		p := &push{Remote: r, repo: repo, rep: rep, name: n, done: map[digest.Digest]ocispec.Descriptor{}}
		var last *Image
		for _, n := range names {
			var err error
			if last, err = p.one(ctx, n, o.Platform); err != nil {
				return err
			}
		}
		name := n.Familiar()
		if o.Tag == "" {
			name = n.FamiliarRepository()
		}
		moveEvent(r.s, events.ActionPush, last, name, n)
		return nil
	})
}

// tagged is the image of a name.
func (r *Remote) tagged(n ref.Name) (*Image, error) {
	r.s.mu.RLock()
	defer r.s.mu.RUnlock()
	im := r.s.images[r.s.tags[n.String()]]
	if im == nil {
		return nil, errs.New(errs.NotFound, "tag does not exist: %s", n.Familiar())
	}
	return im, nil
}

// push is a push to one repository.
type push struct {
	*Remote
	repo *registry.Repository
	rep  *reporter
	name ref.Name

	mu   sync.Mutex
	done map[digest.Digest]ocispec.Descriptor // by diff id, what is there for certain
}

// one pushes one tag.
func (p *push) one(ctx context.Context, n ref.Name, want *ocispec.Platform) (*Image, error) {
	im, err := p.tagged(n)
	if err != nil {
		return nil, err
	}
	if have := configPlatform(im); want != nil && oci.PlatformRank(*want, have) == 0 {
		return nil, errs.New(errs.NotFound, "image with reference %s was found but does not provide the specified platform (%s)", n.Familiar(), oci.FormatPlatform(*want))
	}
	var pinned []digest.Digest
	defer func() { p.s.layers.unpin(pinned...) }()
	for _, c := range im.Layers {
		if !p.s.layers.pin(c) {
			return nil, errs.New(errs.NotFound, "tag does not exist: %s", n.Familiar())
		}
		pinned = append(pinned, c)
	}
	layers, err := p.layers(ctx, im)
	if err != nil {
		return nil, err
	}
	if err := p.config(ctx, im); err != nil {
		return nil, err
	}
	m, err := p.manifest(im, layers)
	if err != nil {
		return nil, err
	}
	md := digest.FromBytes(m.Raw)
	if err := p.repo.PutManifest(ctx, n.Tag(), m.MediaType, m.Raw); err != nil {
		return nil, err
	}
	byDigest, err := n.WithDigest(md)
	if err != nil {
		return nil, err
	}
	if err := p.remember(im, byDigest, md, m); err != nil {
		return nil, err
	}
	p.rep.say("", "%s: digest: %s size: %d", n.Tag(), md, len(m.Raw))
	aux, err := json.Marshal(pushResult{n.Tag(), md, len(m.Raw)})
	if err != nil {
		return nil, err
	}
	raw := json.RawMessage(aux)
	p.rep.send(jsonstream.Message{Aux: &raw})
	return im, nil
}

// pushResult is what a client is told for itself.
type pushResult struct {
	Tag    string
	Digest digest.Digest
	Size   int
}

// remember notes the digest that an image has in its repository now.
func (p *push) remember(im *Image, n ref.Name, md digest.Digest, m manifest) error {
	s := p.s
	s.change.Lock()
	defer s.change.Unlock()
	if !s.exists(im.ID) {
		return nil // removed meanwhile
	}
	err := s.o.DB.Update(state.Async, func(tx *state.Tx) error {
		if err := tx.Put("manifest", manifestKey(im.ID, md), m); err != nil {
			return err
		}
		return tx.Put("tag", n.String(), im.ID)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setTag(n, im.ID)
	clear(s.resolved)
	return nil
}

// layers brings the layers of an image there, several at once, and returns their
// descriptors, lowest first.
func (p *push) layers(ctx context.Context, im *Image) ([]ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	diffs := im.Config.RootFS.DiffIDs
	for _, d := range slices.Backward(diffs) {
		p.rep.step(ref.Short(d.Encoded()), "Preparing")
	}
	out := make([]ocispec.Descriptor, len(diffs))
	var wg sync.WaitGroup
	for i, diff := range slices.Backward(diffs) {
		if at := slices.Index(diffs, diff); at != i {
			continue // twice in one image: once is enough
		}
		wg.Go(func() {
			id := ref.Short(diff.Encoded())
			err := p.up.acquire(ctx, func() { p.rep.step(id, "Waiting") })
			if err == nil {
				out[i], err = p.layer(ctx, im.Layers[i], diff)
				p.up.release()
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	for i, diff := range diffs {
		out[i] = out[slices.Index(diffs, diff)]
	}
	return out, nil
}

// layer brings one layer there, in the way that moves least.
func (p *push) layer(ctx context.Context, chain, diff digest.Digest) (ocispec.Descriptor, error) {
	id := ref.Short(diff.Encoded())
	p.mu.Lock()
	d, ok := p.done[diff]
	p.mu.Unlock()
	status := "Layer already exists"
	if !ok {
		var err error
		if d, status, err = p.find(ctx, chain); err != nil {
			return d, err
		}
	}
	if status == "" {
		status = "Pushed"
		err := p.attempt(ctx, id, func() (err error) {
			d, err = p.upload(ctx, id, chain)
			return err
		})
		if err != nil {
			return d, err
		}
	}
	p.mu.Lock()
	p.done[diff] = d
	p.mu.Unlock()
	p.rep.step(id, status)
	return d, p.s.layers.noteBlob(chain, d, p.name.Repository())
}

// attempt tries something until it works or trying again is no use.
func (p *push) attempt(ctx context.Context, id string, fn func() error) error {
	for fails := 1; ; fails++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !registry.Temporary(err) || errs.Is(err, errs.Internal) && isDiskError(err) || fails >= p.tries() {
			return err
		}
		for left := fails * 5; left > 0; left-- {
			p.rep.step(id, fmt.Sprintf("Retrying in %d seconds", left))
			select {
			case <-time.After(p.dl.pause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// find looks for a layer in the repository, and in others of the registry. The status
// is "" when it has to be uploaded.
func (p *push) find(ctx context.Context, chain digest.Digest) (d ocispec.Descriptor, status string, err error) {
	row, _ := p.s.layers.row(chain)
	for _, b := range row.Blobs {
		size, err := p.repo.Stat(ctx, b.Digest)
		if err != nil {
			return d, "", err
		}
		if size >= 0 {
			return ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}, "Layer already exists", nil
		}
	}
	mounts := 0
	for _, b := range row.Blobs {
		for _, full := range b.Repos {
			from, ok := strings.CutPrefix(full, p.name.Domain()+"/")
			if !ok || from == p.name.Path() || mounts >= maxMounts {
				continue
			}
			mounts++
			up, err := p.repo.Upload(ctx, b.Digest, from)
			switch {
			case err != nil && ctx.Err() != nil:
				return d, "", context.Cause(ctx)
			case err != nil:
				continue // not allowed there: it is uploaded
			case up == nil:
				return ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}, "Mounted from " + from, nil
			}
			up.Cancel(ctx)
		}
	}
	return d, "", nil
}

// upload compresses a layer into an upload.
func (p *push) upload(ctx context.Context, id string, chain digest.Digest) (ocispec.Descriptor, error) {
	row, _ := p.s.layers.row(chain)
	up, err := p.repo.Upload(ctx, "", "")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	pr, pw := io.Pipe()
	sum := &hashWriter{w: pw, h: sha256.New()}
	finished := make(chan error, 1)
	go func() {
		// The standard library's, at its default level: what Docker pushes with, so
		// that an image that came from there goes back with the same digest.
		z := gzip.NewWriter(sum)
		err := p.s.layers.write(ctx, chain, &progressWriter{w: z, to: p.rep, id: id, total: row.TarSize})
		if err == nil {
			err = z.Close()
		}
		_ = pw.CloseWithError(err) // nil is the end
		finished <- err
	}()
	err = up.Stream(ctx, pr)
	_ = pr.CloseWithError(io.ErrClosedPipe)
	werr := <-finished
	if err == nil {
		err = werr
	}
	d := ocispec.Descriptor{MediaType: oci.DockerLayerGzip, Digest: digest.NewDigest(digest.SHA256, sum.h), Size: sum.n}
	if err == nil {
		err = up.Commit(ctx, d.Digest, nil)
	}
	if err != nil {
		up.Cancel(context.WithoutCancel(ctx))
	}
	return d, err
}

// progressWriter tells how much was written, a few times a second.
type progressWriter struct {
	w     io.Writer
	to    *reporter
	id    string
	total int64
	n     int64
	last  time.Time
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += int64(n)
	if now := time.Now(); now.Sub(p.last) >= progressEvery || p.n == p.total {
		p.last = now
		p.to.send(jsonstream.Message{ID: p.id, Status: "Pushing", Progress: &jsonstream.Progress{Current: p.n, Total: p.total}})
	}
	return n, err
}

// config brings the configuration there.
func (p *push) config(ctx context.Context, im *Image) error {
	size, err := p.repo.Stat(ctx, im.ID)
	if err != nil || size >= 0 {
		return err
	}
	return p.attempt(ctx, ref.Short(im.ID.Encoded()), func() error {
		up, err := p.repo.Upload(ctx, "", "")
		if err != nil {
			return err
		}
		return up.Commit(ctx, im.ID, im.Raw)
	})
}

// manifest is one that is known to have these layers, or a new one.
func (p *push) manifest(im *Image, layers []ocispec.Descriptor) (manifest, error) {
	for _, key := range p.s.o.DB.Keys("manifest", string(im.ID)+"/") {
		var m manifest
		var doc oci.Manifest
		if ok, err := p.s.o.DB.Get("manifest", key, &m); err != nil || !ok || json.Unmarshal(m.Raw, &doc) != nil {
			continue
		}
		same := slices.EqualFunc(doc.Layers, layers, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
		if same && doc.Config.Digest == im.ID && oci.IsManifest(m.MediaType) {
			return m, nil
		}
	}
	doc := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.DockerManifest,
		Config: ocispec.Descriptor{MediaType: oci.DockerConfig, Digest: im.ID, Size: int64(len(im.Raw))},
		Layers: slices.Clone(layers),
	}
	if slices.ContainsFunc(layers, func(d ocispec.Descriptor) bool { return strings.HasSuffix(d.MediaType, "zstd") }) {
		doc.MediaType, doc.Config.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	}
	for i := range doc.Layers {
		doc.Layers[i].MediaType = layerType(doc.Layers[i].MediaType, doc.MediaType == ocispec.MediaTypeImageManifest)
	}
	// The layout is Docker's, so that the same image has the same digest.
	raw, err := json.MarshalIndent(doc, "", "   ")
	return manifest{doc.MediaType, raw}, err
}

// layerType is a layer's media type in the one or the other family.
func layerType(t string, inOCI bool) string {
	switch {
	case strings.HasSuffix(t, "zstd"):
		return ocispec.MediaTypeImageLayerZstd
	case strings.HasSuffix(t, "gzip") && inOCI:
		return ocispec.MediaTypeImageLayerGzip
	case strings.HasSuffix(t, "gzip"):
		return oci.DockerLayerGzip
	case inOCI:
		return ocispec.MediaTypeImageLayer
	}
	return oci.DockerLayer
}

// Distribution tells what a registry has under a name.
func (r *Remote) Distribution(ctx context.Context, name string, auth *apiregistry.AuthConfig) (out apiregistry.DistributionInspect, err error) {
	n, err := ref.Parse(name)
	if err != nil {
		return out, err
	}
	reference := n.Tag()
	if n.Digest() != "" {
		reference = string(n.Digest())
	}
	err = r.c.Each(ctx, n, auth, registry.Pull, func(repo *registry.Repository) error {
		m, err := repo.Manifest(ctx, reference)
		if err != nil {
			return err
		}
		var doc oci.Manifest
		if err := json.Unmarshal(m.Raw, &doc); err != nil {
			return errs.New(errs.Invalid, "manifest %s: %w", m.Digest, err)
		}
		kind, err := kindOf(m, &doc, n)
		if err != nil {
			return err
		}
		out = apiregistry.DistributionInspect{
			Descriptor: ocispec.Descriptor{MediaType: kind, Digest: m.Digest, Size: int64(len(m.Raw))}, Platforms: []ocispec.Platform{},
		}
		if oci.IsIndex(kind) {
			for _, d := range doc.Manifests {
				if d.Platform != nil {
					out.Platforms = append(out.Platforms, *d.Platform)
				}
			}
			return nil
		}
		raw, err := repo.ReadBlob(ctx, doc.Config.Digest, maxConfig)
		if err != nil {
			return err
		}
		var p ocispec.Platform
		if json.Unmarshal(raw, &p) == nil && (p.OS != "" || p.Architecture != "") { // what is no image has none
			out.Platforms = append(out.Platforms, p)
		}
		return nil
	})
	if err == nil {
		return out, nil
	}
	if registry.Is(err, registry.Denied, registry.Unauthorized) {
		return out, errs.Wrap(errs.Forbidden, err, "")
	}
	if registry.Is(err, registry.ManifestUnknown, registry.NameUnknown) {
		return out, errs.Wrap(errs.NotFound, err, "")
	}
	return out, err
}
