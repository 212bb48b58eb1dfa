package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/registry"
)

const (
	partialLife  = 24 * time.Hour // of what nobody came back for
	downloadSize = 128 << 10      // bytes at a time
	progressMade = 64 << 10       // bytes that make an attempt worth another at once
)

// downloads are the blobs on their way, each once.
type downloads struct {
	dir   string // a file for each, by the digits of its digest
	slots *limiter
	pause time.Duration // of which five, ten, … make the pause between attempts

	mu  sync.Mutex
	all map[digest.Digest]*download
}

// sweep removes what was left behind and nobody came back for.
func (ds *downloads) sweep() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	entries, _ := os.ReadDir(ds.dir) // the next pull tells
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || ds.all[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] != nil || time.Since(st.ModTime()) < partialLife {
			continue
		}
		_ = os.Remove(filepath.Join(ds.dir, e.Name()))
	}
}

// download is a blob on its way: a file that grows.
type download struct {
	ds   *downloads
	desc ocispec.Descriptor
	id   string // for people
	f    *os.File
	stop context.CancelCauseFunc
	refs int // guarded by ds.mu

	mu      sync.Mutex
	n       int64         // bytes in the file
	open    bool          // they may be read before all is proven
	changed chan struct{} // closed at the next change; nil when nobody waits
	done    bool
	err     error
	stored  bool // the layer is unpacked: the file is not needed any more
	last    jsonstream.Message
	sinks   map[*ticket]func(jsonstream.Message)
	sum     hash.Hash
}

// ticket is one pull's part in a download. leave must be called.
type ticket struct{ *download }

// join starts a download, or takes part in the one that is under way.
func (ds *downloads) join(repo *registry.Repository, desc ocispec.Descriptor, attempts int, sink func(jsonstream.Message)) (*ticket, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.all[desc.Digest]
	if d != nil && (d.desc.Size != desc.Size || d.failure() != nil) {
		d = nil // another says otherwise: it is fetched as this one says
	}
	if d == nil {
		f, err := os.OpenFile(filepath.Join(ds.dir, desc.Digest.Encoded()), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("cannot store a download: %w", err)
		}
		if old := ds.all[desc.Digest]; old != nil { // two writers do not share a file
			_ = f.Close()
			if f, err = os.CreateTemp(ds.dir, "other"); err != nil {
				return nil, fmt.Errorf("cannot store a download: %w", err)
			}
			_ = os.Remove(f.Name())
		}
		ctx, stop := context.WithCancelCause(context.Background())
		d = &download{ds: ds, desc: desc, id: ref.Short(desc.Digest.Encoded()), f: f, stop: stop, sinks: map[*ticket]func(jsonstream.Message){}, sum: sha256.New()}
		if ds.all[desc.Digest] == nil {
			ds.all[desc.Digest] = d
		}
		go func() { d.end(d.run(ctx, repo, attempts)) }()
	}
	d.refs++
	t := &ticket{d}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sinks[t] = sink
	if d.last.Status != "" {
		sink(d.last)
	}
	return t, nil
}

// failure is why a download has ended, nil when it has not or all is well.
func (d *download) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// leave gives a part up. The last one ends the download; what came is kept unless the
// layer is stored or the bytes were wrong.
func (t *ticket) leave() {
	d := t.download
	d.mu.Lock()
	delete(d.sinks, t)
	d.mu.Unlock()
	d.ds.mu.Lock()
	defer d.ds.mu.Unlock()
	if d.refs--; d.refs > 0 {
		return
	}
	d.stop(context.Canceled)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ds.all[d.desc.Digest] != d {
		_ = d.f.Close()
		return
	}
	delete(d.ds.all, d.desc.Digest)
	if d.stored || d.n == 0 || errs.Is(d.err, errs.Invalid) {
		_ = os.Remove(d.f.Name())
	}
	_ = d.f.Close()
}

// emit tells everybody. Numbers are told a few times a second by the caller.
func (d *download) emit(status string, p jsonstream.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = jsonstream.Message{ID: d.id, Status: status, Progress: &p}
	for _, sink := range d.sinks {
		sink(d.last)
	}
}

// wake tells readers that something has changed. mu is held.
func (d *download) wake() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

