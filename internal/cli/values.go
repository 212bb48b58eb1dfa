package cli

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// shortID cuts an id or digest to the 12 digits that people read.
func shortID(id string) string {
	if _, rest, ok := strings.Cut(id, ":"); ok {
		id = rest
	}
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// ellipsis cuts s to n columns, the last one a dot-dot-dot.
func ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n <= 1 {
		return string(r[:n])
	}
	return string(r[:n-1]) + "…"
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func size3(n float64) string { return units.HumanSizeWithPrecision(n, 3) }

func joinComma(l []string) string { return strings.Join(l, ", ") }

// joinLabels lists labels as k=v, sorted.
func joinLabels(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// splitRepoTag reads NAME[:TAG] as the engine's repo and tag parameters.
func splitRepoTag(s string) (repo, tag string, err error) {
	r, err := parseRef(s)
	if err != nil {
		return "", "", err
	}
	if r.digest != "" {
		return "", "", errors.New("refusing to create a tag with a digest reference")
	}
	return r.fullName(), r.withDefaultTag().tag, nil
}

// normalizePlatform gives os/arch[/variant] its canonical names.
func normalizePlatform(s string) string {
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) < 2 {
		return s
	}
	switch parts[1] {
	case "x86_64", "x86-64":
		parts[1] = "amd64"
	case "aarch64":
		parts[1] = "arm64"
	case "i386", "i486", "i586", "i686":
		parts[1] = "386"
	case "armhf":
		parts[1], parts = "arm", append(parts[:2], "v7")
	case "armel":
		parts[1], parts = "arm", append(parts[:2], "v6")
	}
	return strings.Join(parts, "/")
}

// platformJSON is a platform as newer parameters want it.
func platformJSON(s string) (string, error) {
	parts := strings.Split(normalizePlatform(s), "/")
	if len(parts) < 2 || len(parts) > 3 {
		return "", fmt.Errorf("invalid platform: %q is an invalid OS/ARCH component of %q", s, s)
	}
	out := fmt.Sprintf(`{"architecture":%q,"os":%q`, parts[1], parts[0])
	if len(parts) == 3 {
		out += fmt.Sprintf(`,"variant":%q`, parts[2])
	}
	return out + "}", nil
}

// timestamp turns "42m", a date or seconds into the seconds.nanoseconds of the API.
func timestamp(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if d, err := time.ParseDuration(s); s != "0" && err == nil {
		return strconv.FormatInt(time.Now().Add(-d).Unix(), 10), nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00", "2006-01-02Z07:00",
		"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
		}
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return s, nil
	}
	return "", fmt.Errorf("failed to parse value as time or duration: %q", s)
}

func humanSize(n float64) string { return units.HumanSize(n) }
