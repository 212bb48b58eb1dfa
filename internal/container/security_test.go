package container

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/idmap"
	"berth.dev/berth/internal/runtime"
)

func TestParseSecurity(t *testing.T) {
	yes, no := true, false
	same := func(a, b *bool) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	for _, c := range []struct {
		opts []string
		want security
	}{
		{nil, security{}},
		{[]string{"seccomp=unconfined"}, security{seccomp: "unconfined"}},
		{[]string{"seccomp:unconfined"}, security{seccomp: "unconfined"}},
		{[]string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`}, security{seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`}},
		{[]string{"no-new-privileges"}, security{noNewPrivileges: &yes}},
		{[]string{"no-new-privileges:true"}, security{noNewPrivileges: &yes}},
		{[]string{"no-new-privileges=0"}, security{noNewPrivileges: &no}},
		{[]string{"no-new-privileges", "no-new-privileges=false"}, security{noNewPrivileges: &no}},
		{[]string{"writable-cgroups"}, security{writableCgroups: &yes}},
		{[]string{"writable-cgroups=false"}, security{writableCgroups: &no}},
		{[]string{"systempaths=unconfined"}, security{unmasked: true}},
		{[]string{"label=disable", "label:user:x", "apparmor=unconfined", "apparmor:docker-default", "disable"}, security{}},
	} {
		got, err := parseSecurity(c.opts)
		if err != nil || got.seccomp != c.want.seccomp || got.unmasked != c.want.unmasked ||
			!same(got.noNewPrivileges, c.want.noNewPrivileges) || !same(got.writableCgroups, c.want.writableCgroups) {
			t.Errorf("%q: %+v %v", c.opts, got, err)
		}
	}
	for opt, want := range map[string]string{
		"nonsense":           `invalid --security-opt 1: "nonsense"`,
		"x=y":                `invalid --security-opt 2: "x=y"`,
		"no-new-privileges=": `invalid --security-opt 2: "no-new-privileges="`,
	} {
		if _, err := parseSecurity([]string{opt}); err == nil || err.Error() != want {
			t.Errorf("%s: %v", opt, err)
		}
	}
}

