package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/snapshot"
	"berth.dev/berth/internal/state"
)

// Layer is a layer's row.
type Layer struct {
	DiffID  digest.Digest `json:"diffId"`
	Parent  digest.Digest `json:"parent,omitempty"` // chain id
	Size    int64         `json:"size"`             // bytes in its files
	TarSize int64         `json:"tarSize"`          // bytes of its tar
	Boot    string        `json:"boot,omitempty"`   // the boot that wrote it, until it is known to be on disk
	Blobs   []Blob        `json:"blobs,omitempty"`  // in registries, the latest first
}

// newLayerPrefix starts the keys of snapshots that layers are unpacked into.
const newLayerPrefix = "layer-"

// settleAfter is how long new layers wait for company before one syncfs for all.
const settleAfter = 2 * time.Second

// layerStore keeps layers and counts who needs them: images hold them, and
// work under way pins them.
type layerStore struct {
	o    Options
	dir  string // of the skeletons
	boot string

	mu    sync.Mutex
	rows  map[digest.Digest]Layer
	held  map[digest.Digest]int
	pins  map[digest.Digest]int
	timer *time.Timer
	wg    sync.WaitGroup
	ended bool
}

func openLayers(ctx context.Context, o Options) (*layerStore, error) {
	l := &layerStore{
		o: o, dir: filepath.Join(o.Root, "skeleton"),
		rows: map[digest.Digest]Layer{}, held: map[digest.Digest]int{}, pins: map[digest.Digest]int{},
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("cannot tell this boot from others: %w", err)
	}
	l.boot = strings.TrimSpace(string(boot))
	var doubtful []digest.Digest
	err = o.DB.Each("layer", func(key string, raw []byte) error {
		var row Layer
		if err := json.Unmarshal(raw, &row); err != nil {
			return fmt.Errorf("layer %s: %w", key, err)
		}
		l.rows[digest.Digest(key)] = row
		if row.Boot != "" && row.Boot != l.boot {
			doubtful = append(doubtful, digest.Digest(key))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range doubtful {
		if err := l.write(ctx, id, io.Discard); err != nil {
			o.Log.Error("layer did not survive", "chain", id, "err", err)
			delete(l.rows, id)
			if err := l.forget(id); err != nil {
				return nil, err
			}
		}
	}
	l.settleSoon()
	return l, nil
}

// close ends background work; what is not on disk yet is proven at the next Open.
func (l *layerStore) close() error {
	l.mu.Lock()
	l.ended = true
	if l.timer != nil && l.timer.Stop() {
		l.wg.Done()
	}
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}

func (l *layerStore) forget(ids ...digest.Digest) error {
	return l.o.DB.Update(state.Async, func(tx *state.Tx) error {
		for _, id := range ids {
			tx.Delete("layer", string(id))
		}
		return nil
	})
}

func (l *layerStore) skeleton(id digest.Digest) string { return filepath.Join(l.dir, id.Encoded()) }

// check fails unless all layers of a chain are there.
func (l *layerStore) check(chain []digest.Digest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range chain {
		if _, ok := l.rows[id]; !ok {
			return errs.New(errs.Internal, "layer %s is missing", id)
		}
	}
	return nil
}

func (l *layerStore) row(id digest.Digest) (Layer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.rows[id]
	return r, ok
}

func (l *layerStore) size(chain []digest.Digest) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n int64
	for _, id := range chain {
		n += l.rows[id].Size
	}
	return n
}

func (l *layerStore) hold(chain []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range chain {
		l.held[id]++
	}
}

func (l *layerStore) unhold(chain []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range chain {
		if l.held[id]--; l.held[id] <= 0 {
			delete(l.held, id)
		}
	}
}

// pin keeps a layer, if it is there, until unpin.
func (l *layerStore) pin(id digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.rows[id]; !ok {
		return false
	}
	l.pins[id]++
	return true
}

func (l *layerStore) unpin(ids ...digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if l.pins[id]--; l.pins[id] <= 0 {
			delete(l.pins, id)
		}
	}
}

// add unpacks the tar r, however compressed, as a layer on parent, which must be
// pinned, and returns its chain id, pinned. want, when set, is the diff id that it must have.
func (l *layerStore) add(ctx context.Context, parent, want digest.Digest, r io.Reader) (id digest.Digest, row Layer, err error) {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:])
	key := newLayerPrefix + hex.EncodeToString(nonce[:])
	sk, err := os.OpenFile(filepath.Join(l.dir, key), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", row, err
	}
	defer sk.Close()
	kept := false
	defer func() {
		if !kept {
			_ = os.Remove(sk.Name())
			if rerr := l.o.Snapshots.Remove(context.WithoutCancel(ctx), key); rerr != nil {
				l.o.Log.Warn("an unfinished layer is left behind", "key", key, "err", rerr)
			}
		}
	}()
	if err := l.o.Snapshots.Prepare(ctx, key, string(parent)); err != nil {
		return "", row, err
	}
	if row, err = l.unpack(ctx, key, sk, r); err != nil {
		return "", row, err
	}
	if want != "" && row.DiffID != want {
		return "", row, errs.New(errs.Invalid, "invalid diffID for layer: expected %q, got %q", want, row.DiffID)
	}
	row.Parent, row.Boot = parent, l.boot
	id = row.DiffID
	if parent != "" {
		id = digest.FromString(string(parent) + " " + string(row.DiffID))
	}
	kept, err = l.keep(ctx, id, key, sk.Name(), row)
	return id, row, err
}

