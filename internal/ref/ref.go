// Package ref reads image references in the forms that people type.
//
// # Words
//
// A familiar name is what is typed and shown: "mysql", "mysql:8",
// "quay.io/x/y@sha256:…". The full form names the registry and always has a
// tag or a digest: "docker.io/library/mysql:latest". The store keeps the full
// form; texts for people use the familiar one. An id is the digest of an
// image's configuration, whole ("sha256:…"), bare hexadecimal, or a prefix.
//
// The grammar and its error texts are those of the distribution project, since
// clients match them ("invalid reference format", "repository name
// (library/…) must be lowercase").
package ref

import (
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/internal/errs"
)

// Name is a parsed full reference with a tag or a digest. The zero value names
// nothing.
type Name struct{ named reference.Named }

// Parse reads a familiar or full name. A name with neither tag nor digest
// means the tag "latest".
func Parse(s string) (Name, error) {
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Name{}, errs.New(errs.Invalid, "%w", err)
	}
	return Name{reference.TagNameOnly(n)}, nil
}

// ParseRepository reads repo and tag, as the tag and commit calls give them:
// repo must carry no digest, and an empty tag means repo's own or "latest".
func ParseRepository(repo, tag string) (Name, error) {
	n, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return Name{}, errs.New(errs.Invalid, "%w", err)
	}
	if _, ok := n.(reference.Digested); ok {
		return Name{}, errs.New(errs.Invalid, "cannot import digest reference")
	}
	if tag == "" {
		return Name{reference.TagNameOnly(n)}, nil
	}
	t, err := reference.WithTag(reference.TrimNamed(n), tag)
	if err != nil {
		return Name{}, errs.New(errs.Invalid, "%w", err)
	}
	return Name{t}, nil
}

// IsZero reports whether n names nothing.
func (n Name) IsZero() bool { return n.named == nil }

// String is the full form: "docker.io/library/mysql:latest".
func (n Name) String() string {
	if n.named == nil {
		return ""
	}
	return n.named.String()
}

// Familiar is the form for people: "mysql:latest".
func (n Name) Familiar() string {
	if n.named == nil {
		return ""
	}
	return reference.FamiliarString(n.named)
}

// Repository is the full name without tag and digest.
func (n Name) Repository() string { return n.named.Name() }

// FamiliarRepository is Repository in the form for people.
func (n Name) FamiliarRepository() string { return reference.FamiliarName(n.named) }

// Domain is the registry's host: "docker.io".
func (n Name) Domain() string { return reference.Domain(n.named) }

// Path is the repository within the registry: "library/mysql".
func (n Name) Path() string { return reference.Path(n.named) }

// Tag returns the tag, or "" for a reference by digest alone.
func (n Name) Tag() string {
	if t, ok := n.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest returns the digest, or "" where there is none.
func (n Name) Digest() digest.Digest {
	if d, ok := n.named.(reference.Digested); ok {
		return d.Digest()
	}
	return ""
}

// WithDigest is the canonical reference of the same repository: name@digest.
func (n Name) WithDigest(d digest.Digest) (Name, error) {
	c, err := reference.WithDigest(reference.TrimNamed(n.named), d)
	if err != nil {
		return Name{}, errs.New(errs.Invalid, "%w", err)
	}
	return Name{c}, nil
}

// Match reports whether the familiar form of n matches a shell pattern, with
// or without its tag, as the list filter "reference" has it.
func (n Name) Match(pattern string) (bool, error) {
	ok, err := reference.FamiliarMatch(pattern, n.named)
	if err != nil {
		return false, errs.New(errs.Invalid, "%w", err)
	}
	return ok, nil
}

// HasTagOrDigest reports whether s, as typed, is more than a repository.
func HasTagOrDigest(s string) bool {
	n, err := reference.ParseNormalizedNamed(s)
	return err == nil && !reference.IsNameOnly(n)
}

// IsIDPrefix reports whether s can be the start of id or of its hexadecimal part.
func IsIDPrefix(id digest.Digest, s string) bool {
	if s == "" {
		return false
	}
	return strings.HasPrefix(string(id), s) || strings.HasPrefix(id.Encoded(), s)
}

// ParseID reads a whole image id, "sha256:…" or 64 hexadecimal digits.
func ParseID(s string) (digest.Digest, bool) {
	if len(s) == 64 && isHex(s) {
		return digest.NewDigestFromEncoded(digest.SHA256, s), true
	}
	if strings.HasPrefix(s, "sha256:") && len(s) == 71 && isHex(s[7:]) {
		return digest.Digest(s), true
	}
	return "", false
}

// IDPrefix returns the hexadecimal digits that s may abbreviate an id by.
func IDPrefix(s string) (string, bool) {
	s = strings.TrimPrefix(s, "sha256:")
	return s, s != "" && len(s) <= 64 && isHex(s)
}

// Short is the form of an id for people: its first twelve digits.
func Short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
