package client

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// limitFile reads a container's own limit: v1 is "controller/file". With a
// cgroup namespace or without, the container finds it at the same place.
func limitFile(c *enginetest.Client, name, v1, v2 string) string {
	file := "/sys/fs/cgroup/" + v1
	if enginetest.CgroupV2() {
		file = "/sys/fs/cgroup/" + v2
	}
	return strings.TrimSpace(c.Must("exec", name, "cat", file))
}

func pick(v1, v2 string) string {
	if enginetest.CgroupV2() {
		return v2
	}
	return v1
}

// swapCounted reports whether this kernel can limit swap.
func swapCounted(e *enginetest.Engine) bool {
	var info struct{ SwapLimit bool }
	e.Call("GET", "/info", nil, &info)
	return info.SwapLimit
}

// Every limit arrives in the kernel, changes live, and is there again after a restart.
func TestLimitsLive(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	swap := swapCounted(e)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		check := func(what string, limits map[string][3]string) {
			t.Helper()
			for name, x := range limits {
				if strings.HasPrefix(name, "swap") && !swap {
					continue
				}
				if x[0] == "" && !enginetest.CgroupV2() || x[1] == "" && enginetest.CgroupV2() {
					continue
				}
				if got := limitFile(c, "lim", x[0], x[1]); got != x[2] {
					t.Errorf("%s: %s is %q, want %q", what, name, got, x[2])
				}
			}
		}
		c.Must("run", "-d", "--name", "lim", "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "25000",
			"--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "50", img, "sleep", "1000")
		before := map[string][3]string{
			"memory":      {"memory/memory.limit_in_bytes", "memory.max", "67108864"},
			"swap":        {"memory/memory.memsw.limit_in_bytes", "memory.swap.max", pick("100663296", "33554432")},
			"reservation": {"memory/memory.soft_limit_in_bytes", "memory.low", "33554432"},
			"shares":      {"cpu/cpu.shares", "cpu.weight", pick("512", "59")},
			"quota":       {"cpu/cpu.cfs_quota_us", "cpu.max", pick("25000", "25000 50000")},
			"cpus":        {"cpuset/cpuset.cpus", "cpuset.cpus", "0"},
			"mems":        {"cpuset/cpuset.mems", "cpuset.mems", "0"},
			"pids":        {"pids/pids.max", "pids.max", "50"},
		}
		check("run", before)
		after := map[string][3]string{
			"memory":      {"memory/memory.limit_in_bytes", "memory.max", "134217728"},
			"swap":        {"memory/memory.memsw.limit_in_bytes", "memory.swap.max", pick("268435456", "134217728")},
			"reservation": {"memory/memory.soft_limit_in_bytes", "memory.low", "16777216"},
			"shares":      {"cpu/cpu.shares", "cpu.weight", pick("2048", "174")},
			"quota":       {"cpu/cpu.cfs_quota_us", "cpu.max", pick("30000", "30000 60000")},
			"cpus":        {"cpuset/cpuset.cpus", "cpuset.cpus", "0-1"},
			"pids":        {"pids/pids.max", "pids.max", "max"},
		}
		// Paused: a limit does not wait for the processes.
		c.Must("pause", "lim")
		if out := c.Must("update", "-m", "128m", "--memory-swap", "256m", "--memory-reservation", "16m", "--cpu-shares", "2048", "--cpu-period", "60000", "--cpu-quota", "30000",
			"--cpuset-cpus", "0-1", "--pids-limit", "-1", "--restart", "on-failure:3", "lim"); out != "lim" {
			t.Errorf("update says %q", out)
		}
		c.Must("unpause", "lim")
		check("update", after)
		c.Must("restart", "-t", "0", "lim")
		check("restart", after)
		if got := c.Inspect("lim", "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}} {{.HostConfig.Memory}} {{.HostConfig.CpuShares}}"); got != "on-failure:3 134217728 2048" {
			t.Errorf("inspect: %s", got)
		}
		// Stopped, two at once.
		c.Must("stop", "-t", "0", "lim")
		c.Must("create", "--name", "mim", img, "true")
		if out := c.Must("update", "--pids-limit", "40", "lim", "mim"); out != "lim\nmim" {
			t.Errorf("update of two: %q", out)
		}
		c.Must("start", "lim")
		if got := limitFile(c, "lim", "pids/pids.max", "pids.max"); got != "40" {
			t.Errorf("pids after an update while stopped: %s", got)
		}
		c.Must("rm", "-f", "lim", "mim")

		c.Must("run", "-d", "--name", "lim", "--cpus", "1.5", img, "sleep", "1000")
		if got := limitFile(c, "lim", "cpu/cpu.cfs_quota_us", "cpu.max"); got != pick("150000", "150000 100000") {
			t.Errorf("cpus: %q", got)
		}
		c.Must("update", "--cpus", "0.25", "lim")
		if got := limitFile(c, "lim", "cpu/cpu.cfs_quota_us", "cpu.max"); got != pick("25000", "25000 100000") {
			t.Errorf("cpus after update: %q", got)
		}
		id := c.Inspect("lim", "{{.Id}}")
		for _, x := range []struct {
			args []string
			want string
		}{
			{[]string{"--cpu-quota", "5000"}, "Cannot update container " + id + ": Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"},
			{[]string{"-m", "64m"}, "Cannot update container " + id + ": Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
			{[]string{"-m", "1m"}, "Minimum memory limit allowed is 6MB"},
			{[]string{"--cpuset-cpus", "999"}, "Requested CPUs are not available - requested 999, available: "},
			{[]string{"--restart", "never"}, "invalid restart policy: unknown policy 'never'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
		} {
			if r := c.Run(append(append([]string{"update"}, x.args...), "lim")...); r.Code != 1 || !strings.Contains(r.Err, "Error response from daemon: "+x.want) {
				t.Errorf("update %v: %d %q, want %q", x.args, r.Code, r.Err, x.want)
			}
		}
		c.Must("rm", "-f", "lim")
		c.Must("run", "-d", "--rm", "--name", "lim", img, "sleep", "1000")
		if r := c.Run("update", "--restart", "always", "lim"); r.Code != 1 || !strings.Contains(r.Err, "Restart policy cannot be updated because AutoRemove is enabled for the container") {
			t.Errorf("restart policy with --rm: %d %q", r.Code, r.Err)
		}
		c.Must("rm", "-f", "lim")
	})
}

func TestLimitRefusals(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	notBlock := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notBlock, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, x := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"-m", "5m"}, 125, "Minimum memory limit allowed is 6MB"},
			{[]string{"-m", "64m", "--memory-swap", "32m"}, 125, "Minimum memoryswap limit should be larger than memory limit, see usage"},
			{[]string{"--memory-swap", "32m"}, 125, "You should always set the Memory limit when using Memoryswap limit, see usage"},
			{[]string{"--cpus", "1000"}, 125, "range of CPUs is from 0.01 to "},
			{[]string{"--cpuset-cpus", "x"}, 125, "Invalid value x for cpuset cpus: invalid format: x"},
			{[]string{"--cpuset-mems", "777"}, 125, "Requested memory nodes are not available - requested 777, available: "},
			{[]string{"--cpu-period", "10"}, 125, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"},
			{[]string{"--device-read-bps", "/dev/nope:1mb"}, 127, "stat /dev/nope: no such file or directory"},
			{[]string{"--device-write-iops", "/dev/nope:10"}, 127, "stat /dev/nope: no such file or directory"},
			{[]string{"--device", "/dev/nope"}, 127, `error gathering device information while adding custom device "/dev/nope": no such file or directory`},
			{[]string{"--device", notBlock + ":/dev/x"}, 125, "error gathering device information while adding custom device \"" + notBlock + "\": not a device node"},
			{[]string{"--device-read-bps", "/dev/null:1mb"}, 125, "error setting cgroup config for procHooks process: failed to write \"1:3 "},
		} {
			r := c.Run(append(append([]string{"run", "--rm"}, x.args...), img, "true")...)
			if r.Code != x.code || !strings.Contains(r.Err, "Error response from daemon: ") || !strings.Contains(r.Err, x.want) {
				t.Errorf("%v: %d %q, want %d %q", x.args, r.Code, r.Err, x.code, x.want)
			}
		}
		if left := c.Must("ps", "-aq"); left != "" {
			t.Errorf("left behind: %s", c.Must("ps", "-a"))
		}
		r := c.Run("run", "--rm", "--oom-kill-disable", img, "true")
		want := pick("WARNING: OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.",
			"WARNING: Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		if r.Code != 0 || strings.TrimSpace(r.Err) != want {
			t.Errorf("a warning: %d %q", r.Code, r.Err)
		}
	})
}

