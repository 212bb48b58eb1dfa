package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/registry"
	"berth.dev/berth/internal/state"
)

// RemoteLimits bound what goes on at once. They may change while transfers run.
type RemoteLimits struct {
	Downloads int // blobs at once, of all pulls; 0: any number
	Uploads   int // layers at once, of all pushes; 0: any number
	Attempts  int // in a row without progress, for one blob; 0: five
}

// Remote moves images from and to registries.
//
// A pull fetches the layers that are missing in parallel, each into a file under
// <root>/download, and unpacks them from there in their order, the first while it is still
// on its way. What several pulls need is fetched and unpacked once. A file outlives a
// pull that fails, and a crash: the next pull goes on where it ended. Nothing of a layer is
// kept before its digest and its diff id are proven.
type Remote struct {
	s  *Service
	c  *registry.Client
	up *limiter
	dl *downloads

	mu        sync.Mutex
	unpacking map[digest.Digest]chan struct{} // by chain id; closed when it has ended
	attempts  int
}

// NewRemote returns what moves the images of s.
func NewRemote(s *Service, c *registry.Client, l RemoteLimits) (*Remote, error) {
	r := &Remote{s: s, c: c, up: new(limiter), unpacking: map[digest.Digest]chan struct{}{}}
	r.dl = &downloads{dir: filepath.Join(s.o.Root, "download"), all: map[digest.Digest]*download{}, slots: new(limiter), pause: time.Second}
	if err := os.MkdirAll(r.dl.dir, 0o700); err != nil {
		return nil, err
	}
	r.dl.sweep()
	r.SetLimits(l)
	return r, nil
}

// SetLimits changes the limits.
func (r *Remote) SetLimits(l RemoteLimits) {
	if l.Attempts <= 0 {
		l.Attempts = 5
	}
	r.dl.slots.set(l.Downloads)
	r.up.set(l.Uploads)
	r.mu.Lock()
	r.attempts = l.Attempts
	r.mu.Unlock()
}

func (r *Remote) tries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

// claim makes the caller the one who unpacks a layer, until it closes the channel;
// or it returns the channel of who does.
func (r *Remote) claim(chain digest.Digest) (ch chan struct{}, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.unpacking[chain]; ch != nil {
		return ch, false
	}
	ch = make(chan struct{})
	r.unpacking[chain] = ch
	return ch, true
}

func (r *Remote) unclaim(chain digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.unpacking[chain])
	delete(r.unpacking, chain)
}

// limiter lets a number of things happen at once, first come, first served.
type limiter struct {
	mu    sync.Mutex
	max   int
	n     int
	queue []chan struct{}
}

func (l *limiter) set(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.max = n
	l.wake()
}

func (l *limiter) wake() {
	for len(l.queue) > 0 && (l.max <= 0 || l.n < l.max) {
		close(l.queue[0])
		l.queue = l.queue[1:]
		l.n++
	}
}

// acquire waits for a turn; waiting is called when there is none at once.
func (l *limiter) acquire(ctx context.Context, waiting func()) error {
	l.mu.Lock()
	if len(l.queue) == 0 && (l.max <= 0 || l.n < l.max) {
		l.n++
		l.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	l.queue = append(l.queue, ch)
	l.mu.Unlock()
	waiting()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := slices.Index(l.queue, ch); at >= 0 {
		l.queue = slices.Delete(l.queue, at, at+1)
	} else { // its turn came meanwhile
		l.n--
		l.wake()
	}
	return context.Cause(ctx)
}

func (l *limiter) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n--
	l.wake()
}

// reporter passes messages on, in their order and from any goroutine. Whoever reports never
// waits for a slow client: of numbers that it has not taken yet only the last are kept.
type reporter struct {
	mu      sync.Mutex
	queue   []jsonstream.Message
	pending map[string]int // place in queue of the last message of an id
	wake    chan struct{}
	done    chan struct{}
	ended   bool
}