func (d *download) end(err error) {
	if err == nil {
		d.emit("Verifying Checksum", jsonstream.Progress{})
		d.emit("Download complete", jsonstream.Progress{})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done, d.err = true, err
	d.wake()
}

// wait returns when the download has ended, with its error.
func (d *download) wait(ctx context.Context) error {
	for {
		d.mu.Lock()
		if d.done {
			defer d.mu.Unlock()
			return d.err
		}
		ch := d.waitChan()
		d.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *download) waitChan() chan struct{} {
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.changed
}

// run brings the whole blob into the file and proves it.
func (d *download) run(ctx context.Context, repo *registry.Repository, attempts int) error {
	if err := d.ds.slots.acquire(ctx, func() { d.emit("Waiting", jsonstream.Progress{}) }); err != nil {
		return err
	}
	defer d.ds.slots.release()
	old, err := d.resume(ctx)
	if err != nil {
		return err
	}
	for {
		if err := d.fetchAll(ctx, repo, attempts); err != nil {
			return err
		}
		switch {
		case digest.NewDigest(digest.SHA256, d.sum) == d.desc.Digest:
			return nil
		case !old:
			return errs.New(errs.Invalid, "filesystem layer verification failed for digest %s", d.desc.Digest)
		}
		// What an earlier pull had left was not the beginning of it.
		old = false
		if err := d.restart(); err != nil {
			return err
		}
	}
}

// resume takes up what an earlier pull has left.
func (d *download) resume(ctx context.Context) (bool, error) {
	st, err := d.f.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() == 0 || st.Size() > d.desc.Size {
		return false, d.restart()
	}
	buf := make([]byte, downloadSize)
	for at := int64(0); at < st.Size(); {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := d.f.ReadAt(buf, at)
		d.sum.Write(buf[:n])
		at += int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if n == 0 {
			return false, d.restart()
		}
	}
	d.mu.Lock()
	d.n = st.Size()
	d.mu.Unlock()
	return true, nil
}

// restart begins with nothing.
func (d *download) restart() error {
	d.sum.Reset()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n, d.open = 0, true
	return d.f.Truncate(0)
}

func (d *download) fetchAll(ctx context.Context, repo *registry.Repository, attempts int) error {
	for fails := 0; d.n < d.desc.Size; {
		before := d.n
		err := d.fetch(ctx, repo)
		if err == nil {
			break
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var disk *fs.PathError
		if !registry.Temporary(err) || errors.As(err, &disk) {
			return err
		}
		if d.n-before >= progressMade {
			fails = 0
			continue
		}
		if fails++; fails >= attempts {
			return err
		}
		for left := fails * 5; left > 0; left-- {
			unit := "seconds"
			if left == 1 {
				unit = "second"
			}
			d.emit(fmt.Sprintf("Retrying in %d %s", left, unit), jsonstream.Progress{})
			select {
			case <-time.After(d.ds.pause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// fetch reads from where the file ends until the blob or the connection does.
func (d *download) fetch(ctx context.Context, repo *registry.Repository) error {
	body, at, err := repo.Blob(ctx, d.desc.Digest, d.n)
	if err != nil {
		return err
	}
	defer body.Close()
	if at < d.n { // no ranges here
		if _, err := io.CopyN(io.Discard, body, d.n-at); err != nil {
			return noEOF(err)
		}
	}
	buf := make([]byte, downloadSize)
	var told time.Time
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if d.n+int64(n) > d.desc.Size {
				return errs.New(errs.Invalid, "layer %s is larger than the %d bytes that its manifest says", d.desc.Digest, d.desc.Size)
			}
			if _, werr := d.f.WriteAt(buf[:n], d.n); werr != nil {
				return werr
			}
			d.sum.Write(buf[:n])
			d.mu.Lock()
			d.n += int64(n)
			d.wake()
			d.mu.Unlock()
			if now := time.Now(); now.Sub(told) >= progressEvery || d.n == d.desc.Size {
				told = now
				d.emit("Downloading", jsonstream.Progress{Current: d.n, Total: d.desc.Size})
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && d.n == d.desc.Size:
			return nil
		default:
			return noEOF(err)
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// layerReader reads a download while it comes, and ends when it is proven.
type layerReader struct {
	d    *download
	ctx  context.Context //nolint:containedctx // an io.Reader has no other way
	off  int64
	tell func(n int64) // bytes read, once all has come
}

func (l *layerReader) Read(p []byte) (int, error) {
	d := l.d
	for {
		d.mu.Lock()
		n, done, err := d.n, d.done, d.err
		if !d.open && !done {
			n = 0
		}
		var ch chan struct{}
		if l.off >= n && !done {
			ch = d.waitChan()
		}
		d.mu.Unlock()
		switch {
		case done && err != nil:
			return 0, err
		case l.off < n:
			k, err := d.f.ReadAt(p[:min(int64(len(p)), n-l.off)], l.off)
			l.off += int64(k)
			if k > 0 {
				err = nil
			}
			if done {
				l.tell(l.off)
			}
			return k, err
		case done:
			l.tell(l.off)
			return 0, io.EOF
		}
		select {
		case <-ch:
		case <-l.ctx.Done():
			return 0, context.Cause(l.ctx)
		}
	}
}
