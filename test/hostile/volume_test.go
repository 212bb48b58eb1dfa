package hostile

import (
	"archive/tar"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// Places of volumes that the image makes links, of every kind: a volume is filled from
// the image's files or not at all, and links are copied as links.
func TestVolumeFromLinks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := newCanary(t, e)
	up := strings.Repeat("../", 20)
	for i, to := range []string{c.dir, up + c.dir, "/proc/1/root" + c.dir, "/proc/self/cwd", up, "data/way"} {
		tag := fmt.Sprint("linked-", i)
		image(t, e, tag, []entry{
			{name: "place", kind: tar.TypeSymlink, link: to, mode: 0o777},
			{name: "data/", kind: tar.TypeDir, mode: 0o755},
			{name: "data/way", kind: tar.TypeSymlink, link: c.dir, mode: 0o777},
			{name: "data/f", kind: tar.TypeReg, mode: 0o644, body: []byte("of the image")},
		}, "VOLUME /place/sub")
		b := e.Client("berth")
		for _, args := range [][]string{{"-v", "/place"}, {"-v", "/place/sub"}, {"-v", "/data/way/sub"}, {"-v", "/data"}, {"--mount", "type=volume,src=v1,dst=/place/../place/"}} {
			// The start may be refused: a link leads to where nothing can be mounted.
			b.Run(append(append([]string{"run", "--name", "box"}, args...), tag, "true")...)
			err := filepath.WalkDir(filepath.Join(e.DataRoot, "volumes"), func(p string, d os.DirEntry, err error) error {
				if err == nil && d.Name() == "secret" {
					t.Errorf("%s, %v: a file of the host is in a volume: %s", to, args, p)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			b.Run("rm", "-fv", "box")
			b.Run("volume", "rm", "v1")
		}
	}
	c.check(e)
}

// A container swaps directories of its volume for links while others start on a
// subpath of it, and while files are copied into one that does not run.
func TestSubpathRace(t *testing.T) {
	t.Parallel()
	starts := int64(60)
	if os.Getenv("BERTH_STRESS") == "full" {
		starts = 4000
	}
	e := enginetest.Start(t)
	c := newCanary(t, e)
	b := e.Client("berth")
	b.Must("volume", "create", "v1")
	data := filepath.Join(e.DataRoot, "volumes", "v1", "_data")
	for _, d := range []string{"d/sub", "safe"} {
		if err := os.MkdirAll(filepath.Join(data, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	s := swap(t, data, append(c.links(), "/proc/self/root"+c.dir, "safe"))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var made, ran atomic.Int64
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for n := made.Add(1); n <= starts && ctx.Err() == nil; n = made.Add(1) {
				name := c.name(n)
				body := map[string]any{
					"Image": img, "Cmd": []string{"sh", "-c", "if [ -e /x/secret ]; then exit 77; fi; touch /x/" + name},
					"HostConfig": map[string]any{"Mounts": []any{map[string]any{
						"Type": "volume", "Source": "v1", "Target": "/x", "VolumeOptions": map[string]any{"Subpath": []string{"d", "d/sub", "l"}[n%3]},
					}}},
				}
				status, text, err := e.TryCall(ctx, http.MethodPost, "/containers/create?name="+name, body)
				if err != nil || status != http.StatusCreated && status != http.StatusBadRequest {
					t.Errorf("create: %d %s %v", status, text, err)
				}
				if status != http.StatusCreated {
					continue
				}
				if n%4 == 0 {
					_, _, _ = e.TryCall(ctx, http.MethodPut, "/containers/"+name+"/archive?path=/x/", nil)
				}
				status, text, err = e.TryCall(ctx, http.MethodPost, "/containers/"+name+"/start", nil)
				switch {
				case err != nil:
					t.Error(err)
				case status == http.StatusNoContent:
					if _, text, err = e.TryCall(ctx, http.MethodPost, "/containers/"+name+"/wait", nil); err != nil || strings.Contains(string(text), "77") {
						t.Errorf("the host is seen: %s %v", text, err)
					}
					ran.Add(1)
				case status >= http.StatusInternalServerError && !strings.Contains(string(text), "volume"):
					t.Logf("start: %d %s", status, text)
				}
				_, _, _ = e.TryCall(ctx, http.MethodDelete, "/containers/"+name+"?force=1&v=1", nil)
			}
		})
	}
	work.Wait()
	t.Logf("%d rounds, %d of %d containers ran", s.end(), ran.Load(), starts)
	c.check(e)
	if ran.Load() == 0 {
		t.Error("no container has run: the test shows nothing")
	}
	b.Must("volume", "rm", "v1")
}

// A copy into or out of a volume of a container that does not run follows no link out of it.
func TestVolumeCopyLinks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := newCanary(t, e)
	b := e.Client("berth")
	b.Must("create", "--name", "box", "-v", "v1:/v", img, "true")
	data := filepath.Join(e.DataRoot, "volumes", "v1", "_data")
	for i, to := range c.links() {
		if err := os.Symlink(to, filepath.Join(data, fmt.Sprint("l", i))); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), c.mark)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"", "/", "/sub/", "/."} {
			b.Run("cp", file, fmt.Sprintf("box:/v/l%d%s", i, p))
		}
		out := t.TempDir()
		b.Run("cp", fmt.Sprintf("box:/v/l%d/secret", i), out)
		if left, err := os.ReadDir(out); err != nil || len(left) != 0 {
			t.Errorf("%s: copied out of the host: %v %v", to, left, err)
		}
	}
	c.check(e)
	b.Must("rm", "box")
	b.Must("volume", "rm", "v1")
}
