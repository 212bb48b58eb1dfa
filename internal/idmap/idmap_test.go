package idmap

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestMap(t *testing.T) {
	m := Map{{0, 100000, 5}, {5, 200000, 10}}
	for in, out := range map[uint32]uint32{0: 100000, 4: 100004, 5: 200000, 14: 200009} {
		if got, ok := m.Out(in); !ok || got != out {
			t.Errorf("Out(%d) = %d, %v", in, got, ok)
		}
		if got := m.In(out); got != in {
			t.Errorf("In(%d) = %d", out, got)
		}
	}
	if _, ok := m.Out(15); ok {
		t.Error("15 has a host's id")
	}
	for _, id := range []uint32{0, 99999, 100005, 200010} {
		if got := m.In(id); got != Overflow {
			t.Errorf("In(%d) = %d", id, got)
		}
	}
}

func files(t *testing.T, passwd, group, subuid, subgid string) Files {
	dir := t.TempDir()
	put := func(name, text string) string {
		p := filepath.Join(dir, name)
		if text == "-" {
			return p
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	return Files{put("passwd", passwd), put("group", group), put("subuid", subuid), put("subgid", subgid)}
}

func TestResolve(t *testing.T) {
	f := files(t, "root:x:0:0::/:\nanna:x:1000:1000::/:\nlone:x:7:7::/:\n", "root:x:0:\nanna:x:1000:\nstaff:x:50:\n", "", "")
	for spec, want := range map[string]string{
		"anna": "anna anna", "1000": "anna anna", "anna:staff": "anna staff", "1000:50": "anna staff", "anna:50": "anna staff", "lone:staff": "lone staff",
		"root": "root root", "0": "root root",
		"nobody":    `Error during uid lookup for "nobody": no matching entries in passwd file`,
		"5":         "Uid 5 has no entry in /etc/passwd: no matching entries in passwd file",
		"lone":      `Error during gid lookup for "lone": no matching entries in group file`,
		"7":         "Gid 7 has no entry in /etc/group: no matching entries in group file",
		"anna:none": `Error during groupname lookup for "none": no matching entries in group file`,
		"anna:9":    "Gid 9 has no entry in /etc/passwd: no matching entries in group file",
		"a:b:c":     `Invalid user/group specification in --userns-remap: "a:b:c"`,
		"default":   ErrNoDefault.Error(),
	} {
		user, group, err := f.Resolve(spec)
		got := user + " " + group
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
	if _, _, err := f.Resolve(Default); !errors.Is(err, ErrNoDefault) {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	const passwd = "anna:x:1000:1000::/:\n"
	f := files(t, passwd, "", "# c\n\nother:1:2\nanna:100000:65536\nanna:300000:10\n", "anna:200000:65536\n")
	m, err := f.Load("anna", "staff")
	want := &Mapping{"anna", "staff", Map{{0, 100000, 65536}, {65536, 300000, 10}}, Map{{0, 200000, 65536}}}
	if err != nil || !reflect.DeepEqual(m, want) {
		t.Fatal(m, err)
	}
	if uid, gid := m.Root(); uid != 100000 || gid != 200000 {
		t.Error(uid, gid)
	}
	if m, err := files(t, passwd, "", "1000:5:6\nanna:100000:65536\n", "1000:7:8\n").Load("anna", ""); err != nil || m.UID[0].Outside != 5 || m.GID[0].Outside != 7 {
		t.Error(m, err) // by number before by name
	}
	for _, c := range []struct{ subuid, subgid, err string }{
		{"-", "", "no such file or directory"},
		{"other:1:2\n", "anna:1:2\n", `no subuid ranges found for user "anna"`},
		{"anna:1:2\n", "", `no subgid ranges found for user "anna"`},
		{"anna:1\n", "", "Format not correct for"},
		{"anna:x:2\n", "", "string to int conversion failed"},
		{"anna:-1:2\n", "", "string to int conversion failed"},
		{"anna:4294967290:65536\n", "", "too large"},
		{strings.Repeat("anna:1:1\n", 400), "", "too many"},
	} {
		if _, err := files(t, passwd, "", c.subuid, c.subgid).Load("anna", ""); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q %q: %v", c.subuid, c.subgid, err)
		}
	}
}
