package container

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/linux"
)

// identity is who a process is, as the container's own files tell.
type identity struct {
	specs.User
	home string
}

// maxAccounts bounds what is read of /etc/passwd and /etc/group, in bytes: they
// come from the image.
const maxAccounts = 4 << 20

const maxID = 1<<31 - 1

// account is one line of passwd (gid, home) or of group (members).
type account struct {
	name    string
	id      uint32
	gid     uint32
	home    string
	members []string
}

// resolveUser finds out what USER and --group-add mean in the root filesystem
// behind rootFD. Every form works: name, uid, name:group, uid:gid and mixtures;
// numbers need no entry.
func resolveUser(rootFD int, user string, groupAdd []string) (identity, error) {
	var out identity
	passwd, err := readAccounts(rootFD, "/etc/passwd", 7)
	if err != nil {
		return out, err
	}
	groups, err := readAccounts(rootFD, "/etc/group", 4)
	if err != nil {
		return out, err
	}
	name, group, hasGroup := strings.Cut(user, ":")
	group, _, _ = strings.Cut(group, ":") // what follows means nothing, as in Docker
	if name == "" {
		name = "0"
	}
	uid, numeric, err := parseID(name)
	if err != nil {
		return out, errs.New(errs.Invalid, "uids and gids must be in range 0-2147483647")
	}
	var entry *account
	for i := range passwd {
		if passwd[i].name == name || numeric && passwd[i].id == uid {
			entry = &passwd[i]
			break
		}
	}
	switch {
	case entry != nil:
		out.UID, out.GID, out.home = entry.id, entry.gid, entry.home
	case numeric:
		out.UID = uid
	default:
		return out, errs.New(errs.Invalid, "unable to find user %s: no matching entries in passwd file", name)
	}
	if hasGroup && group != "" {
		gid, err := findGroup(groups, group)
		if err != nil {
			return out, err
		}
		out.GID = gid
	} else if entry != nil {
		for _, g := range groups {
			if slices.Contains(g.members, entry.name) {
				out.AdditionalGids = append(out.AdditionalGids, g.id)
			}
		}
	}
	for _, g := range groupAdd {
		gid, err := findGroup(groups, g)
		if err != nil {
			return out, err
		}
		out.AdditionalGids = append(out.AdditionalGids, gid)
	}
	out.AdditionalGids = unique(out.AdditionalGids)
	// The primary group is among the supplementary ones, so that dropping it
	// by a group change loses nothing (as Docker has it since CVE-2022-36109).
	if !slices.Contains(out.AdditionalGids, out.GID) {
		out.AdditionalGids = append([]uint32{out.GID}, out.AdditionalGids...)
	}
	if out.home == "" {
		out.home = "/"
	}
	return out, nil
}

func findGroup(groups []account, name string) (uint32, error) {
	gid, numeric, err := parseID(name)
	if err != nil {
		return 0, errs.New(errs.Invalid, "uids and gids must be in range 0-2147483647")
	}
	for _, g := range groups {
		if g.name == name {
			return g.id, nil
		}
	}
	if numeric {
		return gid, nil
	}
	return 0, errs.New(errs.Invalid, "unable to find group %s: no matching entries in group file", name)
}

// unique leaves out what stands in a short list before.
func unique(ids []uint32) []uint32 {
	var out []uint32
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// parseID reads a number, which may have a sign; what is not one, or is larger
// than any number that is read, is a name. A number out of range is an error.
func parseID(s string) (id uint32, numeric bool, err error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, false, nil //nolint:nilerr // a name
	}
	if n < 0 || n > maxID {
		return 0, false, fmt.Errorf("%s is out of range", s)
	}
	return uint32(n), true, nil
}

// readAccounts reads passwd (7 fields) or group (4). A file that is missing, or
// is none, holds nobody; one that is too large is refused.
func readAccounts(rootFD int, path string, fields int) ([]account, error) {
	fd, err := linux.OpenInRoot(rootFD, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, nil //nolint:nilerr // no such file: numbers still work
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, nil //nolint:nilerr // a FIFO or a device is not read
	}
	limit := &io.LimitedReader{R: f, N: maxAccounts + 1}
	var list []account
	sc := bufio.NewScanner(limit)
	sc.Buffer(make([]byte, 4096), 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		p := strings.Split(line, ":")
		if len(p) < 3 {
			continue
		}
		id, numeric, err := parseID(p[2])
		if err != nil || !numeric {
			continue
		}
		a := account{name: p[0], id: id}
		if fields == 7 && len(p) >= 4 {
			gid, _, err := parseID(p[3])
			if err != nil {
				continue
			}
			a.gid = gid
			if len(p) > 5 {
				a.home = p[5]
			}
		} else if fields == 4 && len(p) >= 4 && p[3] != "" {
			a.members = strings.Split(p[3], ",")
		}
		list = append(list, a)
	}
	if limit.N <= 0 || sc.Err() != nil {
		return nil, errs.New(errs.Invalid, "%s of the container is too large to be read", path)
	}
	return list, nil
}

// users remembers what users are in images: most containers never change
// their /etc/passwd or /etc/group.
type users struct {
	mu   sync.Mutex
	seen map[string]identity
}

const maxUsers = 1024

// plainAccounts reports whether the account files lie in /etc itself: a link may
// lead to a place that the container changes without touching /etc.
func plainAccounts(root int) bool {
	for name, want := range map[string]uint32{"etc": unix.S_IFDIR, "etc/passwd": unix.S_IFREG, "etc/group": unix.S_IFREG} {
		var st unix.Stat_t
		err := unix.Fstatat(root, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && err != unix.ENOENT || err == nil && st.Mode&unix.S_IFMT != want { //nolint:errorlint // a bare errno
			return false
		}
	}
	return true
}

// of is resolveUser for a container about to start.
func (u *users) of(ctx context.Context, s *Service, root int, r *Record) (identity, error) {
	m, err := s.o.Snapshots.Mounts(ctx, string(r.ID))
	untouched := false
	if err == nil && m.Path == "" {
		// Nothing below /etc has been written in the container's own layer, and
		// the root has no link in its place.
		untouched = unix.Faccessat(unix.AT_FDCWD, m.Upper+"/etc", unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT //nolint:errorlint // a bare errno
	}
	if !untouched {
		return resolveUser(root, r.Config.User, r.HostConfig.GroupAdd)
	}
	key := string(r.Image) + "\x00" + r.Config.User + "\x00" + strings.Join(r.HostConfig.GroupAdd, "\x00")
	u.mu.Lock()
	id, ok := u.seen[key]
	u.mu.Unlock()
	if ok {
		return id, nil
	}
	if id, err = resolveUser(root, r.Config.User, r.HostConfig.GroupAdd); err != nil || !plainAccounts(root) {
		return id, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.seen == nil || len(u.seen) >= maxUsers {
		u.seen = map[string]identity{}
	}
	u.seen[key] = id
	return id, nil
}
