package bundle

import (
	"encoding/json"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzCheck reads configurations. What is accepted has what a start takes for granted.
func FuzzCheck(f *testing.F) {
	example, err := json.Marshal(exampleSpec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	for _, s := range []string{
		`{}`, `null`, `{"linux":{}}`, `{"linux":{"namespaces":[{"type":"mount"},{"type":"x"}]},"process":{"args":["a"],"cwd":"/"},"root":{"path":"r"}}`,
		`{"linux":{"namespaces":[{"type":"mount"},{"type":"user"}],"uidMappings":[{"size":4294967295,"hostID":4294967295}],"gidMappings":[{}]},"process":{"args":["a"],"cwd":"/"},"root":{"path":"../.."},"mounts":[{"destination":"x","options":["bind","","size="]}]}`,
		`{"linux":{"namespaces":[{"type":"mount","path":""},{"type":"pid","path":"/proc/1/ns/pid"}],"resources":{"devices":[{}],"memory":{"limit":-1}},"cgroupsPath":"../../x"},"process":{"args":[""],"cwd":"/..","user":{"uid":4294967295}},"root":{"path":"/"}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		s := &specs.Spec{}
		if json.Unmarshal([]byte(raw), s) != nil || check(s, "/bundle") != nil {
			return
		}
		if s.Linux == nil || s.Process == nil || len(s.Process.Args) == 0 || s.Root == nil || !filepath.IsAbs(s.Root.Path) || !filepath.IsAbs(s.Process.Cwd) {
			t.Fatalf("%+v", s)
		}
		seen := map[specs.LinuxNamespaceType]bool{}
		for _, ns := range s.Linux.Namespaces {
			if seen[ns.Type] || ns.Path != "" && !filepath.IsAbs(ns.Path) {
				t.Fatalf("%+v", s.Linux.Namespaces)
			}
			seen[ns.Type] = true
		}
		if !seen[specs.MountNamespace] {
			t.Fatal("no mount namespace of its own")
		}
	})
}
