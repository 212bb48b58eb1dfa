package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
)

// flushWriter brings what is written to the client at once when the stream was
// quiet, and otherwise within a millisecond, so that a fast stream is not cut
// into a packet for each line.
type flushWriter struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	ctl   *http.ResponseController
	last  time.Time // of the last flush
	timer *time.Timer
	armed bool
	shut  bool
}

const flushEvery = time.Millisecond

func newFlushWriter(w http.ResponseWriter) *flushWriter {
	return &flushWriter{w: w, ctl: http.NewResponseController(w)}
}

func (f *flushWriter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	switch now := time.Now(); {
	case err != nil || f.armed:
	case now.Sub(f.last) >= flushEvery:
		err = f.ctl.Flush()
		f.last = now
	case f.timer == nil:
		f.armed = true
		f.timer = time.AfterFunc(flushEvery, f.onTimer)
	default:
		f.armed = true
		f.timer.Reset(flushEvery)
	}
	return n, err
}

func (f *flushWriter) onTimer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	if !f.shut {
		_ = f.ctl.Flush() // the next Write tells
		f.last = time.Now()
	}
}

func (f *flushWriter) flushNow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.ctl.Flush()
}

// close ends the writer's use of the connection.
func (f *flushWriter) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut = true
	if f.timer != nil {
		f.timer.Stop()
	}
}

// progress streams the messages of a long operation as JSON lines. The answer
// begins with the first one, so an error before it is an ordinary error.
type progress struct {
	r   *request
	enc *json.Encoder
}

// progress tells of an operation while it reads the request's body: both
// directions are open at once, or the first message would discard the body.
func (r *request) progress() *progress {
	_ = http.NewResponseController(r.w).EnableFullDuplex() // HTTP/1.1 over a test recorder has none
	return &progress{r: r}
}

// wireMessage adds the field that clients before 1.48 read an error from.
type wireMessage struct {
	jsonstream.Message
	Error_ string `json:"error,omitempty"` //nolint:revive // Error is a field of Message
}

func (p *progress) send(m jsonstream.Message) {
	if p.enc == nil {
		p.enc = json.NewEncoder(p.r.begin("application/json"))
		p.enc.SetEscapeHTML(false)
	}
	wm := wireMessage{Message: m}
	if m.Error != nil {
		wm.Error_ = m.Error.Message
	}
	_ = p.enc.Encode(wm) // the operation's context ends with the client
}

// maxDrain is how much is read of what a client has sent behind the end of an
// upload. A connection with more on the way is given up.
const maxDrain = 1 << 20

// finish ends the operation: an error after the first message is one more message.
func (p *progress) finish(err error) (response, error) {
	// With both directions open the server itself gets to the body's end only when
	// it has stopped watching the connection. It would watch it again, and meet
	// itself at the next request there.
	if p.r.Body != nil {
		if n, _ := io.CopyN(io.Discard, p.r.Body, maxDrain); n == maxDrain {
			_ = http.NewResponseController(p.r.w).SetReadDeadline(time.Unix(1, 0))
		}
	}
	if err != nil && p.enc != nil {
		p.send(jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}})
		return response{}, nil
	}
	if err == nil && p.enc == nil {
		p.r.begin("application/json")
	}
	return response{}, err
}

// beginWriter begins the answer at the first write, so that an error before
// any output is an ordinary error.
type beginWriter struct {
	r           *request
	contentType string
	w           io.Writer
}

func (b *beginWriter) Write(p []byte) (int, error) {
	if b.w == nil {
		b.w = b.r.beginPlain(b.contentType)
	}
	return b.w.Write(p)
}

// beginPlain is begin for bulk data, which needs no flushing.
func (r *request) beginPlain(contentType string) io.Writer {
	if !r.begun {
		r.w.Header().Set("Content-Type", contentType)
		r.begun = true
		r.w.WriteHeader(http.StatusOK)
	}
	return r.w
}

// broken ends a bulk answer that failed. Once the first byte is out only a cut
// connection can tell the client that the data is not complete.
func (r *request) broken(err error) (response, error) {
	if r.begun && r.Context().Err() == nil {
		if c, _, herr := http.NewResponseController(r.w).Hijack(); herr == nil {
			_ = c.Close()
		}
	}
	return done(err)
}