func newReporter(to Progress) *reporter {
	p := &reporter{pending: map[string]int{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for range p.wake {
			p.mu.Lock()
			list := p.queue
			p.queue = nil
			clear(p.pending)
			p.mu.Unlock()
			if to == nil {
				continue
			}
			for _, m := range list {
				to(m)
			}
		}
	}()
	return p
}

func (p *reporter) send(m jsonstream.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if at, ok := p.pending[m.ID]; ok && m.ID != "" && m.Progress != nil && p.queue[at].Status == m.Status {
		p.queue[at] = m
	} else {
		p.pending[m.ID] = len(p.queue)
		p.queue = append(p.queue, m)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// step reports a step of one layer, say reports a line.
func (p *reporter) step(id, status string) {
	p.send(jsonstream.Message{ID: id, Status: status, Progress: &jsonstream.Progress{}})
}

func (p *reporter) say(id, format string, args ...any) {
	p.send(jsonstream.Message{ID: id, Status: fmt.Sprintf(format, args...)})
}

// close waits until all is passed on.
func (p *reporter) close() {
	p.mu.Lock()
	if !p.ended {
		p.ended = true
		close(p.wake)
	}
	p.mu.Unlock()
	<-p.done
}

// Blob is a form in which a layer is known to be in registries.
type Blob struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
	Repos     []string      `json:"repos,omitempty"` // "docker.io/library/mysql", the latest first
}

const (
	maxBlobs = 4 // remembered of a layer
	maxRepos = 8 // remembered of a blob
)

// noteBlob remembers where a layer is to be had.
func (l *layerStore) noteBlob(id digest.Digest, d ocispec.Descriptor, repo string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	row, ok := l.rows[id]
	if !ok {
		return nil
	}
	b := Blob{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
	at := slices.IndexFunc(row.Blobs, func(b Blob) bool { return b.Digest == d.Digest })
	if at >= 0 {
		b.Repos = row.Blobs[at].Repos
		if at == 0 && len(b.Repos) > 0 && b.Repos[0] == repo {
			return nil
		}
	}
	repos := append([]string{repo}, slices.DeleteFunc(slices.Clone(b.Repos), func(r string) bool { return r == repo })...)
	b.Repos = repos[:min(len(repos), maxRepos)]
	blobs := append([]Blob{b}, slices.DeleteFunc(slices.Clone(row.Blobs), func(b Blob) bool { return b.Digest == d.Digest })...)
	row.Blobs = blobs[:min(len(blobs), maxBlobs)]
	l.rows[id] = row
	return l.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put("layer", string(id), row) })
}

// manifest is the row of a manifest by which an image came or went, byte for byte.
type manifest struct {
	MediaType string `json:"mediaType"`
	Raw       []byte `json:"raw"`
}

func manifestKey(id, m digest.Digest) string { return string(id) + "/" + string(m) }

// dropManifests removes the manifests of an image that goes.
func dropManifests(s *Service, tx *state.Tx, id digest.Digest) {
	for _, k := range s.o.DB.Keys("manifest", string(id)+"/") {
		tx.Delete("manifest", k)
	}
}

// moveEvent tells of a pull or a push: what it is about is a name, not an id.
func moveEvent(s *Service, action events.Action, im *Image, name string, n ref.Name) {
	attrs := map[string]string{}
	for k, v := range im.Config.Config.Labels {
		attrs[k] = v
	}
	attrs["name"] = n.FamiliarRepository()
	s.o.Event(action, name, attrs)
}

// kindOf is the media type of a manifest, when what it says of itself, what
// the registry says and what is in it agree.
func kindOf(m *registry.Manifest, doc *oci.Manifest, n ref.Name) (string, error) {
	kind := doc.MediaType
	known := func(k string) bool { return oci.IsIndex(k) || oci.IsManifest(k) }
	if kind == "" {
		kind = m.MediaType
	} else if known(m.MediaType) && m.MediaType != kind {
		return "", errs.New(errs.Invalid, "manifest %s is of type %q, not %q as the registry says", m.Digest, kind, m.MediaType)
	}
	if doc.SchemaVersion == 1 || kind == "application/vnd.docker.distribution.manifest.v1+json" || kind == "application/vnd.docker.distribution.manifest.v1+prettyjws" {
		return "", errs.New(errs.Invalid, "%s is stored in the image format of before 2016 (manifest version 2, schema 1), which is not supported any more: it has to be pushed again", n.Familiar())
	}
	if len(doc.Manifests) > 0 && (len(doc.Layers) > 0 || doc.Config.Digest != "") {
		return "", errs.New(errs.Invalid, "manifest %s is both an image and an index", m.Digest)
	}
	if !known(kind) && doc.MediaType == "" { // a registry that names no type
		switch {
		case len(doc.Manifests) > 0:
			kind = ocispec.MediaTypeImageIndex
		case doc.Config.Digest != "":
			kind = ocispec.MediaTypeImageManifest
		}
	}
	if !known(kind) {
		return "", errs.New(errs.Invalid, "unsupported media type %s", kind)
	}
	return kind, nil
}
