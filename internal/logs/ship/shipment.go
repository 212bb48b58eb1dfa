package ship

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"berth.dev/berth/internal/logs"
)

// Order is what a shipment is to do.
type Order struct {
	ID      string
	Spool   string                 // path of the spool
	Cursor  string                 // path of the cursor
	Open    func() (Remote, error) // connects
	Remote  Remote                 // a connection made already, or nil
	Stopped <-chan struct{}        // closed when the spool gets no more
	Wait    time.Duration          // before the first new attempt; 0 is 100 ms
	Retries int                    // attempts for one entry, after which it is dropped; 0 is no bound
}

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 10 * time.Second
)

// Shipments are those of an engine. The zero value is ready.
type Shipments struct {
	Log *slog.Logger

	mu   sync.Mutex
	jobs map[string]*shipment
	over bool
}

type shipment struct {
	Order
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}
	file   *os.File // the cursor
	pos    logs.Position
	sent   bool // something was, since the last failure

	mu     sync.Mutex
	remote Remote
}

// cursor is what its file holds.
type cursor struct {
	logs.Position
	Done bool `json:"done,omitempty"` // up to the end, after the container's
}

// Start begins a shipment. One of the same container that is under way ends
// first; its entries that are not sent yet are the new one's.
func (s *Shipments) Start(o Order) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.jobs[o.ID]; old != nil {
		old.stop()
		delete(s.jobs, o.ID)
	}
	if s.over {
		if o.Remote != nil {
			_ = o.Remote.Close()
		}
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	j := &shipment{Order: o, log: s.Log, cancel: cancel, done: make(chan struct{}), remote: o.Remote}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	if s.jobs == nil {
		s.jobs = map[string]*shipment{}
	}
	// Now, for whoever looks for what an engine did not send that was killed at once.
	if err := j.openCursor(); err != nil {
		j.log.Error("cannot open the cursor of a log", "id", j.ID, "error", err)
		j.disconnect()
		cancel()
		return
	}
	s.jobs[o.ID] = j
	go func() {
		j.run(ctx)
		cancel()
		close(j.done) // before the lock, which one who waits for this may hold
		s.mu.Lock()
		if s.jobs[o.ID] == j {
			delete(s.jobs, o.ID)
		}
		s.mu.Unlock()
	}()
}

// Active reports whether a shipment of a container is under way.
func (s *Shipments) Active(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[id] != nil
}

// Finish waits until all of a container that has ended is sent, at most for
// limit, and ends the shipment.
func (s *Shipments) Finish(id string, limit time.Duration) {
	s.mu.Lock()
	j := s.jobs[id]
	s.mu.Unlock()
	if j == nil {
		return
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-j.done:
	case <-t.C:
		j.log.Warn("a container's log was not sent to its end", "id", id)
		j.stop()
	}
}

// Close ends all shipments, at once. The cursors stay.
func (s *Shipments) Close() {
	s.mu.Lock()
	s.over = true
	jobs := s.jobs
	s.jobs = nil
	s.mu.Unlock()
	for _, j := range jobs {
		j.stop()
	}
}

// stop ends a shipment and waits for that.
func (j *shipment) stop() {
	j.cancel()
	j.disconnect()
	<-j.done
}

func (j *shipment) disconnect() {
	j.mu.Lock()
	r := j.remote
	j.remote = nil
	j.mu.Unlock()
	if r != nil {
		_ = r.Close()
	}
}

