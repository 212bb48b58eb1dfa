package container

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/volume"
)

// # Mounts
//
// What -v, --mount, --tmpfs and --volumes-from ask for becomes one list when a container
// is made. Of two at one place an own one wins over one of --volumes-from, and any over a
// volume that the image declares.

// resolveMounts turns binds, mounts and tmpfs into one list, sorted so that a
// mount comes after those it lies in.
func (s creator) resolveMounts(r *Record) ([]Mount, error) {
	hc := r.HostConfig
	var list []Mount
	seen := map[string]bool{}
	add := func(m Mount) error {
		m.Destination = path.Clean(m.Destination)
		if seen[m.Destination] {
			return errs.New(errs.Invalid, "Duplicate mount point: %s", m.Destination)
		}
		seen[m.Destination] = true
		list = append(list, m)
		return nil
	}
	inherited, err := s.volumesFrom(hc.VolumesFrom)
	if err != nil {
		return nil, err
	}
	for _, b := range hc.Binds {
		m, err := parseBind(b, hc.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if err := s.ownRoot(&m, strings.Contains(m.Mode, string(m.Propagation))); err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, m := range hc.Mounts {
		x, err := fromMount(m)
		if err != nil {
			return nil, err
		}
		if err := s.ownRoot(&x, m.BindOptions != nil && m.BindOptions.Propagation != ""); err != nil {
			return nil, err
		}
		if err := add(x); err != nil {
			return nil, err
		}
	}
	for dest, opts := range hc.Tmpfs {
		if !path.IsAbs(dest) {
			return nil, errs.New(errs.Invalid, "invalid mount path: '%s' mount path must be absolute", dest)
		}
		o, err := tmpfsOptions(opts)
		if err != nil {
			return nil, err
		}
		if err := add(Mount{MountPoint: container.MountPoint{Type: mount.TypeTmpfs, Destination: dest, RW: true}, Options: o}); err != nil {
			return nil, err
		}
	}
	for _, m := range inherited {
		if !seen[m.Destination] { // an own mount there wins
			seen[m.Destination] = true
			list = append(list, m)
		}
	}
	if r.Config != nil { // what the image or "-v /data" declares
		for _, v := range slices.Sorted(maps.Keys(r.Config.Volumes)) {
			dest := path.Clean("/" + v)
			if dest == "/" {
				return nil, errs.New(errs.Invalid, "invalid volume specification: '%s': invalid mount config for type %q: invalid specification: destination can't be '/'", v, mount.TypeVolume)
			}
			if !seen[dest] {
				seen[dest] = true
				m := Mount{MountPoint: container.MountPoint{Type: mount.TypeVolume, Destination: dest, RW: true}, Anonymous: true, declared: true}
				m.want, m.Options = &volume.Request{Driver: hc.VolumeDriver}, treeOptions(mount.PropagationRPrivate, false)
				list = append(list, m)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return list, nil
}

// ownRoot makes a bind that shows the engine's own directory, or part of it, a
// slave unless a propagation was asked for: what the engine unmounts there must
// not live on in the container. A private copy, which would keep it, is refused.
func (s creator) ownRoot(m *Mount, asked bool) error {
	if m.Type != mount.TypeBind || !within(s.o.DataRoot, m.Source) && !within(m.Source, s.o.DataRoot) {
		return nil
	}
	if asked {
		if m.Propagation == mount.PropagationRSlave || m.Propagation == mount.PropagationRShared {
			return nil
		}
		return errs.New(errs.Invalid, "invalid mount config: must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon root, daemon root: %q, bind mount source: %q, propagation: %q",
			s.o.DataRoot, m.Source, m.Propagation)
	}
	for i, o := range m.Options {
		if o == string(m.Propagation) {
			m.Options[i] = string(mount.PropagationRSlave)
		}
	}
	m.Propagation = mount.PropagationRSlave
	return nil
}

func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// volumesFrom returns the mounts of other containers, "name[:ro|:rw]" each; of
// two at one place the later container's counts.
func (s creator) volumesFrom(specs []string) ([]Mount, error) {
	var list []Mount
	for _, spec := range specs {
		if spec == "" {
			return nil, errs.New(errs.Invalid, "volumes-from specification cannot be an empty string")
		}
		name, mode, _ := strings.Cut(spec, ":")
		w, ok := parseMode(mode)
		if !ok || w.propagation != "" || w.nocopy {
			return nil, errs.New(errs.Invalid, "invalid mode: %s", mode)
		}
		other, err := s.Get(name)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%v", err) // not as "not found": that would be the image
		}
		for _, m := range other.Record().Mounts {
			if _, tmpfs := other.Record().HostConfig.Tmpfs[m.Destination]; tmpfs {
				continue
			}
			m.Mode, m.NoCopy, m.declared = "", true, false
			if w.readOnly && m.RW {
				m.RW, m.Options = false, append(slices.Clone(m.Options), roOption(slices.Contains(m.Options, "rbind")))
			}
			list = slices.DeleteFunc(list, func(o Mount) bool { return o.Destination == m.Destination })
			list = append(list, m)
		}
	}
	return list, nil
}

// bindMode is what the third part of -v says.
type bindMode struct {
	readOnly, nocopy bool
	propagation      mount.Propagation
}

// parseMode reads the words of a mode: one of a kind at most.
func parseMode(mode string) (m bindMode, ok bool) {
	if mode == "" {
		return m, true
	}
	var access, label, prop, copying, consistency int
	for _, w := range strings.Split(mode, ",") {
		switch w {
		case "ro", "rw":
			access++
			m.readOnly = w == "ro"
		case "z", "Z":
			label++
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			prop++
			m.propagation = mount.Propagation(w)
		case "nocopy":
			copying++
			m.nocopy = true
		case "consistent", "cached", "delegated":
			consistency++
		default:
			return m, false
		}
	}
	return m, max(access, label, prop, copying, consistency) < 2
}

// parseBind reads "source:destination[:options]", or a destination alone. The source
// is a path of the host, or the name of a volume.
func parseBind(spec, driver string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid volume specification: '%s'%s", spec, why)
	}
	f := strings.SplitN(spec, ":", 4)
	if f[0] == "" || len(f) > 3 {
		return bad("")
	}
	x := mount.Mount{Target: f[0]}
	mode := ""
	if len(f) > 1 {
		if _, ok := parseMode(f[1]); ok && len(f) == 2 { // "/foo:rw", or nothing
			return bad("")
		}
		x.Source, x.Target = f[0], f[1]
	}
	if len(f) == 3 {
		mode = f[2]
	}
	w, ok := parseMode(mode)
	if !ok {
		return Mount{}, errs.New(errs.Invalid, "invalid mode: %s", mode)
	}
	x.Type, x.ReadOnly = mount.TypeVolume, w.readOnly
	if path.IsAbs(x.Source) {
		x.Type = mount.TypeBind
	}
	if driver != "" && x.Type == mount.TypeVolume {
		x.VolumeOptions = &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: driver}}
	}
	if w.nocopy {
		if x.VolumeOptions == nil {
			x.VolumeOptions = &mount.VolumeOptions{}
		}
		x.VolumeOptions.NoCopy = true
	}
	if w.propagation != "" {
		x.BindOptions = &mount.BindOptions{Propagation: w.propagation}
	}
	m, err := parseMount(x, false)
	if err != nil {
		return bad(": " + err.Error())
	}
	m.Mode, m.MakeHost = mode, x.Type == mount.TypeBind
	return m, nil
}

// roOption is the option for a mount that cannot be written: with all that is
// mounted below it, or alone.
func roOption(recursive bool) string {
	if recursive {
		return "rro"
	}
	return "ro"
}

// fromMount reads one --mount.
func fromMount(m mount.Mount) (Mount, error) { return parseMount(m, true) }

func parseMount(m mount.Mount, mustExist bool) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	for _, x := range []struct {
		name string
		set  bool
	}{
		{"BindOptions", m.BindOptions != nil && m.Type != mount.TypeBind},
		{"VolumeOptions", m.VolumeOptions != nil && m.Type != mount.TypeVolume},
		{"ImageOptions", m.ImageOptions != nil && m.Type != mount.TypeImage},
		{"TmpfsOptions", m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs},
		{"ClusterOptions", m.ClusterOptions != nil && m.Type != mount.TypeCluster},
	} {
		if x.set {
			return bad("field %s must not be specified", x.name)
		}
	}
	switch {
	case m.Target == "":
		return bad("field Target must not be empty")
	case path.Clean(m.Target) == "/":
		return bad("invalid specification: destination can't be '/'")
	case !path.IsAbs(m.Target):
		return bad("invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	out := Mount{MountPoint: container.MountPoint{Type: m.Type, Source: m.Source, Destination: path.Clean(m.Target), RW: !m.ReadOnly}}
	switch m.Type {
	case mount.TypeBind:
		return parseBindMount(m, out, mustExist)
	case mount.TypeTmpfs:
		return parseTmpfs(m, out)
	case mount.TypeVolume:
		want := volume.Request{Name: m.Source}
		if o := m.VolumeOptions; o != nil {
			switch {
			case o.Subpath != "" && m.Source == "":
				return bad("must not set Subpath when using anonymous volumes")
			case o.Subpath != "" && !filepath.IsLocal(o.Subpath):
				return bad("subpath must be a relative path within the volume")
			}
			want.Labels, out.NoCopy, out.Subpath = o.Labels, o.NoCopy, o.Subpath
			if d := o.DriverConfig; d != nil {
				want.Driver, want.Options = d.Name, d.Options
			}
		}
		out.Source, out.Name, out.Anonymous, out.want = "", m.Source, m.Source == "", &want
		out.Options = treeOptions(mount.PropagationRPrivate, m.ReadOnly)
	case mount.TypeImage:
		if m.Source == "" {
			return bad("field Source must not be empty")
		}
		if o := m.ImageOptions; o != nil && o.Subpath != "" {
			if !filepath.IsLocal(o.Subpath) {
				return bad("subpath must be a relative path within the volume")
			}
			out.Subpath = o.Subpath
		}
		out.RW, out.Name, out.Propagation = false, m.Source, mount.PropagationRPrivate
		out.Options = treeOptions(mount.PropagationRPrivate, true)
	default:
		return bad("mount type unknown")
	}
	return out, nil
}

// treeOptions are the fstab words of a mount of a tree with all below it.
func treeOptions(prop mount.Propagation, readOnly bool) []string {
	o := []string{"rbind", string(prop)}
	if readOnly {
		o = append(o, roOption(true))
	}
	return o
}

func parseBindMount(m mount.Mount, out Mount, mustExist bool) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Source == "" {
		return bad("field Source must not be empty")
	}
	prop, rec, all := mount.PropagationRPrivate, "rbind", true
	if b := m.BindOptions; b != nil {
		switch b.Propagation {
		case "":
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			prop = b.Propagation
		default:
			return bad("invalid propagation mode: %s", b.Propagation)
		}
		switch {
		case b.ReadOnlyNonRecursive && b.ReadOnlyForceRecursive:
			return Mount{}, errs.New(errs.Invalid, "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
		case b.ReadOnlyForceRecursive && !m.ReadOnly:
			return Mount{}, errs.New(errs.Invalid, "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
		}
		all = !b.ReadOnlyNonRecursive
		if b.NonRecursive {
			rec = "bind"
		}
		out.MakeHost = b.CreateMountpoint
	}
	if !path.IsAbs(m.Source) {
		return bad("invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	if mustExist && !out.MakeHost {
		if _, err := os.Lstat(m.Source); err != nil {
			if !os.IsNotExist(err) {
				return bad("%v", err)
			}
			return bad("bind source path does not exist: %s", m.Source)
		}
	}
	out.Source, out.Propagation = path.Clean(m.Source), prop
	out.Options = []string{rec, string(prop)}
	if m.ReadOnly {
		out.Options = append(out.Options, roOption(all && rec == "rbind"))
	}
	return out, nil
}

func parseTmpfs(m mount.Mount, out Mount) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, errs.New(errs.Invalid, "invalid mount config for type %q: %s", m.Type, fmt.Sprintf(format, args...))
	}
	if m.Source != "" {
		return bad("field Source must not be specified")
	}
	out.Options = []string{"nosuid", "nodev", "noexec"}
	if t := m.TmpfsOptions; t != nil {
		if t.SizeBytes > 0 {
			out.Options = append(out.Options, "size="+strconv.FormatInt(t.SizeBytes, 10))
		}
		if t.Mode != 0 {
			out.Options = append(out.Options, fmt.Sprintf("mode=%o", t.Mode))
		}
		for _, o := range t.Options {
			switch {
			case len(o) < 1 || len(o) > 2:
				return bad("invalid option array length")
			case o[0] != "exec" && o[0] != "noexec":
				return bad("invalid option: %s", o[0])
			}
			out.Options = append(out.Options, strings.Join(o, "="))
		}
	}
	if m.ReadOnly {
		out.Options = append(out.Options, "ro")
	}
	return out, nil
}

// tmpfsOptions checks the words of --tmpfs and adds Docker's defaults.
func tmpfsOptions(opts string) ([]string, error) {
	out := []string{"noexec", "nosuid", "nodev"}
	for _, o := range strings.Split(opts, ",") {
		key, _, hasValue := strings.Cut(o, "=")
		switch key {
		case "":
			continue
		case "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol":
			if !hasValue {
				return nil, errs.New(errs.Invalid, "invalid tmpfs option %q", o)
			}
		case "exec", "noexec", "suid", "nosuid", "dev", "nodev", "ro", "rw", "sync", "async", "atime", "noatime", "diratime",
			"nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "remount", "private", "rprivate", "shared",
			"rshared", "slave", "rslave", "unbindable", "runbindable", "defaults", "bind", "rbind", "dirsync", "mand", "nomand":
		default:
			return nil, errs.New(errs.Invalid, "invalid tmpfs option %q", o)
		}
		out = append(out, o)
	}
	return out, nil
}
