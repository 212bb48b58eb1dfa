package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const maxXattr = 64 << 10 // the kernel's own limit

// entryXattrs returns the extended attributes of a tar entry. Those by which
// overlayfs steers itself are not for a tar to set.
func entryXattrs(h *tar.Header) map[string]string {
	if len(h.PAXRecords) == 0 {
		return nil
	}
	var x map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || strings.HasPrefix(name, overlayXattrs) {
			continue
		}
		if x == nil {
			x = map[string]string{}
		}
		x[name] = v
	}
	return x
}

// setXattrs sets attributes in the order of their names. One that the file
// system or the caller's rights do not allow is left out, unless it is a
// file's capabilities.
func setXattrs(fd int, x map[string]string) error {
	return eachXattr(x, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

func setPathXattrs(path string, x map[string]string) error {
	return eachXattr(x, func(name string, value []byte) error { return unix.Lsetxattr(path, name, value, 0) })
}

func eachXattr(x map[string]string, set func(name string, value []byte) error) error {
	names := make([]string, 0, len(x))
	for n := range x {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		err := set(n, []byte(x[n]))
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) && n != "security.capability" {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wantXattr tells which attributes go into a tar.
func wantXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_")
}

// readXattrs returns the attributes of an open file that go into a tar.
func readXattrs(fd int) (map[string]string, error) {
	return collectXattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// readPathXattrs is readXattrs for what cannot be opened.
func readPathXattrs(path string) (map[string]string, error) {
	return collectXattrs(
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
}

func collectXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string]string, error) {
	var small [256]byte
	buf := small[:]
	n, err := list(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxXattr)
		n, err = list(buf)
	}
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
		return nil, nil
	}
	if err != nil || n == 0 {
		return nil, err
	}
	var x map[string]string
	var value []byte
	for _, raw := range bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		name := string(raw)
		if !wantXattr(name) {
			continue
		}
		if value == nil {
			value = make([]byte, maxXattr)
		}
		m, err := get(name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if x == nil {
			x = map[string]string{}
		}
		x[name] = string(value[:m])
	}
	return x, nil
}
