package client

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// withData makes an image that has files at /data and declares a volume at /anon.
func withData(c *enginetest.Client) {
	c.Must("run", "--name", "maker", img, "sh", "-c",
		`mkdir -p /data/sub /anon; echo text >/data/f; ln /data/f /data/sub/hard; ln -s /etc/passwd /data/link; mkfifo /data/fifo
		chown 5:6 /data/sub; chmod 1750 /data; chown 7:8 /data; touch -d "2001-02-03 04:05:06" /data/f; echo a >/anon/a; ln -s /data /way`)
	c.Must("commit", "-c", "VOLUME /anon", "maker", "withdata")
	c.Must("rm", "maker")
}

// dropData removes what withData and a test have made.
func dropData(c *enginetest.Client) {
	c.Must("volume", "prune", "-af")
	c.Must("rmi", "withdata")
}

func TestVolumeLife(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		fails := func(want string, args ...string) {
			t.Helper()
			if r := c.Run(args...); r.Code == 0 || !strings.Contains(r.Err, want) {
				t.Errorf("%q: %d %q, want %q", args, r.Code, r.Err, want)
			}
		}
		if got := c.Must("volume", "create", "--label", "a=b", "v1"); got != "v1" {
			t.Errorf("create says %q", got)
		}
		c.Must("volume", "create", "v1")
		anon := c.Must("volume", "create")
		if got, want := c.Must("volume", "inspect", "-f", "{{.Driver}} {{.Scope}} {{.Mountpoint}} {{.Labels}}", "v1"), "local local "+e.DataRoot+"/volumes/v1/_data map[a:b]"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := c.Must("volume", "ls", "--filter", "label=a=b", "--format", "{{.Driver}} {{.Name}}"); got != "local v1" {
			t.Errorf("%q", got)
		}
		fails("create a: volume name is too short, names should be at least two alphanumeric characters", "volume", "create", "a")
		fails("get none: no such volume", "volume", "rm", "none")
		fails("no such volume", "volume", "inspect", "none")
		fails(`create v1: error looking up volume plugin none: plugin "none" not found`, "volume", "create", "-d", "none", "v1")
		fails(`create v9: invalid option: "x"`, "volume", "create", "-o", "x=y", "v9")
		c.Must("volume", "rm", "-f", "none")

		id := c.Must("create", "--name", "box", "-v", "v1:/v", "-v", "/anon", "-v", "new:/new", img, "true")
		fails("remove v1: volume is in use - ["+id+"]", "volume", "rm", "v1")
		if got := c.Must("volume", "ls", "-qf", "dangling=true"); got != anon {
			t.Errorf("%q", got)
		}
		if got := c.Must("ps", "-aqf", "volume=new"); !strings.HasPrefix(id, got) || got == "" {
			t.Errorf("%q", got)
		}
		if got := c.Must("volume", "prune", "-f"); !strings.Contains(got, anon) || strings.Contains(got, "v1") {
			t.Errorf("%q", got)
		}
		c.Must("rm", "-v", "box")
		if got := c.Must("volume", "ls", "-q"); got != "new\nv1" {
			t.Errorf("after rm -v: %q", got)
		}
		c.Must("run", "--rm", "-v", "/gone", "-v", "v1:/v", img, "sh", "-c", "echo 12345 >/v/f")
		if got := c.Must("system", "df", "-v", "--format", "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}};{{end}}"); got != "new 0 0B;v1 0 6B;" {
			t.Errorf("df: %q", got)
		}
		c.Must("container", "prune", "-f")
		c.Must("volume", "rm", "new")
		if got := c.Must("volume", "prune", "-af"); !strings.Contains(got, "Total reclaimed space: 6B") {
			t.Errorf("%q", got)
		}
	})
}

