package volume

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// local makes volumes as directories. The options type, device and o let something be
// mounted there, as mount(8) has them: nfs, tmpfs, a bind of another directory.
type local struct {
	dir      string
	uid, gid int
}

func (l *local) data(name string) string { return l.dir + "/" + name + "/_data" }

func (l *local) check(name string, o map[string]string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for k := range o {
		switch k {
		case "type", "o", "device", "size":
		default:
			return errs.New(errs.Invalid, "invalid option: %q", k)
		}
	}
	if o["type"] == "cifs" && o["device"] != "" {
		u, err := url.Parse(o["device"])
		if err != nil {
			return errs.New(errs.Invalid, "error parsing mount device url: %v", err)
		}
		if u.Port() != "" {
			return errs.New(errs.Invalid, "port not allowed in CIFS device URL, include 'port' in 'o='")
		}
	}
	if v, ok := o["size"]; ok {
		size, err := units.RAMInBytes(v)
		if err != nil {
			return errs.Wrap(errs.Invalid, err, "")
		}
		if size > 0 {
			return errs.New(errs.Invalid, "quota size requested but no quota support")
		}
	}
	for _, need := range [][2]string{{"device", "type"}, {"type", "device"}, {"o", "device"}, {"o", "type"}} {
		if _, ok := o[need[0]]; !ok {
			continue
		}
		if _, ok := o[need[1]]; !ok {
			return errs.New(errs.Invalid, "missing required option: %q", need[1])
		}
	}
	return nil
}

// create makes the directories. The one of the name is the engine's; the data are
// the containers'.
func (l *local) create(_ context.Context, name string, _ map[string]string) (string, error) {
	root, data := filepath.Join(l.dir, name), l.data(name)
	if err := os.Mkdir(root, 0o701); err != nil && !os.IsExist(err) {
		return "", errs.New(errs.Internal, "error while creating volume root path '%s': %v", root, err)
	}
	err := os.Mkdir(data, 0o755)
	if fi, serr := os.Lstat(data); os.IsExist(err) && serr == nil && fi.IsDir() {
		return data, nil // somebody has put it there
	}
	if err == nil {
		if err = os.Chmod(data, 0o755); err == nil { // past the umask
			err = os.Lchown(data, l.uid, l.gid)
		}
	}
	if err != nil {
		return "", errs.New(errs.Internal, "error while creating volume data path '%s': %v", data, err)
	}
	return data, nil
}

// remove takes the directory out of the way at once; its files go behind the reply.
// What a crash leaves of them goes at the next start.
func (l *local) remove(_ context.Context, name string) error {
	data := l.data(name)
	for isMount(data) {
		if err := unix.Unmount(data, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return errs.New(errs.Internal, "cannot unmount %s: %v", data, err)
		}
	}
	gone := filepath.Join(l.dir, ".gone-"+randomName())
	if err := os.Rename(filepath.Join(l.dir, name), gone); err != nil && !os.IsNotExist(err) {
		return errs.New(errs.Internal, "error removing volume path '%s': %v", filepath.Join(l.dir, name), err)
	}
	go func() { _ = os.RemoveAll(gone) }()
	return nil
}

func (l *local) mount(ctx context.Context, v *Record, _ string) (string, error) {
	data := l.data(v.Name)
	if isMount(data) {
		return data, nil
	}
	device, opts, err := resolved(ctx, v.Options)
	if err == nil {
		err = mountOn(device, data, v.Options["type"], opts)
	}
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "failed to mount local volume")
	}
	return data, nil
}