// unpack fills an active snapshot and a skeleton.
func (l *layerStore) unpack(ctx context.Context, key string, sk *os.File, r io.Reader) (Layer, error) {
	applier, ok := l.o.Snapshots.Driver.(snapshot.Applier)
	if !ok {
		return Layer{}, errs.New(errs.Internal, "storage driver %s cannot unpack layers", l.o.Snapshots.Name)
	}
	dir, lower, marks, err := applier.ApplyTarget(ctx, key)
	if err != nil {
		return Layer{}, err
	}
	root, err := archive.OpenRoot(dir)
	if err != nil {
		return Layer{}, err
	}
	defer unix.Close(root)
	w, err := archive.NewSkeletonWriter(sk)
	if err != nil {
		return Layer{}, err
	}
	stream := archive.NewStream(ctx, r)
	defer stream.Close()
	opts := archive.UnpackOptions{Whiteouts: archive.Delete, Skeleton: w}
	if marks {
		opts.Whiteouts, opts.Lower = archive.Overlay, lower
	}
	res, err := archive.Unpack(ctx, stream, root, opts)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Layer{}, err
	}
	return Layer{DiffID: stream.Digest(), Size: res.Size, TarSize: stream.Size()}, nil
}

// keep makes an unpacked layer a stored one and pins it, unless somebody was
// faster: then the one that is there is pinned, and ours is not kept.
func (l *layerStore) keep(ctx context.Context, id digest.Digest, key, skeleton string, row Layer) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.rows[id]; ok {
		l.pins[id]++
		return false, nil
	}
	if err := os.Rename(skeleton, l.skeleton(id)); err != nil {
		return false, err
	}
	err := l.o.Snapshots.Commit(ctx, string(id), key)
	if errs.Is(err, errs.Conflict) { // data without a row, of a removal that failed
		if err = l.o.Snapshots.Remove(ctx, string(id)); err == nil {
			err = l.o.Snapshots.Commit(ctx, string(id), key)
		}
	}
	if err == nil {
		err = l.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put("layer", string(id), row) })
	}
	if err != nil {
		_ = os.Remove(l.skeleton(id))
		return false, err
	}
	l.rows[id] = row
	l.pins[id]++
	return true, nil
}

