package logs

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// gzExtra is the Extra field of a compressed file's gzip header.
type gzExtra struct {
	LastTime time.Time `json:"lastTime"`
	Ino      uint64    `json:"ino,omitempty"`   // of the file that was compressed
	Mtime    int64     `json:"mtime,omitempty"` // of that file, in nanoseconds
}

const (
	gzSuffix  = ".gz"
	newSuffix = ".new"    // the next file, before it takes the path (max-file 1)
	tmpSuffix = ".gz.tmp" // a compression under way
)

func rotated(path string, i int) string { return path + "." + strconv.Itoa(i) }

// rotate makes path a new, empty file. The old one becomes path.1 or, with
// max-file 1, goes; a reader that has it open can still read it to its end.
// When it fails the old file stays in use. The caller holds mu.
func (w *Writer) rotate() error {
	if err := w.shift(); err != nil {
		return fmt.Errorf("cannot rotate the log file: %w", err)
	}
	old := w.file
	if err := w.open(); err != nil {
		return err // w.file is the renamed one: better there than lost
	}
	if old != nil {
		_ = old.Close()
	}
	if w.opts.Compress {
		w.compressLocked()
	}
	return nil
}

// shift renames the files: the oldest goes, each other is one older.
func (w *Writer) shift() error {
	n := w.opts.MaxFile
	if n < 2 {
		f, err := os.OpenFile(w.path+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
		if err != nil {
			return err
		}
		_ = f.Close()
		return os.Rename(w.path+newSuffix, w.path)
	}
	for _, suffix := range [...]string{"", gzSuffix} {
		if err := os.Remove(rotated(w.path, n-1) + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for i := n - 1; i > 1; i-- {
		for _, suffix := range [...]string{gzSuffix, ""} {
			err := os.Rename(rotated(w.path, i-1)+suffix, rotated(w.path, i)+suffix)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Rename(w.path, rotated(w.path, 1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// compressLocked starts, or makes the running one look again, the goroutine
// that compresses rotated files. The caller holds mu.
func (w *Writer) compressLocked() {
	if w.busy {
		w.again = true
		return
	}
	w.busy = true
	w.squeeze.Go(w.compressAll)
}

// compressAll compresses rotated files until there is none. It holds mu only
// to rename, so the container's output never waits for gzip; the file may be
// shifted or removed meanwhile and is found again by its inode.
func (w *Writer) compressAll() {
	failed := map[uint64]bool{}
	for {
		f, ino := w.nextPlain(failed)
		if f == nil {
			w.mu.Lock()
			if !w.again || w.closing.Load() {
				w.busy = false
				w.mu.Unlock()
				return
			}
			w.again = false
			w.mu.Unlock()
			continue
		}
		tmp := w.path + tmpSuffix
		err := compressFile(f, tmp, ino, w.local, &w.closing)
		_ = f.Close()
		if err == nil {
			err = w.install(tmp, ino)
		}
		if err != nil {
			_ = os.Remove(tmp)
			failed[ino] = true // it stays as it is; readers do not mind
		}
	}
}

// nextPlain opens the oldest rotated file that is not compressed, other than
// those that could not be.
func (w *Writer) nextPlain(failed map[uint64]bool) (*os.File, uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing.Load() {
		return nil, 0
	}
	for i := w.opts.MaxFile - 1; i > 0; i-- {
		f, err := os.Open(rotated(w.path, i))
		if err != nil {
			continue
		}
		if ino := inode(f); ino != 0 && !failed[ino] {
			return f, ino
		}
		_ = f.Close()
	}
	return nil, 0
}

// install puts the compressed file in the place that the one with inode ino has now.
func (w *Writer) install(tmp string, ino uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 1; i < w.opts.MaxFile; i++ {
		name := rotated(w.path, i)
		var st syscall.Stat_t
		if syscall.Stat(name, &st) != nil || st.Ino != ino {
			continue
		}
		if err := os.Rename(tmp, name+gzSuffix); err != nil {
			return err
		}
		return os.Remove(name)
	}
	return os.Remove(tmp) // rotated out of existence
}

var errStopped = errors.New("the log is closed")

// stoppable is a reader that fails once stop is set.
type stoppable struct {
	r    io.Reader
	stop *atomic.Bool
}

func (s *stoppable) Read(b []byte) (int, error) {
	if s.stop.Load() {
		return 0, errStopped
	}
	return s.r.Read(b)
}

func compressFile(src *os.File, dst string, ino uint64, local bool, stop *atomic.Bool) (err error) {
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	zw, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if zw.Extra, err = json.Marshal(gzExtra{LastTime: lastTime(src, fi.Size(), local), Ino: ino, Mtime: fi.ModTime().UnixNano()}); err != nil {
		return err
	}
	if _, err := io.Copy(zw, &stoppable{src, stop}); err != nil {
		return err
	}
	return zw.Close()
}

func inode(f *os.File) uint64 {
	fi, err := f.Stat()
	if err != nil {
		return 0
	}
	return inodeOf(fi)
}

func inodeOf(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
