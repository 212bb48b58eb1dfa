package runtime

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

var update = flag.Bool("update", false, "write testdata/*.golden anew")

// testHost is a machine that never changes: cgroup v1 with three hierarchies.
func testHost() *Host {
	h := &Host{
		LastCap: 40, Caps: 1<<41 - 1, IgnoredSignals: []int{13}, kinds: map[string]pathKind{},
		Hierarchies: []Hierarchy{
			{Name: "cpu,cpuacct", Path: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}, Options: "cpu,cpuacct", Aliases: []string{"cpu", "cpuacct"}},
			{Name: "memory", Path: "/sys/fs/cgroup/memory", Controllers: []string{"memory"}, Options: "memory"},
			{Name: "unified", Path: "/sys/fs/cgroup/unified", Unified: true},
		},
	}
	for _, p := range append(DefaultMaskedPaths(), DefaultReadonlyPaths()...) {
		h.kinds[p] = kindDir
	}
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sysrq-trigger"} {
		h.kinds[p] = kindFile
	}
	h.kinds["/proc/sched_debug"] = kindMissing
	return h
}

// testSpec is what `docker run -t IMAGE sh` comes to.
func testSpec() *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"}
	adj := 0
	return &specs.Spec{
		Root: &specs.Root{Path: "rootfs"}, Hostname: "0123456789ab",
		Process: &specs.Process{
			Args: []string{"sh", "-c", "exit"}, Env: []string{"PATH=/bin:/usr/bin", "HOME=/root"}, Cwd: "/work", OOMScoreAdj: &adj,
			User:         specs.User{AdditionalGids: []uint32{0, 10}},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/var/lib/hosts", Options: []string{"rbind", "rprivate"}},
			{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "rslave", "ro"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "size=1m"}},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}},
			Sysctl:      map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "99"},
			MaskedPaths: DefaultMaskedPaths(), ReadonlyPaths: DefaultReadonlyPaths(),
		},
	}
}

func testLaunch(s *specs.Spec) *Launch {
	return &Launch{
		Spec: s, Stdio: [3]int{0, 1, 2}, RootFD: 50, MountFD: map[int]int{7: 60}, NSFD: map[specs.LinuxNamespaceType]int{specs.NetworkNamespace: 61},
		Dev: &DevTree{Root: 51, Pts: 52, Shm: 53, Null: 54}, Seccomp: make([]byte, 24), CgroupV2: 62,
		CgroupV1: []string{"/sys/fs/cgroup/cpu,cpuacct/berth/x", "/sys/fs/cgroup/memory/berth/x"},
		Base:     "/mnt", Empty: "/empty", StartFD: -1, Join: -1, CgroupView: -1, lastCap: 40, caps: 1<<41 - 1, kernelDirs: true,
		targets: map[int]targetKind{7: targetThere, 8: targetMissing},
	}
}

func TestPlanGolden(t *testing.T) {
	cases := map[string]func(l *Launch, h *Host){
		"default": func(*Launch, *Host) {},
		"privileged": func(l *Launch, _ *Host) {
			s := l.Spec
			all := capNames
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, l.Seccomp = nil, nil, nil
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		},
		"user-init-tty": func(l *Launch, _ *Host) {
			p := l.Spec.Process
			p.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{100}}
			p.Capabilities.Effective, p.Capabilities.Permitted = nil, nil
			p.Terminal, p.NoNewPrivileges, l.Init, l.ConsolePath = true, true, true, "/dev/pts/0"
			l.Spec.Root.Readonly = true
			l.PrivateMounts, l.StartFD, l.LateFD = true, 70, 71
		},
		"cgroup-view": func(l *Launch, _ *Host) { l.CgroupView = 63 },
		"cgroup-v2": func(l *Launch, h *Host) {
			h.CgroupV2, h.Hierarchies, l.CgroupV1 = true, []Hierarchy{{Name: "cgroup", Path: "/sys/fs/cgroup", Unified: true}}, nil
			l.Spec.Linux.Namespaces = append(l.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
			l.Spec.Process.Args[0] = "/bin/sh"
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			h, l := testHost(), testLaunch(testSpec())
			change(l, h)
			p, err := newPlan(l, h)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, "plan-"+name, dump(p))
		})
	}
}

func compare(t *testing.T, name, got string) {
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
	if string(want) == got {
		return
	}
	a, b := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range max(len(a), len(b)) {
		x, y := "", ""
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			t.Fatalf("%s, line %d:\n  is   %s\n  want %s\nReview the change, then write it with: go test ./internal/runtime -run Golden -update", file, i+1, y, x)
		}
	}
}

