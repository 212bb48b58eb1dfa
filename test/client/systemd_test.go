package client

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

func systemdRuns() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// The cgroup driver "systemd": each container is a scope, with its limits as properties.
func TestSystemdScopes(t *testing.T) {
	if !systemdRuns() {
		enginetest.Skip(t, enginetest.NeedsSystemd)
	}
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--exec-opt", "native.cgroupdriver=systemd"))
	show := func(unit, property string) string {
		out, err := exec.Command("systemctl", "show", "--value", "-p", property, unit).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		if got := c.Must("info", "--format", "{{.CgroupDriver}}"); got != "systemd" {
			t.Errorf("info: %q", got)
		}
		id := c.Must("run", "-d", "--name", "scoped", "--pids-limit", "50", "--cpus", "0.5", "--cgroup-parent", "berth-test.slice", img, "sleep", "1000")
		unit := "berth-" + id + ".scope"
		place := "/berth.slice/berth-test.slice/" + unit
		for p, want := range map[string]string{"ActiveState": "active", "ControlGroup": place, "TasksMax": "50", "CPUQuotaPerSecUSec": "500ms", "Delegate": "yes", "Slice": "berth-test.slice"} {
			if got := show(unit, p); got != want {
				t.Errorf("%s is %q, want %q", p, got, want)
			}
		}
		pid := c.Inspect("scoped", "{{.State.Pid}}")
		raw, err := os.ReadFile("/proc/" + pid + "/cgroup")
		if err != nil || !strings.Contains(string(raw), place+"\n") {
			t.Errorf("the process is in %s (%v)", raw, err)
		}
		if got := limitFile(c, "scoped", "pids/pids.max", "pids.max"); got != "50" {
			t.Errorf("pids.max: %s", got)
		}
		// The placeholder is gone: only the container's own process is there.
		if got := c.Must("stats", "--no-stream", "--format", "{{.PIDs}}", "scoped"); got != "1" {
			t.Errorf("processes: %s", got)
		}
		c.Must("update", "--pids-limit", "60", "scoped")
		if err := exec.Command("systemctl", "daemon-reload").Run(); err != nil {
			t.Error(err)
		}
		if got := limitFile(c, "scoped", "pids/pids.max", "pids.max"); got != "60" || show(unit, "TasksMax") != "60" {
			t.Errorf("after an update and a reload: %s, %s", got, show(unit, "TasksMax"))
		}
		c.Must("restart", "-t", "0", "scoped")
		if show(unit, "ActiveState") != "active" {
			t.Error("no scope after a restart")
		}
		c.Must("rm", "-f", "scoped")
		if got := show(unit, "ActiveState"); got != "inactive" {
			t.Errorf("after the end: %s", got)
		}
		if r := c.Run("run", "--rm", "--cgroup-parent", "/a/b", img, "true"); r.Code != 125 || !strings.Contains(r.Err, `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`) {
			t.Errorf("a path as slice: %d %q", r.Code, r.Err)
		}
		if r := c.Run("run", "--rm", img, "/no/such"); r.Code != 127 {
			t.Errorf("a start that fails: %d %q", r.Code, r.Err)
		}
		if out, _ := exec.Command("systemctl", "list-units", "--all", "--no-legend", "berth-*.scope").Output(); len(out) > 0 {
			t.Errorf("left behind: %s", out)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/berth-*.scope"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestNoSystemd(t *testing.T) {
	if systemdRuns() {
		enginetest.Skip(t, enginetest.NeedsNoSystemd)
	}
	t.Parallel()
	e := enginetest.Start(t, enginetest.WithArgs("--exec-opt", "native.cgroupdriver=systemd"))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		r := c.Run("run", "--rm", img, "true")
		if r.Code != 125 || !strings.Contains(r.Err, "systemd not running on this host, cannot use systemd cgroups manager") {
			t.Errorf("%d %q", r.Code, r.Err)
		}
		if left := c.Must("ps", "-aq"); left != "" {
			t.Errorf("left behind: %s", left)
		}
	})
}
