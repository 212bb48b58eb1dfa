package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container in a user namespace made ahead, with a network namespace in it.
func TestUserNamespaceAhead(t *testing.T) {
	b := newBox(t)
	for _, dir := range []string{filepath.Dir(b.dir), b.dir} { // as the keeper's own small root is
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	uids, gids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}, []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}}
	user, net, err := b.rt.NewUserNS(-1, uids, gids, true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(user)
	defer unix.Close(net)
	if out, err := exec.Command("chown", "-hR", "100000:200000", b.root).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	own := Owner{UID: 100000, GID: 200000, TTY: 200005}
	dev, err := NewDevTreeFor(own, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	into := func(net int) func(l *Launch) {
		return func(l *Launch) {
			l.Spec.Linux.Namespaces = append(l.Spec.Linux.Namespaces[:4:4], specs.LinuxNamespace{Type: specs.NetworkNamespace}, specs.LinuxNamespace{Type: specs.UserNamespace})
			l.Spec.Linux.UIDMappings, l.Spec.Linux.GIDMappings = uids, gids
			l.NSFD = map[specs.LinuxNamespaceType]int{specs.UserNamespace: user, specs.NetworkNamespace: net}
			l.Owner, l.Dev = own, dev
		}
	}
	score := 123
	b.spec.Process.OOMScoreAdj = &score
	b.spec.Process.Cwd = "/made/here"
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/new/mount", Type: "tmpfs"})
	b.spec.Process.Args = []string{"sh", "-c", "echo $$; id -u; tr -s ' ' </proc/self/uid_map; cat /proc/self/oom_score_adj; busybox stat -c %u:%g / /dev /dev/null /dev/shm /new /made; ls /sys/class/net; hostname; exit 7"}
	_ = os.Symlink("busybox", b.root+"/bin/tr")
	_, wait, err := b.launch(into(net))
	if err != nil {
		t.Fatal(err)
	}
	want := "1\n0\n 0 100000 65536\n123\n" + strings.Repeat("0:0\n", 6) + "lo\nbox\n"
	if out, code := wait(); code != 7 || out != want {
		t.Errorf("exit %d\n%s\nwant\n%s", code, out, want)
	}

	// One more network namespace in the same user namespace.
	_, other, err := b.rt.NewUserNS(user, nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	b.spec.Process.Args = []string{"ls", "/sys/class/net"}
	if dev, err = NewDevTreeFor(own, nil); err != nil {
		t.Fatal(err)
	}
	if _, wait, err = b.launch(into(other)); err != nil {
		t.Fatal(err)
	}
	if out, code := wait(); code != 0 || out != "lo\n" {
		t.Errorf("exit %d: %s", code, out)
	}

	// A start that fails leaves no process, on either side of the second clone.
	for _, change := range []func(*specs.Spec){
		func(s *specs.Spec) { s.Process.Args = []string{"/no/such/program"} },
		func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"}) },
		func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.no.such": "1"} },
	} {
		if dev, err = NewDevTreeFor(own, nil); err != nil {
			t.Fatal(err)
		}
		b.reset()
		change(b.spec)
		_, _, err := b.launch(into(net))
		var se *StartError
		if !errors.As(err, &se) {
			t.Errorf("%v", err)
		}
		var ws unix.WaitStatus
		if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
			t.Errorf("a child is left: %d %v", pid, err)
		}
	}
	if _, _, err := b.rt.NewUserNS(-1, []specs.LinuxIDMapping{{HostID: 1, Size: 0}}, gids, false); err == nil {
		t.Error("a mapping without size is taken")
	}
}

func TestCopyUp(t *testing.T) {
	b := newBox(t)
	for _, d := range []string{"/up/dir", "/other"} {
		if err := os.MkdirAll(b.root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.write("/up/file", "text", 0o640)
	b.write("/up/dir/below", strings.Repeat("x", 100000), 0o600)
	for _, err := range []error{
		os.Lchown(b.root+"/up/file", 5, 6), os.Link(b.root+"/up/file", b.root+"/up/dir/again"), os.Symlink("/etc/passwd", b.root+"/up/link"),
		unix.Mknod(b.root+"/up/fifo", unix.S_IFIFO|0o600, 0), os.Chmod(b.root+"/up", 0o711), os.Lchown(b.root+"/up", 7, 8),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/up", Type: "tmpfs", Options: []string{"tmpcopyup", "nosuid", "size=1m"}},
		specs.Mount{Destination: "/other", Type: "tmpfs", Options: []string{"tmpcopyup", "ro", "mode=1777"}},
		specs.Mount{Destination: "/none", Type: "tmpfs", Options: []string{"tmpcopyup"}})
	out, code := b.run("sh", "-c", `cd /up; busybox stat -c '%n %u:%g %a %h' . file dir dir/again fifo; busybox readlink link; busybox wc -c <dir/below; touch dir/new; busybox stat -c %a /other; touch /other/x; grep -c ' /none tmpfs ' /proc/mounts; grep ' /up ' /proc/mounts`)
	want := ". 7:8 711 3\nfile 5:6 640 2\ndir 0:0 755 2\ndir/again 5:6 640 2\nfifo 0:0 600 1\n/etc/passwd\n100000\n1777\ntouch: /other/x: Read-only file system\n1\ntmpfs /up tmpfs rw,nosuid,relatime,size=1024k,mode=711,uid=7,gid=8 0 0\n"
	if out = strings.Replace(out, ",inode64", "", 1); code != 0 || out != want {
		t.Errorf("exit %d\n%s\nwant\n%s", code, out, want)
	}
	if _, err := os.Stat(b.root + "/up/dir/new"); err == nil {
		t.Error("what was written reached the root filesystem")
	}
	b.spec.Mounts[len(b.spec.Mounts)-3].Options = []string{"tmpcopyup", "size=4k"}
	b.spec.Process.Args = []string{"true"}
	if _, _, err := b.launch(nil); err == nil || !strings.Contains(err.Error(), `tmpcopyup: cannot fill the tmpfs at "/up": `) {
		t.Errorf("a tmpfs that is too small: %v", err)
	}
}

// A sysctl's name leads nowhere but below /proc/sys.
func TestSysctlNames(t *testing.T) {
	for name, good := range map[string]bool{
		"net.ipv4.ip_forward": true, "net/ipv4/conf/eth0.1/forwarding": true, "kernel.sem": true,
		"net/../vm/swappiness": false, "net.//.vm.swappiness": false, "net/./x": false, "/net/x": false, "net.": false, "": false, "..": false,
	} {
		if got := plainPath(SysctlPath(name)); got != good {
			t.Errorf("%q: %v", name, got)
		}
	}
}
