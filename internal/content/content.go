// Package content keeps bytes by their digest.
//
// # Words
//
// A blob is a file named by the SHA-256 digest of its bytes; it never changes.
// An ingest is a blob on its way in: a temporary file that becomes visible by
// one rename, when its digest is known and right. So a blob that can be opened
// is whole, and a crash leaves at most files in ingest/, which Open removes.
//
// # On disk
//
//	<root>/blobs/sha256/<64 hexadecimal digits>
//	<root>/ingest/<random>
//
//	w, err := store.Ingest()
//	defer w.Close()                    // gives up what was not committed
//	io.Copy(w, body)
//	err = w.Commit(expected)           // "" takes whatever the digest is
//
// A committed blob survives a kill of the process. It survives a power cut
// after Sync, which a caller does once for many blobs.
package content

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

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// Store is an open blob store. It is safe for use by several goroutines; one
// process may have it open at a time.
type Store struct {
	blobs  string
	ingest string
}

// Open opens or makes the store under root, and removes what a crash left
// half done.
func Open(root string) (*Store, error) {
	s := &Store{blobs: filepath.Join(root, "blobs", "sha256"), ingest: filepath.Join(root, "ingest")}
	if err := os.RemoveAll(s.ingest); err != nil {
		return nil, fmt.Errorf("cannot sweep unfinished blobs: %w", err)
	}
	for _, d := range []string{s.blobs, s.ingest} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", errs.New(errs.Invalid, "invalid digest %q", string(d))
	}
	return filepath.Join(s.blobs, d.Encoded()), nil
}

// Writer is an ingest under way.
type Writer struct {
	s    *Store
	f    *os.File
	sum  hash.Hash
	size int64
	done bool
}

// Ingest starts a blob.
func (s *Store) Ingest() (*Writer, error) {
	f, err := os.CreateTemp(s.ingest, "")
	if err != nil {
		return nil, fmt.Errorf("cannot start a blob: %w", err)
	}
	return &Writer{s: s, f: f, sum: sha256.New()}, nil
}

// Write appends to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.sum.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// Size is the number of bytes written so far.
func (w *Writer) Size() int64 { return w.size }

// Digest is the digest of the bytes written so far.
func (w *Writer) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.sum) }

// Commit makes the blob visible. When its digest is not expected, and expected
// is not empty, the blob is dropped and the error is Invalid.
func (w *Writer) Commit(expected digest.Digest) error {
	got := w.Digest()
	if expected != "" && got != expected {
		return errs.New(errs.Invalid, "unexpected digest: have %s, want %s", got, expected)
	}
	path, err := w.s.path(got)
	if err != nil {
		return err
	}
	if err := w.f.Chmod(0o400); err != nil {
		return err
	}
	if err := os.Rename(w.f.Name(), path); err != nil {
		return fmt.Errorf("cannot keep blob %s: %w", got, err)
	}
	w.done = true
	return nil
}

// Close ends the ingest and drops it unless it was committed.
func (w *Writer) Close() error {
	if !w.done {
		_ = os.Remove(w.f.Name())
	}
	return w.f.Close()
}

// Put keeps the bytes of r, which must have the digest expected unless that
// is empty, and returns their digest and number.
func (s *Store) Put(ctx context.Context, r io.Reader, expected digest.Digest) (digest.Digest, int64, error) {
	w, err := s.Ingest()
	if err != nil {
		return "", 0, err
	}
	defer w.Close()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		n, err := r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return "", 0, werr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", 0, err
		}
	}
	if err := w.Commit(expected); err != nil {
		return "", 0, err
	}
	return w.Digest(), w.size, nil
}

// Open opens a blob for reading. A missing one is NotFound.
func (s *Store) Open(d digest.Digest) (*os.File, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no such blob: %s", d)
	}
	return f, err
}

// ReadFile returns the bytes of a blob of at most limit bytes, after checking
// them against the digest.
func (s *Store) ReadFile(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(data)) > limit:
		return nil, errs.New(errs.Invalid, "blob %s is larger than %d bytes", d, limit)
	case digest.FromBytes(data) != d:
		return nil, errs.New(errs.Internal, "blob %s is damaged", d)
	}
	return data, nil
}

// Size returns the size of a blob in bytes. A missing one is NotFound.
func (s *Store) Size(d digest.Digest) (int64, error) {
	path, err := s.path(d)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errs.New(errs.NotFound, "no such blob: %s", d)
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Delete removes a blob; a missing one is no error.
func (s *Store) Delete(d digest.Digest) error {
	path, err := s.path(d)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Walk calls fn with every blob, in the order of their digests.
func (s *Store) Walk(fn func(d digest.Digest, size int64) error) error {
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		st, err := e.Info()
		if err != nil || d.Validate() != nil {
			continue // deleted meanwhile, or not ours
		}
		if err := fn(d, st.Size()); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes everything committed so far survive a power cut: one syncfs for
// the whole file system.
func (s *Store) Sync() error {
	d, err := os.Open(s.blobs)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