// collect removes the layers that nobody holds or pins, top first, and returns them.
func (l *layerStore) collect(ctx context.Context) ([]digest.Digest, error) {
	ctx = context.WithoutCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	var gone []digest.Digest
	for {
		under := map[digest.Digest]bool{}
		for _, r := range l.rows {
			if r.Parent != "" {
				under[r.Parent] = true
			}
		}
		var next []digest.Digest
		for id := range l.rows {
			if l.held[id] == 0 && l.pins[id] == 0 && !under[id] {
				next = append(next, id)
			}
		}
		if len(next) == 0 {
			return gone, nil
		}
		if err := l.forget(next...); err != nil {
			return gone, err
		}
		for _, id := range next {
			delete(l.rows, id)
			gone = append(gone, id)
			if err := l.removeData(ctx, id); err != nil {
				return gone, err
			}
		}
	}
}

func (l *layerStore) removeData(ctx context.Context, id digest.Digest) error {
	if err := os.Remove(l.skeleton(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.o.Snapshots.Remove(ctx, string(id))
}

// sweep removes snapshots and skeletons that have no row. All committed
// snapshots of the driver are this store's.
func (l *layerStore) sweep(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var stray []string
	err := l.o.Snapshots.Walk(ctx, func(i snapshot.Info) error {
		_, known := l.rows[digest.Digest(i.Key)]
		if i.Committed && !known || !i.Committed && strings.HasPrefix(i.Key, newLayerPrefix) {
			stray = append(stray, i.Key)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range stray {
		if err := l.o.Snapshots.Remove(ctx, key); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, known := l.rows[digest.NewDigestFromEncoded(digest.SHA256, e.Name())]; !known {
			if err := os.Remove(filepath.Join(l.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes a layer's tar to w, and fails when it is not what was unpacked.
func (l *layerStore) write(ctx context.Context, id digest.Digest, w io.Writer) error {
	row, ok := l.row(id)
	if !ok {
		return errs.New(errs.NotFound, "no such layer: %s", id)
	}
	m, err := l.o.Snapshots.Mounts(ctx, string(id))
	if err != nil {
		return err
	}
	root, err := archive.OpenRoot(m.Layers()[0])
	if err != nil {
		return err
	}
	defer unix.Close(root)
	sk, err := os.Open(l.skeleton(id))
	if err != nil {
		return err
	}
	defer sk.Close()
	h := &hashWriter{w: w, h: sha256.New()}
	if err := archive.Reassemble(ctx, h, root, sk); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h.h); got != row.DiffID || h.n != row.TarSize {
		return errs.New(errs.Internal, "layer %s changed since it was stored: its tar has digest %s, not %s", id, got, row.DiffID)
	}
	return nil
}

type hashWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

// settleSoon plans one syncfs for the layers that are not known to be on disk.
func (l *layerStore) settleSoon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil || l.ended {
		return
	}
	l.wg.Add(1)
	l.timer = time.AfterFunc(settleAfter, func() {
		defer l.wg.Done()
		l.settle()
	})
}

func (l *layerStore) settle() {
	l.mu.Lock()
	l.timer = nil
	var ids []digest.Digest
	for id, r := range l.rows {
		if r.Boot != "" {
			ids = append(ids, id)
		}
	}
	l.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	if err := l.syncAll(ids); err != nil {
		l.o.Log.Warn("cannot sync new layers", "err", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.o.DB.Update(state.Async, func(tx *state.Tx) error {
		for _, id := range ids {
			row, ok := l.rows[id]
			if !ok {
				continue
			}
			row.Boot = ""
			l.rows[id] = row
			if err := tx.Put("layer", string(id), row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.o.Log.Warn("cannot note synced layers", "err", err)
	}
}

// syncAll syncs the file systems of the skeletons and of the snapshots.
func (l *layerStore) syncAll(ids []digest.Digest) error {
	dirs := []string{l.dir}
	for _, id := range ids {
		if m, err := l.o.Snapshots.Mounts(context.Background(), string(id)); err == nil {
			dirs = append(dirs, m.Layers()[0])
			break
		}
	}
	for _, d := range dirs {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		err = unix.Syncfs(int(f.Fd()))
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// isEmptyLayer reports whether a diff id is that of a tar with nothing in it.
func isEmptyLayer(d digest.Digest) bool { return d == oci.EmptyTar }
