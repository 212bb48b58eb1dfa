package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/volume"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/plugin"
)

// pluginDriver has its volumes made and mounted by a plugin, in Docker's protocol
// for volume plugins (https://docs.docker.com/engine/extend/plugins_volume/).
type pluginDriver struct {
	p     *plugin.Plugin
	scope func() string
}

const volumeInterface = "VolumeDriver"

// pluginVolume is a volume as a plugin tells it.
type pluginVolume struct {
	Name       string
	Mountpoint string
	CreatedAt  time.Time
	Status     map[string]any
}

func openPlugin(ctx context.Context, name string, dirs plugin.Dirs) (*pluginDriver, error) {
	p := plugin.New(name, dirs)
	if err := p.Activate(ctx, volumeInterface); err != nil {
		return nil, errs.Wrap(errs.KindOf(err), err, "error looking up volume plugin "+name)
	}
	d := &pluginDriver{p: p}
	d.scope = sync.OnceValue(func() string {
		var out struct{ Capabilities struct{ Scope string } }
		_ = d.call(context.Background(), "Capabilities", nil, &out) // an optional call
		if strings.EqualFold(out.Capabilities.Scope, "global") {
			return "global"
		}
		return "local"
	})
	return d, nil
}

type pluginRequest struct {
	Name string            `json:",omitempty"`
	ID   string            `json:",omitempty"`
	Opts map[string]string `json:",omitempty"`
}

// call calls one method; an answer may tell an error in its field Err.
func (d *pluginDriver) call(ctx context.Context, method string, in *pluginRequest, out any) error {
	if in == nil {
		in = &pluginRequest{}
	}
	err := d.p.Call(ctx, volumeInterface, volumeInterface+"."+method, in, out)
	if err != nil {
		return errs.New(errs.Internal, "%s.%s: %v", volumeInterface, method, err)
	}
	if e, ok := out.(interface{ failure() string }); ok && e.failure() != "" {
		return errors.New(e.failure())
	}
	return nil
}

type pluginAnswer struct {
	Err        string
	Mountpoint string
	Volume     *pluginVolume
	Volumes    []pluginVolume
}

func (a *pluginAnswer) failure() string { return a.Err }
func (a *pluginAnswer) answered() bool  { return a.Err != "" }

func (d *pluginDriver) check(string, map[string]string) error { return nil }

func (d *pluginDriver) create(ctx context.Context, name string, options map[string]string) (string, error) {
	var out pluginAnswer
	if err := d.call(ctx, "Get", &pluginRequest{Name: name}, &out); err == nil && out.Volume != nil {
		return out.Volume.Mountpoint, nil // known there already
	}
	if err := d.call(ctx, "Create", &pluginRequest{Name: name, Opts: options}, new(pluginAnswer)); err != nil {
		return "", err
	}
	_ = d.scope() // asked once
	return "", nil
}

// has asks whether the plugin knows a volume; when in doubt it does.
func (d *pluginDriver) has(ctx context.Context, name string) (*pluginVolume, bool) {
	var out pluginAnswer
	err := d.call(ctx, "Get", &pluginRequest{Name: name}, &out)
	if err != nil && !out.answered() {
		return nil, true
	}
	if err != nil || out.Volume == nil || out.Volume.Name == "" {
		return nil, false
	}
	return out.Volume, true
}

func (d *pluginDriver) remove(ctx context.Context, name string) error {
	return d.call(ctx, "Remove", &pluginRequest{Name: name}, new(pluginAnswer))
}

func (d *pluginDriver) mount(ctx context.Context, v *Record, user string) (string, error) {
	var out pluginAnswer
	if err := d.call(ctx, "Mount", &pluginRequest{Name: v.Name, ID: user}, &out); err != nil {
		return "", err
	}
	if !filepath.IsAbs(out.Mountpoint) {
		return "", fmt.Errorf("the plugin's mount point %q is no absolute path", out.Mountpoint)
	}
	return out.Mountpoint, nil
}

func (d *pluginDriver) unmount(ctx context.Context, v *Record, user string) error {
	return d.call(ctx, "Unmount", &pluginRequest{Name: v.Name, ID: user}, new(pluginAnswer))
}

