package client

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// The first command on a machine starts the engine, and says so; the next finds it.
// All of it happens in namespaces of its own, where /run and /var/lib are empty.
func TestAutostart(t *testing.T) {
	t.Parallel()
	enginetest.RequireRoot(t)
	bin := enginetest.Binaries(t)
	parent := fmt.Sprintf("berth-autostart-%d", os.Getpid())
	script := `set -e
		mount -t tmpfs tmpfs /run
		mount -t tmpfs tmpfs /var/lib
		mkdir -p /run/lock /run/etc/up /run/etc/work
		mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work etc /etc
		mkdir -p /etc/berth
		echo '{"cgroup-parent": "/` + parent + `"}' > /etc/berth/daemon.json
		unset DOCKER_HOST DOCKER_CONTEXT
		export HOME=/run
		echo "== first"; ` + bin + `/berth run --rm hello 2>&1
		echo "== second"; ` + bin + `/berth ps -a 2>&1
		echo "== sockets"; ls /run/berth.sock /run/docker.sock
		echo "== docker"; docker run --rm hello 2>&1 | grep Hello
		echo "== end"`
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", script)
	out, err := cmd.CombinedOutput()
	for range 50 { // the namespace's end kills the engine and the keeper
		left, _ := filepath.Glob("/sys/fs/cgroup/*/" + parent)
		v2, _ := filepath.Glob("/sys/fs/cgroup/" + parent)
		if left = append(left, v2...); len(left) == 0 {
			break
		}
		for _, dir := range left {
			inner, _ := filepath.Glob(dir + "/*")
			for _, d := range append(inner, dir) {
				_ = os.Remove(d)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	part := func(name string) string {
		_, rest, _ := strings.Cut(string(out), "== "+name+"\n")
		text, _, _ := strings.Cut(rest, "== ")
		return text
	}
	if first := part("first"); strings.Count(first, "berth: started the engine") != 1 || !strings.Contains(first, "Hello from Berth") {
		t.Errorf("the first command: %s", first)
	}
	if second := part("second"); strings.Contains(second, "started") || !strings.Contains(second, "CONTAINER ID") {
		t.Errorf("the second command: %s", second)
	}
	if got := part("docker"); !strings.Contains(got, "Hello from Berth") {
		t.Errorf("docker: %s", out)
	}
}

func TestDaemonFlags(t *testing.T) {
	t.Parallel()
	enginetest.RequireRoot(t)
	bin := enginetest.Binaries(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		args []string
		ok   bool
		text string
	}{
		{[]string{"--version"}, true, "Berth version"},
		{[]string{"--help"}, true, "--data-root"},
		{[]string{"--validate", "--config-file", file("good.json", `{"log-level": "debug", "containerd": "/run/c.sock", "default-runtime": "berth", "labels": ["a=b"]}`)}, true, "configuration OK"},
		{[]string{"--validate", "--config-file", file("unknown.json", `{"no-such-key": 1}`)}, false, "no-such-key"},
		{[]string{"--validate", "--config-file", file("broken.json", `{"debug": `)}, false, ""},
		{[]string{"--validate", "--debug", "--config-file", file("twice.json", `{"debug": true}`)}, false, "specified both as a flag and in the configuration file"},
		{[]string{"--validate", "--firewall-backend", "pf"}, false, `invalid firewall-backend: allowed values are "iptables" and "nftables"`},
		{[]string{"--validate", "--config-file", file("pf.json", `{"firewall-backend": "pf"}`)}, false, `invalid firewall-backend: allowed values are "iptables" and "nftables"`},
		{[]string{"--validate", "--config-file", file("fw.json", `{"firewall-backend": "iptables", "respect-host-firewall": true}`)}, true, "configuration OK"},
		{[]string{"--validate", "--respect-host-firewall", "--userland-proxy=false"}, false, "respect-host-firewall needs the userland proxy"},
		{[]string{"--no-such-flag"}, false, "unknown flag: --no-such-flag"},
		{[]string{"--validate", "-H", "nonsense://x"}, false, ""},
		{[]string{"--validate", "--containerd", "/run/x", "--containerd-namespace", "y", "--bridge", "none", "--iptables=false", "--storage-driver", "overlay2", "--add-runtime", "crun=/usr/bin/crun"}, true, ""},
	} {
		out, err := exec.Command(filepath.Join(bin, "berthd"), tc.args...).CombinedOutput()
		if (err == nil) != tc.ok || !strings.Contains(string(out), tc.text) {
			t.Errorf("berthd %q: %v, %s; want success %t and %q", tc.args, err, out, tc.ok, tc.text)
		}
	}
}

func TestDaemonOptions(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--label", "where=here", "--storage-driver", "vfs", "-H", "tcp://127.0.0.1:23750", "--log-opt", "max-size=1m", "--default-ulimit", "nofile=77:88", "--debug"))
	c := e.Client("docker")
	if got := c.Must("info", "--format", "{{.Labels}} {{.Driver}}"); got != "[where=here] vfs" && got != "[where=here] copy" {
		t.Errorf("info: %q", got)
	}
	if got := c.Must("run", "--rm", img, "sh", "-c", "ulimit -n"); got != "77" {
		t.Errorf("default ulimit: %q", got)
	}
	if status, _ := e.Call(http.MethodGet, "/info", nil, nil); status != http.StatusOK {
		t.Errorf("info: %d", status)
	}
}

// A second engine on the same roots is refused, with a reason.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	out, err := exec.Command(filepath.Join(e.Bin, "berthd"), "--data-root", e.DataRoot, "--exec-root", e.ExecRoot+"2", "-H", "unix://"+e.Socket+"2", "-p", e.Socket+"2.pid").CombinedOutput()
	if err == nil || len(out) == 0 {
		t.Errorf("a second engine on one data root: %v %s", err, out)
	}
	if got := e.Berth("run", "--rm", img, "echo", "fine"); got != "fine" {
		t.Errorf("the first one: %q", got)
	}
}