func TestDeviceRules(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/devs/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"full": 7, "sub/mem": 1} {
		if err := unix.Mknod(dir+"/devs/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	// c 1:11, the kernel's log, is on no list and can be opened for writing without harm.
	const try = `mknod /tmp/k c 1 11 && echo made && (: >/tmp/k) 2>/dev/null && echo written; echo .`
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, x := range []struct {
			args []string
			want string
		}{
			{nil, "made ."},
			{[]string{"--device-cgroup-rule", "c 1:11 w"}, "made written ."},
			{[]string{"--device-cgroup-rule", "c 1:* rw"}, "made written ."},
			{[]string{"--device-cgroup-rule", "c 1:11 r"}, "made ."},
			{[]string{"--device-cgroup-rule", "b 1:11 rw"}, "made ."},
			{[]string{"--cgroup-parent", "/berth-test-parent/" + c.Name}, "made ."},
			{[]string{"--cgroup-parent", "berth-test-parent/" + c.Name, "--device-cgroup-rule", "c 1:11 w"}, "made written ."},
			{[]string{"--cap-drop", "MKNOD"}, "."},
		} {
			r := c.Run(append(append([]string{"run", "--rm", "--security-opt", "seccomp=unconfined", "--tmpfs", "/tmp:dev"}, x.args...), img, "sh", "-c", try)...)
			if got := strings.Join(strings.Fields(r.Out), " "); got != x.want {
				t.Errorf("%v: %q, want %q (%s)", x.args, got, x.want, r.Err)
			}
		}
		if got := c.Must("run", "--rm", "--device", dir+"/devs:/dev/mine", img, "sh", "-c", "cd /dev/mine; ls; ls sub; head -c 2 full | od -An -tx1"); strings.Join(strings.Fields(got), " ") != "full sub mem 00 00" {
			t.Errorf("a directory of devices: %q", got)
		}
		if got := c.Must("run", "--rm", "--device", dir+"/devs/full:/dev/f:r", img, "sh", "-c", "[ -r /dev/f ] && echo there"); got != "there" {
			t.Errorf("a device: %q", got)
		}
		if got := c.Must("run", "--rm", "--privileged", img, "sh", "-c", "mknod /dev/k c 1 11 && : >/dev/k && echo written"); got != "written" {
			t.Errorf("privileged: %q", got)
		}
	})
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(root + "/berth-test-parent")
		for _, d := range found {
			for _, name := range []string{"docker", "berth", ""} {
				_ = os.Remove(filepath.Join(d, name))
			}
		}
	}
}

