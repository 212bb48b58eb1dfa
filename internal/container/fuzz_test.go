package container

import (
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"

	"berth.dev/berth/internal/errs"
)

// FuzzBind reads what -v says.
func FuzzBind(f *testing.F) {
	for _, s := range []string{"/a:/b", "/a:/b:ro", "/a:/b:ro,rshared,z", "a:/b", "/a:b", "/a:/b:x", ":::", "/a/../..:/b/../c", "/a:/:", "/a\x00:/b\n", "/a:/proc/../proc/self:rw"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		m, err := parseBind(spec, "")
		if err != nil {
			if !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.NotImplemented) {
				t.Fatal(err)
			}
			return
		}
		if m.Type == mount.TypeVolume {
			if m.Source != "" || path.IsAbs(m.Name) || !path.IsAbs(m.Destination) {
				t.Fatalf("%q: %+v", spec, m)
			}
			return
		}
		if !path.IsAbs(m.Source) || path.Clean(m.Source) != m.Source || !path.IsAbs(m.Destination) {
			t.Fatalf("%q: %+v", spec, m)
		}
		if _, options, _ := strings.Cut(spec[1:], ":"); !m.RW && !strings.Contains(options, "ro") {
			t.Fatalf("%q: read-only", spec)
		}
	})
}

// FuzzMount reads what --mount has become in a request.
func FuzzMount(f *testing.F) {
	for _, s := range []string{
		`{"Type":"bind","Source":"/","Target":"/x"}`, `{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":-1,"Mode":65535,"Options":[["exec"],["a","b"],[]]}}`,
		`{"Type":"bind","Source":"/nonexistent","Target":"/x","BindOptions":{"Propagation":"x","ReadOnlyForceRecursive":true}}`, `{"Type":"volume","Target":"/x"}`,
		`{"Type":"image","Source":"x","Target":"/"}`, `{"Type":"","Target":".."}`, `{"Type":"cluster","Target":"/x"}`, `{"Type":"bind","BindOptions":null,"Source":"a","Target":"/b"}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		var m mount.Mount
		if json.Unmarshal([]byte(raw), &m) != nil {
			return
		}
		out, err := fromMount(m)
		if err != nil {
			return
		}
		if !path.IsAbs(out.Destination) || out.Type == mount.TypeBind && !path.IsAbs(out.Source) {
			t.Fatalf("%s: %+v", raw, out)
		}
	})
}

// FuzzOptions reads a device rule, a list of processors, a signal and security options.
func FuzzOptions(f *testing.F) {
	for _, s := range []string{"c 1:3 rwm", "a *:* m", "b 4294967296:0 r", "0-3,7", "0-4294967295", "3-1", "SIGKILL", "-1", "65", "rtmin+3", "seccomp=unconfined", "no-new-privileges:x", "label=disable", "systempaths=unconfined", "apparmor:", "=", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := parseSignal(s); err == nil && (sig < 0 || sig > 64) {
			t.Fatalf("signal %d", sig)
		}
		if list, err := parseList(s); err == nil && len(list) > 1<<20 {
			t.Fatalf("%d processors", len(list))
		}
		if r, err := parseDeviceRule(s); err == nil && (r.Access == "" || strings.Trim(r.Access, "rwm") != "") {
			t.Fatalf("%+v", r)
		}
		if !strings.Contains(s, "=/") && !strings.Contains(s, ":/") { // no files
			_, _ = parseSecurity([]string{s})
		}
	})
}
