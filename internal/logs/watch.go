package logs

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifier tells the readers of a process that something changed in the
// directory of their log. All share one inotify instance, of which a user has
// few; it exists while somebody follows.
type notifier struct {
	file *os.File
	dirs map[int32]map[chan struct{}]bool // by watch descriptor
}

var (
	notifyMu sync.Mutex // guards notify and what is in it
	notify   *notifier
)

const watchMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR

// subscribe returns a channel that gets a value after each change in dir, as
// long as the one before was taken, and what ends that. A directory that does
// not exist never changes.
func subscribe(dir string) (<-chan struct{}, func(), error) {
	notifyMu.Lock()
	defer notifyMu.Unlock()
	if notify == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, nil, os.NewSyscallError("inotify_init1", err)
		}
		notify = &notifier{file: os.NewFile(uintptr(fd), "inotify"), dirs: map[int32]map[chan struct{}]bool{}}
		go notify.run()
	}
	n, ch := notify, make(chan struct{}, 1)
	wd := -1
	raw, err := n.file.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { wd, err = unix.InotifyAddWatch(int(fd), dir, watchMask) })
		err = errors.Join(err, cerr)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.drop()
		return nil, nil, os.NewSyscallError("inotify_add_watch", err)
	}
	key := int32(wd)
	if n.dirs[key] == nil {
		n.dirs[key] = map[chan struct{}]bool{}
	}
	n.dirs[key][ch] = true
	return ch, func() {
		notifyMu.Lock()
		defer notifyMu.Unlock()
		delete(n.dirs[key], ch)
		if len(n.dirs[key]) == 0 {
			delete(n.dirs, key)
			if key >= 0 {
				_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(key)) })
			}
		}
		n.drop()
	}, nil
}

// drop ends the notifier when nobody is left. notifyMu is held.
func (n *notifier) drop() {
	if len(n.dirs) == 0 {
		_ = n.file.Close()
		if notify == n {
			notify = nil
		}
	}
}

func (n *notifier) run() {
	buf := make([]byte, 16<<10)
	for {
		m, err := n.file.Read(buf)
		if err != nil {
			return
		}
		notifyMu.Lock()
		last := int32(-2)
		for b := buf[:m]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
			b = b[min(size, len(b)):]
			if wd == last {
				continue
			}
			last = wd
			if wd < 0 { // events were lost
				for _, subs := range n.dirs {
					wake(subs)
				}
			}
			wake(n.dirs[wd])
		}
		notifyMu.Unlock()
	}
}

func wake(subs map[chan struct{}]bool) {
	for ch := range subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// watcher waits for changes in the log's directory.
type watcher struct {
	ctx     context.Context //nolint:containedctx // the reader's
	changes <-chan struct{}
	cancel  func()
	ended   <-chan struct{} // the log ended
	timer   *time.Timer     // for Until
	late    <-chan time.Time
	stopped bool // the log had ended when wait returned
}

func newWatcher(ctx context.Context, path string, ended <-chan struct{}, until time.Time) (*watcher, error) {
	changes, cancel, err := subscribe(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	w := &watcher{ctx: ctx, changes: changes, cancel: cancel, ended: ended}
	if !until.IsZero() {
		w.timer = time.NewTimer(time.Until(until))
		w.late = w.timer.C
	}
	return w, nil
}

// wait returns when the directory has changed or the log has ended (stopped is
// set then: one more look at the file, and that was all).
func (w *watcher) wait() error {
	select {
	case <-w.ended:
		w.stopped = true
		return nil
	default:
	}
	select {
	case <-w.changes:
		return nil
	case <-w.ended:
		w.stopped = true
		return nil
	case <-w.late:
		w.stopped = true
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

func (w *watcher) close() {
	w.cancel()
	if w.timer != nil {
		w.timer.Stop()
	}
}
