package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/oci"
)

// registryConfig is the configuration in the image, at the places where people mount theirs.
const registryConfig = `version: 0.1
log:
  fields:
    service: registry
storage:
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
`

// Registry returns what opens the archive of the image registry, for Options.Builtin. Its
// only layer is program, which must be static and be a registry under the name
// registry. The archive is made while it is read: none lies in the engine or on a disk.
func Registry(program string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		f, err := os.Open(program)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		r, w := io.Pipe()
		go func() {
			w.CloseWithError(writeRegistry(w, io.NewSectionReader(f, 0, st.Size())))
			_ = f.Close()
		}()
		return r, nil
	}
}

// counter counts what is written.
type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

func writeRegistry(w io.Writer, program *io.SectionReader) error {
	// The layer is written twice: its digest comes before it.
	var size counter
	h := sha256.New()
	if err := registryLayer(io.MultiWriter(h, &size), program); err != nil {
		return err
	}
	layer := digest.NewDigest(digest.SHA256, h)
	created := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": created,
		"config": map[string]any{
			"Env":          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint":   []string{"/bin/registry"},
			"Cmd":          []string{"/etc/distribution/config.yml"},
			"ExposedPorts": map[string]any{"5000/tcp": struct{}{}},
			"Volumes":      map[string]any{"/var/lib/registry": struct{}{}},
			"WorkingDir":   "/",
			"Labels":       map[string]string{"org.opencontainers.image.title": "registry", "org.opencontainers.image.description": "A private registry of images"},
		},
		"history": []any{map[string]any{"created": created, "created_by": "COPY berthd /bin/registry"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []digest.Digest{layer}},
	})
	if err != nil {
		return err
	}
	name := func(d digest.Digest) string { return oci.DirBlobs + "/" + d.Encoded() }
	configName := name(digest.FromBytes(config))
	manifest, err := json.Marshal([]oci.ArchiveItem{{Config: configName, RepoTags: []string{"registry:latest"}, Layers: []string{name(layer)}}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	if err := addFile(tw, configName, 0o644, int64(len(config)), bytes.NewReader(config)); err != nil {
		return err
	}
	if err := tw.WriteHeader(header(name(layer), 0o644, int64(size))); err != nil {
		return err
	}
	if err := registryLayer(tw, program); err != nil {
		return err
	}
	if err := addFile(tw, oci.FileManifest, 0o644, int64(len(manifest)), bytes.NewReader(manifest)); err != nil {
		return err
	}
	return tw.Close()
}

func registryLayer(w io.Writer, program *io.SectionReader) error {
	tw := tar.NewWriter(w)
	for _, dir := range []string{"bin/", "etc/", "etc/distribution/", "etc/docker/", "etc/docker/registry/", "var/", "var/lib/", "var/lib/registry/"} {
		if err := tw.WriteHeader(header(dir, 0o755, 0)); err != nil {
			return err
		}
	}
	text := map[string]string{
		"etc/passwd": "root:x:0:0:root:/:/bin/registry\nnobody:x:65534:65534:nobody:/:/bin/registry\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	}
	for _, name := range []string{"etc/distribution/config.yml", "etc/docker/registry/config.yml"} {
		text[name] = registryConfig
	}
	for _, name := range []string{"etc/distribution/config.yml", "etc/docker/registry/config.yml", "etc/group", "etc/passwd"} {
		b := []byte(text[name])
		if err := addFile(tw, name, 0o644, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	if _, err := program.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := addFile(tw, "bin/registry", 0o755, program.Size(), program); err != nil {
		return err
	}
	return tw.Close()
}

func header(name string, mode, size int64) *tar.Header {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if name[len(name)-1] == '/' {
		h.Typeflag = tar.TypeDir
	}
	return h
}

func addFile(tw *tar.Writer, name string, mode, size int64, r io.Reader) error {
	if err := tw.WriteHeader(header(name, mode, size)); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}
