package image

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/oci"
	"berth.dev/berth/internal/ref"
)

// saver writes archives.
type saver struct{ *Service }

// outgoing is an image to be saved, with the names to save it under.
type outgoing struct {
	im    *Image
	names []ref.Name
}

// Save writes an archive of images that Docker, podman and Load take. A name
// without a tag means all tags of the repository. The same images give the same bytes.
func (s *Service) Save(ctx context.Context, refs []string, w io.Writer) error {
	sv := saver{s}
	list, err := sv.selectForSave(ctx, refs)
	if err != nil {
		return err
	}
	var pinned []digest.Digest
	defer func() { s.layers.unpin(pinned...) }()
	for _, o := range list {
		for _, id := range o.im.Layers {
			if !s.layers.pin(id) {
				return errs.New(errs.NotFound, "No such image: %s", o.im.ID)
			}
			pinned = append(pinned, id)
		}
	}
	out := bufio.NewWriterSize(w, 256<<10)
	if err := sv.writeArchive(ctx, tar.NewWriter(out), list); err != nil {
		return fmt.Errorf("cannot save: %w", err)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, o := range list {
		s.event(events.ActionSave, o.im, string(o.im.ID))
	}
	return nil
}

func (s saver) selectForSave(ctx context.Context, refs []string) ([]outgoing, error) {
	var list []outgoing
	add := func(im *Image, n ref.Name) {
		at := slices.IndexFunc(list, func(o outgoing) bool { return o.im.ID == im.ID })
		if at < 0 {
			list = append(list, outgoing{im: im})
			at = len(list) - 1
		}
		if !n.IsZero() && n.Tag() != "" && !slices.Contains(list[at].names, n) {
			list[at].names = append(list[at].names, n)
		}
	}
	for _, r := range refs {
		if named, err := reference.ParseNormalizedNamed(r); err == nil && reference.IsNameOnly(named) {
			if all := s.tagsOf(named.Name()); len(all) > 0 {
				for _, n := range all {
					if im, err := s.find(n.String()); err == nil {
						add(im, n)
					}
				}
				continue
			}
		}
		im, err := s.Resolve(ctx, r)
		if err != nil {
			return nil, err
		}
		n, err := ref.Parse(r)
		s.mu.RLock()
		_, isName := s.tags[n.String()]
		s.mu.RUnlock()
		if err != nil || !isName {
			n = ref.Name{}
		}
		add(im, n)
	}
	return list, nil
}

// tagsOf returns the tags of a repository, sorted.
func (s saver) tagsOf(repository string) []ref.Name {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var list []ref.Name
	for full := range s.tags {
		if n, err := ref.Parse(full); err == nil && n.Repository() == repository && n.Digest() == "" {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b ref.Name) int {
		if a.String() < b.String() {
			return -1
		}
		return 1
	})
	return list
}

// archiveBlob is a file under blobs/: data, or the tar of a layer.
type archiveBlob struct {
	data  []byte
	layer digest.Digest // chain id
	size  int64
}

func (s saver) writeArchive(ctx context.Context, tw *tar.Writer, list []outgoing) error {
	blobs := map[digest.Digest]archiveBlob{}
	var items []oci.ArchiveItem
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	repositories := map[string]map[string]string{}
	for _, o := range list {
		item, err := s.describe(o, blobs, &index)
		if err != nil {
			return err
		}
		if p := o.im.Parent; p != "" && slices.ContainsFunc(list, func(x outgoing) bool { return x.im.ID == p }) {
			item.Parent = p
		}
		items = append(items, item)
		for _, n := range o.names {
			repo := n.FamiliarRepository()
			if repositories[repo] == nil {
				repositories[repo] = map[string]string{}
			}
			if k := len(o.im.Config.RootFS.DiffIDs); k > 0 {
				repositories[repo][n.Tag()] = o.im.Config.RootFS.DiffIDs[k-1].Encoded()
			}
		}
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	digests := make([]string, 0, len(blobs))
	for d := range blobs {
		digests = append(digests, string(d))
	}
	sort.Strings(digests)
	for _, d := range digests {
		if err := s.writeBlob(ctx, tw, digest.Digest(d), blobs[digest.Digest(d)]); err != nil {
			return err
		}
	}
	for _, doc := range []struct {
		name string
		v    any
	}{
		{oci.FileIndex, index},
		{oci.FileManifest, items},
		{oci.FileLayout, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{oci.FileRepositories, repositories},
	} {
		if doc.name == oci.FileRepositories && len(repositories) == 0 {
			continue
		}
		data, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := writeMember(tw, doc.name, data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// describe adds an image's blobs and its place in the index.
func (s saver) describe(o outgoing, blobs map[digest.Digest]archiveBlob, index *ocispec.Index) (oci.ArchiveItem, error) {
	item := oci.ArchiveItem{Config: "blobs/sha256/" + o.im.ID.Encoded(), RepoTags: []string{}, Layers: []string{}, LayerSources: map[digest.Digest]ocispec.Descriptor{}}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: o.im.ID, Size: int64(len(o.im.Raw))},
		Layers: []ocispec.Descriptor{},
	}
	blobs[o.im.ID] = archiveBlob{data: o.im.Raw, size: int64(len(o.im.Raw))}
	for i, id := range o.im.Layers {
		row, _ := s.layers.row(id)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: o.im.Config.RootFS.DiffIDs[i], Size: row.TarSize}
		blobs[d.Digest] = archiveBlob{layer: id, size: row.TarSize}
		m.Layers = append(m.Layers, d)
		item.Layers = append(item.Layers, "blobs/sha256/"+d.Digest.Encoded())
		item.LayerSources[d.Digest] = d
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return item, err
	}
	md := digest.FromBytes(raw)
	blobs[md] = archiveBlob{data: raw, size: int64(len(raw))}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: md, Size: int64(len(raw)), Platform: &ocispec.Platform{
		Architecture: o.im.Config.Architecture, OS: o.im.Config.OS, OSVersion: o.im.Config.OSVersion, Variant: o.im.Config.Variant,
	}}
	if len(o.names) == 0 {
		index.Manifests = append(index.Manifests, d)
	}
	for _, n := range o.names {
		item.RepoTags = append(item.RepoTags, n.Familiar())
		d.Annotations = map[string]string{oci.AnnotationImageName: n.String(), oci.AnnotationRefName: n.Tag()}
		index.Manifests = append(index.Manifests, d)
	}
	return item, nil
}

func (s saver) writeBlob(ctx context.Context, tw *tar.Writer, d digest.Digest, b archiveBlob) error {
	name := oci.DirBlobs + "/" + d.Encoded()
	if b.layer == "" {
		return writeMember(tw, name, b.data)
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: b.size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	return s.layers.write(ctx, b.layer, tw)
}

func writeMember(tw *tar.Writer, name string, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}
