package client

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

func TestImages(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		dir := t.TempDir()
		archive := filepath.Join(dir, "rootfs.tar")
		if err := os.WriteFile(archive, enginetest.Rootfs(t), 0o644); err != nil {
			t.Fatal(err)
		}
		id := c.Must("import", "-m", "brought in", "-c", `CMD ["echo","made"]`, "-c", "ENV A=b", archive, "mine:1")
		if got := c.Must("run", "--rm", "mine:1"); got != "made" {
			t.Errorf("run: %q", got)
		}
		if got := c.Inspect("mine:1", "{{.Id}} {{.Config.Env}}"); !strings.HasPrefix(got, id) || !strings.Contains(got, "A=b") {
			t.Errorf("inspect: %q", got)
		}
		c.Must("tag", "mine:1", "example.com/mine:2")
		if out := c.Must("images", "--format", "{{.Repository}}:{{.Tag}}"); !strings.Contains(out, "example.com/mine:2") || !strings.Contains(out, "mine:1") {
			t.Errorf("images: %q", out)
		}
		if out := c.Must("history", "mine:1"); !strings.Contains(out, "brought in") {
			t.Errorf("history: %s", out)
		}
		saved := filepath.Join(dir, "saved.tar")
		c.Must("save", "-o", saved, "mine:1", "example.com/mine:2")
		names := tarNames(t, saved)
		for _, want := range []string{"manifest.json", "oci-layout", "index.json"} {
			if !names[want] {
				t.Errorf("no %s in the saved archive", want)
			}
		}
		if out := c.Must("rmi", "mine:1"); !strings.Contains(out, "Untagged: mine:1") || strings.Contains(out, "Deleted:") {
			t.Errorf("rmi of one name: %s", out)
		}
		if out := c.Must("rmi", "example.com/mine:2"); !strings.Contains(out, "Deleted: "+id) {
			t.Errorf("rmi of the last name: %s", out)
		}
		if out := c.Must("load", "-i", saved); !strings.Contains(out, "Loaded image: mine:1") {
			t.Errorf("load: %s", out)
		}
		if got := c.Inspect("mine:1", "{{.Id}}"); got != id {
			t.Errorf("the image has changed its id on the way: %s, was %s", got, id)
		}
		c.Must("create", "--name", "holder", "mine:1")
		if r := c.Run("rmi", id); r.Code == 0 {
			t.Error("an image in use by two names was removed by id")
		}
		if r := c.Run("rmi", "mine:1", "example.com/mine:2"); r.Code == 0 || !strings.Contains(r.Err, "container") {
			t.Errorf("an image in use: %d %q", r.Code, r.Err)
		}
		c.Must("rm", "holder")
		c.Run("rmi", "-f", id)
		if r := c.Run("inspect", "mine:1"); r.Code == 0 {
			t.Error("the image is still there")
		}
	})
}

func TestCommitDiffExport(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		c.Must("run", "--name", "changed", img, "sh", "-c", "echo new > /new; rm /etc/group; echo more >> /etc/passwd; mkdir -p /a/b")
		diff := strings.Split(c.Must("diff", "changed"), "\n")
		for _, want := range []string{"A /new", "D /etc/group", "C /etc/passwd", "C /etc", "A /a", "A /a/b"} {
			found := false
			for _, d := range diff {
				found = found || d == want
			}
			if !found {
				t.Errorf("no %q in %q", want, diff)
			}
		}
		id := c.Must("commit", "-m", "with changes", "-a", "Somebody", "-c", `CMD ["cat","/new"]`, "changed", "committed:1")
		if !strings.HasPrefix(id, "sha256:") {
			t.Errorf("commit says %q", id)
		}
		if got := c.Must("run", "--rm", "committed:1"); got != "new" {
			t.Errorf("run: %q", got)
		}
		if r := c.Run("run", "--rm", "committed:1", "ls", "/etc/group"); r.Code == 0 {
			t.Error("the deleted file is there again")
		}
		var layers []string
		if err := json.Unmarshal([]byte(c.Inspect("committed:1", "{{json .RootFS.Layers}}")), &layers); err != nil || len(layers) != 2 {
			t.Errorf("layers %q, %v", layers, err)
		}
		out := filepath.Join(t.TempDir(), "fs.tar")
		c.Must("export", "-o", out, "changed")
		names := tarNames(t, out)
		if !names["new"] || !names["bin/busybox"] || names["etc/group"] {
			t.Errorf("export: new %t, busybox %t, etc/group %t", names["new"], names["bin/busybox"], names["etc/group"])
		}
		c.Must("rm", "changed")
		c.Must("rmi", "committed:1")
	})
}

func TestCopy(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"one": "1\n", "tree/two": "2\n", "tree/sub/three": "3\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		c.Must("run", "-d", "--name", "box", img, "sleep", "1000")
		c.Must("cp", filepath.Join(dir, "one"), "box:/tmp/renamed")
		c.Must("cp", filepath.Join(dir, "tree"), "box:/tmp")
		if got := c.Must("exec", "box", "sh", "-c", "cat /tmp/renamed /tmp/tree/two /tmp/tree/sub/three"); got != "1\n2\n3" {
			t.Errorf("in the container: %q", got)
		}
		c.Must("cp", "box:/tmp/tree/.", filepath.Join(dir, "back"))
		if b, err := os.ReadFile(filepath.Join(dir, "back/sub/three")); string(b) != "3\n" {
			t.Errorf("back: %q %v", b, err)
		}
		c.Must("stop", "-t", "0", "box")
		c.Must("cp", "box:/etc/passwd", filepath.Join(dir, "passwd"))
		if b, _ := os.ReadFile(filepath.Join(dir, "passwd")); !strings.Contains(string(b), "berth:x:1000") {
			t.Errorf("from a stopped one: %q", b)
		}
		if r := c.Run("cp", "box:/no/such", dir); r.Code == 0 || !strings.Contains(r.Err, "Could not find the file /no/such in container box") {
			t.Errorf("a missing file: %d %q", r.Code, r.Err)
		}
		c.Must("rm", "box")
	})
}

// The image that comes with the engine.
func TestHello(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		if out := c.Must("run", "--rm", "hello"); !strings.Contains(out, "Hello from Berth") || !strings.Contains(out, "pid 1") {
			t.Errorf("hello: %s", out)
		}
	})
}

func tarNames(t *testing.T, path string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err != nil {
			return names
		}
		names[strings.TrimPrefix(strings.TrimSuffix(h.Name, "/"), "./")] = true
	}
}
