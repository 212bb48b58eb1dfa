package volume

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/filter"
)

// api is a volume as the API tells it, from what never changes; but for the path of
// a plugin's volume, for which v.mu is held.
func (s *Service) api(v *Volume) volume.Volume {
	r := &v.rec
	out := volume.Volume{
		Name: r.Name, Driver: r.Driver, Scope: "local", Labels: r.Labels, Options: r.Options, CreatedAt: r.Created.Format(time.RFC3339),
	}
	if r.Driver == localDriver {
		out.Mountpoint = s.local.data(r.Name)
	} else {
		out.Mountpoint, out.Scope = v.path, s.scopeOf(r.Driver)
	}
	return out
}

// List returns the volumes that filters let through, by name.
func (s *Service) List(ctx context.Context, f filter.Args) (volume.ListResponse, error) {
	if err := f.Validate("dangling", "driver", "label", "name"); err != nil {
		return volume.ListResponse{}, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return volume.ListResponse{}, err
	}
	warnings := plugins{s}.adopt(ctx)
	list := s.find(f, func(v *Volume) bool { return !f.Has("dangling") || dangling == (len(v.holders) == 0) })
	out := volume.ListResponse{Volumes: make([]volume.Volume, 0, len(list)), Warnings: warnings}
	for _, v := range list {
		if v.rec.Driver != localDriver {
			v.mu.Lock()
		}
		out.Volumes = append(out.Volumes, s.api(v))
		if v.rec.Driver != localDriver {
			v.mu.Unlock()
		}
	}
	return out, nil
}

// find returns the volumes that pass the filters label, name and driver, and more, by name.
func (s *Service) find(f filter.Args, more func(*Volume) bool) []*Volume {
	s.mu.RLock()
	list := make([]*Volume, 0, len(s.vols))
	for _, v := range s.vols {
		r := &v.rec
		if f.Exact("driver", r.Driver) && f.Match("name", r.Name) && f.Labels("label", r.Labels) && (!f.Has("label!") || !f.Labels("label!", r.Labels)) && more(v) {
			list = append(list, v)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Volume) int { return strings.Compare(a.rec.Name, b.rec.Name) })
	return list
}

// Inspect tells about one volume.
func (s *Service) Inspect(ctx context.Context, name string) (volume.Volume, error) {
	v := plugins{s}.lookup(ctx, name)
	if v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
	}
	if v == nil || v.gone {
		return volume.Volume{}, errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	out := s.api(v)
	if v.rec.Driver != localDriver {
		drv, err := s.driver(ctx, v.rec.Driver)
		if err != nil {
			return out, errs.Wrap(errs.KindOf(err), err, "get "+name)
		}
		if p, ok := drv.(*pluginDriver); ok {
			if err := p.describe(ctx, &out); err != nil {
				return out, errs.Wrap(errs.KindOf(err), err, "get "+name)
			}
		}
	}
	return out, nil
}

// DiskUsage returns the volumes that are directories of this engine, with what they
// occupy in bytes, -1 where that cannot be told.
func (s *Service) DiskUsage(ctx context.Context) ([]volume.Volume, error) {
	list := s.find(nil, isPlain)
	out := make([]volume.Volume, 0, len(list))
	for _, v := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a := s.api(v)
		size, err := treeSize(s.local.data(v.rec.Name))
		if err != nil && !os.IsNotExist(err) {
			size = -1
		}
		a.UsageData = &volume.UsageData{Size: size, RefCount: int64(len(s.holdersOf(v)))}
		out = append(out, a)
	}
	return out, nil
}

// isPlain reports whether a volume is a directory and nothing more.
func isPlain(v *Volume) bool { return v.rec.Driver == localDriver && len(v.rec.Options) == 0 }

// treeSize is the sum of the sizes of the files in a tree, each counted once.
// No link in it leads out.
func treeSize(dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	type id struct{ dev, ino uint64 }
	seen := map[id]bool{}
	var sum int64
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			key := id{st.Dev, st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		sum += fi.Size()
		return nil
	})
	return sum, err
}

// Remove removes a volume that nobody holds. With force one that is not there is no
// error, and one whose driver fails is forgotten.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	v := plugins{s}.lookup(ctx, name)
	if v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
	}
	if v == nil || v.gone {
		if force {
			return nil
		}
		return errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return s.removeLocked(ctx, v, force)
}

func (s *Service) removeLocked(ctx context.Context, v *Volume, force bool) error {
	name := v.rec.Name
	if holders := s.holdersOf(v); len(holders) > 0 {
		return errs.New(errs.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(holders, ", "))
	}
	// From here on ensure waits for v.mu, and finds that v is gone. A container that
	// found it before has its holder in the list by now, under the same lock.
	drv, err := s.driver(ctx, v.rec.Driver)
	if err == nil {
		err = drv.remove(ctx, name)
	}
	if err != nil && !force {
		return errs.Wrap(errs.KindOf(err), err, "remove "+name)
	}
	if ferr := s.forget(v); ferr != nil {
		return ferr
	}
	if err == nil {
		s.event(events.ActionDestroy, v, nil)
	}
	return errs.Wrap(errs.KindOf(err), err, "remove "+name)
}

// erase takes back a volume that did not come to be. v.mu is held.
func (s *Service) erase(v *Volume) error {
	var err error
	if v.rec.Driver == localDriver {
		err = s.local.remove(context.Background(), v.rec.Name)
	}
	if ferr := s.forget(v); err == nil {
		err = ferr
	}
	return err
}

// Prune removes volumes that nobody holds: those without a name, or all with the
// filter all.
func (s *Service) Prune(ctx context.Context, f filter.Args) (volume.PruneReport, error) {
	rep := volume.PruneReport{VolumesDeleted: []string{}}
	if !s.pruning.CompareAndSwap(false, true) {
		return rep, errs.New(errs.Conflict, "a prune operation is already running")
	}
	defer s.pruning.Store(false)
	all := false
	if list := f["all"]; len(list) > 1 {
		return rep, errs.New(errs.Invalid, "invalid filter 'all=%s': only one value is expected", list)
	} else if len(list) == 1 {
		var err error
		if all, err = strconv.ParseBool(list[0]); err != nil {
			return rep, errs.New(errs.Invalid, "invalid filter 'all': %w", err)
		}
	}
	if err := f.Validate("all", "label", "label!"); err != nil {
		return rep, err
	}
	list := s.find(f, func(v *Volume) bool {
		_, anonymous := v.rec.Labels[AnonymousLabel]
		return isPlain(v) && len(v.holders) == 0 && (all || anonymous)
	})
	for _, v := range list {
		if ctx.Err() != nil {
			break // what is done is done, and told
		}
		v.mu.Lock()
		if v.gone || v.rec.New {
			v.mu.Unlock()
			continue
		}
		size, _ := treeSize(s.local.data(v.rec.Name)) // what cannot be read counts for nothing
		err := s.removeLocked(ctx, v, false)
		v.mu.Unlock()
		if err != nil {
			s.o.Log.Warn("cannot remove a volume", "volume", v.rec.Name, "error", err)
			continue
		}
		rep.SpaceReclaimed += uint64(size)
		rep.VolumesDeleted = append(rep.VolumesDeleted, v.rec.Name)
	}
	s.o.Event(events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(rep.SpaceReclaimed, 10)})
	return rep, nil
}
