package runtime

import (
	goruntime "runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func archName() string { return goruntime.GOARCH }

func TestParseOptions(t *testing.T) {
	const rec = unix.MS_REC
	cases := []struct {
		opts []string
		want parsed
	}{
		{nil, parsed{}},
		{[]string{"ro", "nosuid"}, parsed{flags: unix.MS_RDONLY | unix.MS_NOSUID, set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}},
		{[]string{"ro", "rw"}, parsed{clr: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"rw", "ro"}, parsed{flags: unix.MS_RDONLY, set: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"noexec", "exec", "nodev", "dev", "suid"}, parsed{clr: unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}},
		{[]string{"rbind"}, parsed{flags: unix.MS_BIND | rec, recursive: true}},
		{[]string{"bind"}, parsed{flags: unix.MS_BIND}},
		{[]string{"rro"}, parsed{rset: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"rrw"}, parsed{rclr: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"rnosuid", "rnodev", "rnoexec"}, parsed{rset: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}},
		{[]string{"rslave", "private"}, parsed{prop: []uintptr{unix.MS_SLAVE | rec, unix.MS_PRIVATE}}},
		{[]string{"runbindable", "shared"}, parsed{prop: []uintptr{unix.MS_UNBINDABLE | rec, unix.MS_SHARED}}},
		{[]string{"size=64m", "mode=1777", "ro"}, parsed{flags: unix.MS_RDONLY, set: unix.MOUNT_ATTR_RDONLY, data: []string{"size=64m", "mode=1777"}}},
		{[]string{"tmpcopyup"}, parsed{copyUp: true}},
		{[]string{"defaults"}, parsed{}},
	}
	for _, c := range cases {
		got := parseOptions(c.opts)
		if got.flags != c.want.flags || got.set != c.want.set || got.clr != c.want.clr || got.rset != c.want.rset || got.rclr != c.want.rclr ||
			got.recursive != c.want.recursive || got.copyUp != c.want.copyUp || !slices.Equal(got.data, c.want.data) || !slices.Equal(got.prop, c.want.prop) {
			t.Errorf("%v: %+v, want %+v", c.opts, got, c.want)
		}
	}
	// What no table holds goes to the file system; nothing is lost or doubled.
	for word := range mountOptions {
		if p := parseOptions([]string{word}); len(p.data) != 0 {
			t.Errorf("%s is known and handed on as data", word)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		p, dir string
		want   bool
	}{
		{"/proc", "/proc", true},
		{"/proc/", "/proc", true},
		{"/proc/x", "/proc", true},
		{"/procx", "/proc", false},
		{"/proc/../etc", "/proc", false},
		{"/x/../proc", "/proc", true},
		{"/a", "/", true},
		{"/", "/", true},
		{"/a/b", "/a/", true},
	} {
		if got := within(c.p, c.dir); got != c.want {
			t.Errorf("%s within %s: %v", c.p, c.dir, got)
		}
	}
}

func TestCapabilities(t *testing.T) {
	m, err := capMask([]string{"CAP_CHOWN", "cap_kill", "CAP_CHECKPOINT_RESTORE"})
	if err != nil || m != 1<<unix.CAP_CHOWN|1<<unix.CAP_KILL|1<<unix.CAP_CHECKPOINT_RESTORE {
		t.Errorf("%#x, %v", m, err)
	}
	for _, bad := range []string{"CHOWN", "CAP_X", ""} {
		if _, err := capMask([]string{bad}); err == nil {
			t.Errorf("%q is a capability", bad)
		}
	}
	if len(capNames) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names, the headers know %d", len(capNames), unix.CAP_LAST_CAP+1)
	}
	for i, n := range map[int]string{unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SETFCAP: "CAP_SETFCAP", unix.CAP_AUDIT_READ: "CAP_AUDIT_READ", unix.CAP_BPF: "CAP_BPF"} {
		if capNames[i] != n {
			t.Errorf("%d is %s", i, capNames[i])
		}
	}
	if got := len((&Host{LastCap: 100, Caps: ^uint64(0)}).Capabilities()); got != len(capNames) {
		t.Errorf("a newer kernel: %d names", got)
	}
	if got := (&Host{LastCap: 40, Caps: 1 << unix.CAP_KILL}).Capabilities(); !slices.Equal(got, []string{"CAP_KILL"}) {
		t.Errorf("of what this process may give: %v", got)
	}
	if got := len((&Host{LastCap: 5, Caps: ^uint64(0)}).Capabilities()); got != 6 {
		t.Errorf("an older kernel: %d names", got)
	}
}

func TestIsKernelPath(t *testing.T) {
	for p, want := range map[string]bool{"/proc": true, "/dev/shm": true, "/sys/fs/cgroup": true, "/device": false, "/": false, "/a/proc": false, "/x/../dev": true} {
		if isKernelPath(p) != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
}
