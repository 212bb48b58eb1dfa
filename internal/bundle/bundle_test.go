package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests call this very binary as berth-runtime, in processes of its own.
func TestMain(m *testing.M) {
	if os.Getenv("BERTH_RUNTIME_TEST") != "" {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func TestCheck(t *testing.T) {
	cases := []struct {
		name   string
		change func(*specs.Spec)
		want   string // part of the error; "" for none
	}{
		{"the example", func(*specs.Spec) {}, ""},
		{"no linux", func(s *specs.Spec) { s.Linux = nil }, "the property linux is missing"},
		{"no process", func(s *specs.Spec) { s.Process = nil }, "the property process is missing"},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, "args must not be empty"},
		{"no cwd", func(s *specs.Spec) { s.Process.Cwd = "" }, "cwd must not be empty"},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "x" }, "Cwd must be an absolute path"},
		{"no root", func(s *specs.Spec) { s.Root = nil }, "root.path is missing"},
		{"selinux", func(s *specs.Spec) { s.Process.SelinuxLabel = "x" }, "process.selinuxLabel is not supported"},
		{"intelRdt", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, "linux.intelRdt is not supported"},
		{"no mount namespace", func(s *specs.Spec) { s.Linux.Namespaces = nil }, "without a mount namespace"},
		{"a namespace twice", func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) }, "stands twice"},
		{"a mount namespace by path", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace, Path: "/x"}}
		}, "joining a mount namespace"},
		{"a relative namespace path", func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "x" }, "is not absolute"},
		{"user namespace without maps", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, "uidMappings"},
		{"mapped mount", func(s *specs.Spec) { s.Mounts[0].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, "ID mappings are not supported"},
		{"listener", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/x"} }, "listenerPath is not supported"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := exampleSpec()
			c.change(s)
			err := check(s, "/bundle")
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	s := exampleSpec()
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a", Source: "data", Options: []string{"rbind"}}, specs.Mount{Destination: "/b", Type: "bind", Source: "/x", Options: []string{"rslave"}},
		specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"notmpcopyup"}})
	if err := check(s, "/bundle"); err != nil {
		t.Fatal(err)
	}
	n := len(s.Mounts)
	if a, b, c := s.Mounts[n-3], s.Mounts[n-2], s.Mounts[n-1]; a.Source != "/bundle/data" || !slices.Contains(a.Options, "rprivate") || slices.Contains(b.Options, "rprivate") || len(c.Options) != 0 {
		t.Errorf("%+v", s.Mounts[n-3:])
	}
	if s.Root.Path != "/bundle/rootfs" {
		t.Error(s.Root.Path)
	}
}

func TestCgroupPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "/berth-runtime/id", "/a/b": "/a/b", "a/b": "/a/b", "../../x": "/x", "machine.slice:libpod:12": "/machine.slice/libpod-12.scope", ":p:n": "/system.slice/p-n.scope", "/": "", "..": "",
	} {
		got, err := cgroupPath(&specs.Spec{Linux: &specs.Linux{CgroupsPath: in}}, "id")
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
}

func TestIDs(t *testing.T) {
	p := &program{root: "/r"}
	for _, id := range []string{"a", "A-b_c.d+e", "0"} {
		if dir, err := p.dir(id); err != nil || dir != "/r/"+id {
			t.Errorf("%q: %q %v", id, dir, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "../a", "a b", "a\x00", "ä"} {
		if _, err := p.dir(id); err == nil {
			t.Errorf("%q is an id", id)
		}
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]unix.Signal{"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "hup": 1, "0": 0, "64": 64} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "SIG", "65", "-1", "NOPE", "9x"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestExecProcess(t *testing.T) {
	base := exampleSpec().Process
	base.User = specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}}
	o := &execOptions{args: []string{"x"}, user: "1000:100", env: []string{"A=1"}, groups: []string{"9"}, caps: []string{"CAP_CHOWN"}, cwd: "/w", tty: true}
	p, err := o.process(base)
	if err != nil {
		t.Fatal(err)
	}
	if p.User.UID != 1000 || p.User.GID != 100 || !slices.Equal(p.User.AdditionalGids, []uint32{9}) || p.Cwd != "/w" || !p.Terminal || p.Env[len(p.Env)-1] != "A=1" || !slices.Contains(p.Capabilities.Effective, "CAP_CHOWN") {
		t.Errorf("%+v", p)
	}
	if base.User.UID != 5 || slices.Contains(base.Capabilities.Effective, "CAP_CHOWN") || len(base.Env) != 2 {
		t.Error("the container's own process was changed")
	}
	for _, u := range []string{"root", "-1", "1:x", "4294967296", "2147483648", "1:"} {
		if _, err := (&execOptions{args: []string{"x"}, user: u}).process(base); err == nil {
			t.Errorf("user %q is accepted", u)
		}
	}
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"args":["y"],"cwd":"/"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := (&execOptions{processFile: file}).process(base); err != nil || p.Args[0] != "y" || p.Capabilities != nil {
		t.Errorf("%+v %v", p, err)
	}
}

func TestLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	var out, errOut bytes.Buffer
	code := run([]string{"--root", t.TempDir(), "--log", file, "--log-format", "json", "state", "nope"}, &out, &errOut)
	raw, err := os.ReadFile(file)
	var line struct{ Level, Msg, Time string }
	if code != 1 || err != nil || json.Unmarshal(raw, &line) != nil || line.Level != "error" || line.Msg != `container "nope" does not exist` || line.Time == "" {
		t.Errorf("exit %d, %v, %s", code, err, raw)
	}
	if !strings.Contains(errOut.String(), "does not exist") {
		t.Errorf("stderr: %s", &errOut)
	}
}