// describe asks the plugin about a volume.
func (d *pluginDriver) describe(ctx context.Context, out *volume.Volume) error {
	var a pluginAnswer
	if err := d.call(ctx, "Get", &pluginRequest{Name: out.Name}, &a); err != nil {
		return err
	}
	if a.Volume == nil {
		return errs.New(errs.NotFound, "no such volume")
	}
	out.Mountpoint, out.Status, out.Scope = cmp.Or(a.Volume.Mountpoint, out.Mountpoint), a.Volume.Status, d.scope()
	if !a.Volume.CreatedAt.IsZero() {
		out.CreatedAt = a.Volume.CreatedAt.Format(time.RFC3339)
	}
	return nil
}

// Drivers are the names of the drivers that have been used or are there to be used, sorted.
func (s *Service) Drivers() []string {
	s.mu.RLock()
	names := slices.Collect(maps.Keys(s.drivers))
	s.mu.RUnlock()
	return append([]string{localDriver}, slices.Sorted(slices.Values(names))...)
}

// plugins are what the service has of drivers that are not its own.
type plugins struct{ *Service }

// scopeOf is the scope of a driver's volumes, "local" as long as it was not asked.
func (s *Service) scopeOf(driver string) string {
	s.mu.RLock()
	d, ok := s.drivers[driver].(*pluginDriver)
	s.mu.RUnlock()
	if !ok {
		return "local"
	}
	return d.scope()
}

// names are the plugins that were used, and those that can be found now.
func (s plugins) names() []string {
	s.mu.RLock()
	names := slices.Collect(maps.Keys(s.drivers))
	for _, v := range s.vols {
		if v.rec.Driver != localDriver && !slices.Contains(names, v.rec.Driver) {
			names = append(names, v.rec.Driver)
		}
	}
	s.mu.RUnlock()
	for _, dir := range slices.Concat(s.o.Plugins.Sockets, s.o.Plugins.Specs) {
		list, _ := os.ReadDir(dir) // none, mostly
		for _, f := range list {
			ext := filepath.Ext(f.Name())
			name := strings.TrimSuffix(f.Name(), ext)
			if (ext == ".sock" || ext == ".spec" || ext == ".json") && name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// ask calls f for each volume plugin, in parallel; one that does not answer in
// time is left out. The errors are told as warnings.
func (s plugins) ask(ctx context.Context, f func(ctx context.Context, name string, d *pluginDriver) error) (warnings []string) {
	names := s.names()
	if len(names) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			drv, err := s.driver(ctx, name)
			if d, ok := drv.(*pluginDriver); ok && err == nil {
				err = f(ctx, name, d)
			}
			if err != nil && !errs.Is(err, errs.Invalid) { // a plugin of another kind
				mu.Lock()
				defer mu.Unlock()
				warnings = append(warnings, "list "+name+": "+err.Error())
			}
		})
	}
	wg.Wait()
	return warnings
}

// adopt learns of volumes that plugins have and nobody here has asked for yet.
func (s plugins) adopt(ctx context.Context) (warnings []string) {
	return s.ask(ctx, func(ctx context.Context, name string, d *pluginDriver) error {
		var out pluginAnswer
		if err := d.call(ctx, "List", nil, &out); err != nil {
			return err
		}
		for _, pv := range out.Volumes {
			s.learn(name, pv)
		}
		return nil
	})
}

// lookup finds a volume here, or with a plugin.
func (s plugins) lookup(ctx context.Context, name string) *Volume {
	if v := s.get(name); v != nil {
		return v
	}
	s.ask(ctx, func(ctx context.Context, driver string, d *pluginDriver) error {
		if pv, _ := d.has(ctx, name); pv != nil {
			s.learn(driver, *pv)
		}
		return nil
	})
	return s.get(name)
}

// stale reports whether the plugin of a volume does not know it any more. v.mu is held.
func (s plugins) stale(ctx context.Context, v *Volume) bool {
	if v.rec.Driver == localDriver || len(s.holdersOf(v)) > 0 {
		return false
	}
	drv, err := s.driver(ctx, v.rec.Driver)
	if err != nil {
		return false
	}
	_, has := drv.(*pluginDriver).has(ctx, v.rec.Name)
	return !has
}

// learn records a volume that a plugin has told of.
func (s plugins) learn(driver string, pv pluginVolume) {
	s.mu.Lock()
	if pv.Name == "" || s.vols[pv.Name] != nil {
		s.mu.Unlock()
		return
	}
	v := newVolume(Record{Name: pv.Name, Driver: driver, Created: pv.CreatedAt})
	v.path = pv.Mountpoint
	s.vols[pv.Name] = v
	s.mu.Unlock()
	if err := s.put(v); err != nil {
		s.o.Log.Warn("cannot record a plugin's volume", "volume", pv.Name, "error", err)
	}
}
