package keeper

import (
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/stdmux"
)

// The streams, numbered as package stdmux and the kernel number them.
const (
	streamStdin  = 0
	streamStdout = 1
	streamStderr = 2
)

// stdio is the keeper's side of a process's input and output. The loop's lock
// guards all of it.
type stdio struct {
	ids *HostIDs // of a container in a user namespace

	loop *loop
	term bool // one terminal instead of pipes

	in      *source // write end of stdin, or nil; the terminal itself when term
	out     [3]*source
	pending []byte // input that the process has not taken yet
	once    bool   // end of the first attachment's input ends stdin
	eof     bool   // close stdin when pending is written

	log      logs.Sink
	logSpec  *LogSpec
	attached []*attachment
	onDrain  func() // called once when every output has ended
}

// source is one descriptor in the epoll set.
type source struct {
	fd      int
	stream  byte
	io      *stdio
	at      *attachment
	task    *task // for a pidfd
	ex      *execution
	oom     *task // for what tells that the task runs out of memory
	relay   *relay
	events  uint32
	watched bool
}

// attachment is a client's socket.
type attachment struct {
	src     *source
	spec    AttachSpec
	pending []byte // output that the socket did not take: the process waits
	inEnd   bool   // its input has ended
	closing bool   // close when pending is written
}

// maxInput bounds what is kept of a client's input before it is read on.
const maxInput = 64 << 10

// readOutput takes what a process wrote and gives it to the log and to every
// attachment. It reports whether the descriptor has ended.
func (s *stdio) readOutput(src *source, buf []byte) (ended bool) {
	n, err := unix.Read(src.fd, buf)
	if err == unix.EAGAIN || err == unix.EINTR { //nolint:errorlint // bare errnos
		return false
	}
	if err != nil || n == 0 { // EIO: the last holder of the terminal is gone
		return true
	}
	s.deliver(src.stream, buf[:n])
	return false
}

func (s *stdio) deliver(stream byte, b []byte) {
	if s.log == nil && s.logSpec != nil {
		s.openLog()
	}
	if s.log != nil {
		_ = s.log.Write(stream, time.Now(), b) // a full disk must not stop the process
	}
	for _, a := range s.attached {
		if stream == streamStdout && a.spec.Stdout || stream == streamStderr && a.spec.Stderr {
			s.toAttachment(a, stream, b)
		}
	}
}

func (s *stdio) openLog() {
	l := s.logSpec
	sink, err := logs.Open(l.Driver, l.Path, logs.Options{MaxSize: l.MaxSize, MaxFile: l.MaxFile, Compress: l.Compress, Attrs: l.Attrs, NonBlocking: l.NonBlocking, Buffer: l.Buffer})
	if err != nil {
		s.loop.warn("cannot open the log", l.Path, err)
		s.logSpec = nil
		return
	}
	s.log = sink
}