func TestVolumeFill(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		withData(c)
		defer dropData(c)
		const look = `stat -c "%n %a %u:%g %h %F" /data /data/f /data/sub /data/fifo; stat -c %y /data/f | cut -d. -f1; readlink /data/link; cat /data/f`
		want := "/data 1750 7:8 3 directory\n/data/f 644 0:0 2 regular file\n/data/sub 755 5:6 2 directory\n/data/fifo 644 0:0 1 fifo\n2001-02-03 04:05:06\n/etc/passwd\ntext"
		for _, args := range [][]string{{"-v", "named:/data"}, {"-v", "/data"}, {"--mount", "type=volume,src=mounted,dst=/data"}} {
			full := append(append([]string{"run", "--rm"}, args...), "withdata", "sh", "-c", look)
			if got := c.Must(full...); got != want {
				t.Errorf("%q: %q, want %q", args, got, want)
			}
		}
		if got := c.Must("run", "--rm", "-v", "n1:/data:nocopy", "--mount", "type=volume,src=n2,dst=/way,volume-nocopy", "withdata", "sh", "-c", "ls /data /way/"); strings.Contains(got, "sub") {
			t.Errorf("nocopy: %q", got)
		}
		// A volume at a link goes where the link leads.
		if got := c.Must("run", "--rm", "-v", "linked:/way", "withdata", "cat", "/data/f"); got != "text" {
			t.Errorf("through a link: %q", got)
		}
		// A volume with files is not filled.
		c.Must("run", "--rm", "-v", "full:/x", img, "touch", "/x/mine")
		if got := c.Must("run", "--rm", "-v", "full:/data", "withdata", "ls", "/data"); got != "mine" {
			t.Errorf("a volume with files: %q", got)
		}
		// What the image declares is made, filled and removed with the container.
		if got := c.Must("run", "--rm", "withdata", "sh", "-c", "cat /anon/a; grep -c ' /anon ' /proc/mounts"); got != "a\n1" {
			t.Errorf("a declared volume: %q", got)
		}
		if got := c.Must("run", "--rm", "--tmpfs", "/anon", "withdata", "ls", "/anon"); got != "" {
			t.Errorf("a tmpfs in its place: %q", got)
		}
		if got := c.Must("volume", "ls", "-qf", "label=com.docker.volume.anonymous"); got != "" {
			t.Errorf("left: %q", got)
		}
		// A create that fails leaves nothing.
		if r := c.Run("create", "-v", "leftover:/data", "-v", "/etc/passwd", "withdata", "true"); r.Code == 0 || !strings.Contains(r.Err, "cannot mount volume over existing file, file exists /etc/passwd") {
			t.Errorf("%d %q", r.Code, r.Err)
		}
		if got := c.Must("volume", "ls", "-qf", "name=leftover"); got != "" {
			t.Errorf("left: %q", got)
		}
	})
}

func TestVolumeMounts(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		defer c.Must("volume", "prune", "-af")
		mounts := func(name string) map[string]container.MountPoint {
			t.Helper()
			var list []container.MountPoint
			if err := json.Unmarshal([]byte(c.Inspect(name, "{{json .Mounts}}")), &list); err != nil {
				t.Fatal(err)
			}
			out := map[string]container.MountPoint{}
			for _, m := range list {
				out[m.Destination] = m
			}
			return out
		}
		c.Must("run", "-d", "--name", "one", "-v", "va:/a", "-v", "vb:/b:ro,nocopy", "-v", "/c", "--mount", "type=volume,src=vd,dst=/d,ro,volume-label=x=y",
			"--tmpfs", "/t", "-v", e.Dir+":/host", img, "sleep", "100")
		data := func(v string) string { return filepath.Join(e.DataRoot, "volumes", v, "_data") }
		got := mounts("one")
		anon := got["/c"].Name
		for dest, want := range map[string]container.MountPoint{
			"/a":    {Type: "volume", Name: "va", Source: data("va"), Destination: "/a", Driver: "local", Mode: "z", RW: true},
			"/b":    {Type: "volume", Name: "vb", Source: data("vb"), Destination: "/b", Driver: "local", Mode: "ro,nocopy"},
			"/c":    {Type: "volume", Name: anon, Source: data(anon), Destination: "/c", Driver: "local", RW: true},
			"/d":    {Type: "volume", Name: "vd", Source: data("vd"), Destination: "/d", Driver: "local", Mode: "z"},
			"/host": {Type: "bind", Source: e.Dir, Destination: "/host", RW: true, Propagation: "rslave"},
		} {
			if got[dest] != want {
				t.Errorf("%s: %+v, want %+v", dest, got[dest], want)
			}
		}
		if len(got) != 5 || len(anon) != 64 {
			t.Errorf("%+v", got)
		}
		if got := c.Must("volume", "inspect", "-f", "{{.Labels}}", "vd"); got != "map[x:y]" {
			t.Errorf("labels %s", got)
		}
		if got := c.Must("exec", "one", "sh", "-c", "for d in /a /b /c /d; do touch $d/f 2>/dev/null && echo $d; done; true"); got != "/a\n/c" {
			t.Errorf("writable: %q", got)
		}
		// Others take them over, as they are or read-only; what is asked for wins.
		if got := c.Must("run", "--rm", "--name", "two", "--volumes-from", "one:ro", "-v", "mine:/c", img, "sh", "-c", "for d in /a /b /c /d; do touch $d/g 2>/dev/null && echo $d; done; ls /a; ls -d /t 2>/dev/null || echo no"); got != "/c\nf\nno" {
			t.Errorf("--volumes-from: %q", got)
		}
		c.Must("create", "--name", "two", "--volumes-from", "one", img, "true")
		c.Must("create", "--name", "three", "--volumes-from", "two", img, "true")
		if m := mounts("three"); m["/a"].Name != "va" || m["/b"].RW || m["/c"].Name != anon || m["/a"].Mode != "" || m["/host"].Source != e.Dir {
			t.Errorf("chained: %+v", m)
		}
		c.Must("rm", "-fv", "one")
		c.Must("rm", "-v", "two")
		if got := c.Must("volume", "ls", "-qf", "name="+anon); got != anon {
			t.Error("a volume that another holds went")
		}
		c.Must("rm", "-v", "three")
		if got := c.Must("volume", "ls", "-qf", "name="+anon); got != "" {
			t.Error("a volume without a name stays behind its last holder")
		}
	})
}

