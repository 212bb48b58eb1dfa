package container

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/archive"
	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/image"
	"berth.dev/berth/internal/linux"
	"berth.dev/berth/internal/ref"
	"berth.dev/berth/internal/snapshot"
)

// root opens a container's file tree: that of its process when it runs, with
// all it has mounted, else its snapshot. The caller closes the descriptor.
func (s Files) root(ctx context.Context, c *Container, readonly bool) (fd int, running bool, err error) {
	if st := c.Status(); st.Phase.Running() {
		fd, err := openProcess(st, "root", unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			return fd, true, nil
		}
	}
	c.dropWarm() // one upper directory serves one mount; and now all is in it that create makes
	fd, err = roots(s).attach(ctx, c.Record(), readonly)
	return fd, false, err
}

// place finds the root and the path in it that stand for a container's path:
// for one that does not run, a bind mount's source takes the mount's place. With hostIDs
// the files there show the host's ids of a container in a user namespace.
func (s Files) place(ctx context.Context, c *Container, p string, readonly bool) (fd int, rel string, hostIDs bool, err error) {
	p = rooted(p)
	fd, running, err := s.root(ctx, c, readonly)
	if err != nil || running {
		return fd, p, running && s.userns.holds(c.Record().HostConfig), err
	}
	r := c.Record()
	clean := path.Clean("/" + p)
	for _, m := range slices.Backward(r.Mounts) {
		if m.Source == "" || clean != m.Destination && !strings.HasPrefix(clean, m.Destination+"/") {
			continue
		}
		src, at, err := openMounted(m.Source, strings.TrimPrefix(p, m.Destination))
		if err != nil {
			break
		}
		_ = unix.Close(fd)
		return src, at, s.userns.holds(r.HostConfig), nil
	}
	if name := path.Base(clean); isNetFile(clean) {
		if src, at, err := openMounted(path.Join(s.netDir(r), name), strings.TrimPrefix(p, clean)); err == nil {
			_ = unix.Close(fd)
			return src, at, s.userns.holds(r.HostConfig), nil
		}
	}
	return fd, p, s.userns.shifts(r), nil
}

// isNetFile reports whether a path is one of the files that the engine writes
// for every container and mounts over the image's.
func isNetFile(p string) bool {
	return p == "/etc/hosts" || p == "/etc/hostname" || p == "/etc/resolv.conf"
}

// openMounted opens what is mounted from source for a path below it, rest. A file is
// reached through its directory, since a path needs one to start from.
func openMounted(source, rest string) (fd int, rel string, err error) {
	rest = strings.TrimPrefix(rest, "/")
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return -1, "", err
	}
	fd, err = unix.Open(real, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		return fd, "/" + rest, nil
	}
	if fd, err = unix.Open(path.Dir(real), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return -1, "", err
	}
	rel = "/" + path.Base(real)
	if rest != "" {
		rel += "/" + rest
	}
	return fd, rel, nil
}

// rooted is a client's path as an absolute one that does not climb; an end of "/" or
// "/.", which says that a directory is meant, stays.
func rooted(p string) string {
	clean := path.Clean("/" + p)
	switch {
	case clean == "/" && !strings.HasSuffix(p, "/."):
	case strings.HasSuffix(p, "/."):
		clean = strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/"):
		clean += "/"
	}
	return clean
}

// notFound is the error for a path of a container that cannot be opened.
func notFound(err error, ref, p string) error {
	if errors.Is(err, unix.ENOTDIR) && strings.HasSuffix(p, "/") {
		return errs.New(errs.Invalid, "lstat %s: not a directory", p)
	}
	return errs.New(errs.NotFound, "Could not find the file %s in container %s", p, ref)
}

// ArchiveStat describes a path of a container, which is not followed if it is a link.
func (s Files) ArchiveStat(ctx context.Context, ref, p string) (container.PathStat, error) {
	c, err := s.Get(ref)
	if err != nil {
		return container.PathStat{}, err
	}
	fd, rel, _, err := s.place(ctx, c, p, true)
	if err != nil {
		return container.PathStat{}, err
	}
	defer unix.Close(fd)
	return statIn(ref, fd, p, rel)
}

