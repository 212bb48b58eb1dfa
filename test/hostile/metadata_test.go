package hostile

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// load brings busybox with any configuration, as an archive of docker save.
func load(t *testing.T, e *enginetest.Engine, name string, config map[string]any) (int, string) {
	t.Helper()
	layer := enginetest.Rootfs(t)
	text, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": config, "created": "2020-01-01T00:00:00Z", "author": "\x1b[31m\n", "container": "../../x",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": []string{name + ":latest"}, "Layers": []string{"l.tar"}, "Annotations": map[string]string{"org.opencontainers.runtime": "/evil"}}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		body []byte
	}{{"manifest.json", manifest}, {"c.json", text}, {"l.tar", layer}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	status, answer := api(t, e, http.MethodPost, "/images/load?quiet=1", &b, "application/x-tar")
	return status, string(answer)
}

// Whatever an image says of itself, nothing of the host and of the engine changes by it.
func TestMetadataIsData(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	path := "PATH=/bin"
	labels := map[string]string{
		"name": "evil", "image": "evil", "exitCode": "77", "execID": "evil", "com.docker.engine.privileged": "true", "io.podman.annotations.privileged": "TRUE", "org.systemd.property.ExecStart": "/evil",
		"io.kubernetes.cri.container-type": "sandbox", "com.docker.hostconfig": `{"Privileged":true}`, "run.oci.handler": "/evil", "org.criu.config": "/evil", "berth.mount": "/:/host", "devices": "/dev/sda",
		"maintainer": "\x1b]0;title\x07\x1b[2J\nNAME  fake", "": "empty", "module.wasm.image/variant": "compat", "run.oci.hooks.stdout": c.dir + "/out", "run.oci.mount_context_type": "x", "io.katacontainers.x": "y",
	}
	for what, config := range map[string]map[string]any{
		"labels":      {"Labels": labels, "Env": []string{path}},
		"environment": {"Env": []string{path, "LD_PRELOAD=" + c.dir + "/evil.so", "BERTH_BIN=/evil", "DOCKER_HOST=tcp://evil", "NOTIFY_SOCKET=" + c.dir + "/s", "HOME=" + c.dir, "GODEBUG=x", "LISTEN_FDS=3", "A\x1b=b", "=", "NOVALUE", "TERM=\n"}},
		"user up":     {"User": "../../../etc/shadow", "Env": []string{path}},
		"user number": {"User": "4294967296:-1", "Env": []string{path}},
		"workdir up":  {"WorkingDir": "/../../../.." + c.dir + "/made", "Env": []string{path}},
		"workdir fd":  {"WorkingDir": "/proc/self/fd/8/" + c.mark, "Env": []string{path}},
		"relative":    {"WorkingDir": "../../" + c.mark, "Env": []string{path}},
		"volume up":   {"Volumes": map[string]any{"/../../../.." + c.dir: struct{}{}, "../../" + c.mark: struct{}{}}, "Env": []string{path}},
		"volume proc": {"Volumes": map[string]any{"/proc": struct{}{}, "/proc/sys": struct{}{}, "/sys": struct{}{}, "/": struct{}{}}, "Env": []string{path}},
		"volume bind": {"Volumes": map[string]any{c.dir + ":/host": struct{}{}, "/host:rshared": struct{}{}}, "Env": []string{path}},
		"signal":      {"StopSignal": "KILL; touch " + c.dir + "/x", "Env": []string{path}},
		"health":      {"Healthcheck": map[string]any{"Test": []string{"CMD", "/../../../../.." + c.dir + "/secret"}, "Interval": 1, "Timeout": -1, "Retries": -5}, "Env": []string{path}},
		"entrypoint":  {"Entrypoint": []string{"../../../../../.." + c.dir + "/secret"}, "Cmd": []string{"$(touch " + c.dir + "/x)"}},
		"hostname":    {"Hostname": "../../x", "Domainname": "\n", "MacAddress": "evil", "ExposedPorts": map[string]any{"0/tcp": struct{}{}, "99999/evil": struct{}{}}, "OnBuild": []string{"RUN evil"}, "Shell": []string{"/evil"}, "Env": []string{path}},
		"wrong types": {"Labels": []string{"x"}, "Env": map[string]string{"a": "b"}},
	} {
		status, answer := load(t, e, "odd", config)
		if status != http.StatusOK || strings.Contains(answer, "errorDetail") {
			continue // refused
		}
		r := cl.Run("run", "--name", "box", "odd", "/bin/sh", "-c", "id -u; grep CapEff /proc/self/status; ls /host "+c.dir+" 2>/dev/null; pwd")
		if strings.Contains(r.Out, "secret") || strings.Contains(r.Out, "000001ffffffffff") {
			t.Errorf("%s: %q %s", what, r.Out, r.Err)
		}
		if got := cl.Run("inspect", "--format", "{{.HostConfig.Privileged}} {{len .HostConfig.Binds}} {{.HostConfig.Runtime}} {{.HostConfig.Devices}}", "box"); got.Code == 0 && got.Out != "false 0 runc []\n" && got.Out != "false 0 berth []\n" {
			t.Errorf("%s: %s", what, got.Out)
		}
		for _, source := range strings.Fields(cl.Run("inspect", "--format", "{{range .Mounts}}{{.Source}} {{end}}", "box").Out) {
			if !strings.HasPrefix(source, e.DataRoot+"/") {
				t.Errorf("%s: mounts %s", what, source)
			}
		}
		cl.Run("stop", "-t", "0", "box")
		cl.Run("rm", "-f", "-v", "box")
		c.check(e)
		e.Call(http.MethodDelete, "/images/odd?force=1", nil, nil)
	}
	// Events tell of the container what the engine knows, not what its labels say.
	if status, answer := load(t, e, "labelled", map[string]any{"Labels": labels, "Env": []string{path}}); status != http.StatusOK {
		t.Fatal(status, answer)
	}
	since := strings.TrimSpace(cl.Must("run", "--rm", img, "date", "+%s"))
	cl.Run("run", "--rm", "--name", "honest", "labelled", "sh", "-c", "exit 3")
	until := strings.TrimSpace(cl.Must("run", "--rm", img, "sh", "-c", "sleep 1; date +%s"))
	events := cl.Must("events", "--since", since, "--until", until, "--filter", "event=die", "--format", "{{.Actor.Attributes.name}} {{.Actor.Attributes.image}} {{.Actor.Attributes.exitCode}}")
	if !strings.Contains("\n"+events+"\n", "\nhonest labelled 3\n") {
		t.Errorf("events: %q", events)
	}
}

