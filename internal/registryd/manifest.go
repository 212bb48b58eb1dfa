package registryd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/atomicfile"
	"berth.dev/berth/internal/oci"
)

const maxManifest = 4 << 20

// manifest is what the registry looks at in a manifest or an index.
type manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
	Annotations   map[string]string    `json:"annotations"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

// parseManifest checks the form of a manifest that was sent with a content type. The
// type that it returns is the one that the manifest is served with.
func parseManifest(b []byte, contentType string) (*manifest, string, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, "", manifestInvalid(err.Error())
	}
	kind := contentType
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		kind = t
	}
	if kind == "" || kind == "application/json" || kind == "application/octet-stream" {
		kind = m.MediaType
	}
	if kind == "" {
		kind = ocispec.MediaTypeImageManifest
		if m.Manifests != nil {
			kind = ocispec.MediaTypeImageIndex
		}
	}
	switch {
	case m.FSLayers != nil || m.SchemaVersion == 1:
		return nil, "", manifestInvalid("schema version 1 is not supported")
	case !oci.IsIndex(kind) && !oci.IsManifest(kind):
		return nil, "", manifestInvalid("media type " + kind + " is not supported")
	case m.MediaType != "" && m.MediaType != kind:
		return nil, "", manifestInvalid("mediaType is " + m.MediaType + ", the content type is " + kind)
	case m.SchemaVersion != 2:
		return nil, "", manifestInvalid("schemaVersion is not 2")
	case oci.IsIndex(kind) && (m.Config != nil || m.Layers != nil):
		return nil, "", manifestInvalid("an index has neither config nor layers")
	case oci.IsManifest(kind) && m.Manifests != nil:
		return nil, "", manifestInvalid("an image has no manifests")
	case oci.IsManifest(kind) && m.Config == nil:
		return nil, "", manifestInvalid("there is no config")
	}
	for _, d := range m.descriptors() {
		if _, err := parseDigest(d.Digest.String()); err != nil {
			return nil, "", manifestInvalid("a descriptor's digest is invalid: " + d.Digest.String())
		}
		if d.Size < 0 {
			return nil, "", manifestInvalid("a descriptor's size is negative")
		}
	}
	return &m, kind, nil
}

// descriptors returns all of them, the subject too.
func (m *manifest) descriptors() []ocispec.Descriptor {
	list := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		list = append(list, *m.Config)
	}
	if m.Subject != nil {
		list = append(list, *m.Subject)
	}
	return list
}

// elsewhere tells whether a layer need not be here: it is not to be distributed, or
// says itself where it is.
func elsewhere(d ocispec.Descriptor) bool {
	return len(d.URLs) > 0 || d.MediaType == oci.DockerForeignLayer || strings.Contains(d.MediaType, ".nondistributable.")
}

// stored is a manifest as it is served.
type stored struct {
	digest    digest.Digest
	mediaType string
	body      []byte
}

// putManifest stores a manifest, and a tag for it unless that is empty. check has the
// blobs and manifests that it names be in the repository.
func (s *store) putManifest(name, tag string, d digest.Digest, kind string, m *manifest, body []byte, check bool) error {
	release, err := s.hold(false)
	if err != nil {
		return err
	}
	defer release()

	// 1. What it names.
	var missing errorList
	need := func(x ocispec.Descriptor, ok bool) {
		if ok && s.use(x.Digest) || !check {
			return
		}
		missing = append(missing, fail(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "manifest references a manifest or blob unknown to registry", map[string]string{"digest": x.Digest.String()}))
	}
	if m.Config != nil {
		need(*m.Config, s.hasBlob(name, m.Config.Digest))
	}
	for _, x := range m.Layers {
		if !elsewhere(x) {
			need(x, s.hasBlob(name, x.Digest))
		}
	}
	for _, x := range m.Manifests { // caches of builders list layers here
		need(x, exists(s.revisionLink(name, x.Digest)) || s.hasBlob(name, x.Digest))
	}
	if len(missing) > 0 {
		return missing
	}

	// 2. Its content, 3. who it refers to, 4. the revision, 5. the tag.
	path := s.blobPath(d)
	known, linked := exists(path), exists(s.revisionLink(name, d))
	var n, content int64
	if !linked {
		n = int64(len(body))
	}
	if !known {
		content = int64(len(body))
	}
	if err := s.quota.add(name, n, content); err != nil {
		return err
	}
	err = s.writeManifest(name, d, kind, m, body, known)
	if err != nil {
		s.quota.give(name, n, content)
		return err
	}
	if tag != "" {
		return writeLink(s.tagLink(name, tag), d)
	}
	return nil
}

func (s *store) writeManifest(name string, d digest.Digest, kind string, m *manifest, body []byte, known bool) error {
	path := s.blobPath(d)
	if known {
		s.use(d)
	} else {
		if err := mkdirSync(filepath.Dir(path)); err != nil {
			return err
		}
		if err := atomicfile.Write(path, body, 0o644); err != nil {
			return err
		}
	}
	if m.Subject != nil {
		if err := writeLink(s.referrerLink(name, m.Subject.Digest, d), d); err != nil {
			return err
		}
	}
	link := s.revisionLink(name, d)
	if err := mkdirSync(filepath.Dir(link)); err != nil {
		return err
	}
	if kind != guessType(m) { // its text does not say what it is
		if err := atomicfile.Write(filepath.Dir(link)+"/type", []byte(kind), 0o644); err != nil {
			return err
		}
	}
	return writeLink(link, d)
}

// guessType is the media type by the content alone.
func guessType(m *manifest) string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

// resolve returns the digest that a reference, a tag or a digest, stands for.
func (s *store) resolve(name, ref string) (digest.Digest, error) {
	if d, err := parseDigest(ref); err == nil {
		return d, nil
	}
	if strings.Contains(ref, ":") {
		_, err := parseDigest(ref)
		return "", err
	}
	if !validTag(ref) {
		return "", manifestUnknown(ref)
	}
	d, err := readLink(s.tagLink(name, ref))
	if errors.Is(err, fs.ErrNotExist) {
		return "", manifestUnknown(ref)
	}
	return d, err
}

// getManifest reads a revision of a repository, and verifies it.
func (s *store) getManifest(name, ref string) (*stored, error) {
	d, err := s.resolve(name, ref)
	if err != nil {
		return nil, err
	}
	link := s.revisionLink(name, d)
	if !exists(link) {
		return nil, manifestUnknown(ref)
	}
	body, err := os.ReadFile(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, manifestUnknown(ref)
	}
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(body) != d {
		s.log.Error("a manifest on the disk is damaged", "repository", name, "digest", d)
		return nil, manifestUnknown(ref)
	}
	if kind, err := os.ReadFile(filepath.Dir(link) + "/type"); err == nil {
		return &stored{d, string(kind), body}, nil
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, manifestUnknown(ref)
	}
	return &stored{d, guessType(&m), body}, nil
}

func (s *store) deleteTag(name, tag string) error {
	release, err := s.hold(false)
	if err != nil {
		return err
	}
	defer release()
	if !exists(s.tagLink(name, tag)) {
		return manifestUnknown(tag)
	}
	// The link goes first, so that half a removal is no tag.
	if err := os.Remove(s.tagLink(name, tag)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(s.tagDir(name) + "/" + tag); err != nil {
		return err
	}
	return syncDir(s.tagDir(name))
}

// deleteManifest removes a revision and the tags that stand for it.
func (s *store) deleteManifest(name string, d digest.Digest) error {
	release, err := s.hold(false)
	if err != nil {
		return err
	}
	defer release()
	return s.deleteRevision(name, d)
}

func (s *store) deleteRevision(name string, d digest.Digest) error {
	link := s.revisionLink(name, d)
	if !exists(link) {
		if !s.hasRepo(name) {
			return nameUnknown(name)
		}
		return manifestUnknown(d.String())
	}
	tags, err := s.tags(name)
	if err != nil {
		return err
	}
	for _, t := range tags {
		if at, err := readLink(s.tagLink(name, t)); err == nil && at == d {
			if err := os.RemoveAll(s.tagDir(name) + "/" + t); err != nil {
				return err
			}
		}
	}
	if b, err := os.ReadFile(s.blobPath(d)); err == nil {
		s.quota.give(name, int64(len(b)), 0)
		var m manifest
		if json.Unmarshal(b, &m) == nil && m.Subject != nil {
			if subject, err := parseDigest(m.Subject.Digest.String()); err == nil {
				_ = os.RemoveAll(filepath.Dir(s.referrerLink(name, subject, d)))
			}
		}
	}
	if err := os.Remove(link); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Dir(link)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(filepath.Dir(link)))
}

// referrers returns the manifests whose subject is d: those that were pushed here, and
// those that a client without the API has listed under the tag ALG-HEX.
func (s *store) referrers(name string, d digest.Digest) ([]ocispec.Descriptor, error) {
	list, err := digests(s.referrerDir(name, d))
	if err != nil {
		return nil, err
	}
	hex := d.Encoded()
	fallback := d.Algorithm().String() + "-" + hex[:min(64, len(hex))]
	if at, err := readLink(s.tagLink(name, fallback)); err == nil {
		if ix, err := s.getManifest(name, at.String()); err == nil && oci.IsIndex(ix.mediaType) {
			var m manifest
			if json.Unmarshal(ix.body, &m) == nil {
				for _, x := range m.Manifests {
					if x, err := parseDigest(x.Digest.String()); err == nil {
						list = append(list, x)
					}
				}
			}
		}
	}
	slices.Sort(list)
	out := []ocispec.Descriptor{}
	for _, r := range slices.Compact(list) {
		st, err := s.getManifest(name, r.String())
		if err != nil {
			continue
		}
		var m manifest
		if json.Unmarshal(st.body, &m) != nil || m.Subject == nil || m.Subject.Digest != d {
			continue
		}
		desc := ocispec.Descriptor{MediaType: st.mediaType, Digest: r, Size: int64(len(st.body)), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
		if desc.ArtifactType == "" && m.Config != nil {
			desc.ArtifactType = m.Config.MediaType
		}
		out = append(out, desc)
	}
	return out, nil
}
