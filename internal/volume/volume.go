// Package volume keeps the volumes: directories, or mounts, that outlive the
// containers which use them.
//
// # Words
//
// A Record is what a volume is; it persists. A holder is a container that has the
// volume among its mounts: a row in the database, written and deleted with the
// container's own record. A user is a holder that runs, or a copy under way: the
// volumes of some drivers are mounted by the first user and unmounted by the last.
//
// # On disk
//
//	<data root>/volumes/NAME/_data    what containers see
//	<data root>/volumes/NAME/_fill    a copy of the image's files under way
//	<data root>/volumes/.gone-…       a removed volume whose files go behind the reply
//
// # Crashes
//
// Each step writes what it is up to before it begins, and Open ends what was left:
//
//	New      made, but the create, or the container it was made for, was not recorded:
//	         removed with all that is in it
//	Moving   _fill is complete, and was being moved into _data: moved to the end
//	neither  a _fill is half a copy: removed
//
// A directory without a record is a volume that somebody has put there: it is taken in.
package volume

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/plugin"
	"berth.dev/berth/internal/state"
)

const (
	bucket      = "volume"
	refPrefix   = "volume/" // in the bucket "ref"
	localDriver = "local"
	// AnonymousLabel marks a volume that was made without a name.
	AnonymousLabel = "com.docker.volume.anonymous"
)

// RefKey is the row by which a container holds a volume.
func RefKey(name, holder string) string { return refPrefix + name + "/" + holder }

// Record is what a volume is. It persists in the bucket "volume", by name.
type Record struct {
	Name    string            `json:"name"`
	Driver  string            `json:"driver"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels"`
	Options map[string]string `json:"options"`
	New     bool              `json:"new,omitempty"`    // see Crashes
	Moving  bool              `json:"moving,omitempty"` // see Crashes
	Into    string            `json:"into,omitempty"`   // what Moving fills, below _data
}

// Volume is the live handle of one volume.
type Volume struct {
	mu    sync.Mutex          // held through create, fill, mount and remove; taken before Service.mu
	rec   Record              // but for New and Moving, which mu guards, fixed once made
	path  string              // of the data, "" when the driver tells at each mount
	gone  bool                // removed, or never came to be
	users map[string]struct{} // who has it mounted
	up    bool                // mounted by the driver

	holders map[string]struct{} // guarded by Service.mu
}

// Options are what the service is built from.
type Options struct {
	Root     string // the engine's data root
	DB       *state.DB
	UID, GID int // owner of new volumes: the root of containers
	Plugins  plugin.Dirs
	Event    func(action events.Action, name string, attributes map[string]string)
	Log      *slog.Logger
}

// Service keeps the volumes.
type Service struct {
	o       Options
	dir     string
	local   *local
	pruning atomic.Bool

	mu      sync.RWMutex
	vols    map[string]*Volume
	drivers map[string]driver // plugins that were asked for
}

// driver makes the volumes of one kind and mounts them.
type driver interface {
	// check refuses what create would, and changes nothing.
	check(name string, options map[string]string) error
	// create makes a volume and returns its path, "" when only a mount has one.
	create(ctx context.Context, name string, options map[string]string) (string, error)
	remove(ctx context.Context, name string) error
	// mount makes a volume usable for a user and returns where it is.
	mount(ctx context.Context, v *Record, user string) (string, error)
	unmount(ctx context.Context, v *Record, user string) error
}

