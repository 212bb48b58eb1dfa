package httpapi

import (
	"context"
	"io"
	"time"

	"github.com/coder/websocket"

	"berth.dev/berth/internal/errs"
)

// attachWebsocket is attach over a websocket. The output is never multiplexed;
// since 1.28 it comes in binary messages, before in text ones.
func (a streamsAPI) attachWebsocket(r *request) (response, error) {
	o := attachOptions(r)
	o.Raw = true
	if r.version < 42 { // all of them, whatever was asked for
		o.Stdin, o.Stdout, o.Stderr = true, true, true
	}
	var ws *websocket.Conn
	err := a.backend.Attach(r.Context(), r.name, o, func(bool) (Conn, error) {
		// Any origin may connect, as over plain HTTP: whoever reaches the
		// socket may do everything.
		c, err := websocket.Accept(r.w, r.Request, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
		if err != nil {
			r.begun = true // Accept has answered
			return nil, errs.Wrap(errs.Invalid, err, "cannot open the websocket")
		}
		r.begun = true
		ws = c
		c.SetReadLimit(1 << 20)
		kind := websocket.MessageBinary
		if r.version < 28 {
			kind = websocket.MessageText
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		return &wsConn{ctx: ctx, cancel: cancel, c: c, kind: kind}, nil
	})
	if ws != nil {
		if err == nil {
			_ = ws.Close(websocket.StatusNormalClosure, "")
		}
		_ = ws.CloseNow()
	}
	return done(err)
}

// wsConn makes a byte stream of the messages.
type wsConn struct {
	ctx    context.Context //nolint:containedctx // net.Conn-like types have no other place for it
	cancel context.CancelFunc
	c      *websocket.Conn
	kind   websocket.MessageType
	msg    io.Reader // the rest of the message being read
}

func (w *wsConn) Read(p []byte) (int, error) {
	for {
		if w.msg == nil {
			_, m, err := w.c.Reader(w.ctx)
			if err != nil {
				if websocket.CloseStatus(err) != -1 {
					err = io.EOF
				}
				return 0, err
			}
			w.msg = m
		}
		n, err := w.msg.Read(p)
		if err != nil {
			w.msg = nil
			if err == io.EOF { //nolint:errorlint // the reader's contract
				err = nil
			}
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (w *wsConn) Write(p []byte) (int, error) {
	if err := w.c.Write(w.ctx, w.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends the whole connection: a websocket has no half.
func (w *wsConn) CloseWrite() error { return w.Close() }

func (w *wsConn) Close() error {
	// Close waits for the peer's answer; the reading goroutine has it.
	stop := time.AfterFunc(2*time.Second, w.cancel)
	err := w.c.Close(websocket.StatusNormalClosure, "")
	stop.Stop()
	w.cancel()
	return err
}
