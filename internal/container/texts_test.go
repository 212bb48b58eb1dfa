package container

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/keeper"
)

// Every refusal of a configuration in the words that clients match.
func TestMessagesGolden(t *testing.T) {
	var b strings.Builder
	say := func(name string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s is accepted", name)
			return
		}
		fmt.Fprintf(&b, "%s\n  %s: %s\n", name, errs.KindOf(err), err)
	}
	swappiness := int64(101)
	configs := []struct {
		name string
		cfg  container.Config
		hc   container.HostConfig
	}{
		{"relative working directory", container.Config{WorkingDir: "work"}, container.HostConfig{}},
		{"stop signal", container.Config{StopSignal: "SIGNONE"}, container.HostConfig{}},
		{"empty variable", container.Config{Env: []string{"=x"}}, container.HostConfig{}},
		{"long hostname", container.Config{Hostname: strings.Repeat("h", 65)}, container.HostConfig{}},
		{"too little memory", container.Config{}, container.HostConfig{Resources: container.Resources{Memory: 1 << 20}}},
		{"swap below memory", container.Config{}, container.HostConfig{Resources: container.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}}},
		{"swap without memory", container.Config{}, container.HostConfig{Resources: container.Resources{MemorySwap: 32 << 20}}},
		{"cpus and period", container.Config{}, container.HostConfig{Resources: container.Resources{NanoCPUs: 1e9, CPUPeriod: 1000}}},
		{"cpus and quota", container.Config{}, container.HostConfig{Resources: container.Resources{NanoCPUs: 1e9, CPUQuota: 5000}}},
		{"swappiness", container.Config{}, container.HostConfig{Resources: container.Resources{MemorySwappiness: &swappiness}}},
		{"little reservation", container.Config{}, container.HostConfig{Resources: container.Resources{MemoryReservation: 1 << 20}}},
		{"reservation above memory", container.Config{}, container.HostConfig{Resources: container.Resources{Memory: 8 << 20, MemoryReservation: 9 << 20}}},
		{"blkio weight", container.Config{}, container.HostConfig{Resources: container.Resources{BlkioWeight: 5}}},
		{"period", container.Config{}, container.HostConfig{Resources: container.Resources{CPUPeriod: 5}}},
		{"quota", container.Config{}, container.HostConfig{Resources: container.Resources{CPUQuota: 5}}},
		{"oom score", container.Config{}, container.HostConfig{OomScoreAdj: 1001}},
		{"shm size", container.Config{}, container.HostConfig{ShmSize: -1}},
		{"auto remove and restart", container.Config{}, container.HostConfig{AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}}},
		{"unknown policy", container.Config{}, container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "sometimes"}}},
		{"count without on-failure", container.Config{}, container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always", MaximumRetryCount: 3}}},
		{"negative count", container.Config{}, container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: -3}}},
		{"ipc mode", container.Config{}, container.HostConfig{IpcMode: "x"}},
		{"pid mode", container.Config{}, container.HostConfig{PidMode: "x"}},
		{"uts mode", container.Config{}, container.HostConfig{UTSMode: "x"}},
		{"userns mode", container.Config{}, container.HostConfig{UsernsMode: "x"}},
		{"cgroupns mode", container.Config{}, container.HostConfig{CgroupnsMode: "x"}},
		{"runtime", container.Config{}, container.HostConfig{Runtime: "x"}},
		{"hostname in another's network", container.Config{Hostname: "h"}, container.HostConfig{NetworkMode: "container:x"}},
		{"security option", container.Config{}, container.HostConfig{SecurityOpt: []string{"nonsense"}}},
		{"security option with a value", container.Config{}, container.HostConfig{SecurityOpt: []string{"x=y"}}},
		{"systempaths", container.Config{}, container.HostConfig{SecurityOpt: []string{"systempaths:all"}}},
		{"writable-cgroups", container.Config{}, container.HostConfig{SecurityOpt: []string{"writable-cgroups=maybe"}}},
		{"writable-cgroups and privileged", container.Config{}, container.HostConfig{SecurityOpt: []string{"writable-cgroups=false"}, Privileged: true}},
		{"hostname of the host", container.Config{Hostname: "h"}, container.HostConfig{UTSMode: "host"}},
		{"nameless container", container.Config{}, container.HostConfig{NetworkMode: "container:"}},
		{"annotation", container.Config{}, container.HostConfig{Annotations: map[string]string{"": "x"}}},
		{"cap-add", container.Config{}, container.HostConfig{CapAdd: []string{"x"}}},
		{"cap-drop", container.Config{}, container.HostConfig{CapDrop: []string{"x"}}},
		{"tmpfs at the root", container.Config{}, container.HostConfig{Tmpfs: map[string]string{"/": ""}}},
		{"tmpfs option", container.Config{}, container.HostConfig{Tmpfs: map[string]string{"/x": "nonsense"}}},
		{"ulimit", container.Config{}, container.HostConfig{Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "wings"}}}}},
		{"no-new-privileges", container.Config{}, container.HostConfig{SecurityOpt: []string{"no-new-privileges=maybe"}}},
		{"log driver", container.Config{}, container.HostConfig{LogConfig: container.LogConfig{Type: "papyrus"}}},
		{"log option", container.Config{}, container.HostConfig{LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"x": "y"}}}},
	}
	s := testService()
	for _, c := range configs {
		_, err := creator{s}.validate(&c.cfg, &c.hc)
		say(c.name, err)
	}
	for _, bind := range []string{"", "/a:b", "/a:rw", "/", "/a:/b:nonsense", "/a:/b:ro,rw", "/a:/b:nocopy", "v1:/b:shared", "v1:b", "v1:/", "/a:/b:ro:x"} {
		_, err := parseBind(bind, "")
		say("bind "+bind, err)
	}
	for _, m := range []mount.Mount{
		{Type: mount.TypeBind},
		{Type: mount.TypeBind, Target: "x"},
		{Type: mount.TypeBind, Target: "/x"},
		{Type: mount.TypeBind, Target: "/x", Source: "y"},
		{Type: mount.TypeBind, Target: "/x", Source: "/no/such/dir"},
		{Type: mount.TypeTmpfs, Target: "/x", Source: "/y"},
		{Type: "odd", Target: "/x"},
		{Type: mount.TypeBind, Target: "/x", Source: "/", BindOptions: &mount.BindOptions{Propagation: "up"}},
		{Type: mount.TypeBind, Target: "/x", Source: "/", VolumeOptions: &mount.VolumeOptions{}},
		{Type: mount.TypeVolume, Target: "/"},
		{Type: mount.TypeVolume, Target: "/x", VolumeOptions: &mount.VolumeOptions{Subpath: "a"}},
		{Type: mount.TypeVolume, Target: "/x", Source: "v1", VolumeOptions: &mount.VolumeOptions{Subpath: "../a"}},
		{Type: mount.TypeVolume, Target: "/x", Source: "v2", VolumeOptions: &mount.VolumeOptions{Subpath: "/a"}},
		{Type: mount.TypeImage, Target: "/x"},
		{Type: mount.TypeTmpfs, Target: "/x", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"suid"}}}},
	} {
		_, err := fromMount(m)
		say(fmt.Sprintf("mount %s %s %s", m.Type, m.Source, m.Target), err)
	}
	for _, o := range []string{"size", "nonsense", "size=1m,bad=2"} {
		_, err := tmpfsOptions(o)
		say("tmpfs "+o, err)
	}
	for _, h := range []container.HostConfig{
		{Binds: []string{"/a:/x", "/b:/x"}}, {Binds: []string{"/a:/"}}, {Tmpfs: map[string]string{"rel": ""}}, {Binds: []string{"/a:/x/../y"}, Tmpfs: map[string]string{"/y": ""}},
	} {
		_, err := creator{s}.resolveMounts(&Record{HostConfig: &h})
		say(fmt.Sprintf("mounts %v %v", h.Binds, h.Tmpfs), err)
	}
	c := &Container{}
	c.rec.Store(&Record{ID: "0123", Name: "box"})
	say("no container", errNoContainer("box"))
	say("not running", errNotRunning(c))
	say("paused", errPaused(c))
	say("removing", errBusyRemoving(c))
	for _, name := range []string{"a", "-x", "x y", "ä", "a/b", "x\n"} {
		_, err := s.reserve(name, "1")
		say(fmt.Sprintf("name %q", name), err)
	}
	if _, err := s.reserve("taken", "1"); err != nil {
		t.Fatal(err)
	}
	_, err := s.reserve("/taken", "2")
	say("name taken", err)
	s.byID["abc1"], s.byID["abc2"] = c, c
	_, err = s.Get("abc")
	say("two of a prefix", err)
	_, err = s.Get("")
	say("no name", err)
	for _, f := range []keeper.Failure{
		{Kind: keeper.KindStart, Stage: "exec", Errno: int(unix.ENOENT), Msg: `exec: "x": executable file not found in $PATH`},
		{Kind: keeper.KindStart, Stage: "exec", Errno: int(unix.EACCES), Msg: `exec: "/x": permission denied`},
		{Kind: keeper.KindStart, Stage: "cwd", Errno: int(unix.ENOTDIR), Msg: "chdir to cwd"},
		{Kind: keeper.KindStart, Stage: "mount", Errno: int(unix.EINVAL), Msg: "mount failed"},
	} {
		for _, what := range []string{"run", "exec"} {
			f := startFailure(what, &f)
			fmt.Fprintf(&b, "%s, exit code %d\n  %s\n", what, f.code, f.msg)
		}
	}
	golden(t, "messages", b.String())
}

