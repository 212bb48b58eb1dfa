package cli

import (
	"slices"
	"testing"
)

// What -v says is looked at before the engine is asked, as Docker's command line does.
func TestSplitVolumes(t *testing.T) {
	split := func(l ...string) ([]string, map[string]struct{}, error) {
		return (&containerOptions{volumes: &listValue{values: l}}).splitVolumes()
	}
	binds, anonymous, err := split("/a", "/a", "v1:/b", "/c:/d:ro", "v1:/b")
	if _, ok := anonymous["/a"]; err != nil || !ok || len(anonymous) != 1 || !slices.Equal(binds, []string{"v1:/b", "/c:/d:ro"}) {
		t.Errorf("%q %v %v", binds, anonymous, err)
	}
	for spec, want := range map[string]string{
		":/x": "empty section between colons", "v:": "empty section between colons", "v:/x:": "empty section between colons", "v::ro": "empty section between colons",
		"v:/x:ro:z": "too many colons",
	} {
		if _, _, err := split(spec); err == nil || err.Error() != "invalid spec: "+spec+": "+want {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestMountKeys(t *testing.T) {
	for _, spec := range []string{"type=bind,src=/a,dst=/b,bind-create-src", "type=bind,src=/a,dst=/b,bind-create-src=true"} {
		var m mountValue
		if err := m.Set(spec); err != nil || m.list[0].BindOptions == nil || !m.list[0].BindOptions.CreateMountpoint {
			t.Errorf("%s: %+v %v", spec, m.list, err)
		}
	}
}
