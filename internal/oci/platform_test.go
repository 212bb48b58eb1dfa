package oci

import "testing"

func TestPlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "LINUX/x86_64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/aarch64": "linux/arm64",
		"arm": "linux/arm/v7", "linux/arm": "linux/arm/v7", "linux/armhf": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "linux/amd64/v3": "linux/amd64/v3",
		"windows/amd64": "windows/amd64", "": "!", "a/b/c/d": "!", "nonsense": "!", "linux/": "!", "a b": "!",
	} {
		p, err := ParsePlatform(in)
		if err != nil {
			if want != "!" {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		if got := FormatPlatform(p); got != want {
			t.Errorf("%q is %s, want %s", in, got, want)
		}
	}
	for _, c := range []struct {
		want  string
		order []string // each better than the next
		none  []string
	}{
		{"linux/amd64", []string{"linux/amd64", "linux/386"}, []string{"linux/arm64", "windows/amd64", "linux/amd64/v2"}},
		{"linux/amd64/v3", []string{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64"}, []string{"linux/amd64/v4"}},
		{"linux/arm/v7", []string{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5"}, []string{"linux/arm/v8", "linux/arm64"}},
		{"linux/arm64", []string{"linux/arm64/v8", "linux/arm/v8", "linux/arm/v7"}, []string{"linux/amd64"}},
	} {
		w, err := ParsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		last := 1 << 20
		for _, o := range c.order {
			p, _ := ParsePlatform(o)
			r := PlatformRank(w, p)
			if r == 0 || r >= last {
				t.Errorf("for %s, %s has rank %d after %d", c.want, o, r, last)
			}
			last = r
		}
		for _, o := range c.none {
			p, _ := ParsePlatform(o)
			if r := PlatformRank(w, p); r != 0 {
				t.Errorf("for %s, %s has rank %d", c.want, o, r)
			}
		}
	}
}