// Open reads the records, ends what a crash has left in the middle, and takes in
// directories that have no record.
func Open(o Options) (*Service, error) {
	s := &Service{o: o, dir: filepath.Join(o.Root, "volumes"), vols: map[string]*Volume{}, drivers: map[string]driver{}}
	s.local = &local{dir: s.dir, uid: o.UID, gid: o.GID}
	if err := os.MkdirAll(s.dir, 0o701); err != nil {
		return nil, err
	}
	err := o.DB.Each(bucket, func(name string, raw []byte) error {
		v := newVolume(Record{})
		if err := json.Unmarshal(raw, &v.rec); err != nil {
			return fmt.Errorf("the record of volume %s: %w", name, err)
		}
		if v.rec.Driver == localDriver {
			v.path = s.local.data(name)
		}
		s.vols[name] = v
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range o.DB.Keys("ref", refPrefix) {
		key = strings.TrimPrefix(key, refPrefix)
		at := strings.LastIndexByte(key, '/') // a plugin's volume may have one in its name
		if v := s.vols[key[:max(at, 0)]]; v != nil {
			v.holders[key[at+1:]] = struct{}{}
		}
	}
	return s, boot{s}.recover()
}

func newVolume(r Record) *Volume {
	return &Volume{rec: r, users: map[string]struct{}{}, holders: map[string]struct{}{}}
}

// boot is what the service does before it serves.
type boot struct{ *Service }

// recover brings records and directories to agreement.
func (s boot) recover() error {
	for name, v := range s.vols {
		switch {
		case v.rec.Driver != localDriver: // its plugin knows
		case v.rec.New && len(v.holders) > 0:
			v.rec.New = false // the container is recorded
			if err := s.put(v); err != nil {
				return err
			}
		case v.rec.New:
			if err := s.erase(v); err != nil {
				s.o.Log.Warn("cannot remove a volume that was not made to the end", "volume", name, "error", err)
			}
		}
		if v.rec.Moving && !v.gone {
			if err := s.finishMove(v); err != nil {
				s.o.Log.Warn("cannot fill a volume to the end", "volume", name, "error", err)
			}
		}
	}
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var gone []string
	there := make(map[string]bool, len(list))
	for _, d := range list {
		name := d.Name()
		switch v := s.vols[name]; {
		case strings.HasPrefix(name, "."):
			gone = append(gone, filepath.Join(s.dir, name))
		case v != nil:
			there[name] = true
		case d.IsDir() && validName.MatchString(name):
			if err := s.adopt(name); err != nil {
				return err
			}
			there[name] = s.vols[name] != nil
		}
	}
	for name, v := range s.vols {
		// A removal was cut off behind its first step, or somebody has removed the directory.
		if v.rec.Driver == localDriver && !there[name] && len(v.holders) == 0 {
			if err := s.forget(v); err != nil {
				return err
			}
		}
	}
	go func() { // what nobody waits for
		for name := range there {
			if fill := filepath.Join(s.dir, name, "_fill"); exists(fill) {
				s.dropCopy(name)
			}
		}
		for _, p := range gone {
			_ = os.RemoveAll(p)
		}
	}()
	return nil
}

// dropCopy removes half a copy. Under the volume's lock no other one is being made.
func (s boot) dropCopy(name string) {
	v := s.get(name)
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return
	}
	if err := os.RemoveAll(filepath.Join(s.dir, name, "_fill")); err != nil {
		s.o.Log.Warn("cannot remove half a copy", "volume", name, "error", err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// adopt makes a record for a directory that somebody has put there.
func (s boot) adopt(name string) error {
	fi, err := os.Lstat(s.local.data(name))
	if err != nil || !fi.IsDir() {
		return nil //nolint:nilerr // no volume
	}
	v := newVolume(Record{Name: name, Driver: localDriver, Created: fi.ModTime()})
	v.path = s.local.data(name)
	s.vols[name] = v
	return s.put(v)
}

// put writes a volume's record.
func (s *Service) put(v *Volume) error {
	return s.o.DB.Update(state.Async, func(tx *state.Tx) error { return tx.Put(bucket, v.rec.Name, &v.rec) })
}

// forget deletes a volume's record. v.mu is held, or nobody else knows v.
func (s *Service) forget(v *Volume) error {
	v.gone = true
	s.mu.Lock()
	if s.vols[v.rec.Name] == v {
		delete(s.vols, v.rec.Name)
	}
	s.mu.Unlock()
	return s.o.DB.Update(state.Soon, func(tx *state.Tx) error { tx.Delete(bucket, v.rec.Name); return nil })
}

func (s *Service) get(name string) *Volume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.vols[name]
}

// Request says which volume is wanted, and what it is made with if it is not there.
type Request struct {
	Name    string // "" for a new one without a name
	Driver  string // "" for that which it has, or local
	Labels  map[string]string
	Options map[string]string
	Holder  string // a container that is to hold it; see Hold
}

// Create makes a volume, unless there is one of the name and driver.
func (s *Service) Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	v, made, err := s.ensure(ctx, Request{Name: r.Name, Driver: r.Driver, Labels: r.Labels, Options: r.DriverOpts})
	if err != nil {
		return volume.Volume{}, err
	}
	defer v.mu.Unlock()
	if v.rec.New {
		v.rec.New = false
		if err := s.o.DB.Update(state.Soon, func(tx *state.Tx) error { return tx.Put(bucket, v.rec.Name, &v.rec) }); err != nil {
			if made {
				_ = s.erase(v)
			}
			return volume.Volume{}, err
		}
	}
	return s.api(v), nil
}

// Held is a volume as a container's mount has it.
type Held struct {
	Name, Driver string
	Path         string // "" until it is mounted, with some drivers
}

// Hold finds or makes a volume for a container that is being made. The volume is
// kept for it in memory only until the container's own transaction calls Commit;
// Abandon gives it up again.
func (s *Service) Hold(ctx context.Context, r Request) (Held, error) {
	v, _, err := s.ensure(ctx, r)
	if err != nil {
		return Held{}, err
	}
	defer v.mu.Unlock()
	return Held{Name: v.rec.Name, Driver: v.rec.Driver, Path: v.path}, nil
}

// ensure returns the volume of a request, locked. One that it made is still New.
func (s *Service) ensure(ctx context.Context, r Request) (v *Volume, made bool, err error) {
	name := r.Name
	fail := func(err error) (*Volume, bool, error) {
		return nil, false, errs.Wrap(errs.KindOf(err), err, "create "+name)
	}
	if name == "" {
		name = randomName()
		labels := maps.Clone(r.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[AnonymousLabel] = ""
		r.Labels, r.Driver = labels, cmp.Or(r.Driver, localDriver)
	}
	for {
		if r.Driver == "" {
			v = plugins{s}.lookup(ctx, name)
		} else {
			v = s.get(name)
		}
		if v != nil {
			v.mu.Lock()
			if !v.gone && (plugins{s}).stale(ctx, v) {
				if err := s.forget(v); err != nil {
					v.mu.Unlock()
					return fail(err)
				}
			}
			if v.gone {
				v.mu.Unlock()
				continue
			}
			if r.Driver != "" && r.Driver != v.rec.Driver {
				defer v.mu.Unlock()
				if _, err := s.driver(ctx, r.Driver); err != nil {
					return fail(err)
				}
				return fail(errs.New(errs.Conflict, "driver '%s' already has volume '%s': volume name must be unique", v.rec.Driver, name))
			}
			s.hold(v, r.Holder)
			return v, false, nil
		}
		drv, err := s.driver(ctx, cmp.Or(r.Driver, localDriver))
		if err == nil {
			err = drv.check(name, r.Options)
		}
		if err != nil {
			return fail(err)
		}
		v = newVolume(Record{Name: name, Driver: cmp.Or(r.Driver, localDriver), Created: time.Now(), Labels: r.Labels, Options: r.Options, New: true})
		v.mu.Lock()
		s.mu.Lock()
		if s.vols[name] != nil {
			s.mu.Unlock()
			continue
		}
		s.vols[name] = v
		if r.Holder != "" {
			v.holders[r.Holder] = struct{}{}
		}
		s.mu.Unlock()
		if err = s.put(v); err == nil {
			v.path, err = drv.create(ctx, name, r.Options)
		}
		if err != nil {
			_ = s.erase(v)
			v.mu.Unlock()
			return fail(err)
		}
		s.event(events.ActionCreate, v, nil)
		return v, true, nil
	}
}

func randomName() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand says
	return hex.EncodeToString(b[:])
}

func (s *Service) hold(v *Volume, holder string) {
	if holder == "" {
		return
	}
	s.mu.Lock()
	v.holders[holder] = struct{}{}
	s.mu.Unlock()
}

// Commit writes into a container's own transaction that it holds volumes.
func (s *Service) Commit(tx *state.Tx, holder string, names []string) error {
	for _, name := range names {
		v := s.get(name)
		if v == nil {
			return errs.New(errs.NotFound, "get %s: no such volume", name)
		}
		var rec Record
		if there, err := tx.Get(bucket, name, &rec); err != nil || there && rec.New {
			if err != nil {
				return err
			}
			rec.New = false
			if err := tx.Put(bucket, name, &rec); err != nil {
				return err
			}
		}
		if err := tx.Put("ref", RefKey(name, holder), "container"); err != nil {
			return err
		}
	}
	return nil
}

// Doom marks, in the transaction that removes a container, volumes that go with it
// unless somebody else holds them.
func (s *Service) Doom(tx *state.Tx, holder string, names []string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, name := range names {
		v := s.vols[name]
		if v == nil {
			continue
		}
		if _, mine := v.holders[holder]; len(v.holders) > 1 || len(v.holders) == 1 && !mine {
			continue
		}
		var rec Record
		if there, err := tx.Get(bucket, name, &rec); err != nil || !there {
			if err != nil {
				return err
			}
			continue
		}
		rec.New = true
		if err := tx.Put(bucket, name, &rec); err != nil {
			return err
		}
	}
	return nil
}

// Committed is called when the transaction of Commit is done.
func (s *Service) Committed(names []string) {
	for _, name := range names {
		if v := s.get(name); v != nil {
			v.mu.Lock()
			v.rec.New = false
			v.mu.Unlock()
		}
	}
}

// Abandon is called when a container did not come to be: what it held is given up, and
// what was made for it alone is removed.
func (s *Service) Abandon(ctx context.Context, holder string, names []string) {
	_ = s.Release(ctx, holder, names, nil)
	for _, name := range names {
		v := s.get(name)
		if v == nil {
			continue
		}
		v.mu.Lock()
		if v.rec.New && !v.gone {
			if err := s.removeLocked(ctx, v, true); err != nil && !errs.Is(err, errs.Conflict) {
				s.o.Log.Warn("cannot remove a volume", "volume", name, "error", err)
			}
		}
		v.mu.Unlock()
	}
}

// Release gives volumes up that a container held; those of remove go, too, if nobody
// else holds them. The rows of Commit are the container's own transaction's to delete.
func (s *Service) Release(ctx context.Context, holder string, names, remove []string) error {
	s.mu.Lock()
	for _, name := range names {
		if v := s.vols[name]; v != nil {
			delete(v.holders, holder)
		}
	}
	s.mu.Unlock()
	var failed []string
	for _, name := range remove {
		if err := s.Remove(ctx, name, true); err != nil && !errs.Is(err, errs.Conflict) {
			failed = append(failed, err.Error())
		}
	}
	if failed != nil {
		return errs.New(errs.Internal, "Error removing volumes:\n%s", strings.Join(failed, "\n"))
	}
	return nil
}

// holdersOf returns who holds a volume, sorted.
func (s *Service) holdersOf(v *Volume) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(v.holders))
}

