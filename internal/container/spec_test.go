package container

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/runtime"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// golden compares with testdata/<name>.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("%s, line %d:\n  is   %s\n  want %s\nReview the change, then write it with: go test ./internal/container -run Golden -update", file, i+1, a[i], b[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", file, len(a), len(b))
}

// testService is a service without a keeper, a database or images.
func testService() *Service {
	s := &Service{
		host: &runtime.Host{LastCap: 40, Caps: 1<<41 - 1},
		byID: map[ID]*Container{}, names: map[string]ID{}, execs: map[string]*Exec{}, limits: func() *runtime.Support { return &allLimits },
	}
	Edits{s}.SetDefaults(Defaults{Runtime: "berth", CgroupNS: container.CgroupnsModeHost})
	return s
}

// allLimits is a kernel that can limit everything.
var allLimits = runtime.Support{
	Memory: true, Swap: true, Reservation: true, Swappiness: true, OOMKillDisable: true, CPUShares: true, CPUCfs: true, CPURealtime: true, Cpuset: true,
	Pids: true, BlkioWeight: true, WeightDevice: true, ReadBps: true, WriteBps: true, ReadIOps: true, WriteIOps: true, Cpus: "0-1", Mems: "0",
}

func goldenSpec(t *testing.T, change func(*Record, *specInput)) *specs.Spec {
	t.Helper()
	s := testService()
	r := &Record{
		ID: ID(strings.Repeat("0123456789abcdef", 4)), Name: "box", Path: "sh", Args: []string{"-c", "true"},
		Config:     &container.Config{Hostname: "0123456789ab", Env: []string{"A=b", "PATH=/bin", "NOVALUE"}, WorkingDir: "/work"},
		HostConfig: &container.HostConfig{},
	}
	in := specInput{dir: "/data/containers/x", caps: s.caps(), user: identity{User: specs.User{AdditionalGids: []uint32{0, 10}}, home: "/root"}}
	change(r, &in)
	if _, err := (creator{s}).validate(r.Config, r.HostConfig); err != nil {
		t.Fatal(err)
	}
	spec, err := buildSpec(r, in)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestSpecGolden(t *testing.T) {
	cases := map[string]func(*Record, *specInput){
		"default": func(*Record, *specInput) {},
		"privileged": func(r *Record, _ *specInput) {
			r.HostConfig.Privileged = true
		},
		"host-modes": func(r *Record, _ *specInput) {
			h := r.HostConfig
			h.NetworkMode, h.PidMode, h.IpcMode, h.UTSMode = "host", "host", "host", "host"
			h.CgroupnsMode = "private"
			r.Config.Hostname = ""
		},
		"user": func(r *Record, in *specInput) {
			r.Config.Tty = true
			r.HostConfig.ReadonlyRootfs = true
			r.HostConfig.CapAdd, r.HostConfig.CapDrop = []string{"SYS_PTRACE", "cap_net_admin"}, []string{"CHOWN"}
			r.HostConfig.SecurityOpt = []string{"no-new-privileges"}
			in.user = identity{User: specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{100, 10}}, home: "/home/app"}
		},
		"limits": func(r *Record, in *specInput) {
			pids, off := int64(-1), true
			r.HostConfig.Resources = container.Resources{
				Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 1_500_000_000, CPUShares: 512, CpusetCpus: "0-1", PidsLimit: &pids, OomKillDisable: &off,
				Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, BlkioWeight: 300, DeviceCgroupRules: []string{"c 10:* rw"},
			}
			r.HostConfig.OomScoreAdj = 500
			in.defaults.Ulimits = []*container.Ulimit{{Name: "core", Soft: 0, Hard: 0}, {Name: "nofile", Soft: 1, Hard: 1}}
		},
		"mounts": func(r *Record, _ *specInput) {
			r.HostConfig.ShmSize = 1 << 20
			for _, b := range []string{"/srv/a:/a", "/srv/hosts:/etc/hosts:ro,rslave"} {
				m, err := parseBind(b, "")
				if err != nil {
					t.Fatal(err)
				}
				r.Mounts = append(r.Mounts, m)
			}
			opts, err := tmpfsOptions("size=1m,exec")
			if err != nil {
				t.Fatal(err)
			}
			r.Mounts = append(r.Mounts, Mount{MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: "/tmp", RW: true}, Options: opts})
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			spec := goldenSpec(t, change)
			if name == "privileged" {
				if len(spec.Linux.Devices) == 0 {
					t.Error("no device of the host")
				}
				spec.Linux.Devices = nil // this machine's own
			}
			raw, err := json.MarshalIndent(spec, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "spec-"+name, string(raw)+"\n")
		})
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		cfg  container.Config
		want []string
	}{
		{container.Config{Hostname: "h"}, []string{defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{container.Config{Hostname: "h", Tty: true}, []string{defaultPath, "HOSTNAME=h", "TERM=xterm", "HOME=/root"}},
		{container.Config{Hostname: "h", Tty: true, Env: []string{"TERM=vt100", "HOME=", "HOSTNAME=x", "PATH=/p", "DROP", "PATHS=1"}}, []string{"PATH=/p", "HOSTNAME=x", "TERM=vt100", "HOME=/root", "PATHS=1"}},
	} {
		if got := environment(&c.cfg, "/root"); !slices.Equal(got, c.want) {
			t.Errorf("%v, want %v", got, c.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	all := testService().caps()
	less := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(defaultCaps), func(c string) bool { return slices.Contains(names, c) })
	}
	for _, c := range []struct {
		name string
		hc   container.HostConfig
		want []string
	}{
		{"default", container.HostConfig{}, defaultCaps},
		{"add", container.HostConfig{CapAdd: []string{"sys_admin"}}, append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN")},
		{"add one that is there", container.HostConfig{CapAdd: []string{"CAP_CHOWN"}}, defaultCaps},
		{"drop", container.HostConfig{CapDrop: []string{"CHOWN", "cap_kill"}}, less("CAP_CHOWN", "CAP_KILL")},
		{"drop all", container.HostConfig{CapDrop: []string{"ALL"}}, nil},
		{"drop all, add one", container.HostConfig{CapDrop: []string{"all"}, CapAdd: []string{"CHOWN"}}, []string{"CAP_CHOWN"}},
		{"add all", container.HostConfig{CapAdd: []string{"ALL"}}, all},
		{"add all, drop one", container.HostConfig{CapAdd: []string{"ALL"}, CapDrop: []string{"CAP_BPF"}}, slices.DeleteFunc(slices.Clone(all), func(c string) bool { return c == "CAP_BPF" })},
		{"privileged", container.HostConfig{Privileged: true, CapDrop: []string{"ALL"}}, all},
	} {
		got, err := capabilities(&c.hc, all)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", c.name, got, err, c.want)
		}
	}
	few := []string{"CAP_CHOWN"}
	for _, c := range []struct {
		hc   container.HostConfig
		want string
	}{
		{container.HostConfig{CapAdd: []string{"FLY"}}, `invalid CapAdd: unknown capability: "CAP_FLY"`},
		{container.HostConfig{CapDrop: []string{"CAP_FLY"}}, `invalid CapDrop: unknown capability: "CAP_FLY"`},
		{container.HostConfig{CapAdd: []string{"FLY"}, Privileged: true}, `invalid CapAdd: unknown capability: "CAP_FLY"`},
		{container.HostConfig{CapAdd: []string{"BPF"}}, `invalid CapAdd: capability not supported by your kernel or not available in the current environment: "CAP_BPF"`},
	} {
		if _, err := capabilities(&c.hc, few); err == nil || err.Error() != c.want {
			t.Errorf("%v", err)
		}
	}
	if got, err := capabilities(&container.HostConfig{CapDrop: []string{"BPF", "ALL"}}, few); err != nil || got != nil {
		t.Errorf("dropping what cannot be given: %v %v", got, err)
	}
	if set := capSet(all, 5); set.Effective != nil || set.Permitted != nil || set.Inheritable != nil || set.Ambient != nil || len(set.Bounding) == 0 {
		t.Errorf("a user other than root: %+v", set)
	}
}

func TestDeviceRules(t *testing.T) {
	for in, want := range map[string]string{"c 1:3 rwm": "c 1:3 rwm", "b *:* r": "b *:* r", "a *:* rwm": "a *:* rwm", "c 10:* m": "c 10:* m"} {
		r, err := parseDeviceRule(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		num := func(n *int64) string {
			if n == nil {
				return "*"
			}
			return itoa(int(*n))
		}
		if got := r.Type + " " + num(r.Major) + ":" + num(r.Minor) + " " + r.Access; got != want || !r.Allow {
			t.Errorf("%q: %s", in, got)
		}
	}
	for _, in := range []string{"", "c", "c 1:3", "x 1:3 rwm", "c 1 rwm", "c 1:3 x", "c a:3 rwm", "c 1:3 rwm more", "cc 1:3 r", "c 99999999999999999999:0 r", "c :3 r"} {
		if r, err := parseDeviceRule(in); err == nil {
			t.Errorf("%q: %+v", in, r)
		} else if want := "invalid device cgroup rule format: '" + in + "'"; err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestParseBind(t *testing.T) {
	for in, want := range map[string]Mount{
		"/a:/b":                   {MountPoint: container.MountPoint{Source: "/a", Destination: "/b", RW: true, Propagation: "rprivate"}, Options: []string{"rbind", "rprivate"}},
		"/a/../c:/b:ro":           {MountPoint: container.MountPoint{Source: "/c", Destination: "/b", Mode: "ro", Propagation: "rprivate"}, Options: []string{"rbind", "rprivate", "rro"}},
		"/a:/b:rw,z,shared":       {MountPoint: container.MountPoint{Source: "/a", Destination: "/b", RW: true, Mode: "rw,z,shared", Propagation: "shared"}, Options: []string{"rbind", "shared"}},
		"/a:/b:rslave,consistent": {MountPoint: container.MountPoint{Source: "/a", Destination: "/b", RW: true, Mode: "rslave,consistent", Propagation: "rslave"}, Options: []string{"rbind", "rslave"}},
	} {
		got, err := parseBind(in, "")
		want.Type, want.MakeHost = mount.TypeBind, true
		if err != nil || got.MountPoint != want.MountPoint || !slices.Equal(got.Options, want.Options) || got.MakeHost != want.MakeHost {
			t.Errorf("%s: %+v %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "/a:", ":/b", "/a:/b:ro:x", "/a:b", "/a:/b:nonsense", "/a:/b:ro,nonsense", "/a:/b:bind", "v1:/b:rshared", "/a:/b:nocopy", "v1:/"} {
		if m, err := parseBind(in, ""); err == nil {
			t.Errorf("%q: %+v", in, m)
		}
	}
	for in, want := range map[string]Mount{
		"/a":             {MountPoint: container.MountPoint{Destination: "/a", RW: true}, Anonymous: true},
		"v1:/b":          {MountPoint: container.MountPoint{Name: "v1", Destination: "/b", RW: true}},
		"v1:/b/../c:ro":  {MountPoint: container.MountPoint{Name: "v1", Destination: "/c", Mode: "ro"}},
		"v1:/b:z,nocopy": {MountPoint: container.MountPoint{Name: "v1", Destination: "/b", RW: true, Mode: "z,nocopy"}, NoCopy: true},
		"a/b:/c":         {MountPoint: container.MountPoint{Name: "a/b", Destination: "/c", RW: true}}, // the volume's name is checked when it is made
	} {
		got, err := parseBind(in, "drv")
		want.Type = mount.TypeVolume
		if err != nil || got.MountPoint != want.MountPoint || got.NoCopy != want.NoCopy || got.Anonymous != want.Anonymous || got.MakeHost || got.want.Driver != "drv" {
			t.Errorf("%s: %+v %v, want %+v", in, got, err, want)
		}
	}
}

// A volume that the image declares stands behind every other mount of its place;
// mounts come after those that they lie in.
func TestResolveMounts(t *testing.T) {
	s := testService()
	other := &Container{}
	other.rec.Store(&Record{ID: "1", Name: "other", Config: &container.Config{}, HostConfig: &container.HostConfig{Tmpfs: map[string]string{"/t": ""}}, Mounts: []Mount{
		{MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: "/t", RW: true}},
		{MountPoint: container.MountPoint{Type: mount.TypeVolume, Name: "vx", Driver: "local", Destination: "/data", RW: true, Mode: "z"}, Options: []string{"rbind", "rprivate"}, Anonymous: true},
		{MountPoint: container.MountPoint{Type: mount.TypeVolume, Name: "vy", Driver: "local", Destination: "/own", RW: true}, Options: []string{"rbind", "rprivate"}},
	}})
	s.byID["1"], s.names["other"] = other, "1"
	r := &Record{
		Config: &container.Config{Volumes: map[string]struct{}{"/data/": {}, "/tmp": {}, "/new/": {}, "/own/sub/deep": {}}},
		HostConfig: &container.HostConfig{
			VolumesFrom: []string{"other:ro"}, Binds: []string{"mine:/own"}, Tmpfs: map[string]string{"/tmp": ""}, VolumeDriver: "drv",
		},
	}
	list, err := creator{s}.resolveMounts(r)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list {
		got = append(got, fmt.Sprint(m.Destination, " ", m.Type, " ", m.Name, " ", m.RW, " ", m.Anonymous, " ", m.NoCopy))
	}
	want := []string{
		"/own volume mine true false false", "/tmp tmpfs  true false false", "/data volume vx false true true",
		"/new volume  true true false", "/own/sub/deep volume  true true false",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q,\nwant %q", got, want)
	}
	for _, bad := range []string{"", "other:shared", "other:nocopy", "other:x", "none"} {
		if _, err := (creator{s}).volumesFrom([]string{bad}); !errs.Is(err, errs.Invalid) {
			t.Errorf("--volumes-from %q: %v", bad, err)
		}
	}
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		base, over, want []string
	}{
		{[]string{"A=1", "B=2"}, []string{"B=3", "C=4"}, []string{"A=1", "B=3", "C=4"}},
		{[]string{"A=1", "B=2"}, []string{"A"}, []string{"B=2"}},
		{nil, []string{"X"}, nil},
		{[]string{"A=1"}, []string{"A="}, []string{"A="}},
		{[]string{"AB=1"}, []string{"A=2"}, []string{"AB=1", "A=2"}},
		{[]string{"A=1"}, []string{"A=x=y"}, []string{"A=x=y"}},
	} {
		base := slices.Clone(c.base)
		if got := mergeEnv(c.base, c.over); !slices.Equal(got, c.want) {
			t.Errorf("%v over %v: %v, want %v", c.over, c.base, got, c.want)
		}
		if !slices.Equal(base, c.base) {
			t.Errorf("%v was changed to %v", base, c.base)
		}
	}
}
