package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
)

const (
	maxSmall   = 1 << 20   // bytes of a member that is kept in memory
	maxSmalls  = 256 << 20 // bytes of all of them
	maxMembers = 100_000
)

// bundle is an image archive on its way in: its members, by clean path, small
// ones in memory and large ones in temporary files that close removes. Names in it are
// keys of a map and never touch a file system.
type bundle struct {
	members map[string]*member
	links   map[string]string // symbolic and hard links, to a clean path
	smalls  int64
}

type member struct {
	size int64
	data []byte
	file *os.File // unlinked; nil for a small one
}

// readBundle reads the tar r, which may be compressed.
func readBundle(ctx context.Context, r io.Reader, tmp string) (*bundle, error) {
	z, _, err := archive.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b := &bundle{members: map[string]*member{}, links: map[string]string{}}
	tr := tar.NewReader(z)
	buf := make([]byte, 1<<20)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = b.member(ctx, h, tr, tmp, buf)
		}
		if err != nil {
			b.close()
			if errs.KindOf(err) == errs.Internal && ctx.Err() == nil && !isDiskError(err) {
				err = errs.New(errs.Invalid, "cannot read archive: %w", err)
			}
			return nil, err
		}
		if len(b.members)+len(b.links) > maxMembers {
			b.close()
			return nil, errs.New(errs.Invalid, "archive has more than %d entries", maxMembers)
		}
	}
	return b, nil
}

func isDiskError(err error) bool { var p *os.PathError; return errors.As(err, &p) }

func (b *bundle) member(ctx context.Context, h *tar.Header, r io.Reader, tmp string, buf []byte) error {
	name := path.Clean("/" + h.Name)
	switch h.Typeflag {
	case tar.TypeSymlink:
		b.links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))
		return nil
	case tar.TypeLink:
		b.links[name] = path.Clean("/" + h.Linkname)
		return nil
	case tar.TypeReg:
	default:
		return nil
	}
	if old := b.members[name]; old != nil && old.file != nil {
		_ = old.file.Close()
	}
	m := &member{size: h.Size}
	b.members[name] = m
	if h.Size <= maxSmall && b.smalls+h.Size <= maxSmalls {
		b.smalls += h.Size
		m.data = make([]byte, h.Size)
		_, err := io.ReadFull(r, m.data)
		return err
	}
	f, err := os.CreateTemp(tmp, "member")
	if err != nil {
		return err
	}
	m.file = f
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := f.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// find returns a member, through links.
func (b *bundle) find(name string) *member {
	p := path.Clean("/" + name)
	for range 16 {
		if m := b.members[p]; m != nil {
			return m
		}
		to, ok := b.links[p]
		if !ok {
			return nil
		}
		p = to
	}
	return nil
}

// open reads a member from its start.
func (m *member) open() io.Reader {
	if m.file == nil {
		return strings.NewReader(string(m.data))
	}
	return io.NewSectionReader(m.file, 0, m.size)
}

// bytes returns the content of a member that describes something.
func (b *bundle) bytes(name string) ([]byte, error) {
	m := b.find(name)
	if m == nil {
		return nil, errs.New(errs.Invalid, "invalid archive: %s is missing", strings.TrimPrefix(name, "/"))
	}
	if m.size > maxConfig {
		return nil, errs.New(errs.Invalid, "invalid archive: %s is larger than %d bytes", name, maxConfig)
	}
	return io.ReadAll(m.open())
}

func (b *bundle) json(name string, v any) error {
	data, err := b.bytes(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errs.New(errs.Invalid, "invalid archive: %s: %w", name, err)
	}
	return nil
}

// blobName is where an image layout keeps a blob.
func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", errs.New(errs.Invalid, "invalid archive: invalid digest %q", string(d))
	}
	return "blobs/sha256/" + d.Encoded(), nil
}

// blob returns the content of a blob that describes something, after checking it.
func (b *bundle) blob(d digest.Digest) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	data, err := b.bytes(name)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(data) != d {
		return nil, errs.New(errs.Invalid, "invalid archive: %s has another digest", name)
	}
	return data, nil
}

func (b *bundle) close() {
	for _, m := range b.members {
		if m.file != nil {
			_ = m.file.Close()
		}
	}
}
