package hostile

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// Nothing covers the container's procfs: not by name, and not by a link in a volume
// that is mounted where the kernel's file systems are.
func TestCoveredProc(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	fake := filepath.Join(e.Dir, "fake")
	for _, d := range []string{"sys/kernel", "self/attr", "kernel"} {
		if err := os.MkdirAll(filepath.Join(fake, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"-v", fake + ":/proc"},
		{"-v", fake + ":/proc/sys"},
		{"-v", fake + ":/proc/self"},
		{"-v", fake + ":/proc/1/attr"},
		{"-v", fake + ":/x/../proc/sys"},
		{"--tmpfs", "/proc"},
		{"--tmpfs", "/proc/sys"},
		{"--mount", "type=tmpfs,dst=/proc/sys/kernel"},
		{"-v", fake + "/f:/proc/kcore"},
	} {
		if r := cl.Run(append(append([]string{"run", "--rm"}, args...), img, "true")...); r.Code != 125 {
			t.Errorf("%q was run: %d %s%s", args, r.Code, r.Out, r.Err)
		}
	}
	shared := filepath.Join(e.Dir, "shared")
	if err := os.Mkdir(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"l": "/proc", "up": "../../proc", "self": "/proc/self", "root": "/proc/self/root/proc"} {
		if err := os.Symlink(to, filepath.Join(shared, name)); err != nil {
			t.Fatal(err)
		}
	}
	image(t, e, "linked", []entry{{name: "l", kind: tar.TypeSymlink, link: "/proc", mode: 0o777}, {name: "dev/l", kind: tar.TypeSymlink, link: "/proc", mode: 0o777}})
	for _, top := range []string{"/vol", "/dev/vol", "/dev/shm"} {
		for _, at := range []string{"l/sys", "up/sys", "self/attr", "root/sys", "l/sys/kernel"} {
			args := []string{
				"run", "--rm", "--hostname", "real", "--sysctl", "net.ipv4.ip_forward=1", "--oom-score-adj", "100", "-v", shared + ":" + top, "-v", fake + ":" + top + "/" + at, "linked",
				"sh", "-c", "cat /proc/sys/kernel/hostname /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward; ls /proc/self/attr/current",
			}
			r := cl.Run(args...)
			if r.Code == 125 || r.Code == 127 {
				continue // refused
			}
			if r.Out != "real\n100\n1\n/proc/self/attr/current\n" {
				t.Errorf("%s/%s: %q %s", top, at, r.Out, r.Err)
			}
		}
	}
	// An image with a tree of its own in the place of the procfs.
	image(t, e, "own", []entry{
		{name: "proc/sys/kernel/hostname", kind: tar.TypeReg, mode: 0o666, body: []byte("fake")},
		{name: "proc/sys/net/ipv4/ip_forward", kind: tar.TypeReg, mode: 0o666, body: []byte("fake")},
		{name: "proc/self/oom_score_adj", kind: tar.TypeReg, mode: 0o666, body: []byte("fake")},
		{name: "proc/self/attr/apparmor/exec", kind: tar.TypeFifo, mode: 0o666},
		{name: "proc/self/fd", kind: tar.TypeSymlink, link: c.dir, mode: 0o777},
	})
	cl.Must("run", "--name", "own", "--hostname", "real", "--sysctl", "net.ipv4.ip_forward=1", "--oom-score-adj", "100", "--ulimit", "nofile=99", "own",
		"sh", "-c", "[ $(cat /proc/sys/kernel/hostname /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward | tr '\\n' ,) = real,100,1, ] && [ $(ulimit -n) = 99 ]")
	if got := cl.Must("diff", "own"); got != "" {
		t.Errorf("the image's own tree was written to: %s", got)
	}
	for _, at := range []string{"/l/sys", "/dev/l/sys", "/l/self/attr"} {
		r := cl.Run("run", "--rm", "--hostname", "real", "-v", fake+":"+at, "linked", "sh", "-c", "cat /proc/sys/kernel/hostname; ls /proc/self/attr/current")
		if r.Code != 125 && r.Out != "real\n/proc/self/attr/current\n" {
			t.Errorf("%s through the image's link: %q %s", at, r.Out, r.Err)
		}
	}
	_ = filepath.WalkDir(fake, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("written to what is not the procfs: %s", p)
		}
		return err
	})
	c.check(e)
}

