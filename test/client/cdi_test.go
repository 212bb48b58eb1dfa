package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// Devices of vendors: nodes, mounts, environment and hooks arrive in the container.
func TestCDI(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	library := write("library.so", "the library\n", 0o644)
	// What a vendor's hook does: it finds the root in the bundle and changes it.
	hook := write("hook", `#!/bin/sh
read -r state
bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}
config=$(cat "$bundle/config.json")
root=${config#*'"root":{"path":"'}; root=${root%%'"'*}
[ "$1" != fail ] || { echo "no such driver"; exit 3; }
echo "$1 by hook" >"$root/etc/hooked"
`, 0o755)
	if err := os.Mkdir(dir+"/specs", 0o755); err != nil {
		t.Fatal(err)
	}
	write("specs/vendor.yaml", `
cdiVersion: "0.6.0"
kind: vendor.com/thing
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/thing, hostPath: /dev/full}]
    env: [THING=1]
    mounts: [{hostPath: `+library+`, containerPath: /opt/lib/library.so, options: [ro, nosuid, bind]}]
    hooks: [{hookName: createContainer, path: `+hook+`, args: [hook, made]}]
- name: broken
  containerEdits:
    hooks: [{hookName: createRuntime, path: `+hook+`, args: [hook, fail]}]
`, 0o644)
	write("specs/gpu.json", `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"env":["GPU=0"]}},{"name":"all","containerEdits":{"env":["GPU=all"]}}]}`, 0o644)
	e := enginetest.Start(t, enginetest.WithArgs("--cdi-spec-dir", dir+"/specs"))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		out := c.Must("run", "--rm", "--device", "vendor.com/thing=one", img, "sh", "-c", "echo $THING; cat /opt/lib/library.so /etc/hooked; head -c1 /dev/thing | od -An -tx1; (: >/opt/lib/library.so) 2>/dev/null || echo read-only")
		if got := strings.Join(strings.Fields(out), " "); got != "1 the library made by hook 00 read-only" {
			t.Errorf("%q", got)
		}
		if got := c.Must("run", "--rm", "--gpus", "all", img, "sh", "-c", "echo $GPU"); got != "all" {
			t.Errorf("--gpus all: %q", got)
		}
		if got := c.Must("run", "--rm", "--gpus", "1", img, "sh", "-c", "echo $GPU"); got != "0" {
			t.Errorf("--gpus 1: %q", got)
		}
		for _, x := range []struct{ flag, value, want string }{
			{"--device", "vendor.com/thing=two", "CDI device injection failed: unresolvable CDI devices vendor.com/thing=two"},
			{"--device", "vendor.com/thing=broken", "error running createRuntime hook #0: exit status 3, output: no such driver"},
			{"--gpus", "driver=odd", `could not select device driver "odd" with capabilities: [[gpu]]`},
		} {
			if r := c.Run("run", "--rm", x.flag, x.value, img, "true"); r.Code != 125 || !strings.Contains(r.Err, x.want) {
				t.Errorf("%s %s: %d %q, want %q", x.flag, x.value, r.Code, r.Err, x.want)
			}
		}
		if r := c.Run("run", "--rm", "--device", "vendor.com/thing=one", img, "/no/such/program"); r.Code != 127 || !strings.Contains(r.Err, "no such file or directory") {
			t.Errorf("a program that is not there, after hooks: %d %q", r.Code, r.Err)
		}
		info := c.Must("info")
		for _, want := range []string{"CDI spec directories:", dir + "/specs", "cdi: vendor.com/thing=one", "cdi: nvidia.com/gpu=all"} {
			if !strings.Contains(info, want) {
				t.Errorf("info lacks %q", want)
			}
		}
		if left := c.Must("ps", "-aq"); left != "" {
			t.Errorf("left behind: %s", c.Must("ps", "-a"))
		}
	})
}

func TestCDIOff(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--feature", "cdi=false"))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for flag, want := range map[string]string{
			"--gpus=all":                    `could not select device driver "" with capabilities: [[gpu]]`,
			"--device=vendor.com/thing=one": `could not select device driver "cdi" with capabilities: []`,
		} {
			if r := c.Run("run", "--rm", flag, img, "true"); r.Code != 125 || !strings.Contains(r.Err, want) {
				t.Errorf("%s: %d %q", flag, r.Code, r.Err)
			}
		}
	})
}