// dump prints a plan, one operation a line. Numbers of system calls and
// addresses are shown as what they mean, so the text is the same everywhere.
func dump(p *plan) string {
	text := func(addr uint64) string {
		s, _, _ := strings.Cut(string(p.data[addr-initprog.TableAddr-dataOffset:]), "\x00")
		return fmt.Sprintf("%q", s)
	}
	calls := map[uintptr]string{initprog.OpReap: "REAP"}
	for n, nr := range syscallNumbers()[nativeColumn()] {
		calls[uintptr(nr)] = n
	}
	fed := map[string]int{} // "op.arg" → where it comes from
	for i, o := range p.ops {
		if o.store != 0 && o.store < initprog.TableAddr+dataOffset {
			off := o.store - initprog.TableAddr - initprog.HeaderSize
			fed[fmt.Sprint(off/initprog.OpSize, ".", off%initprog.OpSize/8-1)] = i
		}
	}
	mem := func(addr uint64, n int) string {
		off := int(addr - initprog.TableAddr - dataOffset)
		return fmt.Sprintf("<%x>", p.data[off:off+n])
	}
	vector := func(addr uint64) string {
		off := int(addr - initprog.TableAddr - dataOffset)
		var out []string
		for ; binary.LittleEndian.Uint64(p.data[off:]) != 0; off += 8 {
			out = append(out, text(binary.LittleEndian.Uint64(p.data[off:])))
		}
		return "[" + strings.Join(out, " ") + "]"
	}
	var b strings.Builder
	stage := Stage("")
	for i, o := range p.ops {
		if o.stage != stage {
			stage = o.stage
			fmt.Fprintf(&b, "%s\n", stage)
		}
		last := 5
		for last > 0 && o.args[last] == 0 {
			last--
		}
		var args []string
		for j := 0; j <= last || hasFeed(fed, i, j); j++ {
			if j > 5 {
				break
			}
			v := o.args[j]
			arg := fmt.Sprintf("%#x", v)
			if v < 10 {
				arg = fmt.Sprint(v)
			}
			if from, ok := fed[fmt.Sprint(i, ".", j)]; ok {
				arg = fmt.Sprintf("result of %d", from)
			} else if v == atFDCWD {
				arg = "cwd"
			} else if v >= initprog.TableAddr+dataOffset && v <= initprog.TableAddr+dataOffset+uint64(len(p.data)) {
				name := calls[o.nr]
				switch {
				case name == "openat2" && j == 2:
					arg = mem(v, 24)
				case name == "execve" && j > 0:
					arg = vector(v)
				case name == "mount_setattr" && j == 3:
					arg = mem(v, 32)
				case name == "prlimit64":
					arg = mem(v, 16)
				case name == "capset":
					arg = mem(v, []int{8, 24}[j])
				case name == "setgroups":
					arg = mem(v, 4*int(o.args[0]))
				case name == "rt_sigprocmask":
					arg = mem(v, 8)
				case name == "seccomp":
					arg = fmt.Sprintf("filter of %d", binary.LittleEndian.Uint64(p.data[v-initprog.TableAddr-dataOffset:]))
				case name == "REAP" || name == "ioctl" || name == "read" || name == "rt_sigaction":
					arg = "buffer"
				case name == "write" && o.path == "ready":
					at := binary.LittleEndian.Uint64(p.data[v-initprog.TableAddr-dataOffset:])
					arg = fmt.Sprintf("report of %d", (at-initprog.TableAddr-initprog.HeaderSize)/initprog.OpSize)
				default:
					arg = text(v)
				}
			}
			args = append(args, arg)
		}
		fmt.Fprintf(&b, "%4d  %s(%s)", i, calls[o.nr], strings.Join(args, ", "))
		if o.flags&initprog.FlagIgnore != 0 {
			b.WriteString(" ignore")
		}
		if o.flags&initprog.FlagContinue != 0 {
			b.WriteString(" continue")
		}
		if o.allow != 0 {
			fmt.Fprintf(&b, " allow %s", unix.ErrnoName(o.allow))
		}
		if o.skipOK != 0 {
			fmt.Fprintf(&b, " skipOK %d", o.skipOK)
		}
		if o.skipErr != 0 {
			fmt.Fprintf(&b, " skipErr %d", o.skipErr)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "descriptors %v\n", p.extra)
	return b.String()
}

func hasFeed(fed map[string]int, i, from int) bool {
	for j := from; j < 6; j++ {
		if _, ok := fed[fmt.Sprint(i, ".", j)]; ok {
			return true
		}
	}
	return false
}

func nativeColumn() int {
	return filterArches[nativeArch[archName()]].column
}

func TestPlanInvariants(t *testing.T) {
	h, l := testHost(), testLaunch(testSpec())
	p, err := newPlan(l, h)
	if err != nil {
		t.Fatal(err)
	}
	find := func(nr uintptr, from int) int {
		for i := from; i < len(p.ops); i++ {
			if p.ops[i].nr == nr {
				return i
			}
		}
		return -1
	}
	pivot, chdir := find(unix.SYS_PIVOT_ROOT, 0), find(unix.SYS_UMOUNT2, 0)
	clo := find(unix.SYS_CLOSE_RANGE, chdir)
	seccomp, capset, setuid, exec := find(unix.SYS_SECCOMP, 0), find(unix.SYS_CAPSET, 0), find(unix.SYS_SETRESUID, 0), find(unix.SYS_EXECVE, 0)
	groups := find(unix.SYS_SETGROUPS, 0)
	order := []int{pivot, chdir, clo, seccomp, groups, setuid, capset, exec}
	if !slices.IsSorted(order) || order[0] < 0 {
		t.Errorf("pivot, leaving the old root, closing, seccomp, groups, user, capabilities, execve: %v is not the order", order)
	}
	// The working directory is entered when nothing from outside can be reached.
	if cwd := find(unix.SYS_FCHDIR, capset-60); slices.IndexFunc(p.ops[:clo], func(o op) bool { return o.stage == StageCwd && o.nr != unix.SYS_MKDIRAT && o.nr != unix.SYS_OPENAT2 }) >= 0 {
		t.Errorf("the working directory is entered at %d, descriptors are closed at %d", cwd, clo)
	}
	last := p.ops[len(p.ops)-1]
	if last.nr != unix.SYS_EXIT_GROUP {
		t.Errorf("the table ends in %d", last.nr)
	}
	for i, o := range p.ops {
		if n := i + 1 + int(max(o.skipOK, o.skipErr)); n >= len(p.ops) && i != len(p.ops)-1 {
			t.Errorf("operation %d skips over the end", i)
		}
	}
	if _, _, err := p.encode(); err != nil {
		t.Error(err)
	}
}

func TestPlanRefuses(t *testing.T) {
	cases := []struct {
		name   string
		change func(*specs.Spec)
		stage  Stage
	}{
		{"no command", func(s *specs.Spec) { s.Process.Args = nil }, StageExec},
		{"bind on /proc", func(s *specs.Spec) { s.Mounts[0].Type = "bind" }, StageMount},
		{"bind below /proc", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/self/attr", Type: "bind", Source: "/tmp"})
		}, StageMount},
		{"tmpfs below /proc by way of ..", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x/../proc/sys", Type: "tmpfs"})
		}, StageMount},
		{"unknown capability", func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_NONSENSE"} }, StageCapability},
		{"unknown rlimit", func(s *specs.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_FUN" }, StageRlimit},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := testSpec()
			c.change(s)
			_, err := newPlan(testLaunch(s), testHost())
			e, ok := err.(*StartError) //nolint:errorlint // as it is returned
			if !ok || e.Stage != c.stage || e.Errno == 0 {
				t.Errorf("%v, want a StartError at %s", err, c.stage)
			}
		})
	}
}

