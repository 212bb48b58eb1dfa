package cli

import (
	"errors"
	"fmt"
	"strings"
)

// imageRef is an image name as people type it, complete. It is parsed by hand:
// the usual library costs a millisecond of start-up in compiled expressions.
// The grammar and the error texts are those of the distribution project.
type imageRef struct {
	domain, path, tag, digest string
}

var errRefFormat = errors.New("invalid reference format")

// parseRef reads [domain/]path[:tag][@digest].
func parseRef(s string) (imageRef, error) {
	var r imageRef
	if isHexID(s) {
		return r, fmt.Errorf("invalid repository name (%s), cannot specify 64-byte hexadecimal strings", s)
	}
	rest := s
	r.domain = "docker.io"
	if i := strings.IndexByte(s, '/'); i >= 0 {
		if d := s[:i]; strings.ContainsAny(d, ".:") || d == "localhost" || strings.ToLower(d) != d {
			r.domain, rest = d, s[i+1:]
		}
	}
	if r.domain == "index.docker.io" {
		r.domain = "docker.io"
	}
	if r.domain == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	rest, digest, hasDigest := strings.Cut(rest, "@")
	name, tag, hasTag := strings.Cut(rest, ":")
	if strings.ToLower(name) != name {
		return r, fmt.Errorf("invalid reference format: repository name (%s) must be lowercase", name)
	}
	switch {
	case !validDomain(r.domain), !validPath(name), hasTag && !validTag(tag), hasDigest && !validDigest(digest):
		return r, errRefFormat
	case len(r.domain)+1+len(name) > 255:
		return r, errors.New("repository name must not be more than 255 characters")
	}
	r.path, r.tag, r.digest = name, tag, digest
	return r, nil
}

// parseAnyRef reads a name, an image id, or a digest. named is false for the last two.
func parseAnyRef(s string) (r imageRef, named bool, err error) {
	if isHexID(s) || validDigest(s) {
		return r, false, nil
	}
	r, err = parseRef(s)
	return r, err == nil, err
}

func isHexID(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// withDefaultTag adds "latest" to a bare name.
func (r imageRef) withDefaultTag() imageRef {
	if r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r
}

func (r imageRef) nameOnly() bool { return r.tag == "" && r.digest == "" }

// familiarName is the name without what goes without saying.
func (r imageRef) familiarName() string {
	if r.domain == "docker.io" {
		return strings.TrimPrefix(r.path, "library/")
	}
	return r.domain + "/" + r.path
}

// fullName is the complete name, without tag and digest.
func (r imageRef) fullName() string { return r.domain + "/" + r.path }

func (r imageRef) suffix() string {
	s := ""
	if r.tag != "" {
		s = ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest
	}
	return s
}

// familiar is the name as people read it, String the complete one.
func (r imageRef) familiar() string { return r.familiarName() + r.suffix() }
func (r imageRef) String() string   { return r.fullName() + r.suffix() }

func validDomain(s string) bool {
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 || strings.Trim(s[1:end], "0123456789abcdefABCDEF:") != "" {
			return false
		}
		host, port = "", s[end+1:]
		if port == "" {
			return true
		}
		if port[0] != ':' {
			return false
		}
		port = port[1:]
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
		if port == "" {
			return false
		}
	}
	if strings.Trim(port, "0123456789") != "" {
		return false
	}
	if host == "" {
		return strings.HasPrefix(s, "[")
	}
	for _, part := range strings.Split(host, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' || strings.TrimFunc(part, func(c rune) bool { return isAlnum(c) || c == '-' }) != "" {
			return false
		}
	}
	return true
}

func isAlnum(c rune) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// validPath checks components of [a-z0-9], joined inside by one dot, one or two underscores, or dashes.
func validPath(s string) bool {
	for _, part := range strings.Split(s, "/") {
		sep := ""
		seen := false
		for _, c := range part {
			switch {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
				if sep != "" && sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
					return false
				}
				sep, seen = "", true
			case c == '.', c == '_', c == '-':
				if !seen {
					return false
				}
				sep += string(c)
			default:
				return false
			}
		}
		if !seen || sep != "" {
			return false
		}
	}
	return true
}

func validTag(s string) bool {
	for i, c := range s {
		if !isAlnum(c) && c != '_' && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

func validDigest(s string) bool {
	algo, hex, ok := strings.Cut(s, ":")
	if !ok || algo == "" || strings.TrimFunc(algo, func(c rune) bool { return isAlnum(c) || strings.ContainsRune("+._-", c) }) != "" ||
		strings.Trim(hex, "0123456789abcdef") != "" {
		return false
	}
	switch algo {
	case "sha256":
		return len(hex) == 64
	case "sha384":
		return len(hex) == 96
	case "sha512":
		return len(hex) == 128
	}
	return false
}
