// Package filter holds the filter arguments of list, prune and event calls,
// in the two JSON forms that the Engine API has had: {"key":["v"]} and
// {"key":{"v":true}}.
package filter

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/internal/errs"
)

// Args is a set of filter values by key. The zero value filters nothing.
type Args map[string][]string

// Parse reads the query parameter. An empty string is no filter.
func Parse(s string) (Args, error) {
	if s == "" || s == "null" {
		return Args{}, nil
	}
	a := Args{}
	var m map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &m); err == nil {
		for k, vs := range m {
			a[k] = []string{}
			for v := range vs {
				a[k] = append(a[k], v)
			}
			sort.Strings(a[k])
		}
		return a, nil
	}
	var l map[string][]string
	if err := json.Unmarshal([]byte(s), &l); err != nil {
		return nil, errs.New(errs.Invalid, "invalid filter: %v", err)
	}
	return Args(l), nil
}

// Validate fails for a key that is not in allowed, in Docker's words.
func (a Args) Validate(allowed ...string) error {
	keys := make([]string, 0, len(a))
	for k := range a {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if !slices.Contains(allowed, k) {
			return errs.New(errs.Invalid, "invalid filter '%s'", k)
		}
	}
	return nil
}

// Has reports whether key is filtered on.
func (a Args) Has(key string) bool { return len(a[key]) > 0 }

// Add adds one value.
func (a Args) Add(key, value string) { a[key] = append(a[key], value) }

// Exact reports whether key is not filtered on or one of its values equals v.
func (a Args) Exact(key, v string) bool { return !a.Has(key) || slices.Contains(a[key], v) }

// Match is Exact, where a value may also be a regular expression that v matches.
func (a Args) Match(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	for _, pat := range a[key] {
		if re, err := regexp.Compile(pat); err == nil && re.MatchString(v) {
			return true
		}
	}
	return false
}

// Fuzzy is Exact, where a value may also be a prefix of v.
func (a Args) Fuzzy(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	return slices.ContainsFunc(a[key], func(p string) bool { return strings.HasPrefix(v, p) })
}

// Glob is Exact, where a value may also be a shell pattern that v matches.
func (a Args) Glob(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	return slices.ContainsFunc(a[key], func(p string) bool { ok, err := path.Match(p, v); return err == nil && ok })
}

// Labels reports whether labels satisfies every value of key, each "name" or "name=value".
func (a Args) Labels(key string, labels map[string]string) bool {
	for _, want := range a[key] {
		name, value, hasValue := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || hasValue && got != value {
			return false
		}
	}
	return true
}

// Bool returns the one boolean value of key, or def when it is not set.
// Several contradicting values, or one that is no boolean, are an error.
func (a Args) Bool(key string, def bool) (bool, error) {
	if !a.Has(key) {
		return def, nil
	}
	var seen *bool
	for _, v := range a[key] {
		b, err := strconv.ParseBool(v)
		if err != nil || seen != nil && *seen != b {
			return def, errs.New(errs.Invalid, "invalid filter '%s=%s'", key, a[key])
		}
		seen = &b
	}
	return *seen, nil
}

// Until returns the time that the key "until" names: a timestamp, or a duration
// back from now. Zero when it is not set.
func (a Args) Until() (time.Time, error) {
	if !a.Has("until") {
		return time.Time{}, nil
	}
	if len(a["until"]) > 1 {
		return time.Time{}, errs.New(errs.Invalid, "more than one until filter specified")
	}
	v := a["until"][0]
	if d, err := time.ParseDuration(v); err == nil {
		return time.Now().Add(-d), nil
	}
	if sec, err := strconv.ParseFloat(v, 64); err == nil {
		return time.Unix(0, int64(sec*float64(time.Second))), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "invalid until filter: %q", v)
}
