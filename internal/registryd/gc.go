package registryd

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// CollectOptions say what a collection removes. The zero value removes all blobs that
// no manifest names.
type CollectOptions struct {
	Grace    time.Duration // what was uploaded, mounted or named since then is kept
	Untagged bool          // manifests without a tag too, older than Grace
	DryRun   bool
	Found    func(kind, name string) // told of each "blob" and "manifest"; may be nil
}

// Collected is what a collection removed, or with DryRun would have.
type Collected struct {
	Blobs, Manifests int
	Bytes            int64
}

// clockSlack is how far a file's time may lie before the time of day that its
// maker saw: the kernel stamps files with the time of its last tick.
const clockSlack = 20 * time.Millisecond

// collect removes what no manifest names. It may run while the store is in use; the
// package doc tells why that is safe.
func (s *store) collect(ctx context.Context, o CollectOptions) (c Collected, err error) {
	if o.Found == nil {
		o.Found = func(string, string) {}
	}
	before := time.Now().Add(-clockSlack - o.Grace)

	// 1. Mark.
	marked := map[digest.Digest]bool{}
	links := map[digest.Digest][]string{} // repositories, by blob
	err = s.repositories(func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.mark(name, marked, before, o)
		c.Manifests += n
		if err != nil {
			return err
		}
		list, err := digests(s.repoPath(name) + "/_layers")
		for _, d := range list {
			links[d] = append(links[d], name)
		}
		return err
	})
	if err != nil {
		return c, err
	}

	// 2. Sweep.
	err = filepath.WalkDir(s.root+"/blobs", func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir():
			return nil
		}
		dir := filepath.Dir(path)
		hex := filepath.Base(dir)
		d, derr := parseDigest(filepath.Base(filepath.Dir(filepath.Dir(dir))) + ":" + hex)
		if derr != nil || e.Name() != "data" {
			if strings.HasPrefix(e.Name(), ".data.") && !o.DryRun { // left by a crash
				if st, err := e.Info(); err == nil && st.ModTime().Before(before.Add(-time.Hour)) {
					return os.Remove(path)
				}
			}
			return nil
		}
		if marked[d] {
			return nil
		}
		n, err := s.sweep(d, links[d], before, o.DryRun)
		if n >= 0 {
			c.Blobs++
			c.Bytes += n
			o.Found("blob", d.String())
		}
		return err
	})
	if err == nil && !o.DryRun {
		err = s.quota.count(s)
	}
	return c, err
}

// mark adds what the manifests of a repository name. With o.Untagged it first removes
// those that no tag leads to.
func (s *store) mark(name string, marked map[digest.Digest]bool, before time.Time, o CollectOptions) (removed int, err error) {
	revisions, err := digests(s.repoPath(name) + "/_manifests/revisions")
	if err != nil {
		return 0, err
	}
	parsed := map[digest.Digest]*manifest{}
	for _, d := range revisions {
		var m manifest
		b, err := os.ReadFile(s.blobPath(d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		_ = json.Unmarshal(b, &m)
		parsed[d] = &m
	}
	keep := func(digest.Digest) bool { return true }
	if o.Untagged {
		live, err := s.reachable(name, parsed)
		if err != nil {
			return 0, err
		}
		keep = func(d digest.Digest) bool { return live[d] }
	}
	for d, m := range parsed {
		if !keep(d) {
			gone, err := s.dropUntagged(name, d, before, o.DryRun)
			if err != nil {
				return removed, err
			}
			if gone {
				removed++
				o.Found("manifest", name+"@"+d.String())
				continue
			}
		}
		marked[d] = true
		for _, x := range m.descriptors() {
			marked[x.Digest] = true
		}
	}
	return removed, nil
}

// reachable returns the revisions that a tag leads to, by indexes and from subjects to
// those that refer to them.
func (s *store) reachable(name string, parsed map[digest.Digest]*manifest) (map[digest.Digest]bool, error) {
	tags, err := s.tags(name)
	if err != nil {
		return nil, err
	}
	referrers := map[digest.Digest][]digest.Digest{}
	for d, m := range parsed {
		if m.Subject != nil {
			referrers[m.Subject.Digest] = append(referrers[m.Subject.Digest], d)
		}
	}
	live := map[digest.Digest]bool{}
	var next []digest.Digest
	for _, t := range tags {
		if d, err := readLink(s.tagLink(name, t)); err == nil {
			next = append(next, d)
		}
	}
	for len(next) > 0 {
		d := next[len(next)-1]
		next = next[:len(next)-1]
		if live[d] || parsed[d] == nil {
			continue
		}
		live[d] = true
		next = append(next, referrers[d]...)
		for _, x := range parsed[d].Manifests {
			next = append(next, x.Digest)
		}
	}
	return live, nil
}

// dropUntagged removes a revision that has no tag, unless it was pushed or tagged just now.
func (s *store) dropUntagged(name string, d digest.Digest, before time.Time, dry bool) (bool, error) {
	release, err := s.hold(true)
	if err != nil {
		return false, err
	}
	defer release()
	st, err := os.Stat(s.blobPath(d))
	if err == nil && !st.ModTime().Before(before) {
		return false, nil
	}
	if dry {
		return true, nil
	}
	return true, s.deleteRevision(name, d)
}

// sweep removes a blob and its links, unless somebody wanted it since the start. It
// returns its size, or -1 when it stays.
func (s *store) sweep(d digest.Digest, repos []string, before time.Time, dry bool) (int64, error) {
	release, err := s.hold(true)
	if err != nil {
		return -1, err
	}
	defer release()
	path := s.blobPath(d)
	st, err := os.Stat(path)
	if err != nil || !st.ModTime().Before(before) {
		return -1, nil
	}
	if dry {
		return st.Size(), nil
	}
	for _, name := range repos {
		if err := os.RemoveAll(filepath.Dir(s.layerLink(name, d))); err != nil {
			return -1, err
		}
	}
	if err := os.Remove(path); err != nil {
		return -1, err
	}
	_ = os.Remove(filepath.Dir(path)) // unless something else lies there
	return st.Size(), nil
}

// expire removes what a mirror fetched longer ago than ttl; it will be asked for again.
func (s *store) expire(ttl time.Duration) error {
	before := time.Now().Add(-ttl)
	return s.repositories(func(name string) error {
		list, err := digests(s.repoPath(name) + "/_manifests/revisions")
		if err != nil {
			return err
		}
		for _, d := range list {
			if st, err := os.Stat(s.blobPath(d)); err == nil && st.ModTime().Before(before) {
				if err := s.deleteManifest(name, d); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
