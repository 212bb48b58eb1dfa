package registryd

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// sums keeps the state of SHA-256 of uploads between their chunks. One that is not
// here, after a restart, is computed from the file.
type sums struct {
	mu sync.Mutex
	m  map[string]sum // by upload id
}

type sum struct {
	h hash.Hash
	n int64 // bytes that went in
}

const maxSums = 4096

func (s *sums) take(id string) (sum, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.m[id]
	delete(s.m, id)
	return v, ok
}

func (s *sums) put(id string, v sum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) < maxSums {
		s.m[id] = v
	}
}

// upload is a session, open and locked.
type upload struct {
	s        *store
	name, id string
	dir      string
	f        *os.File
	size     int64
	sum      sum
}

// newUUID returns a random UUID.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (s *store) uploadDir(name, id string) string { return s.repoPath(name) + "/_uploads/" + id }

// newUpload starts a session.
func (s *store) newUpload(name string) (*upload, error) {
	id := newUUID()
	dir := s.uploadDir(name, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dir+"/data", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.WriteFile(dir+"/startedat", []byte(time.Now().UTC().Format(time.RFC3339)), 0o644)
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return &upload{s: s, name: name, id: id, dir: dir, f: f, sum: sum{h: sha256.New()}}, nil
}

// openUpload goes on with a session. Close it, or finish it with commit or cancel.
func (s *store) openUpload(name, id string) (*upload, error) {
	if !validID(id) {
		return nil, uploadUnknown(id)
	}
	dir := s.uploadDir(name, id)
	f, err := os.OpenFile(dir+"/data", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, uploadUnknown(id)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, uploadInvalid(http.StatusConflict, "another request is writing to it")
	}
	u := &upload{s: s, name: name, id: id, dir: dir, f: f}
	if u.size, err = f.Seek(0, io.SeekEnd); err != nil {
		_ = f.Close()
		return nil, err
	}
	// It may have been finished between the open and the lock.
	if !exists(dir + "/data") {
		_ = f.Close()
		return nil, uploadUnknown(id)
	}
	v, ok := s.sums.take(id)
	if !ok || v.n != u.size {
		v = sum{}
	}
	u.sum = v
	return u, nil
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// append adds a body. What came before an error stays, for the client to resume from.
func (u *upload) append(body io.Reader) (int64, error) {
	room := u.s.quota.room(u.name)
	if room >= 0 {
		body = io.LimitReader(body, max(0, room-u.size)+1)
	}
	if u.sum.h == nil {
		if err := u.rehash(); err != nil {
			return 0, err
		}
	}
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if _, werr := u.f.WriteAt((*buf)[:n], u.size); werr != nil {
				u.sum.h = nil
				_ = u.f.Truncate(u.size)
				return total, werr
			}
			_, _ = u.sum.h.Write((*buf)[:n])
			u.size += int64(n)
			total += int64(n)
			u.sum.n = u.size
		}
		if room >= 0 && u.size > room {
			u.cancel()
			return total, denied(fmt.Sprintf("quota exceeded: there is room for %s in repository %s", human(room), u.name))
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, uploadInvalid(http.StatusBadRequest, "the body ended early")
		}
	}
}

func (u *upload) rehash() error {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(u.f, 0, u.size))
	u.sum = sum{h, n}
	return err
}

// close leaves the session for the next request.
func (u *upload) close() {
	if u.sum.h != nil {
		u.s.sums.put(u.id, u.sum)
	}
	_ = u.f.Close()
}

func (u *upload) cancel() {
	_ = os.RemoveAll(u.dir)
	_ = u.f.Close()
}

// digest returns the digest of what came, by the algorithm of want.
func (u *upload) digest(want digest.Digest) (digest.Digest, error) {
	if want.Algorithm() == digest.SHA256 {
		if u.sum.h == nil {
			if err := u.rehash(); err != nil {
				return "", err
			}
		}
		return digest.NewDigest(digest.SHA256, u.sum.h), nil
	}
	return want.Algorithm().FromReader(io.NewSectionReader(u.f, 0, u.size))
}

// commit makes the upload a blob of its repository, and ends the session whether or
// not that succeeds, except on errors of the disk.
func (u *upload) commit(want digest.Digest) error {
	got, err := u.digest(want)
	if err != nil {
		u.close()
		return err
	}
	if got != want {
		u.cancel()
		return digestInvalid("provided digest did not match uploaded content", map[string]string{"digest": want.String(), "content": got.String()})
	}
	if err := u.f.Sync(); err != nil {
		u.close()
		return err
	}
	release, err := u.s.hold(false)
	if err != nil {
		u.close()
		return err
	}
	defer release()
	path := u.s.blobPath(want)
	known, linked := exists(path), exists(u.s.layerLink(u.name, want))
	var n, content int64
	if !known {
		content = u.size
	}
	if !linked {
		n = u.size
	}
	if err := u.s.quota.add(u.name, n, content); err != nil {
		u.cancel()
		return err
	}
	err = u.place(path, known)
	if err == nil {
		err = writeLink(u.s.layerLink(u.name, want), want)
	}
	if err != nil {
		u.s.quota.give(u.name, n, content)
		u.close()
		return err
	}
	u.cancel()
	return nil
}

// place gives the file its final name. Content that is there already is replaced by
// the same, which was verified just now.
func (u *upload) place(path string, known bool) error {
	now := time.Now()
	if err := os.Chtimes(u.dir+"/data", time.Time{}, now); err != nil {
		return err
	}
	if !known {
		if err := mkdirSync(filepath.Dir(path)); err != nil {
			return err
		}
	}
	if err := os.Rename(u.dir+"/data", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// purgeUploads removes sessions that nobody has written to for age.
func (s *store) purgeUploads(age time.Duration, dry bool) (n int, err error) {
	before := time.Now().Add(-age)
	err = s.repositories(func(name string) error {
		entries, err := os.ReadDir(s.repoPath(name) + "/_uploads")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			dir := s.uploadDir(name, e.Name())
			st, err := os.Stat(dir + "/data")
			if errors.Is(err, fs.ErrNotExist) {
				st, err = os.Stat(dir)
			}
			if err != nil || st.ModTime().After(before) {
				continue
			}
			if u, err := s.openUpload(name, e.Name()); err == nil {
				n++
				if dry {
					u.close()
				} else {
					u.cancel()
				}
			} else if !exists(dir+"/data") && !dry {
				n++
				_ = os.RemoveAll(dir)
			}
		}
		return nil
	})
	return n, err
}
