package filter

import (
	"fmt"
	"testing"
	"time"

	"berth.dev/berth/internal/errs"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"": "map[]", "null": "map[]", "{}": "map[]", `{"a":["x","y"]}`: "map[a:[x y]]", `{"a":{"y":true,"x":true}}`: "map[a:[x y]]", `{"a":{}}`: "map[a:[]]", `{"a":[]}`: "map[a:[]]",
	} {
		got, err := Parse(in)
		if err != nil || fmt.Sprint(map[string][]string(got)) != want {
			t.Errorf("%s: %v %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"{", "[]", `"x"`, "5", `{"a":5}`, `{"a":["x"`, `{"a":[5]}`} {
		if got, err := Parse(in); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"a":["x"]}`)
	f.Add(`{"a":{"x":true}}`)
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		for k := range a {
			a.Exact(k, "x")
			a.Match(k, "x")
			a.Fuzzy(k, "x")
			a.Glob(k, "x")
			a.Labels(k, nil)
			_, _ = a.Bool(k, true)
		}
		_, _ = a.Until()
	})
}

func TestMatching(t *testing.T) {
	a := Args{"k": {"abc", "x.z", "p*"}}
	for _, c := range []struct {
		v                         string
		exact, match, fuzzy, glob bool
	}{
		{"abc", true, true, true, true},
		{"abcd", false, true, true, false},
		{"xyz", false, true, false, false},
		{"x.z", true, true, true, true},
		{"pq", false, true, false, true},
		{"q", false, true, false, false}, // p* as an expression matches everything
	} {
		if a.Exact("k", c.v) != c.exact || a.Match("k", c.v) != c.match || a.Fuzzy("k", c.v) != c.fuzzy || a.Glob("k", c.v) != c.glob {
			t.Errorf("%s: %v %v %v %v", c.v, a.Exact("k", c.v), a.Match("k", c.v), a.Fuzzy("k", c.v), a.Glob("k", c.v))
		}
	}
	if !a.Exact("other", "x") || !a.Match("other", "x") || (Args{"k": {"["}}).Match("k", "x") || (Args{"k": {"["}}).Glob("k", "x") {
		t.Error("a key that is not there matches; a broken pattern does not")
	}
}

func TestLabels(t *testing.T) {
	l := map[string]string{"a": "1", "b": "", "c=d": "x"}
	for in, want := range map[string]bool{"a": true, "a=1": true, "a=2": false, "b": true, "b=": true, "b=x": false, "z": false, "z=": false} {
		if got := (Args{"label": {in}}).Labels("label", l); got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	if !(Args{}).Labels("label", nil) || (Args{"label": {"a", "z"}}).Labels("label", l) {
		t.Error("all of them have to match")
	}
}

func TestBool(t *testing.T) {
	for _, c := range []struct {
		in        []string
		def, want bool
		bad       bool
	}{{nil, true, true, false}, {nil, false, false, false}, {[]string{"true"}, false, true, false}, {[]string{"0", "false"}, true, false, false}, {[]string{"1", "0"}, false, false, true}, {[]string{"maybe"}, false, false, true}} {
		a := Args{}
		if c.in != nil {
			a["k"] = c.in
		}
		got, err := a.Bool("k", c.def)
		if (err != nil) != c.bad || err == nil && got != c.want {
			t.Errorf("%v: %v %v", c.in, got, err)
		}
	}
}

func TestUntil(t *testing.T) {
	now := time.Now()
	for in, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "1600000000": time.Unix(1600000000, 0), "1600000000.5": time.Unix(1600000000, 500000000),
		"2020-01-02T03:04:05Z": time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), "2020-01-02": time.Date(2020, 1, 2, 0, 0, 0, 0, time.Local), "2020-01-02T03:04": time.Date(2020, 1, 2, 3, 4, 0, 0, time.Local),
	} {
		got, err := (Args{"until": {in}}).Until()
		if d := got.Sub(want); err != nil || d < -time.Second || d > time.Second {
			t.Errorf("%s: %v %v, want %v", in, got, err, want)
		}
	}
	for _, in := range [][]string{{"x"}, {""}, {"10m", "20m"}} {
		if _, err := (Args{"until": in}).Until(); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v: %v", in, err)
		}
	}
	if got, err := (Args{}).Until(); err != nil || !got.IsZero() {
		t.Errorf("%v %v", got, err)
	}
}

func TestValidate(t *testing.T) {
	if err := (Args{"a": {"1"}, "b": nil}).Validate("a", "b"); err != nil {
		t.Error(err)
	}
	if err := (Args{"z": {"1"}, "y": {"1"}}).Validate("a"); err == nil || err.Error() != "invalid filter 'y'" {
		t.Errorf("%v", err)
	}
}