func TestCommandLine(t *testing.T) {
	root := t.TempDir()
	cases := []struct {
		args []string
		code int
		text string
	}{
		{nil, 0, "Usage:"},
		{[]string{"--help"}, 0, "Usage:"},
		{[]string{"--version"}, 0, "spec: 1.3.0"},
		{[]string{"features"}, 0, `"ociVersionMin": "1.0.0"`},
		{[]string{"list"}, 0, "ID   PID"},
		{[]string{"list", "-f", "json"}, 0, "[]"},
		{[]string{"list", "-f", "xml"}, 1, "invalid format"},
		{[]string{"nonsense"}, 1, "no help topic"},
		{[]string{"--nonsense"}, 1, "not defined"},
		{[]string{"state"}, 1, "requires exactly 1"},
		{[]string{"start", "a", "b"}, 1, "requires exactly 1"},
		{[]string{"delete", "x"}, 1, "does not exist"},
		{[]string{"delete", "x", "--force"}, 0, ""},
		{[]string{"kill", "x", "TERM"}, 1, "does not exist"},
		{[]string{"exec", "x", "y"}, 255, "does not exist"},
		{[]string{"exec", "x"}, 255, "minimum of 2"},
		{[]string{"checkpoint", "x"}, 1, "not supported"},
		{[]string{"create", "../x"}, 1, "invalid container ID"},
		{[]string{"create", "x"}, 1, "config.json not found"},
	}
	for _, c := range cases {
		var b bytes.Buffer
		code := run(append([]string{"--root", root}, c.args...), &b, &b)
		if code != c.code || !strings.Contains(b.String(), c.text) {
			t.Errorf("%v: exit %d, %s", c.args, code, &b)
		}
	}
	if e, err := os.ReadDir(root); err != nil || len(e) != 0 {
		t.Errorf("left behind: %v %v", e, err)
	}
}

func TestSpecCommand(t *testing.T) {
	dir := t.TempDir()
	var b bytes.Buffer
	if code := run([]string{"spec", "-b", dir}, &b, &b); code != 0 {
		t.Fatal(b.String())
	}
	s, err := readSpec(dir + "/config.json")
	if err != nil || check(s, dir) != nil {
		t.Errorf("%v", err)
	}
	if code := run([]string{"spec", "-b", dir}, &b, &b); code != 1 || !strings.Contains(b.String(), "Remove it first") {
		t.Errorf("exit %d %s", code, &b)
	}
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	st := &specs.State{ID: "x", Status: specs.StateCreating, Pid: 7}
	h := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat > $OUT"}, Env: []string{"OUT=" + dir + "/out", "PATH=/bin"}}
	if err := runHook(&h, st); err != nil {
		t.Fatal(err)
	}
	var got specs.State
	raw, _ := os.ReadFile(dir + "/out")
	if json.Unmarshal(raw, &got) != nil || got.ID != "x" || got.Pid != 7 || got.Status != specs.StateCreating {
		t.Errorf("%s", raw)
	}
	h.Args = []string{"sh", "-c", "echo why; exit 3"}
	if err := runHook(&h, st); err == nil || !strings.Contains(err.Error(), "why") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
	one := 1
	h.Args, h.Timeout = []string{"sh", "-c", "sleep 20"}, &one
	if err := runHook(&h, st); err == nil || !strings.Contains(err.Error(), "timeout of 1.0s") {
		t.Errorf("%v", err)
	}
	if err := runHook(&specs.Hook{Path: dir + "/none"}, st); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