func TestVolumeSubpath(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		withData(c)
		defer dropData(c)
		c.Must("run", "--rm", "-v", "v1:/v", img, "sh", "-c", "mkdir -p /v/dir/in; echo f >/v/dir/f; ln -s dir /v/good; ln -s / /v/root; ln -s root /v/bad; ln -s ../../.. /v/up")
		run := func(sub string, more ...string) enginetest.Result {
			return c.Run(append([]string{"run", "--rm", "--mount", "type=volume,src=v1,dst=/data,volume-subpath=" + sub}, more...)...)
		}
		for _, sub := range []string{"dir", "good", "dir/f"} {
			if r := run(sub, img, "sh", "-c", "cat /data/f 2>/dev/null || cat /data"); r.Out != "f\n" {
				t.Errorf("%s: %+v", sub, r)
			}
		}
		if r := run("dir/in", "withdata", "cat", "/data/f"); r.Out != "text\n" {
			t.Errorf("an empty directory is filled: %+v", r)
		}
		for sub, want := range map[string]string{
			"none": "cannot access path " + filepath.Join(e.DataRoot, "volumes/v1/_data/none"), "root": "path concatenation escapes the base directory",
			"bad/etc": "path concatenation escapes the base directory", "up": "path concatenation escapes the base directory",
			"../../x": "subpath must be a relative path within the volume", "/dir": "subpath must be a relative path within the volume",
		} {
			if r := run(sub, "withdata", "true"); r.Code == 0 || !strings.Contains(r.Err, want) {
				t.Errorf("%s: %d %q", sub, r.Code, r.Err)
			}
		}
		if got := c.Must("run", "--rm", "--mount", "type=image,src=withdata,dst=/i", "--mount", "type=image,src=withdata,dst=/j,image-subpath=data/sub", img,
			"sh", "-c", "cat /i/data/f /j/hard; touch /i/x 2>/dev/null || echo no"); got != "text\ntext\nno" {
			t.Errorf("an image: %q", got)
		}
		c.Must("create", "--name", "holder", "--mount", "type=image,src=withdata,dst=/i", img, "true")
		if r := c.Run("rmi", "withdata"); r.Code == 0 || !strings.Contains(r.Err, "is using its referenced image") {
			t.Errorf("rmi of a mounted image: %+v", r)
		}
		c.Must("rm", "holder")
	})
}