// What the image has put where the engine mounts: links, devices, pipes, files.
func TestPreparedDevices(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	c := newCanary(t, e)
	names := []string{"dev/null", "dev/pts", "dev/console", "dev/shm", "dev/mqueue", "dev/ptmx", "dev/tty", "dev/fd"}
	check := `
		[ "$(stat -c %t:%T /dev/null)" = 1:3 ] || echo null is $(stat -c %F:%t:%T /dev/null)
		echo x > /dev/null; [ "$(cat /dev/null)" = "" ] || echo null holds something
		[ -d /dev/pts ] && [ ! -L /dev/pts ] || echo pts
		[ -d /dev/shm ] && [ ! -L /dev/shm ] || echo shm
		touch /dev/shm/` + c.mark + ` || echo shm cannot be written
		for f in /proc/kcore /proc/keys /proc/timer_list; do [ -z "$(head -c 1 $f 2>/dev/null)" ] || echo open $f; done
		if [ -t 0 ]; then [ "$(stat -c %t /dev/console)" = 88 ] || echo console is $(stat -c %t /dev/console); echo tty > /dev/console; fi
		echo end`
	for kind, make := range map[string]func(name string) entry{
		"links to the canary": func(n string) entry {
			return entry{name: n, kind: tar.TypeSymlink, link: c.dir + "/secret", mode: 0o777}
		},
		"links up": func(n string) entry {
			return entry{name: n, kind: tar.TypeSymlink, link: "../../../../../.." + c.dir, mode: 0o777}
		},
		"links to /proc": func(n string) entry {
			return entry{name: n, kind: tar.TypeSymlink, link: "/proc/self/root/etc/passwd", mode: 0o777}
		},
		"pipes":         func(n string) entry { return entry{name: n, kind: tar.TypeFifo, mode: 0o666} },
		"regular files": func(n string) entry { return entry{name: n, kind: tar.TypeReg, mode: 0o666, body: []byte("fake")} },
		"directories":   func(n string) entry { return entry{name: n, kind: tar.TypeDir, mode: 0o777} },
		"devices (1:5)": func(n string) entry { return entry{name: n, kind: tar.TypeChar, mode: 0o666} },
		"block devices": func(n string) entry { return entry{name: n, kind: tar.TypeBlock, mode: 0o666} },
	} {
		var entries []entry
		for _, n := range names {
			entries = append(entries, make(n))
		}
		image(t, e, "odd", entries)
		for _, args := range [][]string{{"run", "--rm"}, {"run", "--rm", "-t", "--read-only"}} {
			r := cl.Run(append(args, "odd", "sh", "-c", check)...)
			if got := strings.ReplaceAll(r.Out, "\r", ""); got != "end\n" && got != "tty\nend\n" {
				t.Errorf("%s, %q: %q %s", kind, args, got, r.Err)
			}
		}
		c.check(e)
	}
	// The whole of /dev, /proc and /sys as something else. What is no directory is refused.
	for kind, x := range map[string]entry{
		"fifo": {kind: tar.TypeFifo, mode: 0o666}, "file": {kind: tar.TypeReg, mode: 0o666, body: []byte("x")}, "char": {kind: tar.TypeChar, mode: 0o666},
		"link": {kind: tar.TypeSymlink, link: c.dir, mode: 0o777}, "inside": {kind: tar.TypeSymlink, link: "/tmp", mode: 0o777}, "magic": {kind: tar.TypeSymlink, link: "/proc/self/root", mode: 0o777},
	} {
		for _, name := range []string{"proc", "sys", "dev"} {
			x.name = name
			image(t, e, "odd", []entry{x})
			if r := cl.Run("run", "--rm", "odd", "true"); r.Code == 0 {
				t.Errorf("/%s is a %s of the image: it was run", name, kind)
			}
			c.check(e)
		}
	}
	// A bind mount in the place of /dev that has everything wrong.
	bad := filepath.Join(e.Dir, "dev")
	if err := os.Mkdir(bad, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"null", "console", "pts", "shm", "mqueue"} {
		if err := os.Symlink(c.dir+"/secret", filepath.Join(bad, n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"run", "--rm", "-v", bad + ":/dev"}, {"run", "--rm", "-t", "-v", bad + ":/dev"}} {
		cl.Run(append(args, img, "sh", "-c", "for f in /proc/kcore /proc/keys; do head -c 1 $f; done; echo fine")...) // may fail
		c.check(e)
	}
}

// Descriptors and the working directory, wherever a program of a container is started.
func TestDescriptorsEverywhere(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--add-runtime", "own="+filepath.Join(enginetest.Binaries(t), "berth-runtime")))
	c := e.Client("berth")
	// The descriptors of the shell itself, and where it is. The directory that is read is one more.
	script := `cd "$PWD"; for f in /proc/self/fd/*; do n=${f##*/}; [ $n -gt 2 ] && [ -e /proc/$$/fd/$n ] && echo "leaked $n $(readlink /proc/$$/fd/$n)"; done; echo at $(readlink /proc/self/cwd)`
	want := func(what, got string) {
		t.Helper()
		if strings.TrimSpace(strings.ReplaceAll(got, "\r", "")) != "at /tmp" {
			t.Errorf("%s: %q", what, got)
		}
	}
	for name, args := range map[string][]string{
		"run":           {"run", "--rm", "-w", "/tmp"},
		"-t":            {"run", "--rm", "-t", "-w", "/tmp"},
		"--init":        {"run", "--rm", "--init", "-w", "/tmp"},
		"volume":        {"run", "--rm", "-v", e.Dir + ":/vol", "-w", "/tmp"},
		"user":          {"run", "--rm", "-u", "1000", "-w", "/tmp"},
		"privileged":    {"run", "--rm", "--privileged", "-w", "/tmp"},
		"no namespaces": {"run", "--rm", "--pid", "host", "--net", "host", "--ipc", "host", "--uts", "host", "-w", "/tmp"},
		"runtime":       {"run", "--rm", "--runtime", "own", "-w", "/tmp"},
	} {
		want(name, c.Must(append(args, img, "sh", "-c", script)...))
	}
	c.Must("run", "-d", "--name", "target", "-w", "/tmp", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "own", "--runtime", "own", "-w", "/tmp", img, "sleep", "1000")
	c.Must("run", "-d", "--name", "host", "--pid", "host", "-w", "/tmp", img, "sleep", "1000")
	for _, name := range []string{"target", "own", "host"} {
		want("exec "+name, c.Must("exec", name, "sh", "-c", script))
		want("exec -t "+name, c.Must("exec", "-t", name, "sh", "-c", script))
		want("exec -u "+name, c.Must("exec", "-u", "1000", name, "sh", "-c", script))
	}
	// A health check, and every run of a container that is started again.
	c.Must("run", "-d", "--name", "health", "-w", "/tmp", "--health-interval", "100ms", "--health-cmd", script, img, "sleep", "1000")
	enginetest.Eventually(t, "a health check", func() bool { return c.Inspect("health", "{{len .State.Health.Log}}") != "0" })
	want("health check", c.Inspect("health", "{{(index .State.Health.Log 0).Output}}"))
	c.Must("run", "-d", "--name", "again", "-w", "/tmp", "--restart", "on-failure:2", img, "sh", "-c", script+"; exit 1")
	c.Must("wait", "again")
	enginetest.Eventually(t, "the restarts", func() bool { return strings.Count(c.Must("logs", "again"), "at /tmp") == 3 })
	if got := c.Must("logs", "again"); strings.Contains(got, "leaked") {
		t.Errorf("restart: %s", got)
	}
	// Programs that lead out of the root as working directories.
	daemon := fmt.Sprintf("/proc/%d/", e.DaemonPID())
	for _, dir := range []string{daemon + "root", daemon + "cwd", daemon + "root/tmp", "/proc/1/root", "/proc/1/cwd", "/proc/self/root/../..", "/proc/1/root/tmp", "/proc/self/fd/5", "/proc/self/fd/401", "/proc/thread-self/root"} {
		for _, args := range [][]string{
			{"run", "--rm", "--pid", "host", "-w", dir, img},
			{"run", "--rm", "--pid", "host", "--privileged", "-w", dir, img},
			{"exec", "-w", dir, "host"},
			{"exec", "--privileged", "-w", dir, "host"},
			{"exec", "-w", dir, "target"},
			{"exec", "-w", dir, "own"},
		} {
			if r := c.Run(append(args, "sh", "-c", "pwd -P; ls -d $PWD"+e.Dir+" ."+e.Dir+" ../../../../.."+e.Dir)...); strings.Contains(r.Out, e.Dir) {
				t.Errorf("%q shows the host: %s", args, r.Out)
			}
		}
	}
	c.Must("rm", "-f", "target", "own", "host", "health", "again")
}

// The engine's own programs cannot be reached, and so not be written, from inside.
func TestProcSelfExeEverywhere(t *testing.T) {
	t.Parallel()
	own := filepath.Join(enginetest.Binaries(t), "berth-runtime")
	e := enginetest.Start(t, enginetest.WithArgs("--add-runtime", "own="+own))
	before := hashes(t, e.Bin)
	c := e.Client("berth")
	image(t, e, "evil", []entry{
		{name: "entry", kind: tar.TypeReg, mode: 0o755, body: []byte("#!/proc/self/exe\n")},
		{name: "bin/link", kind: tar.TypeSymlink, link: "/proc/self/exe", mode: 0o777},
		// Opens what the shell's parent, and every other process, is made of, for writing.
		{name: "attack", kind: tar.TypeReg, mode: 0o755, body: []byte("#!/bin/sh\nfor p in /proc/[0-9]*/exe; do ( echo evil >> $p ) 2>/dev/null && echo written $p $(readlink $p); done; echo done\n")},
	}, `HEALTHCHECK --interval=100ms --retries=1000 CMD ["/entry"]`)
	for _, rt := range []string{"berth", "own"} {
		extra := []string{}
		if rt == "own" {
			extra = []string{"--runtime", "own"}
		}
		run := func(args ...string) enginetest.Result {
			return c.Run(append(append([]string{"run", "--rm"}, extra...), args...)...)
		}
		for _, args := range [][]string{
			{"evil", "/entry"}, {"evil", "/bin/link"}, {"--init", "evil", "/entry"}, {"--entrypoint", "/proc/self/exe", "evil", "x"}, {"--privileged", "evil", "/proc/self/exe"}, {"-t", "evil", "/entry"},
		} {
			run(args...)
		}
		c.Must(append(append([]string{"run", "-d", "--name", "target", "--privileged"}, extra...), "evil", "sh", "-c", "while :; do /attack; done >/found 2>/dev/null")...)
		for range 8 {
			for _, args := range [][]string{{"exec", "target", "/entry"}, {"exec", "target", "/proc/self/exe", "x"}, {"exec", "-t", "target", "/bin/link"}, {"exec", "target", "true"}} {
				c.Run(args...)
			}
		}
		enginetest.Eventually(t, "a health check", func() bool { return c.Inspect("target", "{{len .State.Health.Log}}") != "0" })
		if got := c.Must("exec", "target", "sh", "-c", "grep -v '^done' /found | grep -v /bin/busybox | sort -u | head"); got != "" {
			t.Errorf("%s: could be opened for writing: %s", rt, got)
		}
		c.Must("rm", "-f", "target")
	}
	if after := hashes(t, e.Bin); after != before {
		t.Error("a program of the engine has been changed from inside a container")
	}
	if got := c.Must("run", "--rm", "--runtime", "own", img, "echo", "fine"); got != "fine" {
		t.Errorf("afterwards: %q", got)
	}
}