func (j *shipment) run(ctx context.Context) {
	defer j.disconnect()
	defer j.file.Close()
	wait, failures, told := j.Wait, 0, time.Time{}
	for ctx.Err() == nil {
		j.sent = false
		err := j.send(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		j.disconnect()
		if failures++; j.sent {
			wait, failures = 0, 1
		}
		if time.Since(told) > time.Minute {
			told = time.Now()
			j.log.Warn("cannot send a container's log; trying again", "id", j.ID, "error", err)
		}
		if j.Retries > 0 && failures > j.Retries {
			j.skip(ctx)
			wait, failures = 0, 0
		}
		if wait <= 0 {
			if wait = j.Wait; wait <= 0 {
				wait = firstWait
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
		wait = min(wait*3/2, max(maxWait, j.Wait))
	}
}

func (j *shipment) openCursor() error {
	f, err := os.OpenFile(j.Cursor, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	j.file = f
	c := readCursor(f)
	j.pos = c.Position
	if c.Done {
		j.save(false)
	}
	return nil
}

// readCursor returns the cursor of a file: the beginning when it holds none.
func readCursor(r io.Reader) cursor {
	line, _ := io.ReadAll(io.LimitReader(r, 4096))
	line, _, whole := bytes.Cut(line, []byte{'\n'})
	var c cursor
	if !whole || json.Unmarshal(line, &c) != nil {
		return cursor{}
	}
	return c
}

// Pending reports whether the spool of a container that has ended may hold
// entries that were not sent.
func Pending(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	c := readCursor(f)
	return !c.Done
}

// save writes the cursor in place: one small write, never torn by a killed process.
func (j *shipment) save(done bool) {
	b, err := json.Marshal(cursor{j.pos, done})
	if err != nil {
		return
	}
	if _, err := j.file.WriteAt(append(b, '\n'), 0); err != nil {
		j.log.Warn("cannot write the cursor of a log", "id", j.ID, "error", err)
	}
}

func (j *shipment) reader(ctx context.Context) *logs.Reader {
	o := logs.ReadOptions{Driver: logs.DriverLocal, Tail: -1, Follow: true, Stopped: j.Stopped}
	if j.pos != (logs.Position{}) {
		o.After = &j.pos
	}
	return logs.Read(ctx, j.Spool, o)
}

// atOnce is how many entries are sent before the cursor is written, when there
// are always more.
const atOnce = 256

// send gives all entries after the cursor to the remote. It returns nil at the
// end of the log.
func (j *shipment) send(ctx context.Context) error {
	rd := j.reader(ctx)
	defer rd.Close()
	count, pos := 0, j.pos
	flush := func() error {
		if count == 0 {
			return nil
		}
		count = 0
		if r := j.current(); r != nil {
			if err := r.Flush(); err != nil {
				return err
			}
		}
		j.sent, j.pos = true, pos
		j.save(false)
		return nil
	}
	for {
		m, err := rd.Next()
		if errors.Is(err, io.EOF) {
			if err := flush(); err != nil {
				return err
			}
			j.save(true)
			return nil
		}
		if err != nil {
			return err
		}
		r, err := j.connect(ctx)
		if err != nil {
			return err
		}
		if err := r.Send(&Entry{Stream: m.Stream, Time: m.Time, Line: bytes.TrimSuffix(m.Line, []byte{'\n'}), Partial: m.Partial}); err != nil {
			return err
		}
		pos = rd.Position()
		if count++; count >= atOnce || !rd.Buffered() {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// skip gives the next entry up.
func (j *shipment) skip(ctx context.Context) {
	rd := j.reader(ctx)
	defer rd.Close()
	if _, err := rd.Next(); err == nil {
		j.pos = rd.Position()
		j.save(false)
	}
}

func (j *shipment) current() Remote {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.remote
}

func (j *shipment) connect(ctx context.Context) (Remote, error) {
	if r := j.current(); r != nil {
		return r, nil
	}
	type result struct {
		r   Remote
		err error
	}
	opened := make(chan result, 1)
	go func() {
		r, err := j.Open()
		opened <- result{r, err}
	}()
	var o result
	select {
	case o = <-opened:
	case <-ctx.Done():
		go func() { // a connect that hangs is left to itself
			if o := <-opened; o.err == nil {
				_ = o.r.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if o.err != nil {
		return nil, o.err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if ctx.Err() != nil {
		_ = o.r.Close()
		return nil, ctx.Err()
	}
	j.remote = o.r
	return o.r, nil
}