func (l *local) unmount(_ context.Context, v *Record, _ string) error {
	data := l.data(v.Name)
	if !isMount(data) {
		return nil
	}
	return unix.Unmount(data, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// isMount reports whether something is mounted on a directory.
func isMount(dir string) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false
	}
	return st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// resolved are device and options with the names of servers as addresses: the kernel
// resolves none.
func resolved(ctx context.Context, o map[string]string) (device, opts string, err error) {
	device, opts = o["device"], o["o"]
	if device == "" {
		return "", "", errs.New(errs.Invalid, "missing device in volume options")
	}
	kind := o["type"]
	if kind != "nfs" && kind != "cifs" {
		return device, opts, nil
	}
	ip := func(name string) (string, error) {
		list, err := net.DefaultResolver.LookupIPAddr(ctx, name)
		if err != nil {
			return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
		}
		return list[0].String(), nil
	}
	for _, w := range strings.Split(opts, ",") {
		addr, ok := strings.CutPrefix(w, "addr=")
		if !ok {
			continue
		}
		if addr != "" && net.ParseIP(addr) == nil {
			a, err := ip(addr)
			if err != nil {
				return "", "", err
			}
			opts = strings.Replace(opts, w, "addr="+a, 1)
		}
		return device, opts, nil
	}
	if kind == "cifs" {
		u, err := url.Parse(device)
		if err != nil {
			return "", "", fmt.Errorf("error parsing mount device url: %w", err)
		}
		if u.Host != "" && net.ParseIP(u.Host) == nil {
			if u.Host, err = ip(u.Host); err != nil {
				return "", "", err
			}
			if device, err = url.QueryUnescape(u.String()); err != nil {
				return "", "", err
			}
		}
	}
	return device, opts, nil
}

// mountFlags are the words of mount(8) that are flags of mount(2). A second value
// clears.
var mountFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"defaults": {}, "ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true}, "suid": {unix.MS_NOSUID, true}, "nosuid": {unix.MS_NOSUID, false},
	"dev": {unix.MS_NODEV, true}, "nodev": {unix.MS_NODEV, false}, "exec": {unix.MS_NOEXEC, true}, "noexec": {unix.MS_NOEXEC, false},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true}, "dirsync": {unix.MS_DIRSYNC, false}, "remount": {unix.MS_REMOUNT, false},
	"mand": {unix.MS_MANDLOCK, false}, "nomand": {unix.MS_MANDLOCK, true}, "atime": {unix.MS_NOATIME, true}, "noatime": {unix.MS_NOATIME, false},
	"diratime": {unix.MS_NODIRATIME, true}, "nodiratime": {unix.MS_NODIRATIME, false}, "bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true}, "strictatime": {unix.MS_STRICTATIME, false}, "nostrictatime": {unix.MS_STRICTATIME, true},
}

var propagations = map[string]uintptr{
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC, "private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
}

func mountOn(device, target, kind, opts string) error {
	var flags, prop uintptr
	var data []string
	for _, w := range strings.Split(opts, ",") {
		if w == "" {
			continue
		}
		if p, ok := propagations[w]; ok {
			prop = p
			continue
		}
		f, ok := mountFlags[w]
		switch {
		case !ok:
			data = append(data, w)
		case f.clear:
			flags &^= f.flag
		default:
			flags |= f.flag
		}
	}
	text := strings.Join(data, ",")
	err := unix.Mount(device, target, kind, flags, text)
	if err == nil && flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 {
		// A bind takes its flags only in a second step.
		if err = unix.Mount("", target, "", flags&^unix.MS_REC|unix.MS_REMOUNT, ""); err != nil {
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	}
	if err == nil && prop != 0 {
		if err = unix.Mount("", target, "", prop, ""); err != nil {
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	}
	if err == nil {
		return nil
	}
	msg := "mount " + device + ":" + target
	if flags != 0 {
		msg += ", flags: 0x" + strconv.FormatUint(uint64(flags), 16)
	}
	if text != "" {
		for i, w := range data {
			if strings.HasPrefix(w, "password=") {
				data[i] = "password=********"
			}
		}
		msg += ", data: " + strings.Join(data, ",")
	}
	return fmt.Errorf("%s: %w", msg, err)
}
