package idmap

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Files are where the host keeps its accounts and subordinate ids.
type Files struct{ Passwd, Group, SubUID, SubGID string }

// HostFiles are those of this machine.
var HostFiles = Files{Passwd: "/etc/passwd", Group: "/etc/group", SubUID: "/etc/subuid", SubGID: "/etc/subgid"}

const (
	// Default stands for DefaultUser, which is made when it is missing.
	Default     = "default"
	DefaultUser = "dockremap"
)

// ErrNoDefault is what Resolve returns for Default while there is no DefaultUser.
var ErrNoDefault = errors.New("no user " + DefaultUser)

// Resolve finds the user and the group that spec names: "user", "uid",
// "user:group", "uid:gid" or "default". A group that is not named is the one
// with the user's name or number. Errors are in dockerd's words.
func (f Files) Resolve(spec string) (user, group string, err error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if strings.Contains(groupName, ":") {
		return "", "", fmt.Errorf("Invalid user/group specification in --userns-remap: %q", spec) //nolint:staticcheck // dockerd's words
	}
	if id, perr := strconv.ParseInt(name, 10, 32); perr == nil {
		if user, err = lookup(f.Passwd, "", id); err != nil {
			return "", "", fmt.Errorf("Uid %d has no entry in /etc/passwd: %w", id, err) //nolint:staticcheck // dockerd's words
		}
		if !hasGroup {
			if group, err = lookup(f.Group, "", id); err != nil {
				return "", "", fmt.Errorf("Gid %d has no entry in /etc/group: %w", id, err) //nolint:staticcheck // dockerd's words
			}
		}
	} else {
		if name == Default {
			name = DefaultUser
		}
		if user, err = lookup(f.Passwd, name, 0); err != nil {
			if spec == Default || strings.HasPrefix(spec, Default+":") {
				return "", "", ErrNoDefault
			}
			return "", "", fmt.Errorf("Error during uid lookup for %q: %w", name, err) //nolint:staticcheck // dockerd's words
		}
		if !hasGroup {
			if group, err = lookup(f.Group, name, 0); err != nil {
				return "", "", fmt.Errorf("Error during gid lookup for %q: %w", name, err) //nolint:staticcheck // dockerd's words
			}
		}
	}
	if !hasGroup {
		return user, group, nil
	}
	if id, perr := strconv.ParseInt(groupName, 10, 32); perr == nil {
		if group, err = lookup(f.Group, "", id); err != nil {
			return "", "", fmt.Errorf("Gid %d has no entry in /etc/passwd: %w", id, err) //nolint:staticcheck // dockerd's words
		}
		return user, group, nil
	}
	if group, err = lookup(f.Group, groupName, 0); err != nil {
		return "", "", fmt.Errorf("Error during groupname lookup for %q: %w", groupName, err) //nolint:staticcheck // dockerd's words
	}
	return user, group, nil
}

// Load makes the mapping of a user from the subordinate ids that the host's
// files give to it. As in dockerd the group's ranges are looked up by the name
// of the user.
func (f Files) Load(user, group string) (*Mapping, error) {
	uid := ""
	err := eachLine(f.Passwd, func(p []string) error {
		if len(p) > 2 && p[0] == user {
			uid = p[2]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m := &Mapping{User: user, Group: group}
	for _, x := range []struct {
		kind, file string
		to         *Map
	}{{"uid", f.SubUID, &m.UID}, {"gid", f.SubGID, &m.GID}} {
		ranges, err := subordinate(x.file, uid)
		if err == nil && len(ranges) == 0 {
			ranges, err = subordinate(x.file, user)
		}
		if err != nil {
			return nil, err
		}
		if len(ranges) == 0 {
			return nil, fmt.Errorf("no sub%s ranges found for user %q", x.kind, user)
		}
		*x.to = ranges
	}
	return m, nil
}

// maxRanges is how many a kernel takes for one namespace.
const maxRanges = 340

// subordinate reads the ranges of one user and puts them one after another.
func subordinate(file, user string) (Map, error) {
	var m Map
	next := uint64(0)
	err := eachLine(file, func(p []string) error {
		if len(p) != 3 {
			return fmt.Errorf("cannot parse subuid/gid information: Format not correct for %s file", file)
		}
		if p[0] != user && p[0] != "ALL" || user == "" {
			return nil
		}
		start, err := strconv.ParseUint(p[1], 10, 32)
		size, err2 := strconv.ParseUint(p[2], 10, 32)
		if err = errors.Join(err, err2); err != nil {
			return fmt.Errorf("string to int conversion failed during subuid/gid parsing of %s: %w", file, err)
		}
		if size == 0 {
			return nil
		}
		if start+size > 1<<32-1 || next+size > 1<<32-1 || len(m) == maxRanges {
			return fmt.Errorf("the ranges of %q in %s are too large or too many", user, file)
		}
		m = append(m, Range{Inside: uint32(next), Outside: uint32(start), Size: uint32(size)})
		next += size
		return nil
	})
	return m, err
}

// lookup returns the name of an entry of passwd or group, by name or number.
func lookup(file, name string, id int64) (string, error) {
	found := ""
	err := eachLine(file, func(p []string) error {
		if found == "" && len(p) > 2 && (name != "" && p[0] == name || name == "" && p[2] == strconv.FormatInt(id, 10)) {
			found = p[0]
		}
		return nil
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no matching entries in %s file", filepath.Base(file))
	}
	return found, err
}

// eachLine calls fn with the fields of each line that is not empty or a comment.
func eachLine(file string, fn func(fields []string) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 4096), 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := fn(strings.Split(line, ":")); err != nil {
			return err
		}
	}
	return sc.Err()
}

// DefaultSize is how many ids DefaultUser gets.
const DefaultSize = 65536

// NextFree finds the first of DefaultSize ids that nobody has yet, for users
// and groups alike.
func NextFree(f Files) (uint32, error) {
	next := uint64(100000)
	for _, file := range []string{f.SubUID, f.SubGID} {
		err := eachLine(file, func(p []string) error {
			if len(p) != 3 {
				return nil
			}
			start, err := strconv.ParseUint(p[1], 10, 32)
			size, err2 := strconv.ParseUint(p[2], 10, 32)
			if err == nil && err2 == nil {
				next = max(next, start+size)
			}
			return nil
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	if next+DefaultSize > 1<<31 {
		return 0, errors.New("can't find available subuid range: no free range of ids is left")
	}
	return uint32(next), nil
}
