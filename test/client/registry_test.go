package client

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// The registry is an image that is always there, and runs as people run theirs.
func TestRegistryImage(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		id := c.Must("run", "-d", "--name", "reg", "-p", "5000:5000", "-e", "REGISTRY_STORAGE_DELETE_ENABLED=true", "registry")
		var err error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if err = e.Inside(func() error { return page("127.0.0.1:5000", time.Second) }); err == nil {
				break
			}
		}
		if err != nil {
			t.Error(err, c.Must("logs", "reg"))
		}
		if got := c.Inspect(id, "{{range .Mounts}}{{.Type}} {{.Destination}}{{end}} {{json .Config.ExposedPorts}}"); got != `volume /var/lib/registry {"5000/tcp":{}}` {
			t.Errorf("%q", got)
		}
		if got := c.Must("exec", "reg", "/bin/registry", "garbage-collect", "--dry-run", "/etc/distribution/config.yml"); got != "would remove 0 manifests and 0 blobs, 0B" {
			t.Errorf("%q", got)
		}
		c.Must("stop", "-t", "10", "reg")
		if got := c.Inspect("reg", "{{.State.ExitCode}}"); got != "0" {
			t.Errorf("exit code %s", got)
		}
		c.Must("rm", "-v", "reg")
		if r := c.Run("run", "--rm", "-e", "REGISTRY_HTTP_DRAINTIMEOUT=soon", "registry"); r.Code != 1 || !strings.Contains(r.Err, "environment variable REGISTRY_HTTP_DRAINTIMEOUT") {
			t.Errorf("%d %s", r.Code, r.Err)
		}
	})
}

// berth hands the command over to berthd's program; no engine is asked.
func TestRegistryServe(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	cmd := c.Command("registry", "serve", "--root", t.TempDir(), "--addr", "127.0.0.1:0")
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	in := bufio.NewScanner(errs)
	addr := ""
	for addr == "" && in.Scan() {
		if _, rest, ok := strings.Cut(in.Text(), "msg=listening addr="); ok {
			addr, _, _ = strings.Cut(rest, " ")
		}
	}
	if addr == "" {
		t.Fatal("it does not listen")
	}
	resp, err := http.Get("http://" + addr + "/v2/")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, errs)
	if err := cmd.Wait(); err != nil {
		t.Error("after SIGTERM:", err)
	}
	if r := c.Run("registry", "gc", "--root", os.TempDir()+"/nowhere"); r.Code != 1 || !strings.Contains(r.Err, "there is no registry in") {
		t.Errorf("%d %s", r.Code, r.Err)
	}
}
