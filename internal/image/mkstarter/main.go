// Command mkstarter makes the archive of the starter image from a static
// program: the same program gives the same bytes.
//
//	go run ./internal/image/mkstarter hello-binary output.tar.gz
package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/oci"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: mkstarter PROGRAM ARCHIVE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "mkstarter:", err)
		os.Exit(1)
	}
}

func run(program, archive string) error {
	bin, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := pack([]file{
		{name: "hello", mode: 0o755, data: bin},
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/hello\nnobody:x:65534:65534:nobody:/:/hello\n")},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnogroup:x:65534:\n")},
	})
	if err != nil {
		return err
	}
	created := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      created,
		"config": map[string]any{
			"Env": []string{"PATH=/"}, "Entrypoint": []string{"/hello"}, "WorkingDir": "/",
			"Labels": map[string]string{"org.opencontainers.image.title": "hello", "org.opencontainers.image.description": "Greets, and shows what isolates it"},
		},
		"history": []any{map[string]any{"created": created, "created_by": "COPY hello /hello"}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return err
	}
	name := func(b []byte) string { return oci.DirBlobs + "/" + digest.FromBytes(b).Encoded() }
	manifest, err := json.Marshal([]oci.ArchiveItem{{Config: name(config), RepoTags: []string{"hello:latest"}, Layers: []string{name(layer)}}})
	if err != nil {
		return err
	}
	whole, err := pack([]file{
		{name: name(config), mode: 0o644, data: config},
		{name: name(layer), mode: 0o644, data: layer},
		{name: oci.FileManifest, mode: 0o644, data: manifest},
	})
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(whole); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return err
	}
	return os.WriteFile(archive, buf.Bytes(), 0o644)
}

type file struct {
	name string
	mode int64
	data []byte
}

func pack(files []file) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.Copy(tw, bytes.NewReader(f.data)); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