func statIn(ref string, root int, p, rel string) (container.PathStat, error) {
	follow := strings.HasSuffix(rel, "/") || strings.HasSuffix(rel, "/.")
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := linux.OpenInRoot(root, rel, flags)
	if err != nil {
		return container.PathStat{}, notFound(err, ref, p)
	}
	f := os.NewFile(uintptr(fd), path.Base(path.Clean("/"+p)))
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return container.PathStat{}, err
	}
	if follow && !fi.IsDir() {
		return container.PathStat{}, errs.New(errs.Invalid, "extraction point is not a directory: %s", p)
	}
	out := container.PathStat{Name: path.Base(path.Clean("/" + p)), Size: fi.Size(), Mode: fi.Mode(), Mtime: fi.ModTime()}
	if fi.Mode()&os.ModeSymlink != 0 {
		buf := make([]byte, 4096)
		if n, err := unix.Readlinkat(fd, "", buf); err == nil {
			out.LinkTarget = string(buf[:n])
			if !path.IsAbs(out.LinkTarget) {
				out.LinkTarget = path.Join(path.Dir(path.Clean("/"+p)), out.LinkTarget)
			}
		}
	}
	return out, nil
}

// ArchiveGet writes a path of a container as a tar. w is called with what the
// path is, before the first byte.
func (s Files) ArchiveGet(ctx context.Context, ref, p string, w func(container.PathStat) io.Writer) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	fd, rel, hostIDs, err := s.place(ctx, c, p, true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st, err := statIn(ref, fd, p, rel)
	if err != nil {
		return err
	}
	s.event(c, events.ActionArchivePath)
	var opts archive.TarOptions
	if hostIDs {
		opts.MapOwner = s.userns.toContainer
	}
	name := st.Name
	if name == "/" {
		name = "./"
	}
	if strings.HasSuffix(rel, "/.") || strings.HasSuffix(rel, "/") {
		// The directory's content under the directory's own name: a link is followed.
		if at, err := linux.OpenInRoot(fd, rel, unix.O_PATH|unix.O_DIRECTORY); err == nil {
			defer unix.Close(at)
			if strings.HasSuffix(rel, "/.") {
				name = "."
			}
			opts.Name = name
			return archive.Tar(ctx, w(st), at, ".", opts)
		}
	}
	opts.Name = name
	return archive.Tar(ctx, w(st), fd, rel, opts)
}

// ArchivePutOptions say how a tar is unpacked into a container.
type ArchivePutOptions struct{ NoOverwriteDirNonDir, CopyUIDGID bool }

// ArchivePut unpacks a tar into a directory of a container.
func (s Files) ArchivePut(ctx context.Context, ref, p string, r io.Reader, o ArchivePutOptions) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	if err := s.writable(c, p); err != nil {
		return err
	}
	if !c.Status().Phase.Running() {
		c.mu.Lock() // no start while its root is mounted here
		defer c.mu.Unlock()
	}
	fd, rel, hostIDs, err := s.place(ctx, c, p, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, err := linux.OpenInRoot(fd, rel, unix.O_PATH)
	if err != nil {
		return notFound(err, ref, p)
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errs.New(errs.Invalid, "extraction point is not a directory")
	}
	plain, _, err := archive.Decompress(r)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "cannot read the archive")
	}
	defer plain.Close()
	opts := archive.UnpackOptions{NoOverwriteDirNonDir: o.NoOverwriteDirNonDir}
	if hostIDs {
		opts.MapOwner = s.userns.toHost
	}
	if o.CopyUIDGID {
		// Owners by number, as the tar has them: what Docker's -a does for root.
		opts.Owner = nil
	}
	if _, err := archive.Unpack(ctx, plain, at, opts); err != nil {
		return err
	}
	s.event(c, events.ActionExtractToDir)
	return nil
}

