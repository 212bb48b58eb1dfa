package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const example = `
cdiVersion: "0.6.0"
kind: vendor.com/thing
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/thing, hostPath: /dev/null, permissions: rw}]
    env: [THING=1]
    mounts: [{hostPath: /etc/hostname, containerPath: /opt/thing, options: [ro, bind]}]
- name: two
  containerEdits: {env: [THING=2]}
containerEdits: {env: [ALL=yes]}
`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vendor.yaml"), []byte(example), 0o644); err != nil {
		t.Fatal(err)
	}
	r := New([]string{dir, filepath.Join(dir, "missing")})
	if got := r.Devices(); !slices.Equal(got, []string{"vendor.com/thing=one", "vendor.com/thing=two"}) {
		t.Errorf("%v", got)
	}
	if got := r.OfKind("vendor.com/thing"); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("%v", got)
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := r.Inject(s, "vendor.com/thing=one"); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "THING=1") || !slices.Contains(s.Process.Env, "ALL=yes") {
		t.Errorf("environment: %v", s.Process.Env)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Type != "bind" || s.Mounts[0].Destination != "/opt/thing" {
		t.Errorf("mounts: %+v", s.Mounts)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/thing" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("devices: %+v", d)
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || d[0].Access != "rw" || !d[0].Allow || *d[0].Major != 1 {
		t.Errorf("rules: %+v", d)
	}
	// A file that is added is seen; one that is broken does not hold the others back.
	if err := os.WriteFile(filepath.Join(dir, "new.json"), []byte(`{"cdiVersion":"0.6.0","kind":"new.com/x","devices":[{"name":"y","containerEdits":{"env":["Y=1"]}}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte(`{"cdiVersion`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Inject(s, "new.com/x=y"); err != nil {
		t.Error(err)
	}
	err := r.Inject(s, "vendor.com/thing=three")
	if err == nil || !strings.Contains(err.Error(), "unresolvable CDI devices vendor.com/thing=three") || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("%v", err)
	}
}

func TestOff(t *testing.T) {
	r := New(nil)
	if r != nil || r.Devices() != nil || r.Inject(&specs.Spec{}, "a/b=c") == nil {
		t.Error("no directories, and yet there is something")
	}
	if !Qualified("vendor.com/class=name") || Qualified("/dev/x") {
		t.Error("names")
	}
}