// Control characters reach the terminal of who looks only where Docker's own client
// passes them too: in what a template asks for, and in output.
func TestTerminalEscapes(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	evil := "\x1b]0;owned\x07\x1b[2Jx\ny\x9b\r"
	status, answer := e.Call(http.MethodPost, "/containers/create?name=box", map[string]any{
		"Image": img, "Cmd": []string{"true", evil}, "Env": []string{"A=" + evil}, "Labels": map[string]string{evil: evil}, "Entrypoint": []string{"/bin/" + evil},
	}, nil)
	if status != http.StatusCreated {
		t.Fatal(status, answer)
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, args := range [][]string{{"ps", "-a"}, {"ps", "-a", "--no-trunc"}, {"inspect", "box"}, {"container", "inspect", "box"}, {"ps", "-a", "--format", "json"}} {
			if out := c.Must(args...); strings.ContainsAny(out, "\x1b\x07\r\u009b") {
				t.Errorf("%q writes control characters: %q", args, out)
			}
		}
		if got := strings.Count(c.Must("ps", "-a"), "\n"); got != 1 {
			t.Errorf("one container takes %d lines", got)
		}
		for _, bad := range []string{"a\nb", "a\x1b[2J", "../x", "a b", "-x", "é", "a/b", "x\x00y"[:1]} {
			if r := c.Run("create", "--name", bad, img, "true"); r.Code == 0 {
				t.Errorf("the name %q was taken", bad)
			}
			if bad == "é" {
				continue
			}
			if r := c.Run("tag", img, bad+"\x1b:x"); r.Code == 0 {
				t.Errorf("the image name %q was taken", bad)
			}
		}
	})
}

// masked tells, inside a container, what of the host can be seen or changed.
const masked = `
		for f in /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/interrupts; do [ -n "$(head -c 1 $f 2>/dev/null)" ] && echo open $f; done
		for d in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ -n "$(ls -A $d 2>/dev/null)" ] && echo open $d; done
		for d in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do [ -e $d ] || continue; grep -q " $d [a-z]* ro," /proc/self/mounts || echo "writable $d"; done
		for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /proc/irq/default_smp_affinity; do ( echo x > $f ) 2>/dev/null && echo written $f; done
		( umount /proc/kcore || umount /proc/sys || umount /sys/firmware || mount -t proc p /tmp || mount -o remount,rw /proc/sys || mount -o remount,rw /sys ) 2>/dev/null && echo changed the mounts
		for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ -d $d ] && mkdir $d/hostile 2>/dev/null && echo made a cgroup in $d; done
		env | grep -i -E 'secret|token|berth|docker_|listen_|notify' ; grep -z -i secret /proc/1/environ
		[ -n "$(cat /proc/keys 2>/dev/null)" ] && echo keys
		grep -h '^Groups:' /proc/self/status | grep -q '[1-9]' && [ "$(id -u)" != 0 ] && echo groups $(id -G)
		echo end`