func (s Files) writable(c *Container, p string) error {
	r := c.Record()
	clean := path.Clean("/" + p)
	for _, m := range slices.Backward(r.Mounts) {
		if clean == m.Destination || strings.HasPrefix(clean, m.Destination+"/") {
			if !m.RW {
				return errs.New(errs.Forbidden, "mounted volume is marked read-only")
			}
			return nil
		}
	}
	if r.HostConfig.ReadonlyRootfs {
		return errs.New(errs.Forbidden, "container rootfs is marked read-only")
	}
	return nil
}

// ephemeral are the paths in a root that exist only because something is
// mounted on them; diff and commit do not show them.
func ephemeral(r *Record) map[string]bool {
	out := map[string]bool{"/proc": true, "/sys": true, "/dev": true, "/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true}
	for _, m := range r.Mounts {
		for d := m.Destination; d != "/"; d = path.Dir(d) {
			out[d] = true
		}
	}
	return out
}

// Changes lists what a container changed in its file system.
func (s Files) Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error) {
	c, err := s.Get(ref)
	if err != nil {
		return nil, err
	}
	list, err := s.changes(ctx, c)
	if err != nil {
		return nil, err
	}
	hidden := ephemeral(c.Record())
	shown := make([]archive.Change, 0, len(list))
	for _, ch := range list {
		if !hidden[ch.Path] || ch.Kind == archive.Deleted {
			shown = append(shown, ch)
		}
	}
	out := make([]container.FilesystemChange, 0, len(shown))
	for _, ch := range shown {
		// A directory that changed only by what is hidden below it did not change.
		if ch.Kind == archive.Modified && isParentOnly(ch.Path, list, shown, hidden) {
			continue
		}
		out = append(out, container.FilesystemChange{Kind: container.ChangeType(ch.Kind), Path: ch.Path})
	}
	return out, nil
}

func isParentOnly(dir string, list, shown []archive.Change, hidden map[string]bool) bool {
	below := func(l []archive.Change) bool {
		return slices.ContainsFunc(l, func(c archive.Change) bool { return strings.HasPrefix(c.Path, dir+"/") })
	}
	return below(list) && !below(shown) && !hidden[dir]
}

