package oci

import (
	"regexp"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/internal/errs"
)

// Host is the platform of this machine.
func Host() ocispec.Platform {
	return normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH})
}

var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

var knownOS = []string{"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "aix", "android", "dragonfly", "illumos", "ios", "js", "plan9", "wasip1"}

// ParsePlatform reads "os", "arch", "os/arch" or "os/arch/variant"; what is not said is
// the machine's.
func ParsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	for _, p := range parts {
		if !platformPart.MatchString(p) {
			return ocispec.Platform{}, errs.New(errs.Invalid, "%q is an invalid component of %q: platform specifier component must match %q: invalid argument", p, s, platformPart)
		}
	}
	p := Host()
	switch len(parts) {
	case 1:
		if slices.Contains(knownOS, parts[0]) || parts[0] == "macos" {
			p.OS = parts[0]
			return normalize(p), nil
		}
		p = ocispec.Platform{OS: "linux", Architecture: parts[0]}
		if a := normalize(p); !knownArch(a.Architecture) {
			return ocispec.Platform{}, errs.New(errs.Invalid, "%q: unknown operating system or architecture: invalid argument", s)
		}
	case 2:
		p = ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	case 3:
		p = ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
	default:
		return ocispec.Platform{}, errs.New(errs.Invalid, "%q: cannot parse platform specifier: invalid argument", s)
	}
	return normalize(p), nil
}

func knownArch(a string) bool {
	return slices.Contains([]string{
		"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm",
	}, a)
}

// normalize writes a platform in the one way that is compared.
func normalize(p ocispec.Platform) ocispec.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.OS {
	case "":
		p.OS = "linux"
	case "macos":
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "i386":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Architecture = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "arm":
		switch p.Variant {
		case "", "7":
			p.Variant = "v7"
		case "5", "6", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// PlatformRank tells how well what is there serves what is wanted: 0 not at all, more is
// better. A machine runs the variants below its own, and amd64 runs 386; for arm64 comes
// arm.
func PlatformRank(want, have ocispec.Platform) int {
	want, have = normalize(want), normalize(have)
	if want.OS != have.OS {
		return 0
	}
	const exact = 100
	if want.Architecture == have.Architecture {
		if want.Variant == have.Variant {
			return exact
		}
		w, h := variantLevel(want.Variant), variantLevel(have.Variant)
		if h > w || w < 0 || h < 0 {
			return 0
		}
		return exact - (w - h)
	}
	switch {
	case want.Architecture == "amd64" && have.Architecture == "386":
		return 1
	case want.Architecture == "arm64" && have.Architecture == "arm":
		if l := variantLevel(have.Variant); l >= 50 && l <= 80 {
			return l / 10
		}
	}
	return 0
}

// variantLevel orders "" (the base), v2, v8.1 and so on; -1 is unknown.
func variantLevel(v string) int {
	if v == "" {
		return 10
	}
	n, minor, dot := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	if len(n) != 1 || n[0] < '1' || n[0] > '9' || dot && (len(minor) != 1 || minor[0] < '0' || minor[0] > '9') {
		return -1
	}
	l := int(n[0]-'0') * 10
	if dot {
		l += int(minor[0] - '0')
	}
	return l
}

// FormatPlatform is "os/arch[/variant]".
func FormatPlatform(p ocispec.Platform) string {
	p = normalize(p)
	if p.Variant == "" {
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}
