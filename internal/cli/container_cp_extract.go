package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// extractLocal unpacks a container's tar below dir. The root of every name is
// replaced by rename, when that is set. Nothing outside dir is touched,
// whatever names and links the stream holds. It returns the stream's length.
func extractLocal(r io.Reader, dir, rename string, owners bool) (int64, error) {
	counted := &countReader{r: r}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	tr := tar.NewReader(counted)
	type dirTime struct {
		name string
		mode os.FileMode
		at   time.Time
	}
	var dirs []dirTime
	rootName := ""
	for first := true; ; first = false {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return counted.n, err
		}
		if first {
			rootName = strings.TrimSuffix(h.Name, "/")
		}
		name := rebase(h.Name, rootName, rename)
		if name == "" {
			continue
		}
		mode := h.FileInfo().Mode()
		switch h.Typeflag {
		case tar.TypeDir:
			if st, serr := root.Lstat(name); serr == nil && !st.IsDir() {
				return counted.n, fmt.Errorf("cannot overwrite non-directory %q with directory %q", path.Join(dir, name), dir)
			} else if serr != nil {
				if err := root.MkdirAll(name, 0o755); err != nil {
					return counted.n, err
				}
			}
			dirs = append(dirs, dirTime{name, mode.Perm() | mode&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky), h.ModTime})
		default:
			if err := extractEntry(root, dir, name, h, tr, rootName, rename); err != nil {
				return counted.n, err
			}
		}
		if owners && os.Geteuid() == 0 {
			if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
				return counted.n, err
			}
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if dirs[i].name == "." {
			continue
		}
		if err := root.Chmod(dirs[i].name, dirs[i].mode); err != nil {
			return counted.n, err
		}
		_ = root.Chtimes(dirs[i].name, dirs[i].at, dirs[i].at)
	}
	_, err = io.Copy(io.Discard, counted)
	return counted.n, err
}

// rebase gives the entry its name below the destination.
func rebase(name, rootName, rename string) string {
	name = strings.TrimSuffix(name, "/")
	if rename != "" {
		switch {
		case name == rootName:
			name = rename
		case rootName == ".":
			name = rename + "/" + strings.TrimPrefix(name, "./")
		default:
			name = rename + strings.TrimPrefix(name, rootName)
		}
	}
	return path.Clean(strings.TrimPrefix(name, "/"))
}

func extractEntry(root *os.Root, dir, name string, h *tar.Header, r io.Reader, rootName, rename string) error {
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	if st, err := root.Lstat(name); err == nil {
		if st.IsDir() {
			return fmt.Errorf("cannot overwrite directory %q with non-directory %q", path.Join(dir, name), dir)
		}
		if err := root.Remove(name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return err
		}
		mode := h.FileInfo().Mode()
		if err := f.Chmod(mode.Perm() | mode&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky)); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		return root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(rebase(h.Linkname, rootName, rename), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return makeNode(root, name, h)
	}
	return nil
}
