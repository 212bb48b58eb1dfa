package logs

import (
	"bytes"
	"sync"
	"time"
)

// DefaultBuffer is how much a sink with mode=non-blocking keeps in memory.
const DefaultBuffer = 1 << 20

// ring is a sink that never waits: lines go into memory, of which it takes a
// bounded amount, and a goroutine writes them. When the file is slower than
// the container the oldest lines are dropped.
type ring struct {
	w    *Writer
	max  int // bytes
	unit int // the largest piece that is queued

	mu      sync.Mutex
	queue   []piece
	size    int       // bytes of queue
	rest    [2][]byte // the beginning of a line, by stream
	busy    bool      // the goroutine is at a piece
	more    chan struct{}
	idle    chan struct{} // closed when the queue is empty; nil when nobody waits
	done    chan struct{} // closed when the goroutine has ended
	closing bool
	dropped int64 // lines
}

// piece is whole lines of one stream, or a part of a very long one.
type piece struct {
	stream byte
	ts     time.Time
	b      []byte
}

func newRing(w *Writer, limit int64) *ring {
	if limit <= 0 {
		limit = DefaultBuffer
	}
	r := &ring{
		w: w, max: int(min(limit, 1<<30)), more: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.unit = max(1, min(r.max/4, MaxLine))
	go r.run()
	return r
}

func (r *ring) Write(stream byte, ts time.Time, chunk []byte) error {
	if stream != Stdout && stream != Stderr {
		return r.w.Write(stream, ts, chunk) // its error
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if rest := r.rest[stream-1]; len(rest) > 0 {
		chunk = append(rest, chunk...)
		r.rest[stream-1] = nil
	}
	for len(chunk) > 0 {
		n := bytes.LastIndexByte(chunk[:min(len(chunk), r.unit)], '\n') + 1
		if n == 0 {
			if n = bytes.IndexByte(chunk, '\n') + 1; n == 0 || n > MaxLine {
				if len(chunk) < MaxLine {
					r.rest[stream-1] = bytes.Clone(chunk)
					break
				}
				n = MaxLine
			}
		}
		r.push(piece{stream, ts, bytes.Clone(chunk[:n])})
		chunk = chunk[n:]
	}
	r.signal()
	return nil
}

// push queues p, and drops what is oldest for it. mu is held.
func (r *ring) push(p piece) {
	for len(r.queue) > 0 && r.size+len(p.b) > r.max {
		old := r.queue[0]
		r.queue = r.queue[1:]
		r.size -= len(old.b)
		r.dropped += int64(max(1, bytes.Count(old.b, []byte{'\n'})))
	}
	r.queue = append(r.queue, p)
	r.size += len(p.b)
}

func (r *ring) signal() {
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *ring) run() {
	defer close(r.done)
	for {
		r.mu.Lock()
		r.busy = len(r.queue) > 0
		var p piece
		if r.busy {
			p = r.queue[0]
			r.queue = r.queue[1:]
			if len(r.queue) == 0 {
				r.queue = nil
			}
			r.size -= len(p.b)
		} else if r.idle != nil {
			close(r.idle)
			r.idle = nil
		}
		closing := r.closing && !r.busy
		r.mu.Unlock()
		switch {
		case closing:
			_ = r.w.Close()
			return
		case p.b != nil:
			_ = r.w.Write(p.stream, p.ts, p.b)
		default:
			<-r.more
		}
	}
}

// patience bounds how long the end of a container waits for a file that takes
// nothing.
const patience = time.Second

// drain waits until the queue is written. It reports false when that takes too long.
func (r *ring) drain() bool {
	r.mu.Lock()
	for i, rest := range r.rest {
		if len(rest) > 0 {
			r.push(piece{byte(i) + 1, time.Now(), rest})
			r.rest[i] = nil
		}
	}
	if len(r.queue) == 0 && !r.busy {
		r.mu.Unlock()
		return true
	}
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	idle := r.idle
	r.mu.Unlock()
	r.signal()
	return wait(idle)
}

func wait(done <-chan struct{}) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

func (r *ring) Flush() error {
	if r.drain() {
		return r.w.Flush()
	}
	return nil
}

func (r *ring) State() State {
	if r.drain() {
		return r.w.State()
	}
	return State{Driver: r.w.driver(), Path: r.w.path, Options: r.w.opts}
}

func (r *ring) Close() error {
	written := r.drain()
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	r.signal()
	if written {
		wait(r.done)
	}
	return nil
}