// A kill is told when it happens, also when the container lives on.
func TestOOMLive(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	const eat = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
	limit := []string{"-m", "16m"}
	if swapCounted(e) {
		limit = append(limit, "--memory-swap", "16m")
	}
	type event struct {
		Action string
		Actor  struct{ Attributes map[string]string }
	}
	events := make(chan event, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream := e.Client("docker").Command("events", "--format", "{{json .}}")
	out, err := stream.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = stream.Process.Kill(); _ = stream.Wait() }()
	go func() {
		for d := json.NewDecoder(out); ctx.Err() == nil; {
			var ev event
			if d.Decode(&ev) != nil {
				return
			}
			events <- ev
		}
	}()
	// next waits for one of two actions of a container.
	next := func(t *testing.T, name string, actions ...string) string {
		t.Helper()
		for {
			select {
			case ev := <-events:
				for _, a := range actions {
					if ev.Action == a && ev.Actor.Attributes["name"] == name {
						return a
					}
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no event %v of %s", actions, name)
			}
		}
	}
	// The stream is there when the first event comes through.
	enginetest.Eventually(t, "the events", func() bool {
		e.Docker("rm", e.Docker("create", img, "true"))
		select {
		case <-events:
			return true
		case <-time.After(10 * time.Millisecond):
			return false
		}
	})
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		run := func(name string, more ...string) []string {
			return append(append([]string{"run", "--name", name + c.Name, "--network", "none"}, limit...), more...)
		}
		state := func(name string) string {
			return c.Inspect(name+c.Name, "{{.State.Status}} {{.State.OOMKilled}} {{.State.ExitCode}}")
		}
		// A child.
		c.Must(run("child", "-d", img, "sh", "-c", "sh -c '"+eat+"'; echo survived $?; sleep 1000")...)
		next(t, "child"+c.Name, "oom")
		enginetest.Eventually(t, "the survivor", func() bool { return c.Must("logs", "child"+c.Name) == "survived 137" })
		if got := state("child"); got != "running true 0" {
			t.Errorf("child: %s", got)
		}
		// An exec.
		c.Must(run("exec", "-d", img, "sleep", "1000")...)
		if r := c.Run("exec", "exec"+c.Name, "sh", "-c", eat); r.Code != 137 {
			t.Errorf("exec: %d", r.Code)
		}
		next(t, "exec"+c.Name, "oom")
		if got := state("exec"); got != "running true 0" {
			t.Errorf("exec: %s", got)
		}
		c.Must("restart", "-t", "0", "exec"+c.Name)
		if got := state("exec"); got != "running false 0" {
			t.Errorf("after a restart: %s", got)
		}
		// The container itself: the event comes before its end.
		if r := c.Run(run("main", img, "sh", "-c", eat)...); r.Code != 137 {
			t.Errorf("run: %d", r.Code)
		}
		if got := next(t, "main"+c.Name, "oom", "die"); got != "oom" {
			t.Errorf("first came %q", got)
		}
		if got := state("main"); got != "exited true 137" {
			t.Errorf("main: %s", got)
		}
		// A limit that an update brings.
		c.Must("run", "-d", "--name", "later"+c.Name, img, "sleep", "1000")
		c.Must("update", "-m", "16m", "--memory-swap", pick("-1", "16m"), "later"+c.Name)
		c.Run("exec", "later"+c.Name, "sh", "-c", eat)
		next(t, "later"+c.Name, "oom")
		// Another keeper watches on.
		if c.Name == "berth" {
			e.KillKeeper()
			enginetest.Eventually(t, "a new keeper", func() bool { return c.Run("exec", "exec"+c.Name, "true").Code == 0 })
			if r := c.Run("exec", "exec"+c.Name, "sh", "-c", eat); r.Code != 137 {
				t.Errorf("exec after another keeper: %d %s", r.Code, r.Err)
			}
			next(t, "exec"+c.Name, "oom")
		}
		c.Must("rm", "-f", "child"+c.Name, "exec"+c.Name, "main"+c.Name, "later"+c.Name)
	})
}
