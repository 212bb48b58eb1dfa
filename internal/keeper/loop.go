package keeper

import (
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"
)

// loop waits for all descriptors of all tasks in one epoll set: outputs,
// inputs that are full, attachments and pidfds. One goroutine, one buffer: an
// idle container costs no stack.
type loop struct {
	mu      sync.Mutex // guards everything of stdio and this; taken after keeper.mu
	ep      int
	sources map[int32]*source
	buf     []byte
	exited  func(*source) // a pidfd became readable; called without mu
	log     *slog.Logger
}

const readSize = 64 << 10

func newLoop(log *slog.Logger, exited func(*source)) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &loop{ep: ep, sources: map[int32]*source{}, buf: make([]byte, readSize), exited: exited, log: log}, nil
}

func (l *loop) warn(msg, path string, err error) {
	l.log.Warn(msg, "path", path, "error", err)
}

// add makes a descriptor known; want has it watched.
func (l *loop) add(s *source) { l.sources[int32(s.fd)] = s }

// want changes what a descriptor is watched for. An output that is not wanted
// leaves the set, since its end would be reported again and again; the end of a
// client or of stdin's reader is always wanted.
func (l *loop) want(s *source, events uint32) {
	always := s.at != nil || s.io != nil && s.stream == streamStdin
	if s.watched && s.events == events {
		return
	}
	op := unix.EPOLL_CTL_MOD
	switch {
	case events == 0 && !always && !s.watched:
		return
	case events == 0 && !always:
		op = unix.EPOLL_CTL_DEL
	case !s.watched:
		op = unix.EPOLL_CTL_ADD
	}
	s.events, s.watched = events, op != unix.EPOLL_CTL_DEL
	if err := unix.EpollCtl(l.ep, op, s.fd, &unix.EpollEvent{Fd: int32(s.fd), Events: events}); err != nil {
		l.warn("cannot watch a descriptor", "", err)
	}
}

// remove closes a descriptor.
func (l *loop) remove(s *source) {
	if l.sources[int32(s.fd)] != s {
		return
	}
	delete(l.sources, int32(s.fd))
	if s.watched {
		_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, s.fd, nil)
	}
	_ = unix.Close(s.fd)
}

// run serves events for ever.
func (l *loop) run() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(l.ep, events, -1)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			l.log.Error("the event loop ends", "error", err)
			return
		}
		for _, ev := range events[:n] {
			l.serve(ev)
		}
	}
}

func (l *loop) serve(ev unix.EpollEvent) {
	l.mu.Lock()
	s := l.sources[ev.Fd]
	if s == nil { // removed by an event before this one
		l.mu.Unlock()
		return
	}
	if s.io == nil {
		l.mu.Unlock()
		l.exited(s)
		return
	}
	defer l.mu.Unlock()
	switch {
	case s.at != nil:
		if ev.Events&unix.EPOLLOUT != 0 {
			s.io.flush(s.at)
		}
		if s.at.src == nil {
			return
		}
		if ev.Events&unix.EPOLLIN != 0 && s.events&unix.EPOLLIN != 0 {
			s.io.fromAttachment(s.at, l.buf)
		} else if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			s.io.detach(s.at)
		}
	case s.stream == streamStdin:
		if ev.Events&unix.EPOLLERR != 0 { // the read end is gone
			s.io.closeInput()
			s.io.interest()
		} else if ev.Events&unix.EPOLLOUT != 0 {
			s.io.writeInput()
		}
	default:
		if ev.Events&unix.EPOLLOUT != 0 && s == s.io.in {
			s.io.writeInput()
		}
		if ev.Events&unix.EPOLLIN != 0 {
			if s.io.readOutput(s, l.buf) {
				s.io.endOutput(s)
			}
		} else if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 && s.events&unix.EPOLLIN != 0 {
			s.io.endOutput(s)
		}
	}
}
