package system

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCgroups(t *testing.T) {
	v1 := t.TempDir()
	write(t, v1+"/memory/memory.limit_in_bytes", "")
	write(t, v1+"/cpu/cpu.shares", "")
	version, c := cgroups(v1)
	if version != "1" || !c.memory || c.swap || !c.shares || c.cfsQuota {
		t.Errorf("v1: %s %+v", version, c)
	}
	v2 := t.TempDir()
	write(t, v2+"/cgroup.controllers", "cpuset cpu io memory pids\n")
	write(t, v2+"/system.slice/memory.swap.max", "max")
	version, c = cgroups(v2)
	if version != "2" || !c.memory || !c.swap || !c.cpuset || !c.pids || !c.readBps || c.weight {
		t.Errorf("v2: %s %+v", version, c)
	}
	w := warnings(&Config{InsecureHosts: []string{"0.0.0.0:2375"}}, &host{cgroup: version, caps: c})
	if len(w) != 3 || !strings.HasPrefix(w[0], "WARNING: API is accessible on http://0.0.0.0:2375 without encryption.\n") ||
		!slices.Contains(w, "WARNING: No io.weight support") {
		t.Errorf("warnings: %q", w)
	}
}

func TestDistribution(t *testing.T) {
	p := filepath.Join(t.TempDir(), "os-release")
	write(t, p, "NAME=\"X\"\nPRETTY_NAME=\"Debian \\\"12\\\"\"\nVERSION_ID=12\n")
	if n, v := distribution("/nonexistent", p); n != `Debian "12"` || v != "12" {
		t.Errorf("%q %q", n, v)
	}
}

func TestInfoAndVersion(t *testing.T) {
	s := New(Config{Build: Build{Version: "1.2.3", APIVersion: "1.56", MinAPI: "1.24"}, Proxy: Proxy{HTTP: "http://u:secret@p:1"}}, Sources{
		Counts: func() Counts { return Counts{Running: 2, Paused: 1, Stopped: 3} },
		Driver: func() (string, [][2]string) { return "overlay2", nil },
	})
	i, err := s.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if i.Containers != 6 || i.ContainersRunning != 2 || i.Driver != "overlay2" || i.NCPU < 1 || i.MemTotal < 1<<20 || i.KernelVersion == "" ||
		i.DefaultRuntime != "berth" || i.Swarm.LocalNodeState != "inactive" || strings.Contains(i.HTTPProxy, "secret") || i.NFd < 3 {
		t.Errorf("%+v", i)
	}
	v, _ := s.Version(context.Background())
	if v.Platform.Name != "Berth Engine" || v.Components[0].Details["ApiVersion"] != "1.56" || v.Os != "linux" {
		t.Errorf("%+v", v)
	}
}

func TestDiskUsage(t *testing.T) {
	s := New(Config{}, Sources{
		Containers: func(context.Context) ([]container.Summary, error) {
			return []container.Summary{{State: "running", SizeRw: 5}, {State: "exited", SizeRw: 7}}, nil
		},
		Images: func(context.Context, bool) (image.DiskUsage, error) {
			return image.DiskUsage{TotalSize: 110, Reclaimable: 50}, nil
		},
		Volumes: func(context.Context) ([]volume.Volume, error) {
			return []volume.Volume{{UsageData: &volume.UsageData{RefCount: 1, Size: 3}}, {UsageData: &volume.UsageData{Size: 4}}, {}}, nil
		},
	})
	du, err := s.DiskUsage(context.Background(), DiskUsageOptions{true, true, true, true})
	if err != nil {
		t.Fatal(err)
	}
	if c := du.ContainerUsage; c.ActiveCount != 1 || c.TotalSize != 12 || c.Reclaimable != 7 {
		t.Errorf("containers: %+v", c)
	}
	if i := du.ImageUsage; i.TotalSize != 110 || i.Reclaimable != 50 {
		t.Errorf("images: %+v", i)
	}
	if v := du.VolumeUsage; v.TotalCount != 3 || v.ActiveCount != 1 || v.TotalSize != 7 || v.Reclaimable != 4 {
		t.Errorf("volumes: %+v", v)
	}
	if du, _ := s.DiskUsage(context.Background(), DiskUsageOptions{Images: true}); du.ContainerUsage != nil || du.ImageUsage == nil {
		t.Error("not only the images")
	}
}

func TestEngineID(t *testing.T) {
	dir := t.TempDir()
	a, err := EngineID(dir)
	b, err2 := EngineID(dir)
	if err != nil || err2 != nil || len(a) != 36 || a != b {
		t.Errorf("%q %q %v %v", a, b, err, err2)
	}
}

func BenchmarkInfo(b *testing.B) {
	s := New(Config{}, Sources{})
	for b.Loop() {
		_, _ = s.Info(context.Background())
	}
}
