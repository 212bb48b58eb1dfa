package registryd

import (
	"crypto"
	_ "crypto/sha256" // for go-digest
	_ "crypto/sha512" // for go-digest
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	maxName = 255
	maxTag  = 128
)

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// validName tells whether a repository may have this name: components of lower case
// letters and digits, parted by one '.', one or two '_', or any number of '-'.
func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || !alnum(part[0]) || !alnum(part[len(part)-1]) {
			return false
		}
		for i := 0; i < len(part); i++ {
			if alnum(part[i]) {
				continue
			}
			j := i
			for j < len(part) && part[j] == part[i] {
				j++
			}
			switch sep := part[i:j]; {
			case sep[0] == '-' || sep == "." || sep == "_" || sep == "__":
			default:
				return false
			}
			if !alnum(part[j]) { // the last byte is one, so j is inside
				return false
			}
			i = j
		}
	}
	return true
}

func validTag(tag string) bool {
	if tag == "" || len(tag) > maxTag {
		return false
	}
	for i := 0; i < len(tag); i++ {
		c := tag[i]
		word := alnum(c) || c >= 'A' && c <= 'Z' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// parseDigest accepts sha256 and sha512 in lower case hex.
func parseDigest(s string) (digest.Digest, error) {
	alg, hex, ok := strings.Cut(s, ":")
	var h crypto.Hash
	switch {
	case !ok:
		return "", digestInvalid("invalid digest: no algorithm", s)
	case alg == "sha256":
		h = crypto.SHA256
	case alg == "sha512":
		h = crypto.SHA512
	default:
		return "", digestInvalid("invalid digest: the algorithm is not supported", s)
	}
	if len(hex) != 2*h.Size() || strings.Trim(hex, "0123456789abcdef") != "" {
		return "", digestInvalid("invalid digest: no lower case hex of this length", s)
	}
	return digest.Digest(s), nil
}

type routeKind int

const (
	routeNone routeKind = iota
	routeBase
	routeCatalog
	routeTags
	routeManifest
	routeBlob
	routeUploads
	routeUpload
	routeReferrers
)

func (k routeKind) String() string {
	return [...]string{"none", "base", "catalog", "tags", "manifest", "blob", "blob-upload", "blob-upload-chunk", "referrers"}[k]
}

// route is what a path below /v2/ means. Name and ref are not yet checked.
type route struct {
	kind routeKind
	name string
	ref  string // tag, digest or upload id
}

// parsePath reads a path from its end, because any word may also be part of a name.
func parsePath(path string) route {
	if path == "/v2/" || path == "/v2" {
		return route{kind: routeBase}
	}
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return route{}
	}
	if rest == "_catalog" {
		return route{kind: routeCatalog}
	}
	if name, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{routeTags, name, ""}
	}
	for _, s := range []string{"/blobs/uploads/", "/blobs/uploads"} {
		if name, ok := strings.CutSuffix(rest, s); ok {
			return route{routeUploads, name, ""}
		}
	}
	dir, last := cutLast(rest)
	dir, verb := cutLast(dir)
	switch verb {
	case "manifests":
		return route{routeManifest, dir, last}
	case "blobs":
		return route{routeBlob, dir, last}
	case "referrers":
		return route{routeReferrers, dir, last}
	case "uploads":
		if name, ok := strings.CutSuffix(dir, "/blobs"); ok {
			return route{routeUpload, name, last}
		}
	}
	return route{}
}

func cutLast(s string) (before, last string) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

// validID tells whether an upload may have this id, which becomes a file name.
func validID(id string) bool {
	return len(id) == 36 && strings.Trim(id, "0123456789abcdef-") == "" && id[0] != '-'
}
