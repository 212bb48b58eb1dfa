package volume

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
)

// IsEmpty reports whether a volume has no files: only then it is filled. For one that
// has to be mounted first it says true, and Fill looks again.
func (s *Service) IsEmpty(name string) bool {
	v := s.get(name)
	if v == nil {
		return false
	}
	if v.needsMount() {
		return true
	}
	empty, err := isEmpty(s.local.data(name))
	return err == nil && empty
}

func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// Fill copies what the directory src has into a volume, or a directory subpath of it, that is empty, with the
// directory's own owner, mode and attributes. The copy is made beside the volume and
// moved in when it is complete. A volume that has files stays as it is.
//
// Into what a driver mounts the copy goes straight: there is no place beside it.
func (s *Service) Fill(ctx context.Context, name, subpath, user string, src int) error {
	v := s.get(name)
	if v == nil {
		return errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	path, err := s.mount(ctx, v, "fill-"+user)
	if err != nil {
		return errs.Wrap(errs.KindOf(err), err, "failed to populate volume")
	}
	defer func() {
		if uerr := s.unmount(context.WithoutCancel(ctx), v, "fill-"+user); uerr != nil {
			s.o.Log.Warn("cannot unmount a volume", "volume", name, "error", uerr)
		}
	}()
	at, err := OpenIn(path, subpath)
	if err != nil {
		if errs.Is(err, errs.NotFound) {
			return nil // the start tells
		}
		return err
	}
	defer unix.Close(at)
	if empty, err := isEmpty(fdPath(at)); err != nil || !empty {
		if errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	if v.needsMount() {
		return copyTree(ctx, src, fdPath(at))
	}
	fill := filepath.Join(s.dir, name, "_fill")
	if err := os.RemoveAll(fill); err != nil { // of a fill that failed
		return err
	}
	if err := os.Mkdir(fill, 0o700); err != nil {
		return err
	}
	if err := copyTree(ctx, src, fill); err != nil {
		_ = os.RemoveAll(fill)
		return err
	}
	if empty, err := isEmpty(fill); err != nil || empty {
		defer os.Remove(fill)
		if err != nil {
			return err
		}
		return copyTree(ctx, src, fdPath(at)) // nothing but the directory's attributes
	}
	v.rec.Moving, v.rec.Into = true, subpath
	if err := s.put(v); err != nil {
		v.rec.Moving, v.rec.Into = false, ""
		_ = os.RemoveAll(fill)
		return err
	}
	return s.finishMove(v)
}

// copyTree is archive.CopyTree into a path.
func copyTree(ctx context.Context, src int, path string) error {
	dst, err := archive.OpenRoot(path)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return archive.CopyTree(ctx, src, dst)
}

// finishMove moves what is in _fill into _data, where files of the same name win, and
// gives _data the attributes of _fill. It can be cut off anywhere and begun again.
// v.mu is held.
func (s *Service) finishMove(v *Volume) error {
	fill, data := filepath.Join(s.dir, v.rec.Name, "_fill"), s.local.data(v.rec.Name)
	src, err := archive.OpenRoot(fill)
	switch {
	case os.IsNotExist(err): // it was the last step
	case err != nil:
		return err
	default:
		err = moveAll(src, data, v.rec.Into)
		_ = unix.Close(src)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(fill); err != nil {
			return err
		}
	}
	v.rec.Moving, v.rec.Into = false, ""
	return s.put(v)
}

func moveAll(src int, data, subpath string) error {
	at, err := OpenIn(data, subpath)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	dst, err := archive.OpenRoot(fdPath(at))
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	dir, err := os.Open(fdPath(src))
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Renameat2(src, n, dst, n, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) { // a file system that cannot do that
			err = unix.Renameat(src, n, dst, n)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "move", Path: n, Err: err}
		}
	}
	if err := archive.CopyAttributes(src, dst); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdPath(dst), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// fdPath is a path that leads to what is open, whatever its name leads to.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