// event tells what happened to a volume.
func (s *Service) event(action events.Action, v *Volume, more map[string]string) {
	attrs := map[string]string{"driver": v.rec.Driver}
	maps.Copy(attrs, more)
	s.o.Event(action, v.rec.Name, attrs)
}

// driver returns the driver of a name.
func (s *Service) driver(ctx context.Context, name string) (driver, error) {
	if name == localDriver {
		return s.local, nil
	}
	s.mu.RLock()
	d := s.drivers[name]
	s.mu.RUnlock()
	if d != nil {
		return d, nil
	}
	p, err := openPlugin(ctx, name, s.o.Plugins)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drivers[name] = p
	return p, nil
}

// Mount makes a volume usable for a user and returns where it is. A second call for
// the same user does nothing more.
func (s *Service) Mount(ctx context.Context, name, user string) (string, error) {
	v := s.get(name)
	if v == nil {
		return "", errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return "", errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return s.mount(ctx, v, user)
}

func (s *Service) mount(ctx context.Context, v *Volume, user string) (string, error) {
	if !v.needsMount() {
		return v.path, nil
	}
	drv, err := s.driver(ctx, v.rec.Driver)
	if err != nil {
		return "", err
	}
	if _, again := v.users[user]; again && v.path != "" {
		return v.path, nil
	}
	path, err := drv.mount(ctx, &v.rec, user)
	if err != nil {
		return "", errs.Wrap(errs.KindOf(err), err, fmt.Sprintf("error while mounting volume '%s'", cmp.Or(v.path, v.rec.Name)))
	}
	v.path, v.up = path, true
	v.users[user] = struct{}{}
	return path, nil
}

// needsMount reports whether the driver has something to do at each use.
func (v *Volume) needsMount() bool {
	return v.rec.Driver != localDriver || v.rec.Options["device"] != "" || v.rec.Options["type"] != ""
}

// Unmount is called when a user of a volume is done.
func (s *Service) Unmount(ctx context.Context, name, user string) error {
	v := s.get(name)
	if v == nil || !v.needsMount() {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return s.unmount(ctx, v, user)
}

func (s *Service) unmount(ctx context.Context, v *Volume, user string) error {
	if _, ok := v.users[user]; !ok {
		return nil
	}
	delete(v.users, user)
	drv, err := s.driver(ctx, v.rec.Driver)
	if err != nil {
		return err
	}
	if v.rec.Driver == localDriver && len(v.users) > 0 {
		return nil
	}
	v.up = len(v.users) > 0
	return drv.unmount(ctx, &v.rec, user)
}

// Keep tells, after a start of the engine, which holders run: the volumes that none
// of them uses are unmounted.
func (s *Service) Keep(running func(holder string) bool) {
	s.mu.RLock()
	var list []*Volume
	for _, v := range s.vols {
		if v.needsMount() {
			list = append(list, v)
		}
	}
	s.mu.RUnlock()
	for _, v := range list {
		v.mu.Lock()
		for _, h := range s.holdersOf(v) {
			if running(h) {
				v.users[h], v.up = struct{}{}, true
			}
		}
		if v.rec.Driver == localDriver && len(v.users) == 0 && isMount(v.path) {
			if err := s.local.unmount(context.Background(), &v.rec, ""); err != nil {
				s.o.Log.Warn("cannot unmount a volume", "volume", v.rec.Name, "error", err)
			}
		}
		v.mu.Unlock()
	}
}

// Mounted tells the event of a container's mount; Unmounted that of its end.
func (s *Service) Mounted(name, holder, destination, propagation string, writable bool) {
	if v := s.get(name); v != nil {
		s.event(events.ActionMount, v, map[string]string{
			"container": holder, "destination": destination, "read/write": fmt.Sprint(writable), "propagation": propagation,
		})
	}
}

// Unmounted tells that a container does not use a volume any more.
func (s *Service) Unmounted(name, holder string) {
	if v := s.get(name); v != nil {
		s.event(events.ActionUnmount, v, map[string]string{"container": holder})
	}
}

// OpenIn opens subpath below the directory dir, "" for dir itself. A link that a
// container has made there may lead to another place below dir, and nowhere else.
func OpenIn(dir, subpath string) (int, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, errs.New(errs.NotFound, "cannot access path %s: %v", dir, err)
	}
	if subpath == "" {
		return root, nil
	}
	defer unix.Close(root)
	return OpenBelow(root, dir, subpath)
}

// OpenBelow is OpenIn for an open directory, which the errors call dir.
func OpenBelow(root int, dir, subpath string) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 64 { // EAGAIN: something was renamed meanwhile
		if fd, err = unix.Openat2(root, subpath, &how); err != unix.EAGAIN && err != unix.EINTR { //nolint:errorlint // bare errnos
			break
		}
	}
	switch err { //nolint:errorlint // bare errnos
	case nil:
		return fd, nil
	case unix.EXDEV:
		return -1, errs.New(errs.Invalid, "path concatenation escapes the base directory, base: %s, subpath: %s", dir, subpath)
	default:
		return -1, errs.New(errs.NotFound, "cannot access path %s: %v", filepath.Join(dir, subpath), err)
	}
}

// validName is what a local volume may be called: it names a directory.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// CheckName refuses a name that no local volume can have.
func CheckName(name string) error {
	switch {
	case len(name) == 1:
		return errs.New(errs.Invalid, "volume name is too short, names should be at least two alphanumeric characters")
	case !validName.MatchString(name):
		return errs.New(errs.Invalid, "%q includes invalid characters for a local volume name, only %q are allowed. If you intended to pass a host directory, use absolute path",
			name, "[a-zA-Z0-9][a-zA-Z0-9_.-]")
	}
	return nil
}