func TestCheckSysctls(t *testing.T) {
	host := container.HostConfig{NetworkMode: "host", IpcMode: "host", UTSMode: "host"}
	refused := func(why string) string { return createText(why) }
	for _, c := range []struct {
		name string
		hc   container.HostConfig
		want string
	}{
		{"net.ipv4.ip_forward", container.HostConfig{}, ""},
		{"net/ipv4/conf/eth0.1/forwarding", container.HostConfig{}, ""},
		{"kernel.shmmax", container.HostConfig{}, ""},
		{"kernel/sem", container.HostConfig{}, ""},
		{"fs.mqueue.msg_max", container.HostConfig{}, ""},
		{"kernel.domainname", container.HostConfig{}, ""},
		{"net.ipv4.ip_forward", host, refused(`sysctl "net.ipv4.ip_forward" not allowed in host network namespace`)},
		{"net/ipv4/ip_forward", host, refused(`sysctl "net/ipv4/ip_forward" not allowed in host network namespace`)},
		{"kernel.shmmax", host, refused(`sysctl "kernel.shmmax" is not allowed in the hosts ipc namespace`)},
		{"fs.mqueue.msg_max", host, refused(`sysctl "fs.mqueue.msg_max" is not allowed in the hosts ipc namespace`)},
		{"kernel.domainname", host, refused(`sysctl "kernel.domainname" is not in a separate kernel namespace`)},
		{"kernel.hostname", container.HostConfig{}, refused(`sysctl "kernel.hostname" is not allowed as it conflicts with the OCI "hostname" field`)},
		{"vm.swappiness", container.HostConfig{}, refused(`sysctl "vm.swappiness" is not in a separate kernel namespace`)},
		{"fs.file-max", container.HostConfig{}, refused(`sysctl "fs.file-max" is not in a separate kernel namespace`)},
		{"user.max_user_namespaces", container.HostConfig{}, refused(`sysctl "user.max_user_namespaces" is not in a separate kernel namespace`)},
		{"kernel/../vm/swappiness", container.HostConfig{}, refused(`sysctl "kernel/../vm/swappiness" is not in a separate kernel namespace`)},
		{"net.//.vm.swappiness", container.HostConfig{}, refused(`sysctl "net.//.vm.swappiness" is not in a separate kernel namespace`)},
		{"net/./../vm/swappiness", container.HostConfig{}, refused(`sysctl "net/./../vm/swappiness" is not in a separate kernel namespace`)},
		{"net/../vm/swappiness", container.HostConfig{}, refused(`sysctl "net/../vm/swappiness" is not in a separate kernel namespace`)},
	} {
		c.hc.Sysctls = map[string]string{c.name: "1"}
		err := checkSysctls(&c.hc, false)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What a container may see and do by default is Docker's: the lists are
// those of moby, written here once more.
func TestDockerDefaults(t *testing.T) {
	caps := []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
		"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	if got := slices.Sorted(slices.Values(defaultCaps)); !slices.Equal(got, caps) {
		t.Errorf("capabilities: %v", got)
	}
	masked := []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	if got := defaultMasked(); !slices.Equal(got, masked) {
		t.Errorf("masked: %v", got)
	}
	readonly := []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	if got := defaultReadonly(); !slices.Equal(got, readonly) {
		t.Errorf("read-only: %v", got)
	}
}

// The built-in filter is compiled from moby's own profile, rules and all: for
// the default capabilities it must be what that profile's text gives.
func TestSeccompIsDockers(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps}}}
	raw, err := json.Marshal(seccomp.DefaultProfile())
	if err != nil {
		t.Fatal(err)
	}
	var f filters
	r := &Record{HostConfig: &container.HostConfig{}}
	builtin, err := f.of(r, spec, "")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := seccomp.LoadProfile(string(raw), spec)
	if err != nil {
		t.Fatal(err)
	}
	code, flags, err := runtime.CompileSeccomp(rules)
	if err != nil || flags != builtin.Flags || !slices.Equal(code, builtin.Code) {
		t.Errorf("the built-in filter differs from moby's profile: %v", err)
	}
	for _, how := range []string{"seccomp=builtin", "seccomp:builtin"} {
		r.HostConfig.SecurityOpt = []string{how}
		if again, err := f.of(r, spec, "unconfined"); err != nil || again != builtin {
			t.Errorf("%s: another filter: %v", how, err)
		}
	}
	for opt, want := range map[string]string{
		"seccomp=not json":                        "decoding seccomp profile failed: ",
		`seccomp={"defaultAction":"SCMP_ACT_NO"}`: createText("string SCMP_ACT_NO is not a valid action for seccomp"),
	} {
		r.HostConfig.SecurityOpt = []string{opt}
		if _, err := f.of(r, spec, ""); err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%s: %v", opt, err)
		}
	}
}

func TestUserNamespaceRefusals(t *testing.T) {
	s := testService()
	s.userns = &userns{ids: &idmap.Mapping{UID: idmap.Map{{Outside: 100000, Size: 65536}}, GID: idmap.Map{{Outside: 200000, Size: 65536}}}}
	for _, c := range []struct {
		hc   container.HostConfig
		want string
	}{
		{container.HostConfig{}, ""},
		{container.HostConfig{Privileged: true, UsernsMode: "host"}, ""},
		{container.HostConfig{Privileged: true}, "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode"},
		{container.HostConfig{NetworkMode: "host"}, "cannot share the host's network namespace when user namespaces are enabled"},
		{container.HostConfig{PidMode: "host"}, "cannot share the host PID namespace when user namespaces are enabled"},
		{container.HostConfig{SecurityOpt: []string{"writable-cgroups"}}, "option 'writable-cgroups' conflicts with user namespaces"},
	} {
		_, err := creator{s}.validate(&container.Config{}, &c.hc)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%+v: %v", c.hc.UsernsMode, err)
		}
	}
	ids, err := s.userns.hostIDs(specs.User{UID: 1000, GID: 7})
	if err != nil || ids.UID != 101000 || ids.GID != 200007 || ids.Owner != (runtime.Owner{UID: 100000, GID: 200000, TTY: 200005}) {
		t.Errorf("%+v %v", ids, err)
	}
	if _, err := s.userns.hostIDs(specs.User{UID: 65536}); err == nil {
		t.Error("a user without a mapping is accepted")
	}
	if o, err := s.userns.toHost(archive.Owner{UID: 5, GID: 6}); err != nil || o != (archive.Owner{UID: 100005, GID: 200006}) {
		t.Error(o, err)
	}
	if o := s.userns.toContainer(archive.Owner{UID: 100005, GID: 0}); o != (archive.Owner{UID: 5, GID: idmap.Overflow}) {
		t.Error(o)
	}
}