func (s Files) changes(ctx context.Context, c *Container) ([]archive.Change, error) {
	c.settle()
	m, err := roots(s).mount(ctx, c.Record(), false)
	if err != nil {
		return nil, err
	}
	if m.Path == "" {
		upper, err := archive.OpenRoot(m.Upper)
		if err != nil {
			return nil, err
		}
		defer unix.Close(upper)
		return archive.Changes(ctx, upper, m.Lower)
	}
	old, done, err := s.imageRoot(ctx, c)
	if err != nil {
		return nil, err
	}
	defer done()
	cur, err := archive.OpenRoot(m.Path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(cur)
	return archive.ChangedTrees(ctx, old, cur)
}

// imageRoot opens the tree of a container's image, read-only.
func (s Files) imageRoot(ctx context.Context, c *Container) (fd int, done func(), err error) {
	img, err := s.o.Images.Resolve(ctx, string(c.Record().Image))
	if err != nil {
		return -1, nil, err
	}
	if img.Top() == "" {
		dir, err := os.MkdirTemp(s.o.DataRoot, "empty-")
		if err != nil {
			return -1, nil, err
		}
		if fd, err = archive.OpenRoot(dir); err != nil {
			_ = os.Remove(dir)
			return -1, nil, err
		}
		return fd, func() { _ = unix.Close(fd); _ = os.Remove(dir) }, nil
	}
	m, err := s.o.Snapshots.Mounts(ctx, img.Top())
	if err != nil {
		return -1, nil, err
	}
	if fd, err = snapshot.Attach(m, true); err != nil {
		return -1, nil, err
	}
	return fd, func() { _ = unix.Close(fd) }, nil
}

// Export writes a container's whole file system as a tar, without what is
// mounted in it.
func (s Files) Export(ctx context.Context, ref string, w io.Writer) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	c.settle()
	// One upper directory serves one mount: that of a container that runs is used.
	fd, err := -1, error(unix.ESRCH)
	if c.Status().Phase.Running() && !s.userns.holds(c.Record().HostConfig) {
		fd, err = cloneRoot(c)
	}
	if err != nil {
		fd, err = roots(s).attach(ctx, c.Record(), true)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := archive.Tar(ctx, w, fd, "/", archive.TarOptions{MapOwner: s.userns.ownersOf(c.Record())}); err != nil {
		return err
	}
	s.event(c, events.ActionExport)
	return nil
}

// CommitOptions say what image is made of a container.
type CommitOptions struct {
	Ref, Repo, Tag, Author, Comment string
	Pause                           bool // freeze it meanwhile
	Changes                         []string
	Config                          *container.Config
}

// Commit makes an image of what a container changed.
func (s Files) Commit(ctx context.Context, o CommitOptions) (string, error) {
	c, err := s.Get(o.Ref)
	if err != nil {
		return "", err
	}
	r := c.Record()
	switch c.Status().Phase {
	case Removing, Dead:
		return "", errs.New(errs.Conflict, "cannot commit container %s which is being removed", o.Ref)
	}
	if o.Pause && c.Status().Phase == Running {
		if err := s.Pause(ctx, string(r.ID)); err == nil {
			defer func() { _ = s.Unpause(context.WithoutCancel(ctx), string(r.ID)) }()
		}
	}
	cfg := o.Config
	if cfg == nil {
		cfg = r.Config
	} else {
		merged := *cfg
		merge(&merged, &image.Image{Config: dockerspec.DockerOCIImage{Config: *imageConfig(r.Config)}})
		cfg = &merged
	}
	rd, wr := io.Pipe()
	go func() { wr.CloseWithError(s.layer(ctx, c, wr)) }()
	defer rd.Close()
	id, err := s.o.Images.Commit(ctx, image.CommitOptions{
		Repo: o.Repo, Tag: o.Tag, Author: o.Author, Comment: o.Comment, Changes: o.Changes, Config: imageConfig(cfg), Parent: r.Image,
		Layer: rd, CreatedBy: strings.Join(append([]string{r.Path}, r.Args...), " "), Created: time.Now().UTC(), Container: string(r.ID), KeepLink: true,
	})
	if err != nil {
		return "", err
	}
	s.event(c, events.ActionCommit, "comment", o.Comment, "imageID", string(id), "imageRef", familiar(o.Repo, o.Tag))
	return string(id), nil
}

// familiar is a repository with its tag in the form for people.
func familiar(repo, tag string) string {
	if repo == "" {
		return ""
	}
	n, err := ref.ParseRepository(repo, tag)
	if err != nil {
		return repo
	}
	return n.Familiar()
}

// layer writes the container's changes as an image layer.
func (s Files) layer(ctx context.Context, c *Container, w io.Writer) error {
	c.settle()
	m, err := s.o.Snapshots.Mounts(ctx, string(c.Record().ID))
	if err != nil {
		return err
	}
	if m.Path == "" {
		upper, err := archive.OpenRoot(m.Upper)
		if err != nil {
			return err
		}
		defer unix.Close(upper)
		return archive.DiffUpper(ctx, w, upper, s.userns.ownersOf(c.Record()))
	}
	old, done, err := s.imageRoot(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	cur, err := archive.OpenRoot(m.Path)
	if err != nil {
		return err
	}
	defer unix.Close(cur)
	return archive.DiffTrees(ctx, w, old, cur)
}

// imageConfig keeps of a container's configuration what an image can say.
func imageConfig(c *container.Config) *dockerspec.DockerOCIImageConfig {
	ports := map[string]struct{}{}
	for p := range c.ExposedPorts {
		ports[p.String()] = struct{}{}
	}
	if len(ports) == 0 {
		ports = nil
	}
	return &dockerspec.DockerOCIImageConfig{
		ImageConfig: ocispec.ImageConfig{
			User: c.User, ExposedPorts: ports, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Volumes: c.Volumes,
			WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
		},
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Healthcheck: c.Healthcheck, OnBuild: c.OnBuild, Shell: c.Shell},
	}
}
