package runtime

import (
	"os"
	"os/exec"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestSpike(t *testing.T) {
	dir := t.TempDir()
	root := dir + "/root"
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc"} {
		os.MkdirAll(root+"/"+d, 0o755)
	}
	if out, err := exec.Command("cp", "/bin/busybox", root+"/bin/busybox").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	os.Symlink("busybox", root+"/bin/sh")
	empty := dir + "/empty"
	os.Mkdir(empty, 0o755)
	rt, err := New()
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		rootfd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(rootfd)
		dev, err := NewDevTree(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		cg := NewCgroups(rt.Host)
		g, err := cg.Make("/berth-test/spike")
		if err != nil {
			t.Fatal(err)
		}
		defer cg.Remove(g)
		s := &specs.Spec{Hostname: "spike", Root: &specs.Root{}, Process: &specs.Process{Args: args, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/"}, Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}},
			MaskedPaths: []string{"/proc/kcore", "/proc/acpi", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/etc/none"}, ReadonlyPaths: []string{"/proc/bus", "/proc/sys"},
		}, Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}}, {Destination: "/dev", Type: "tmpfs"}, {Destination: "/dev/pts", Type: "devpts"}, {Destination: "/dev/shm", Type: "tmpfs", Options: []string{defaultShmOption}},
			{Destination: "/dev/mqueue", Type: "mqueue", Options: []string{"nosuid"}}, {Destination: "/sys", Type: "sysfs", Options: []string{"ro"}}, {Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro", "nosuid"}},
		}}
		t0 := time.Now()
		p, err := rt.Start(&Launch{Spec: s, Stdio: [3]int{0, 1, 2}, RootFD: rootfd, Dev: dev, CgroupV1: g.V1, CgroupV2: g.V2FD, Base: "/mnt", Empty: empty, PrivateMounts: true, StartFD: -1, Join: -1})
		if err != nil {
			t.Log("start:", err)
			return
		}
		t1 := time.Now()
		var si unix.Siginfo
		unix.Waitid(unix.P_PIDFD, p.PidFD, &si, unix.WEXITED, nil)
		t.Log("start", t1.Sub(t0), "wait", time.Since(t1))
		unix.Close(p.PidFD)
		if p.MountNS >= 0 {
			unix.Close(p.MountNS)
		}
	}
	run("sh", "-c", "export PATH=/bin; busybox id; busybox ps; busybox mount; busybox hostname; busybox ls -la /dev /proc/self/fd; busybox cat /proc/self/cgroup; busybox head -c 10 /proc/kcore; busybox ls /proc/acpi")
	for range 5 {
		run("busybox", "true")
	}
	run("nope")
	run("/nope")
	run("/bin")
}