func TestValidateFillsDefaults(t *testing.T) {
	s := testService()
	hc := container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}
	if _, err := (creator{s}).validate(&container.Config{WorkingDir: "/a/../b/"}, &hc); err != nil {
		t.Fatal(err)
	}
	if hc.MemorySwap != 128<<20 || hc.ShmSize != 64<<20 || hc.IpcMode != "private" || hc.CgroupnsMode != "host" || hc.RestartPolicy.Name != "no" || hc.Runtime != "berth" ||
		hc.LogConfig.Type != "json-file" || len(hc.MaskedPaths) == 0 || len(hc.ReadonlyPaths) == 0 || hc.NetworkMode != "default" {
		t.Errorf("%+v", hc)
	}
	open := container.HostConfig{SecurityOpt: []string{"systempaths=unconfined"}}
	if _, err := (creator{s}).validate(&container.Config{}, &open); err != nil || len(open.MaskedPaths)+len(open.ReadonlyPaths) != 0 {
		t.Errorf("%v %v %v", open.MaskedPaths, open.ReadonlyPaths, err)
	}
}

// The whole table, each pair of phases.
func TestPhases(t *testing.T) {
	all := []Phase{Created, Running, Paused, Restarting, Exited, Removing, Dead}
	const table = `
           created running paused restarting exited removing dead
created      -       x      -       -         x       x      -
running      -       -      x       x         x       -      -
paused       -       x      -       x         x       -      -
restarting   -       x      -       -         x       x      -
exited       -       x      -       x         -       x      -
removing     -       -      -       -         -       -      x
dead         -       -      -       -         -       x      -`
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if !slices.Equal(strings.Fields(lines[0]), strings.Fields(strings.Trim(fmt.Sprint(all), "[]"))) {
		t.Fatal("the head of the table")
	}
	for i, line := range lines[1:] {
		f := strings.Fields(line)
		if f[0] != string(all[i]) {
			t.Fatalf("line %d is %s", i, f[0])
		}
		for j, mark := range f[1:] {
			if got := all[i].Can(all[j]); got != (mark == "x") {
				t.Errorf("%s to %s: %v", all[i], all[j], got)
			}
		}
	}
	if len(transitions) != len(all) {
		t.Errorf("%d phases in the table", len(transitions))
	}
	for _, p := range all {
		if p.Running() != (p == Running || p == Paused) {
			t.Errorf("%s", p)
		}
		if err := container.ValidateContainerState(p.api()); err != nil {
			t.Errorf("the API does not know %s", p)
		}
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]unix.Signal{
		"9": 9, "KILL": 9, "SIGKILL": 9, "sigkill": 9, "kill": 9, "TERM": 15, "1": 1, "64": 64, "SIGRTMIN": 34, "RTMIN+1": 35, "SIGRTMIN+15": 49, "RTMAX": 64, "SIGRTMAX-14": 50, "WINCH": 28,
	} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "65", "SIG", "SIGNONE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "9 ", "SIGSIGKILL", "RTMIN+x"} {
		if got, err := parseSignal(in); err == nil || err.Error() != "invalid signal: "+in || !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %d %v", in, got, err)
		}
	}
	if stopSignal(&container.Config{}) != unix.SIGTERM || stopSignal(&container.Config{StopSignal: "INT"}) != unix.SIGINT {
		t.Error("stop signal")
	}
}