// toAttachment writes to a client's socket. What it does not take is kept, and
// the outputs are not read on until it has gone: the process waits, as it would
// for a pipe.
func (s *stdio) toAttachment(a *attachment, stream byte, b []byte) {
	if a.src == nil {
		return
	}
	if a.spec.Mux {
		if len(a.pending) == 0 {
			var head [8]byte
			h := stdmux.AppendHeader(head[:0], stream, len(b))
			n, err := unix.SendmsgBuffers(a.src.fd, [][]byte{h, b}, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil && err != unix.EAGAIN { //nolint:errorlint // a bare errno
				s.detach(a)
				return
			}
			n = max(n, 0)
			if n < len(h) {
				a.pending = append(a.pending, h[n:]...)
				n = len(h)
			}
			a.pending = append(a.pending, b[n-len(h):]...)
		} else {
			a.pending = stdmux.AppendHeader(a.pending, stream, len(b))
			a.pending = append(a.pending, b...)
		}
	} else {
		if len(a.pending) == 0 {
			n, err := unix.SendmsgN(a.src.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil && err != unix.EAGAIN { //nolint:errorlint // a bare errno
				s.detach(a)
				return
			}
			b = b[max(n, 0):]
		}
		a.pending = append(a.pending, b...)
	}
	s.interest()
}

// flush goes on with what a socket did not take.
func (s *stdio) flush(a *attachment) {
	for len(a.pending) > 0 {
		n, err := unix.SendmsgN(a.src.fd, a.pending, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN { //nolint:errorlint // a bare errno
			return
		}
		if err != nil {
			s.detach(a)
			return
		}
		a.pending = a.pending[n:]
	}
	a.pending = nil
	if a.closing {
		s.detach(a)
		return
	}
	s.interest()
}

// fromAttachment takes a client's input.
func (s *stdio) fromAttachment(a *attachment, buf []byte) {
	n, err := unix.Read(a.src.fd, buf)
	if err == unix.EAGAIN || err == unix.EINTR { //nolint:errorlint // bare errnos
		return
	}
	if err != nil {
		s.detach(a)
		return
	}
	if n > 0 {
		if a.spec.Stdin {
			s.feed(buf[:n])
		}
		return
	}
	// The client has ended its input; output goes on.
	a.inEnd = true
	if a.spec.Stdin && s.once && !s.term {
		s.eof = true
		s.writeInput()
	}
	if !a.spec.Stdout && !a.spec.Stderr {
		s.detach(a)
		return
	}
	s.interest()
}

func (s *stdio) feed(b []byte) {
	if s.in == nil || s.eof {
		return
	}
	s.pending = append(s.pending, b...)
	s.writeInput()
}

// writeInput gives pending input to the process.
func (s *stdio) writeInput() {
	for s.in != nil && len(s.pending) > 0 {
		n, err := unix.Write(s.in.fd, s.pending)
		if err == unix.EAGAIN { //nolint:errorlint // a bare errno
			s.interest()
			return
		}
		if err != nil {
			s.closeInput()
			return
		}
		s.pending = s.pending[n:]
	}
	s.pending = nil
	if s.eof {
		s.closeInput()
	}
	s.interest()
}

func (s *stdio) closeInput() {
	s.pending = nil
	if s.in != nil && !s.term {
		s.loop.remove(s.in)
	}
	s.in = nil
}

// interest tells epoll what is worth waiting for now.
func (s *stdio) interest() {
	blocked := false
	for _, a := range s.attached {
		blocked = blocked || len(a.pending) > 0
	}
	for _, src := range s.out {
		if src == nil {
			continue
		}
		var ev uint32
		if !blocked {
			ev = unix.EPOLLIN
		}
		if src == s.in && len(s.pending) > 0 {
			ev |= unix.EPOLLOUT
		}
		s.loop.want(src, ev)
	}
	if s.in != nil && !s.term {
		var ev uint32
		if len(s.pending) > 0 {
			ev = unix.EPOLLOUT
		}
		s.loop.want(s.in, ev)
	}
	for _, a := range s.attached {
		var ev uint32
		if !a.inEnd && (!a.spec.Stdin || len(s.pending) < maxInput) {
			ev = unix.EPOLLIN
		}
		if len(a.pending) > 0 {
			ev |= unix.EPOLLOUT
		}
		s.loop.want(a.src, ev)
	}
}

// attach adds a client. fd becomes the keeper's.
func (s *stdio) attach(fd int, spec AttachSpec) {
	a := &attachment{spec: spec}
	a.src = &source{fd: fd, io: s, at: a}
	_ = unix.SetNonblock(fd, true)
	s.attached = append(s.attached, a)
	s.loop.add(a.src)
	if s.drained() { // too late for anything but the end
		s.endAttachment(a)
		return
	}
	s.interest()
}

func (s *stdio) endAttachment(a *attachment) {
	a.closing = true
	if len(a.pending) == 0 {
		s.detach(a)
	}
}

// detach ends an attachment. Losing the only client that fed stdin ends stdin
// where that was asked for.
func (s *stdio) detach(a *attachment) {
	if a.src == nil {
		return
	}
	s.loop.remove(a.src)
	a.src, a.pending = nil, nil
	list := s.attached[:0:0]
	for _, o := range s.attached {
		if o != a {
			list = append(list, o)
		}
	}
	s.attached = list
	if a.spec.Stdin && s.once && !s.term && !a.inEnd && !a.closing {
		s.eof = true
		s.writeInput()
	}
	s.interest()
}

// endOutput closes one output for good.
func (s *stdio) endOutput(src *source) {
	s.loop.remove(src)
	for i := range s.out {
		if s.out[i] == src {
			s.out[i] = nil
		}
	}
	if s.in == src {
		s.in = nil
	}
	if s.drained() {
		s.finish()
	}
}

func (s *stdio) drained() bool { return s.out[1] == nil && s.out[2] == nil }

// finish ends the log and the attachments, when all output is through.
func (s *stdio) finish() {
	s.closeInput()
	if s.log != nil {
		_ = s.log.Close()
		s.log, s.logSpec = nil, nil
	}
	for _, a := range append([]*attachment(nil), s.attached...) {
		s.endAttachment(a)
	}
	if s.onDrain != nil {
		f := s.onDrain
		s.onDrain = nil
		f()
	}
}

// drain reads what is there when the process has ended, up to the end of each
// output or to where another process may still write.
func (s *stdio) drain(buf []byte) {
	for {
		progress := false
		for _, src := range s.out {
			if src == nil {
				continue
			}
			for _, a := range s.attached {
				if len(a.pending) > 0 {
					return // the loop goes on when the client has caught up
				}
			}
			n, err := unix.Read(src.fd, buf)
			switch {
			case err == unix.EAGAIN || err == unix.EINTR: //nolint:errorlint // bare errnos
			case err != nil || n == 0:
				s.endOutput(src)
				progress = true
			default:
				s.deliver(src.stream, buf[:n])
				progress = true
			}
		}
		if !progress {
			return
		}
	}
}

// abandon closes everything, whatever is still unread.
func (s *stdio) abandon() {
	for _, src := range s.out {
		if src != nil {
			s.loop.remove(src)
		}
	}
	s.out = [3]*source{}
	if s.term {
		s.in = nil
	}
	s.finish()
}