func TestTable(t *testing.T) {
	tab := newTable()
	if a, b := tab.str("x"), tab.str("yy"); b-a != 2 {
		t.Errorf("strings at %#x and %#x", a, b)
	}
	if tab.bytes([]byte{1})%8 != 0 {
		t.Error("bytes are not aligned")
	}
	a := tab.call("a", 1)
	b := tab.call("b", 2, 5)
	tab.feed(a, b, 0)
	ops, _, err := tab.encode()
	if err != nil {
		t.Fatal(err)
	}
	store := binary.LittleEndian.Uint64(ops[initprog.HeaderSize+56:])
	if want := uint64(initprog.TableAddr + initprog.HeaderSize + initprog.OpSize + 8); store != want {
		t.Errorf("the result goes to %#x, want %#x", store, want)
	}
	if o, ok := tab.failed(initprog.TableAddr + initprog.HeaderSize + initprog.OpSize); !ok || o.path != "b" {
		t.Errorf("failed: %v %v", o, ok)
	}
	for _, addr := range []uint64{0, initprog.TableAddr, initprog.TableAddr + initprog.HeaderSize + 2*initprog.OpSize, ^uint64(0)} {
		if _, ok := tab.failed(addr); ok && addr != initprog.TableAddr+initprog.HeaderSize {
			t.Errorf("an operation at %#x", addr)
		}
	}
	for range 5000 {
		tab.call("n", 1)
	}
	if _, _, err := tab.encode(); err == nil {
		t.Error("5000 operations fit")
	}
	big := newTable()
	big.str(strings.Repeat("x", initprog.TableMax))
	if _, _, err := big.encode(); err == nil {
		t.Error("16 MiB of data fit")
	}
}

func TestCandidates(t *testing.T) {
	cases := []struct {
		arg  string
		env  []string
		want []string
	}{
		{"sh", []string{"PATH=/bin:/usr/bin"}, []string{"/bin/sh", "/usr/bin/sh"}},
		{"sh", []string{"PATH=/bin", "X=1", "PATH=/opt"}, []string{"/opt/sh"}},
		{"sh", []string{"PATH=:/bin"}, []string{"sh", "/bin/sh"}},
		{"sh", []string{"PATHS=/bin"}, nil},
		{"sh", nil, nil},
		{"./sh", []string{"PATH=/bin"}, []string{"./sh"}},
		{"/bin/sh", nil, []string{"/bin/sh"}},
	}
	for _, c := range cases {
		if got := Candidates(&specs.Process{Args: []string{c.arg}, Env: c.env}); !slices.Equal(got, c.want) {
			t.Errorf("%s with %v: %v, want %v", c.arg, c.env, got, c.want)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for in, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding", "plain": "plain", "": "",
	} {
		if got := SysctlPath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
