package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
)

// mountValue is --mount.
type mountValue struct{ list []mount.Mount }

func (m *mountValue) String() string {
	out := []string{}
	for _, v := range m.list {
		out = append(out, fmt.Sprintf("%s %s %s", v.Type, v.Source, v.Target))
	}
	return strings.Join(out, ", ")
}
func (m *mountValue) Type() string { return "mount" }

// Set reads one comma separated description.
func (m *mountValue) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	p := mountParser{m: mount.Mount{Type: mount.TypeVolume}}
	for _, f := range fields {
		if err := p.field(f); err != nil {
			return err
		}
	}
	if err := p.check(); err != nil {
		return err
	}
	m.list = append(m.list, p.m)
	return nil
}

type mountParser struct{ m mount.Mount }

func (p *mountParser) bind() *mount.BindOptions {
	if p.m.BindOptions == nil {
		p.m.BindOptions = &mount.BindOptions{}
	}
	return p.m.BindOptions
}

func (p *mountParser) volume() *mount.VolumeOptions {
	if p.m.VolumeOptions == nil {
		p.m.VolumeOptions = &mount.VolumeOptions{Labels: map[string]string{}}
	}
	if p.m.VolumeOptions.DriverConfig == nil {
		p.m.VolumeOptions.DriverConfig = &mount.Driver{}
	}
	return p.m.VolumeOptions
}

func (p *mountParser) tmpfs() *mount.TmpfsOptions {
	if p.m.TmpfsOptions == nil {
		p.m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return p.m.TmpfsOptions
}

func (p *mountParser) field(f string) error {
	key, val, has := strings.Cut(f, "=")
	key = strings.ToLower(key)
	if !has {
		switch key {
		case "readonly", "ro":
			p.m.ReadOnly = true
		case "volume-nocopy":
			p.volume().NoCopy = true
		case "bind-nonrecursive":
			p.bind().NonRecursive = true
		case "bind-create-src":
			p.bind().CreateMountpoint = true
		default:
			return fmt.Errorf("invalid field '%s' must be a key=value pair", f)
		}
		return nil
	}
	boolean := func() (bool, error) {
		b, err := strconv.ParseBool(val)
		if err != nil {
			return false, fmt.Errorf("invalid value for %s: %s", key, val)
		}
		return b, nil
	}
	var err error
	switch key {
	case "type":
		p.m.Type = mount.Type(strings.ToLower(val))
	case "source", "src":
		p.m.Source = val
		if val == "." || strings.HasPrefix(val, "."+string(filepath.Separator)) || val == ".." || strings.HasPrefix(val, "../") {
			if abs, err := filepath.Abs(val); err == nil {
				p.m.Source = abs
			}
		}
	case "target", "dst", "destination":
		p.m.Target = val
	case "readonly", "ro":
		p.m.ReadOnly, err = boolean()
	case "consistency":
		p.m.Consistency = mount.Consistency(strings.ToLower(val))
	case "bind-propagation":
		p.bind().Propagation = mount.Propagation(strings.ToLower(val))
	case "bind-nonrecursive":
		p.bind().NonRecursive, err = boolean()
	case "bind-create-src":
		p.bind().CreateMountpoint, err = boolean()
	case "bind-recursive":
		switch val {
		case "enabled":
		case "disabled":
			p.bind().NonRecursive = true
		case "writable":
			p.bind().ReadOnlyNonRecursive = true
		case "readonly":
			p.bind().ReadOnlyForceRecursive = true
		default:
			return fmt.Errorf("invalid value for %s: %s (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")", key, val)
		}
	case "volume-subpath":
		p.volume().Subpath = val
	case "volume-nocopy":
		p.volume().NoCopy, err = boolean()
	case "volume-label":
		k, v, _ := strings.Cut(val, "=")
		p.volume().Labels[k] = v
	case "volume-driver":
		p.volume().DriverConfig.Name = val
	case "volume-opt":
		d := p.volume().DriverConfig
		if d.Options == nil {
			d.Options = map[string]string{}
		}
		k, v, _ := strings.Cut(val, "=")
		d.Options[k] = v
	case "image-subpath":
		p.m.ImageOptions = &mount.ImageOptions{Subpath: val}
	case "tmpfs-size":
		n, err := units.RAMInBytes(val)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, val)
		}
		p.tmpfs().SizeBytes = n
	case "tmpfs-mode":
		n, err := strconv.ParseUint(val, 8, 32)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, val)
		}
		p.tmpfs().Mode = os.FileMode(n)
	default:
		return fmt.Errorf("unexpected key '%s' in '%s'", key, f)
	}
	return err
}

// check refuses combinations that no engine could honour.
func (p *mountParser) check() error {
	m := &p.m
	switch {
	case m.Type == "":
		return errors.New("type is required")
	case m.Target == "":
		return errors.New("target is required")
	case m.VolumeOptions != nil && m.Type != mount.TypeVolume:
		return fmt.Errorf("cannot mix 'volume-*' options with mount type '%s'", m.Type)
	case m.BindOptions != nil && m.Type != mount.TypeBind:
		return fmt.Errorf("cannot mix 'bind-*' options with mount type '%s'", m.Type)
	case m.ImageOptions != nil && m.Type != mount.TypeImage:
		return fmt.Errorf("cannot mix 'image-*' options with mount type '%s'", m.Type)
	case m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs:
		return fmt.Errorf("cannot mix 'tmpfs-*' options with mount type '%s'", m.Type)
	}
	if b := m.BindOptions; b != nil {
		if b.ReadOnlyNonRecursive && !m.ReadOnly {
			return errors.New("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
		}
		if b.ReadOnlyForceRecursive {
			if !m.ReadOnly {
				return errors.New("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
			}
			if b.Propagation != mount.PropagationRPrivate {
				return errors.New("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
			}
		}
	}
	return nil
}
