package registryd

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/atomicfile"
)

// store is the directory; the package doc draws it. It has no state in memory but quotas.
type store struct {
	root  string // …/docker/registry/v2
	log   *slog.Logger
	quota *quota // nil: none
	sums  sums
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	s := &store{root: filepath.Join(dir, "docker/registry/v2"), log: log}
	s.sums.m = map[string]sum{}
	for _, d := range []string{"blobs", "repositories"} {
		if err := os.MkdirAll(filepath.Join(s.root, d), 0o755); err != nil {
			return nil, fmt.Errorf("cannot make the registry's directory: %w", err)
		}
	}
	return s, nil
}

func (s *store) blobPath(d digest.Digest) string {
	hex := d.Encoded()
	return s.root + "/blobs/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex + "/data"
}

func (s *store) repoPath(name string) string { return s.root + "/repositories/" + name }

func (s *store) layerLink(name string, d digest.Digest) string {
	return s.repoPath(name) + "/_layers/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

func (s *store) revisionLink(name string, d digest.Digest) string {
	return s.repoPath(name) + "/_manifests/revisions/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

func (s *store) tagDir(name string) string { return s.repoPath(name) + "/_manifests/tags" }

func (s *store) tagLink(name, tag string) string { return s.tagDir(name) + "/" + tag + "/current/link" }

func (s *store) referrerDir(name string, subject digest.Digest) string {
	return s.repoPath(name) + "/_referrers/" + subject.Algorithm().String() + "/" + subject.Encoded()
}

func (s *store) referrerLink(name string, subject, d digest.Digest) string {
	return s.referrerDir(name, subject) + "/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

// hold takes the store's lock: shared to link, alone to delete content.
func (s *store) hold(alone bool) (release func(), err error) {
	f, err := os.OpenFile(s.root+"/.lock", os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot lock the registry's directory: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// writeLink makes path say d, whole or not at all.
func writeLink(path string, d digest.Digest) error {
	if err := mkdirSync(filepath.Dir(path)); err != nil {
		return err
	}
	return atomicfile.Write(path, []byte(d), 0o644)
}

// mkdirSync makes dir and those above it, and has the disk know each that is new.
func mkdirSync(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := mkdirSync(filepath.Dir(dir)); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	default:
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readLink returns what a link says, or fs.ErrNotExist also when it says nothing
// valid: a link that another program left torn is none.
func readLink(path string) (digest.Digest, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
			err = fs.ErrNotExist
		}
		return "", err
	}
	d, err := parseDigest(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fs.ErrNotExist
	}
	return d, nil
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// use marks a blob as wanted, for the collector. It reports whether it is there.
func (s *store) use(d digest.Digest) bool {
	now := time.Now()
	return os.Chtimes(s.blobPath(d), time.Time{}, now) == nil
}

// openBlob opens a blob that the repository links, to be read.
func (s *store) openBlob(name string, d digest.Digest) (*os.File, fs.FileInfo, error) {
	target, err := readLink(s.layerLink(name, d))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, blobUnknown(d)
		}
		return nil, nil, err
	}
	f, err := os.Open(s.blobPath(target))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, blobUnknown(d)
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

// hasBlob tells whether the repository links a blob that is there.
func (s *store) hasBlob(name string, d digest.Digest) bool {
	target, err := readLink(s.layerLink(name, d))
	return err == nil && exists(s.blobPath(target))
}

// mount links a blob to a repository; from is one that must have it, or "" for any.
func (s *store) mount(name, from string, d digest.Digest) (size int64, err error) {
	release, err := s.hold(false)
	if err != nil {
		return 0, err
	}
	defer release()
	st, err := os.Stat(s.blobPath(d))
	if err != nil || from != "" && !exists(s.layerLink(from, d)) {
		return 0, blobUnknown(d)
	}
	if exists(s.layerLink(name, d)) {
		s.use(d)
		return st.Size(), nil
	}
	if err := s.quota.add(name, st.Size(), 0); err != nil {
		return 0, err
	}
	s.use(d)
	if err := writeLink(s.layerLink(name, d), d); err != nil {
		s.quota.give(name, st.Size(), 0)
		return 0, err
	}
	return st.Size(), nil
}

// unlinkBlob takes a blob from a repository. The content stays for the collector.
func (s *store) unlinkBlob(name string, d digest.Digest) error {
	release, err := s.hold(false)
	if err != nil {
		return err
	}
	defer release()
	if !s.hasBlob(name, d) {
		return blobUnknown(d)
	}
	st, err := os.Stat(s.blobPath(d))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Dir(s.layerLink(name, d))); err != nil {
		return err
	}
	s.quota.give(name, st.Size(), 0)
	return syncDir(filepath.Dir(filepath.Dir(s.layerLink(name, d))))
}

func (s *store) hasRepo(name string) bool { return exists(s.repoPath(name) + "/_manifests") }

// tags returns the tags of a repository in the specification's order.
func (s *store) tags(name string) ([]string, error) {
	entries, err := os.ReadDir(s.tagDir(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	tags := make([]string, 0, len(entries))
	for _, e := range entries {
		if validTag(e.Name()) && exists(s.tagLink(name, e.Name())) {
			tags = append(tags, e.Name())
		}
	}
	slices.SortFunc(tags, compareTags)
	return tags, nil
}

// compareTags orders without regard to case, and where only that differs by bytes.
func compareTags(a, b string) int {
	if c := strings.Compare(strings.ToLower(a), strings.ToLower(b)); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

// repositories calls f for each repository below prefix, in no particular order. A
// directory is one when it has a directory of ours.
func (s *store) repositories(f func(name string) error) error {
	top := s.root + "/repositories"
	var walk func(name string) error
	walk = func(name string) error {
		entries, err := os.ReadDir(filepath.Join(top, name))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		own := false
		for _, e := range entries {
			switch {
			case !e.IsDir():
			case strings.HasPrefix(e.Name(), "_"):
				own = true
			default:
				if err := walk(filepath.Join(name, e.Name())); err != nil {
					return err
				}
			}
		}
		if own && validName(name) {
			return f(name)
		}
		return nil
	}
	return walk("")
}

// catalog returns the names of all repositories that have had manifests, sorted.
func (s *store) catalog() ([]string, error) {
	names := []string{}
	err := s.repositories(func(name string) error {
		if s.hasRepo(name) {
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// digests returns those that have a link below dir/ALGORITHM/HEX/.
func digests(dir string) ([]digest.Digest, error) {
	var list []digest.Digest
	for _, alg := range []string{"sha256", "sha512"} {
		entries, err := os.ReadDir(dir + "/" + alg)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		for _, e := range entries {
			d, err := parseDigest(alg + ":" + e.Name())
			if err == nil && exists(dir+"/"+alg+"/"+e.Name()+"/link") {
				list = append(list, d)
			}
		}
	}
	return list, nil
}