// Copies go into volumes, not below them; diff, commit and export leave them out.
func TestVolumeFiles(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		defer c.Must("volume", "prune", "-af")
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("copied"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Must("create", "--name", "box", "-v", "v1:/v", "-v", "v2:/ro:ro", img, "sh", "-c", "cat /v/file; touch /v/new /other; sleep 100")
		c.Must("cp", file, "box:/v/file")
		if b, err := os.ReadFile(filepath.Join(e.DataRoot, "volumes/v1/_data/file")); string(b) != "copied" {
			t.Errorf("%q %v", b, err)
		}
		if r := c.Run("cp", file, "box:/ro/file"); r.Code == 0 || !strings.Contains(r.Err, "mounted volume is marked read-only") {
			t.Errorf("%+v", r)
		}
		back := file + "2"
		c.Must("cp", "box:/v/file", back)
		if b, err := os.ReadFile(back); string(b) != "copied" {
			t.Errorf("%q %v", b, err)
		}
		c.Must("start", "box")
		enginetest.Eventually(t, "it has started", func() bool { return strings.Contains(c.Must("diff", "box"), "A /other") })
		if got := c.Must("diff", "box"); strings.Contains(got, "/v") {
			t.Errorf("diff: %q", got)
		}
		c.Must("commit", "box", "committed")
		if got := c.Must("run", "--rm", "committed", "sh", "-c", "ls -A /v; ls /other"); got != "/other" {
			t.Errorf("commit: %q", got)
		}
		c.Must("rm", "-f", "box")
		c.Must("rmi", "committed")
	})
}

// A volume with mount options is mounted while a container that uses it runs, over
// the engine's end.
func TestVolumeOptions(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("docker")
	mounted := func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", e.DaemonPID()))
		return err == nil && strings.Contains(string(b), " "+e.DataRoot+"/volumes/tm/_data ")
	}
	c.Must("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,uid=7", "tm")
	for _, n := range []string{"one", "two"} {
		c.Must("run", "-d", "--name", n, "-v", "tm:/t", img, "sleep", "100")
	}
	c.Must("exec", "one", "touch", "/t/f")
	if got := c.Must("exec", "two", "stat", "-c", "%u %n", "/t", "/t/f"); got != "7 /t\n0 /t/f" {
		t.Errorf("%q", got)
	}
	e.Kill9Daemon()
	e.StartDaemon()
	if got := c.Must("exec", "two", "ls", "/t"); got != "f" || !mounted() {
		t.Errorf("after a restart of the engine: %q", got)
	}
	c.Must("rm", "-f", "one")
	if !mounted() {
		t.Error("unmounted under its user")
	}
	c.Must("rm", "-f", "two")
	enginetest.Eventually(t, "it is unmounted", func() bool { return !mounted() })
	dir := t.TempDir()
	c.Must("volume", "create", "-o", "type=none", "-o", "device="+dir, "-o", "o=bind", "bound")
	c.Must("run", "--rm", "-v", "bound:/t", img, "touch", "/t/here")
	if _, err := os.Stat(filepath.Join(dir, "here")); err != nil {
		t.Error(err)
	}
	c.Must("volume", "rm", "tm", "bound")
	if _, err := os.Stat(filepath.Join(dir, "here")); err != nil {
		t.Errorf("the removal of a volume removed what was mounted there: %v", err)
	}
}

// Volumes belong to the root of remapped containers, and what the image has in
// them to the ids that the container knows.
func TestVolumeRemapped(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, withSubordinateIDs(t), enginetest.WithArgs("--userns-remap=default"))
	c := e.Client("docker")
	root := c.Must("info", "-f", "{{.DockerRootDir}}")
	withData(c)
	defer dropData(c)
	if got := c.Must("run", "--rm", "-v", "v1:/data", "-v", "v2:/new", "withdata", "sh", "-c", "stat -c '%u:%g' /data /data/f /data/sub /new; touch /data/mine /new/mine"); got != "7:8\n0:0\n5:6\n0:0" {
		t.Errorf("%q", got)
	}
	var sub, mine unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "volumes/v1/_data/sub"), &sub); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(filepath.Join(root, "volumes/v2/_data"), &mine); err != nil {
		t.Fatal(err)
	}
	if mine.Uid == 0 || sub.Uid != mine.Uid+5 || sub.Gid != mine.Gid+6 {
		t.Errorf("on the host: %d:%d and %d:%d", mine.Uid, mine.Gid, sub.Uid, sub.Gid)
	}
	c.Must("create", "--name", "box", "-v", "v2:/new", img, "true")
	c.Must("cp", "/etc/hostname", "box:/new/copied")
	if got := c.Must("run", "--rm", "-v", "v2:/new", img, "stat", "-c", "%u", "/new/copied"); got != "0" {
		t.Errorf("a copied file belongs to %s", got)
	}
	c.Must("rm", "box")
}
