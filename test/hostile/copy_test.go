package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// api makes a request that must end soon, and returns the status and up to 8 MiB of the answer.
func api(t *testing.T, e *enginetest.Engine, method, path string, body io.Reader, kind string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := e.HTTP.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<20)) // an aborted stream is an answer too
	if ctx.Err() != nil {
		t.Errorf("%s %s does not end", method, path)
	}
	return resp.StatusCode, b
}

func archiveOf(path string) string {
	return "/containers/box/archive?" + url.Values{"path": {path}}.Encode()
}

func planted(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		if err := w.WriteHeader(&tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o777, Size: 5}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("evil\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// cp, export, commit and diff of a tree whose directories become links meanwhile.
func TestCopyRace(t *testing.T) {
	t.Parallel()
	rounds := 16
	if os.Getenv("BERTH_STRESS") == "full" {
		rounds = 1000
	}
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	cl.Must("run", "-d", "--name", "box", "--pid", "host", img, "sh", "-c", "mkdir -p /race && exec sleep 1000")
	pid := cl.Inspect("box", "{{.State.Pid}}")
	enginetest.Eventually(t, "the directory", func() bool { return cl.Run("exec", "box", "test", "-d", "/race").Code == 0 })
	s := swap(t, "/proc/"+pid+"/root/race", c.links()[:8])
	var work sync.WaitGroup
	check := func(what string, b []byte) {
		if bytes.Contains(b, []byte("of the host")) {
			t.Errorf("%s shows the canary", what)
		}
	}
	work.Go(func() {
		for range rounds {
			for _, p := range []string{"/race/d/secret", "/race/d/", "/race/d/.", "/race", "/race/l/sub"} {
				_, b := api(t, e, http.MethodGet, archiveOf(p), nil, "")
				check("cp from "+p, b)
			}
			api(t, e, http.MethodHead, archiveOf("/race/d/secret"), nil, "")
		}
	})
	work.Go(func() {
		for range rounds {
			api(t, e, http.MethodPut, archiveOf("/race/d"), bytes.NewReader(planted(t, "planted", "sub/planted", "secret", c.name(1))), "application/x-tar")
			api(t, e, http.MethodPut, archiveOf("/race"), bytes.NewReader(planted(t, "d/planted", "d/secret", "d/"+c.name(2))), "application/x-tar")
		}
	})
	work.Go(func() {
		for n := range rounds / 8 {
			_, b := api(t, e, http.MethodGet, "/containers/box/export", nil, "")
			check("export", b)
			api(t, e, http.MethodGet, "/containers/box/changes", nil, "")
			if status, b := api(t, e, http.MethodPost, fmt.Sprintf("/commit?container=box&repo=racing&tag=%d&pause=0", n), nil, "application/json"); status == http.StatusCreated {
				r := cl.Run("run", "--rm", fmt.Sprintf("racing:%d", n), "sh", "-c", "cat /race/*/secret /race/*/sub/* 2>/dev/null")
				check("commit", append(b, r.Out...))
			}
		}
	})
	work.Wait()
	t.Logf("%d rounds", s.end())
	c.check(e)
	cl.Must("rm", "-f", "box")
}

// Paths below /proc, devices, pipes: a copy ends, and stays in the container.
func TestCopyOddPaths(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	for _, extra := range [][]string{{"--pid", "host", "--privileged"}, {"--pid", "host"}, {}} {
		cl.Must(append(append([]string{"run", "-d", "--name", "box"}, extra...), img, "sh", "-c", "mkfifo /fifo; ln -s /proc/1/root /out; ln -s /dev/zero /zero; exec sleep 1000")...)
		for _, p := range []string{
			"/proc/1/root" + c.dir + "/secret", "/out" + c.dir + "/secret", "/proc/1/cwd" + c.dir, "/proc/self/root" + c.dir, "/../../.." + c.dir, "/proc/thread-self/root" + c.dir,
			"/proc/1/task/1/root" + c.dir, fmt.Sprintf("/proc/%d/root%s", e.DaemonPID(), c.dir), fmt.Sprintf("/proc/%d/cwd", e.DaemonPID()),
		} {
			if _, b := api(t, e, http.MethodGet, archiveOf(p), nil, ""); bytes.Contains(b, []byte("of the host")) {
				t.Errorf("%q: cp from %s shows the host", extra, p)
			}
			if status, _ := api(t, e, http.MethodPut, archiveOf(p[:strings.LastIndex(p, "/")]), bytes.NewReader(planted(t, c.name(1))), "application/x-tar"); status == http.StatusOK && strings.Contains(p, "root") {
				t.Errorf("%q: cp to %s has come through", extra, p)
			}
		}
		for _, p := range []string{"/fifo", "/dev/zero", "/zero", "/dev/null", "/dev/random", "/dev/console", "/proc/kmsg", "/proc/1/mem", "/proc/sysrq-trigger", "/proc/self", "/sys/kernel", "/dev"} {
			_, b := api(t, e, http.MethodGet, archiveOf(p), nil, "")
			if len(b) >= 8<<20 {
				t.Errorf("cp from %s has no end", p)
			}
		}
		c.check(e)
		cl.Must("rm", "-f", "box")
	}
	// One that does not run: its bind mount stands for itself, and its links for places in it.
	shared := filepath.Join(e.Dir, "shared")
	if err := os.Mkdir(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": c.dir, "up": "../canary", "root": "/proc/self/root" + c.dir} {
		if err := os.Symlink(to, filepath.Join(shared, name)); err != nil {
			t.Fatal(err)
		}
	}
	cl.Must("create", "--name", "box", "-v", shared+":/vol", img, "true")
	for _, p := range []string{"/vol/abs", "/vol/up", "/vol/root", "/vol/../vol/up", "/vol/../../../.." + c.dir, "//vol//up"} {
		if _, b := api(t, e, http.MethodGet, archiveOf(p+"/secret"), nil, ""); bytes.Contains(b, []byte("of the host")) {
			t.Errorf("not running: cp from %s shows the host", p)
		}
		api(t, e, http.MethodPut, archiveOf(p), bytes.NewReader(planted(t, c.name(2), "secret")), "application/x-tar")
	}
	c.check(e)
	cl.Must("rm", "-f", "box")
	if cl.Must("run", "--rm", img, "echo", "fine") != "fine" {
		t.Error("afterwards nothing runs")
	}
}

// Programs of the image with the names of those that other engines ran for an
// archive: none is ever executed, in the container or out of it.
func TestTrojanHelpers(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	var entries []entry
	script := "#!/bin/sh\necho run > /pwned\necho run > " + c.dir + "/pwned\n"
	for _, name := range []string{"xz", "unxz", "tar", "gzip", "gunzip", "unpigz", "pigz", "zstd", "bzip2", "bunzip2", "nsenter", "docker-untar", "chroot", "id", "getent", "ldd", "tini", "docker-init"} {
		for _, dir := range []string{"bin", "sbin", "usr/bin"} {
			entries = append(entries, entry{name: dir + "/" + name, kind: tar.TypeReg, mode: 0o755, body: []byte(script)})
		}
	}
	for _, lib := range []string{"lib/libnss_files.so.2", "lib/x86_64-linux-gnu/libnss_files.so.2", "lib/libnss_dns.so.2", "etc/ld.so.preload"} {
		entries = append(entries, entry{name: lib, kind: tar.TypeReg, mode: 0o755, body: []byte(script)})
	}
	image(t, e, "trojan", entries)
	for _, state := range []string{"run", "create"} {
		args := []string{state, "--name", "box", "--init", "-u", "berth", "trojan", "sleep", "1000"}
		if state == "run" {
			args = append([]string{"run", "-d"}, args[1:]...)
		}
		cl.Must(args...)
		plain := planted(t, "tmp/one")
		var z bytes.Buffer
		g := gzip.NewWriter(&z)
		_, _ = g.Write(plain)
		_ = g.Close()
		bodies := map[string][]byte{"tar": plain, "gzip": z.Bytes()}
		for _, tool := range []string{"xz", "zstd", "bzip2"} {
			if path, err := exec.LookPath(tool); err == nil {
				cmd := exec.Command(path, "-c")
				cmd.Stdin = bytes.NewReader(plain)
				if packed, err := cmd.Output(); err == nil { // busybox has an xz that only unpacks
					bodies[tool] = packed
				}
			}
		}
		for kind, b := range bodies {
			status, text := api(t, e, http.MethodPut, archiveOf("/"), bytes.NewReader(b), "application/x-tar")
			if status != http.StatusOK && (kind == "tar" || kind == "gzip") {
				t.Errorf("%s, %s: %d %s", state, kind, status, text)
			}
			api(t, e, http.MethodPost, "/images/create?fromSrc=-&repo=imported", bytes.NewReader(b), "application/x-tar")
			api(t, e, http.MethodPost, "/images/load", bytes.NewReader(b), "application/x-tar")
		}
		api(t, e, http.MethodGet, archiveOf("/bin"), nil, "")
		api(t, e, http.MethodGet, "/containers/box/export", nil, "")
		if status, b := api(t, e, http.MethodPost, "/commit?container=box&repo=again", strings.NewReader("null"), "application/json"); status != http.StatusCreated {
			t.Errorf("commit: %d %s", status, b)
		}
		if out := cl.Must("diff", "box"); strings.Contains(out, "pwned") {
			t.Errorf("%s: a program of the image was run: %s", state, out)
		}
		c.check(e)
		cl.Must("rm", "-f", "box")
	}
}
