package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
)

func members(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzBundle reads image archives up to their lists of images: what comes of one
// names members that are there, and an error is the sender's.
func FuzzBundle(f *testing.F) {
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{"Env":["A=b"]}}`
	d := digest.FromString(config)
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"` + d.String() + `"},"layers":[]}`
	m := digest.FromString(manifest)
	f.Add(members(f, "manifest.json", `[{"Config":"c","RepoTags":["a:b"],"Layers":["l"]}]`, "c", config, "l", "x"))
	f.Add(members(f, "index.json", `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+m.String()+`"}]}`, "blobs/sha256/"+m.Encoded(), manifest, "blobs/sha256/"+d.Encoded(), config))
	f.Add(members(f, "manifest.json", `[{"Config":"../../../etc/passwd","Layers":[null]}]`))
	f.Add(members(f, "index.json", `{"manifests":[{"digest":"sha256:../../../x"}]}`))
	f.Add(members(f, "manifest.json", `null`, "manifest.json", `{"a":`))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		readImages(t, raw)
	})
}

// FuzzManifest is FuzzBundle for the text of one description.
func FuzzManifest(f *testing.F) {
	f.Add(`[{"Config":"c","RepoTags":["a:b"],"Layers":["l"]}]`, `{"config":{}}`, true)
	f.Add(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"D"}]}`, `{"manifests":[{"digest":"D"}],"layers":[{}]}`, false)
	f.Add(`{"manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","digest":"D"}]}`, `{"config":{"digest":"D"},"layers":[{"digest":"x"}]}`, false)
	f.Fuzz(func(t *testing.T, text, inner string, docker bool) {
		d := digest.FromString(inner)
		if docker {
			readImages(t, members(t, "manifest.json", text, "c", inner, "l", inner))
			return
		}
		readImages(t, members(t, "index.json", string(bytes.ReplaceAll([]byte(text), []byte(`"D"`), []byte(`"`+d.String()+`"`))), "blobs/sha256/"+d.Encoded(), inner))
	})
}

func readImages(t *testing.T, raw []byte) {
	tmp := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check := func(err error) {
		if errs.KindOf(err) != errs.Invalid {
			t.Fatalf("%v is of kind %v", err, errs.KindOf(err))
		}
	}
	b, err := readBundle(ctx, bytes.NewReader(raw), tmp)
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	if err != nil {
		if ctx.Err() != nil {
			t.Fatal("it does not end")
		}
		return
	}
	defer b.close()
	var list []incoming
	if b.find("manifest.json") != nil {
		list, err = dockerImages(b)
	} else {
		list, err = layoutImages(b, nil)
	}
	if err != nil {
		check(err)
		return
	}
	for _, in := range list {
		if len(in.config) > maxConfig {
			t.Fatalf("a configuration of %d bytes", len(in.config))
		}
		_ = json.Valid(in.config)
		for _, l := range in.layers {
			_ = b.find(l)
		}
		for _, n := range in.tags {
			if n.Tag() == "" {
				t.Fatalf("a name without a tag: %v", n)
			}
		}
	}
}
