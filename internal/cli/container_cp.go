package cli

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

type cpOptions struct{ archive, follow, quiet bool }

func cpCmd(cli *CLI, c *cobra.Command) {
	var o cpOptions
	c.Long = c.Short + "\n\nUse '-' as the source to read a tar archive from stdin\nand extract it to a directory destination in a container.\n" +
		"Use '-' as the destination to stream a tar archive of a\ncontainer source to stdout."
	f := c.Flags()
	f.BoolVarP(&o.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	f.BoolVarP(&o.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached")
	c.RunE = func(c *cobra.Command, args []string) error {
		if args[0] == "" {
			return errors.New("source can not be empty")
		}
		if args[1] == "" {
			return errors.New("destination can not be empty")
		}
		if !f.Changed("quiet") {
			o.quiet = !cli.Err.IsTerminal()
		}
		from, src := splitCopyArg(args[0])
		to, dst := splitCopyArg(args[1])
		if from != "" && to != "" {
			return errors.New("copying between containers is not supported")
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		cp := copier{cli: cli, cl: cl, o: o}
		switch {
		case from != "":
			return cp.fromContainer(c.Context(), from, src, dst)
		case to != "":
			return cp.toContainer(c.Context(), to, src, dst)
		}
		return errors.New("must specify at least one container source")
	}
}

// splitCopyArg tells CONTAINER:PATH from a local path.
func splitCopyArg(arg string) (ctr, p string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	ctr, p, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(ctr, ".") {
		return "", arg
	}
	return ctr, p
}

type copier struct {
	cli *CLI
	cl  *client.Client
	o   cpOptions
}

func (cp *copier) done(n int64, where string) {
	if !cp.o.quiet {
		fmt.Fprintln(cp.cli.Err, "Successfully copied", humanSize(float64(n)), "to", where)
	}
}

func (cp *copier) stat(ctx context.Context, ctr, p string) (container.PathStat, error) {
	res, err := cp.cl.Do(ctx, client.Request{Method: http.MethodHead, Path: containerPath(ctr, "/archive"), Query: url.Values{"path": {filepath.ToSlash(p)}}})
	if err != nil {
		var e *client.Error
		if errors.As(err, &e) && e.Status == http.StatusNotFound { // HEAD carries no text
			e.Message = fmt.Sprintf("Could not find the file %s in container %s", p, ctr)
		}
		return container.PathStat{}, err
	}
	defer res.Body.Close()
	return pathStat(res)
}

func pathStat(res *http.Response) (container.PathStat, error) {
	var st container.PathStat
	b, err := base64.StdEncoding.DecodeString(res.Header.Get("X-Docker-Container-Path-Stat"))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		err = fmt.Errorf("unable to decode container path stat header: %w", err)
	}
	return st, err
}

// keepTail returns p clean, with the trailing separator or "/." that it had: they mean something.
func keepTail(clean, p string) string {
	if (p == "." || strings.HasSuffix(p, "/.")) && !strings.HasSuffix(clean, "/.") && clean != "." {
		if !strings.HasSuffix(clean, "/") {
			clean += "/"
		}
		clean += "."
	}
	if strings.HasSuffix(p, "/") && !strings.HasSuffix(clean, "/") {
		clean += "/"
	}
	return clean
}

func assertsDir(p string) bool {
	return strings.HasSuffix(p, "/") || p == "." || strings.HasSuffix(p, "/.")
}

// target is a destination as it is now.
type target struct {
	path          string
	exists, isDir bool
}

// place decides where a source goes: the directory to extract in, and the new
// name of the source's root ("" keeps it).
func (t target) place(srcIsDir bool) (dir, rename string, err error) {
	clean := path.Clean(filepath.ToSlash(t.path))
	switch {
	case t.exists && t.isDir:
		return clean, "", nil
	case t.exists && srcIsDir:
		return "", "", errors.New("cannot copy directory")
	case t.exists:
		return path.Dir(clean), path.Base(clean), nil
	case srcIsDir:
		return path.Dir(clean), path.Base(clean), nil
	case assertsDir(t.path):
		return "", "", errors.New("no such directory")
	}
	return path.Dir(clean), path.Base(clean), nil
}

func (cp *copier) fromContainer(ctx context.Context, ctr, src, dst string) error {
	if dst != "-" {
		abs, err := filepath.Abs(dst)
		if err != nil {
			return err
		}
		dst = keepTail(abs, dst)
		if dir := filepath.Dir(filepath.Clean(dst)); dir != "/" {
			if st, err := os.Stat(dir); err != nil || !st.IsDir() {
				return fmt.Errorf("invalid output path: directory %q does not exist", dir)
			}
		}
	}
	rebase := ""
	if cp.o.follow {
		st, err := cp.stat(ctx, ctr, src)
		if err == nil && st.Mode&os.ModeSymlink != 0 {
			link := st.LinkTarget
			if !path.IsAbs(link) {
				link = path.Join(path.Dir(src), link)
			}
			rebase = path.Base(path.Clean(src))
			src = keepTail(link, src)
		}
	}
	res, err := cp.cl.Do(ctx, client.Request{Method: http.MethodGet, Path: containerPath(ctr, "/archive"), Query: url.Values{"path": {filepath.ToSlash(src)}}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if dst == "-" {
		_, err := io.Copy(cp.cli.Out, res.Body)
		return err
	}
	st, err := pathStat(res)
	if err != nil {
		return err
	}
	t := target{path: dst}
	if fi, err := os.Stat(dst); err == nil {
		t.exists, t.isDir = true, fi.IsDir()
	}
	dir, rename, err := t.place(st.Mode.IsDir())
	if err != nil {
		return err
	}
	if rename == "" {
		rename = rebase
	}
	n, err := extractLocal(res.Body, dir, rename, cp.o.archive)
	if err != nil {
		return err
	}
	cp.done(n, dst)
	return nil
}

func (cp *copier) toContainer(ctx context.Context, ctr, src, dst string) error {
	t := target{path: dst}
	st, err := cp.stat(ctx, ctr, dst)
	if err == nil && st.Mode&os.ModeSymlink != 0 {
		link := st.LinkTarget
		if !path.IsAbs(link) {
			link = path.Join(path.Dir(path.Clean(dst)), link)
		}
		t.path = link
		st, err = cp.stat(ctx, ctr, link)
	}
	if err == nil {
		t.exists, t.isDir = true, st.Mode.IsDir()
	} else if !client.IsNotFound(err) {
		return err
	}
	var content io.Reader
	dir := t.path
	if src == "-" {
		if t.exists && !t.isDir || !t.exists {
			return fmt.Errorf("destination \"%s:%s\" must be a directory", ctr, dst)
		}
		content = cp.cli.In
	} else {
		abs, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		src = keepTail(abs, src)
		fi, err := os.Lstat(strings.TrimSuffix(src, "/"))
		if err == nil && fi.Mode()&os.ModeSymlink != 0 && (cp.o.follow || assertsDir(src)) {
			fi, err = os.Stat(src)
		}
		if err != nil {
			return err
		}
		if assertsDir(src) && !fi.IsDir() {
			return fmt.Errorf("stat %s: not a directory", src)
		}
		var rename string
		if dir, rename, err = t.place(fi.IsDir()); err != nil {
			return err
		}
		name := filepath.Base(filepath.Clean(src))
		if strings.HasSuffix(src, "/.") {
			name = "."
		}
		if rename != "" {
			name = rename
		}
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(packLocal(pw, src, name, cp.o.follow)) }()
		defer pr.Close()
		content = pr
	}
	q := url.Values{"path": {filepath.ToSlash(dir)}, "noOverwriteDirNonDir": {"true"}}
	if cp.o.archive {
		q.Set("copyUIDGID", "true")
	}
	counted := &countReader{r: content}
	if err := cp.cl.JSON(ctx, client.Request{Method: http.MethodPut, Path: containerPath(ctr, "/archive"), Query: q, Stream: counted, ContentType: "application/x-tar"}, nil); err != nil {
		return err
	}
	cp.done(counted.n, ctr+":"+t.path)
	return nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// packLocal writes a tar of src, its root called name.
func packLocal(w io.Writer, src, name string, follow bool) error {
	tw := tar.NewWriter(w)
	root := filepath.Clean(src)
	if follow || assertsDir(src) {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
	}
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		link := ""
		switch {
		case fi.Mode()&os.ModeSymlink != 0:
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		case fi.Mode()&os.ModeSocket != 0:
			return nil
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		h.Name = path.Join(name, filepath.ToSlash(rel))
		if fi.IsDir() {
			h.Name += "/"
		}
		h.Uname, h.Gname = "", ""
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyN(tw, f, h.Size)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