// Nothing of the engine's own environment, keyrings and cgroups is the container's, and
// masks stand for every way to start a program.
func TestHostInformation(t *testing.T) {
	t.Parallel()
	const secret = "SECRET_OF_THE_HOST"
	e := enginetest.Start(t, enginetest.WithEnv(secret+"=1", "DOCKER_TOKEN_X=1"))
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "init", "--init", img, "sleep", "1000")
	for name, args := range map[string][]string{
		"run": {"run", "--rm", img}, "-t": {"run", "--rm", "-t", img}, "--init": {"run", "--rm", "--init", img}, "user": {"run", "--rm", "-u", "4242", img}, "read-only": {"run", "--rm", "--read-only", img},
		"host namespaces": {"run", "--rm", "--ipc", "host", "--net", "host", "--uts", "host", img}, "sys_ptrace": {"run", "--rm", "--cap-add", "SYS_PTRACE", img}, "all but admin": {"run", "--rm", "--cap-add", "ALL", "--cap-drop", "SYS_ADMIN", img},
		"exec": {"exec", "target"}, "exec -t": {"exec", "-t", "target"}, "exec -u": {"exec", "-u", "4242", "target"}, "exec in --init": {"exec", "init"},
	} {
		if out := strings.TrimSpace(strings.ReplaceAll(c.Must(append(args, "sh", "-c", masked)...), "\r", "")); out != "end" {
			t.Errorf("%s: %s", name, out)
		}
	}
	// In every process of the engine: no abstract socket, no descriptor of another session's keyring.
	c.Must("run", "-d", "--name", "health", "--health-cmd", "env", "--health-interval", "100ms", img, "sleep", "1000")
	enginetest.Eventually(t, "a health check", func() bool { return c.Inspect("health", "{{len .State.Health.Log}}") != "0" })
	if out := c.Inspect("health", "{{(index .State.Health.Log 0).Output}}"); strings.Contains(out, secret) {
		t.Errorf("a health check sees the host's environment: %s", out)
	}
	for _, pid := range append(e.KeeperPIDs(), e.DaemonPID()) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", pid))
		if err != nil || strings.Contains(string(b), " @") {
			t.Errorf("abstract sockets of %d: %v %s", pid, err, b)
		}
	}
	if status, body, err := e.TryCall(context.Background(), http.MethodGet, "/info", nil); err != nil || status != 200 || strings.Contains(string(body), secret) {
		t.Errorf("info: %d %v", status, err)
	}
}

// The same where the container's root is nobody on the host.
func TestHostInformationMapped(t *testing.T) {
	t.Parallel()
	etc, bin, real := t.TempDir(), t.TempDir(), enginetest.Binaries(t)
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/:/bin/sh\ndockremap:x:997:996::/:/bin/false\n", "group": "root:x:0:\ndockremap:x:996:\n", "hosts": "", "resolv.conf": "",
		"subuid": "dockremap:100000:65536\n", "subgid": "dockremap:200000:65536\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"berth", "berth-keeper", "berth-init", "berth-runtime"} {
		if err := os.Symlink(filepath.Join(real, p), filepath.Join(bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -c 'mount --bind %s /etc && exec %s/berthd \"$@\"' berthd \"$@\"\n", etc, real)
	if err := os.WriteFile(filepath.Join(bin, "berthd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	e := enginetest.Start(t, enginetest.WithBin(bin), enginetest.WithArgs("--userns-remap=default"), enginetest.WithEnv("SECRET_OF_THE_HOST=1"))
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	for name, args := range map[string][]string{
		"run": {"run", "--rm", img}, "--init": {"run", "--rm", "--init", img}, "user": {"run", "--rm", "-u", "4242", img}, "exec": {"exec", "target"}, "exec -t": {"exec", "-t", "target"},
	} {
		if out := strings.TrimSpace(strings.ReplaceAll(c.Must(append(args, "sh", "-c", masked)...), "\r", "")); out != "end" {
			t.Errorf("%s: %s", name, out)
		}
	}
}
