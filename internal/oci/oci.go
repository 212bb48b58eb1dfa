// Package oci holds the documents that describe images, beside those of the
// OCI image specification: Docker's media types and the files of an archive
// that "save" writes and "load" reads.
//
// # Words
//
// A diff id is the digest of a layer's uncompressed tar. A chain id names a
// layer on top of all layers below it; equal chain ids are equal trees. An
// image id is the digest of the image's configuration, byte for byte.
package oci

import (
	_ "crypto/sha256" // the one algorithm of these digests

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, met in registries and archives of the time before OCI.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// EmptyTar is the diff id of a tar without entries: a layer that changes nothing.
const EmptyTar = digest.Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")

// Annotations of an image layout's index that name its images.
const (
	AnnotationImageName = "io.containerd.image.name"          // full reference
	AnnotationRefName   = "org.opencontainers.image.ref.name" // tag, or full reference
)

// Files of an archive.
const (
	FileManifest     = "manifest.json"
	FileRepositories = "repositories"
	FileIndex        = "index.json"
	FileLayout       = "oci-layout"
	DirBlobs         = "blobs/sha256"
)

// ArchiveItem is one image in an archive's manifest.json.
type ArchiveItem struct {
	Config       string
	RepoTags     []string
	Layers       []string
	Parent       digest.Digest                        `json:",omitempty"`
	LayerSources map[digest.Digest]ocispec.Descriptor `json:",omitempty"`
}

// Manifest is a manifest or an index in either family: what is missing in one
// kind stays empty.
type Manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType,omitempty"`
	Config        ocispec.Descriptor   `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

// IsIndex reports whether a media type is that of a list of manifests.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == DockerManifestList
}

// IsManifest reports whether a media type is that of one image's manifest.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == DockerManifest
}

// ChainIDs returns the chain id of every layer, lowest first.
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	chain := make([]digest.Digest, len(diffIDs))
	for i, d := range diffIDs {
		if i == 0 {
			chain[0] = d
			continue
		}
		chain[i] = digest.FromString(string(chain[i-1]) + " " + string(d))
	}
	return chain
}
