package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// FuzzValues reads the values of options of several kinds: they are taken or refused.
func FuzzValues(f *testing.F) {
	for _, s := range []string{
		"type=bind,src=/a,dst=/b,ro", "type=tmpfs,dst=/x,tmpfs-size=1g,tmpfs-mode=1777", "type=volume,volume-opt=a=b,volume-label=c,target=/", `"a,b",c`, "type=,,=", "readonly=x", "bind-propagation=",
		"nofile=1024:2048", "nofile=-1", "x=1", "nofile=2:1", "nproc=99999999999999999999", "/dev/null:/dev/x:rwm", "/dev/null::", ":::", "/dev/null:rwmrwm", "vendor.com/class=all", "8080:80/tcp", "[::1]:1-5:1-5/udp", "1-65536:1", "always:3", "on-failure:-1",
		"/dev/sda:1mb", "/dev/sda:18446744073709551616", "all,capabilities=utility", `device="0,1"`, "count=-2", "1.5", "1e400", "64m", "-1", "9e99g", "a=b=c", "host:::1", "host-gateway", "c 1:3 rwm", "net.ipv4.ip_forward=1", "\x00", "name:alias:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m := &mountValue{}
		if m.Set(s) == nil {
			if len(m.list) != 1 || m.list[0].Target == "" {
				t.Fatalf("%q: %+v", s, m.list)
			}
			if _, err := json.Marshal(m.list); err != nil {
				t.Fatal(err)
			}
		}
		u := &ulimitValue{limits: map[string]*container.Ulimit{}}
		if u.Set(s) == nil {
			for _, l := range u.list() {
				if l.Hard >= 0 && l.Soft > l.Hard || l.Name == "" || strings.Contains(l.Name, "=") {
					t.Fatalf("%q: %+v", s, l)
				}
			}
		}
		if d, err := parseDevice(s); err == nil && (d.CgroupPermissions == "" || strings.Trim(d.CgroupPermissions, "rwm") != "") {
			t.Fatalf("%q: %+v", s, d)
		}
		_, _ = parseRestart(s)
		if _, ports, err := parsePublish([]string{s}); err == nil && len(ports) == 0 {
			t.Fatalf("%q: taken, and nothing published", s)
		}
		for _, v := range []interface {
			Set(string) error
			String() string
		}{&weightValue{}, &throttleValue{}, &gpuValue{}, &bytesValue{}, new(cpusValue), &filterValue{}} {
			_ = v.Set(s)
			_ = v.String()
		}
		for _, check := range []func(string) (string, error){checkLabel, checkIP, checkAttach, checkExtraHost, checkLink, checkDNSSearch, checkDeviceRule, checkSysctl} {
			_, _ = check(s)
		}
		_, _ = parseSecurity([]string{strings.ReplaceAll(s, "/", "")}) // no files
		_, _ = parseHost(s, false)
		_, _ = parseRef(s)
	})
}