func TestParsePs(t *testing.T) {
	titles := func(in string) string {
		cols, err := parsePs(in)
		if err != nil {
			return "! " + err.Error()
		}
		var out []string
		for _, c := range cols {
			out = append(out, c.title)
		}
		return strings.Join(out, " ")
	}
	for in, want := range map[string]string{
		"-ef":                         "UID PID PPID C STIME TTY TIME CMD",
		"":                            "PID TTY TIME CMD",
		"aux":                         "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"-aux":                        "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"-o pid,cmd":                  "PID CMD",
		"-opid,comm":                  "PID COMMAND",
		"-eo pid,user,pcpu":           "PID USER %CPU",
		"--format pid,args":           "PID COMMAND",
		"--format=pid":                "PID",
		"-o pid=Number -o comm":       "Number COMMAND",
		"-el":                         "F S UID PID PPID C PRI NI SZ WCHAN TTY TIME CMD",
		"ax":                          "PID TTY STAT TIME COMMAND",
		"-o pid -o ppid --no-headers": "PID PPID",
		"-o ppid":                     "! Couldn't find PID field in ps output",
		"-o pid,nonsense":             `! ps: unknown user-defined format specifier "nonsense"`,
		"-q":                          `! ps: unsupported option "-q"`,
	} {
		if got := titles(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for name, alias := range psAliases {
		if _, ok := psColumns[alias]; !ok {
			t.Errorf("%s stands for %s, which is no column", name, alias)
		}
	}
	for style, cols := range psStyles {
		for _, c := range cols {
			if _, ok := psColumns[c]; !ok {
				t.Errorf("style %q: %s is no column", style, c)
			}
		}
	}
}

func FuzzParsePs(f *testing.F) {
	for _, s := range []string{"aux", "-ef", "-o pid=x,comm", "--format", "-o", "-O"} {
		f.Add(s)
	}
	env := &psEnv{now: time.Now(), names: map[uint32]string{}}
	f.Fuzz(func(t *testing.T, s string) {
		cols, err := parsePs(s)
		if err != nil {
			return
		}
		for _, c := range cols {
			_ = c.text(&proc{}, env)
		}
	})
}

func TestTimes(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "00:00", 59 * time.Second: "00:59", time.Hour: "01:00:00", 25*time.Hour + 61*time.Second: "1-01:01:01"} {
		if got := elapsed(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for dev, want := range map[int]string{0: "?", 136 << 8: "pts/0", 136<<8 | 5: "pts/5", 4<<8 | 1: "tty1", 4<<8 | 64: "ttyS0", 1<<8 | 3: "?"} {
		if got := ttyName(dev); got != want {
			t.Errorf("%#x: %s, want %s", dev, got, want)
		}
	}
}

func TestListFilters(t *testing.T) {
	r := &Record{
		ID: "0123456789ab", Name: "web", Config: &container.Config{Labels: map[string]string{"a": "1", "b": ""}, ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}},
		HostConfig: &container.HostConfig{NetworkMode: "host"}, Mounts: []Mount{{MountPoint: container.MountPoint{Source: "/srv", Destination: "/data"}}},
	}
	st := &Status{Phase: Running}
	for in, want := range map[string]bool{
		``: true, `{"name":["web"]}`: true, `{"name":["we"]}`: true, `{"name":["^/web$"]}`: true, `{"name":["x"]}`: false, `{"name":["^eb"]}`: false,
		`{"id":["0123"]}`: true, `{"id":["123"]}`: false, `{"status":["running"]}`: true, `{"status":["exited","running"]}`: true, `{"status":["exited"]}`: false,
		`{"label":["a"]}`: true, `{"label":["a=1"]}`: true, `{"label":["a=2"]}`: false, `{"label":["a","c"]}`: false, `{"label":["b="]}`: true,
		`{"volume":["/srv"]}`: true, `{"volume":["/data"]}`: true, `{"volume":["/x"]}`: false,
		`{"expose":["80/tcp"]}`: true, `{"expose":["80"]}`: true, `{"expose":["81"]}`: false, `{"is-task":["true"]}`: false, `{"is-task":["false"]}`: true,
		`{"expose":["79-81"]}`: true, `{"expose":["80/udp"]}`: false, `{"expose":["90/udp"]}`: true, `{"expose":["81"],"publish":["1090/udp"]}`: true,
		`{"publish":["1090/udp"]}`: true, `{"publish":["1000-1090/udp"]}`: true, `{"publish":["1090"]}`: false, `{"publish":["80","90/udp"]}`: false,
		`{"name":["["]}`: false, `{"status":{"running":true}}`: true,
	} {
		f, err := filter.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		ports, err := portsOf(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := matches(f, r, st) && ports.matches(r, []container.PortSummary{{PrivatePort: 90, PublicPort: 1090, Type: "udp"}}); got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	for in, want := range map[string]string{
		`{"publish":["1:2"]}`: "filter for 'publish' should not contain ':': 1:2", `{"expose":["x"]}`: "error while looking up for expose x: ",
	} {
		f, err := filter.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := portsOf(f); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestListRefuses(t *testing.T) {
	s := testService()
	for in, want := range map[string]string{
		`{"nonsense":["x"]}`: "invalid filter 'nonsense'", `{"status":["flying"]}`: "invalid filter 'status=flying'", `{"health":["ill"]}`: "invalid filter 'health=ill'",
		`{"exited":["x"]}`: `strconv.Atoi: parsing "x": invalid syntax`, `{"before":["none"]}`: "No such container: none", `{"since":["none"]}`: "No such container: none",
	} {
		f, err := filter.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (Views{s}).List(t.Context(), ListOptions{Filters: f}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}

func TestStatusText(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for want, st := range map[string]Status{
		"Created": {Phase: Created}, "Up 2 hours": {Phase: Running, StartedAt: ago(2*time.Hour + time.Minute)}, "Up 5 minutes (Paused)": {Phase: Paused, StartedAt: ago(5*time.Minute + time.Second)},
		"Exited (3) 10 seconds ago": {Phase: Exited, ExitCode: 3, FinishedAt: ago(10*time.Second + 300*time.Millisecond)}, "Restarting (1) 3 days ago": {Phase: Restarting, ExitCode: 1, FinishedAt: ago(73 * time.Hour)},
		"Dead": {Phase: Dead}, "Removal In Progress": {Phase: Removing},
	} {
		if got := statusText(&st); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCommandText(t *testing.T) {
	for want, r := range map[string]Record{"sh": {Path: "sh"}, "sh -c 'a b'": {Path: "sh", Args: []string{"-c", "a b"}}, "x 1 2": {Path: "x", Args: []string{"1", "2"}}} {
		if got := command(&r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestNames(t *testing.T) {
	rule := regexp.MustCompile(`^[a-z]+_[a-z_]+[0-9]*$`)
	s := testService()
	for i := range 3000 {
		name, err := s.reserve("", ID(fmt.Sprint(i)))
		if err != nil || !rule.MatchString(name) || !nameRule.MatchString(name) {
			t.Fatalf("%q %v", name, err)
		}
	}
	if len(s.names) != 3000 {
		t.Errorf("%d names", len(s.names))
	}
	for _, list := range [][]string{manners, people} {
		sorted := slices.Clone(list)
		slices.Sort(sorted)
		if len(slices.Compact(sorted)) != len(list) {
			t.Error("a word stands twice")
		}
	}
	if _, err := s.reserve("/slash", "x"); err != nil || s.names["slash"] != "x" {
		t.Errorf("%v", err)
	}
	s.release("slash", "other")
	if s.names["slash"] != "x" {
		t.Error("another's name was given back")
	}
	s.release("slash", "x")
	if _, taken := s.names["slash"]; taken {
		t.Error("the name was not given back")
	}
	for range 200 {
		if id := newID(); len(id) != 64 || strings.Trim(string(id.Short()), "0123456789") == "" {
			t.Fatalf("%s", id)
		}
	}
	if ID("abc").Short() != "abc" {
		t.Error("a short id")
	}
}

func TestMergeImage(t *testing.T) {
	img := &image.Image{}
	img.Config.Config = dockerspec.DockerOCIImageConfig{
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Healthcheck: &dockerspec.HealthcheckConfig{Test: []string{"CMD", "x"}, Retries: 3}, Shell: []string{"/bin/bash"}},
	}
	ic := &img.Config.Config
	ic.User, ic.Env, ic.Entrypoint, ic.Cmd, ic.WorkingDir, ic.StopSignal = "app", []string{"A=1", "B=2"}, []string{"/entry"}, []string{"cmd"}, "/w", "INT"
	ic.Labels, ic.ExposedPorts, ic.Volumes = map[string]string{"l": "1", "m": "2"}, map[string]struct{}{"80/tcp": {}}, map[string]struct{}{"/v": {}}
	argv := func(c container.Config) string {
		merge(&c, img)
		return strings.Join(slices.Concat(c.Entrypoint, c.Cmd), " ")
	}
	for want, c := range map[string]container.Config{
		"/entry cmd": {}, "/entry mine": {Cmd: []string{"mine"}}, "own": {Entrypoint: []string{"own"}}, "own arg": {Entrypoint: []string{"own"}, Cmd: []string{"arg"}},
		"": {Entrypoint: []string{""}}, "only": {Entrypoint: []string{""}, Cmd: []string{"only"}},
	} {
		if got := argv(c); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
	c := container.Config{Env: []string{"B=9"}, Labels: map[string]string{"l": "own"}, User: "me", Healthcheck: &container.HealthConfig{Interval: time.Minute}}
	merge(&c, img)
	if c.User != "me" || !slices.Equal(c.Env, []string{"B=9", "A=1"}) || c.Labels["l"] != "own" || c.Labels["m"] != "2" || c.WorkingDir != "/w" || c.StopSignal != "INT" ||
		c.Healthcheck.Retries != 3 || c.Healthcheck.Interval != time.Minute || len(c.ExposedPorts) != 1 || len(c.Volumes) != 1 || c.Shell[0] != "/bin/bash" {
		t.Errorf("%+v", c)
	}
	if ic.Healthcheck.Interval != 0 || len(ic.Labels) != 2 {
		t.Error("the image was changed")
	}
}

func TestStartFailureIsTyped(t *testing.T) {
	if f := startFailure("run", errors.New("other")); f != nil {
		t.Errorf("%+v", f)
	}
	if f := startFailure("run", fmt.Errorf("x: %w", &keeper.Failure{Kind: keeper.KindState, Msg: "x"})); f != nil {
		t.Errorf("%+v", f)
	}
	for errno, code := range map[unix.Errno]int{unix.ENOENT: 127, unix.ENOTDIR: 127, unix.EACCES: 126, unix.EPERM: 126, unix.EISDIR: 126, unix.ENOEXEC: 126, unix.ELOOP: 126, unix.E2BIG: 128, unix.ENOMEM: 128} {
		f := startFailure("run", &keeper.Failure{Kind: keeper.KindStart, Stage: "exec", Errno: int(errno), Msg: "m"})
		if f == nil || f.code != code {
			t.Errorf("%v: %+v", errno, f)
		}
	}
	if f := startFailure("run", &keeper.Failure{Kind: keeper.KindStart, Stage: "mount", Errno: int(unix.ENOENT), Msg: "m"}); f.code != 128 || !strings.Contains(f.msg, "error during container init: m") {
		t.Errorf("%+v", f)
	}
}
