package container

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/cdi"
)

func TestDeviceRequests(t *testing.T) {
	dir := t.TempDir()
	devices := func(kind string, names ...string) {
		text := `{"cdiVersion":"0.6.0","kind":"` + kind + `","devices":[`
		for i, n := range names {
			if i > 0 {
				text += ","
			}
			text += `{"name":"` + n + `","containerEdits":{"env":["` + strings.ToUpper(kind[:1]) + n + `=1"]}}`
		}
		if err := os.WriteFile(dir+"/"+kind[:3]+".json", []byte(text+"]}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	reg := cdi.New([]string{dir})
	gpu := [][]string{{"gpu"}}
	check := func(r container.DeviceRequest, want string) {
		t.Helper()
		s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
		got := ""
		if err := addRequested(s, reg, []container.DeviceRequest{r}); err != nil {
			got = err.Error()
		} else {
			slices.Sort(s.Process.Env)
			got = strings.Join(s.Process.Env, " ")
		}
		if !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
	check(container.DeviceRequest{Count: -1, Capabilities: gpu}, `could not select device driver "" with capabilities: [[gpu]]`)
	check(container.DeviceRequest{Driver: "odd", Capabilities: [][]string{{"gpu", "x"}, {"y"}}}, `could not select device driver "odd" with capabilities: [[gpu x] [y]]`)
	devices("vendor.com/net", "nic0")
	check(container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/net=nic0"}}, "Vnic0=1")
	check(container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/net=nic1"}}, "CDI device injection failed: unresolvable CDI devices vendor.com/net=nic1")
	check(container.DeviceRequest{Driver: "cdi", Count: 1}, "unexpected count in CDI device request")
	check(container.DeviceRequest{Driver: "cdi", Options: map[string]string{"a": "b"}}, "unexpected options in CDI device request")
	devices("amd.com/gpu", "0", "1", "2")
	check(container.DeviceRequest{Count: -1, Capabilities: gpu}, "A0=1 A1=1 A2=1")
	check(container.DeviceRequest{Count: 2, Capabilities: gpu}, "A0=1 A1=1")
	check(container.DeviceRequest{Count: 4, Capabilities: gpu}, "4 devices of amd.com/gpu were requested, there are 3")
	check(container.DeviceRequest{DeviceIDs: []string{"1"}, Capabilities: gpu}, "A1=1")
	check(container.DeviceRequest{Driver: "nvidia", Count: 1, Capabilities: gpu}, `could not select device driver "nvidia" with capabilities: [[gpu]]`)
	devices("nvidia.com/gpu", "0", "GPU-1", "all")
	check(container.DeviceRequest{Count: -1, Capabilities: gpu}, "Nall=1")
	check(container.DeviceRequest{Count: -1, Driver: "amd", Capabilities: gpu}, "A0=1 A1=1 A2=1")
	reg = cdi.New(nil)
	check(container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"vendor.com/net=nic0"}}, `could not select device driver "cdi" with capabilities: []`)
}
