package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"time"

	"github.com/moby/term"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/client"
	"berth.dev/berth/internal/stdmux"
)

// streamer joins a hijacked connection with our own streams.
type streamer struct {
	cli        *CLI
	conn       *client.Hijacked
	tty        bool
	in         io.Reader // nil: no input
	out, err   io.Writer // nil: thrown away
	detachKeys string
}

// run copies both ways until the output ends, or the user detaches
// (term.EscapeError). Terminals are raw while it runs, when tty is set.
func (s *streamer) run(ctx context.Context) error {
	restore := func() {}
	if s.tty && s.in != nil {
		var err error
		if restore, err = s.cli.rawTerminals(); err != nil {
			return err
		}
	}
	defer restore()
	input := s.in
	if input != nil && s.tty {
		keys := []byte{16, 17}
		if s.detachKeys != "" {
			if k, err := term.ToBytes(s.detachKeys); err == nil {
				keys = k
			}
		}
		input = term.NewEscapeProxy(input, keys)
	}
	outDone := make(chan error, 1)
	go func() { outDone <- s.copyOut() }()
	inDone, detached := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(inDone)
		if input != nil {
			_, err := io.Copy(s.conn, input)
			var esc term.EscapeError
			if errors.As(err, &esc) {
				restore()
				detached <- err
				return
			}
		}
		_ = s.conn.CloseWrite()
	}()
	hasOutput := s.out != nil || s.err != nil
	select {
	case err := <-outDone:
		return err
	case err := <-detached:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-inDone:
		select {
		case err := <-detached:
			return err
		default:
		}
	}
	if !hasOutput {
		return nil
	}
	select {
	case err := <-outDone:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *streamer) copyOut() error {
	out, errOut := s.out, s.err
	if out == nil {
		out = io.Discard
	}
	if errOut == nil {
		errOut = io.Discard
	}
	var err error
	if s.tty {
		_, err = io.Copy(out, s.conn)
	} else {
		err = stdmux.Copy(out, errOut, s.conn)
	}
	// A reset is what an end looks like when input of ours was still on its way.
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	return err
}

// rawTerminals makes input and output raw and returns the way back, which may be called twice.
func (cli *CLI) rawTerminals() (restore func(), err error) {
	var undo []func()
	done := false
	restore = func() {
		if done {
			return
		}
		done = true
		for _, u := range undo {
			u()
		}
	}
	if cli.getenv("NORAW") != "" {
		return restore, nil
	}
	if cli.In.tty {
		st, err := term.SetRawTerminal(cli.In.fd)
		if err != nil {
			return restore, err
		}
		undo = append(undo, func() { _ = term.RestoreTerminal(cli.In.fd, st) })
	}
	if cli.Out.tty {
		st, err := term.SetRawTerminalOutput(cli.Out.fd)
		if err == nil && st != nil {
			undo = append(undo, func() { _ = term.RestoreTerminal(cli.Out.fd, st) })
		}
	}
	return restore, nil
}

// followSize keeps the size of a remote terminal equal to ours until ctx ends.
// path is /containers/ID or /exec/ID.
func (cli *CLI) followSize(ctx context.Context, cl *client.Client, path string) {
	resize := func() error {
		h, w := cli.Out.Size()
		if h == 0 && w == 0 {
			return nil
		}
		return cl.Call(ctx, http.MethodPost, path+"/resize", url.Values{
			"h": {strconv.Itoa(int(h))}, "w": {strconv.Itoa(int(w))},
		})
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGWINCH)
	go func() {
		defer signal.Stop(ch)
		for i := 0; i < 10 && resize() != nil && ctx.Err() == nil; i++ {
			time.Sleep(time.Duration(i+1) * 10 * time.Millisecond)
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-ch:
				_ = resize()
			}
		}
	}()
}

// signalForwarder sends the signals that we get to a container. It listens
// before the container is there; until then a signal does to us what it always does.
type signalForwarder struct {
	target chan string
	ready  chan struct{} // closed when it listens
}

// forwarded are the signals that a person or a supervisor sends. Those that the
// Go runtime uses itself, and those about our own terminal and children, are not ours to give.
func forwarded() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTERM, unix.SIGCONT,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPOLL, unix.SIGPWR, unix.SIGTRAP, unix.SIGSYS,
	}
}

// forwardSignals begins to listen, beside the caller: it takes two thread switches per signal.
func (cli *CLI) forwardSignals(ctx context.Context, cl *client.Client) *signalForwarder {
	f := &signalForwarder{target: make(chan string, 1), ready: make(chan struct{})}
	go func() {
		ch := make(chan os.Signal, 128)
		signal.Notify(ch, forwarded()...)
		close(f.ready)
		id := ""
		for {
			select {
			case <-ctx.Done():
				return
			case id = <-f.target:
			case s := <-ch:
				sig, ok := s.(unix.Signal)
				if !ok {
					continue
				}
				if id == "" {
					select {
					case id = <-f.target:
					default:
						signal.Reset(sig)
						_ = unix.Kill(os.Getpid(), sig)
						continue
					}
				}
				name := unix.SignalName(sig)
				if name == "" {
					name = strconv.Itoa(int(sig))
				}
				_ = cl.Call(ctx, http.MethodPost, containerPath(id, "/kill"), url.Values{"signal": {trimSIG(name)}})
			}
		}
	}()
	return f
}

// to names the container. From then on it gets every signal.
func (f *signalForwarder) to(id string) {
	f.target <- id
	<-f.ready
}

func trimSIG(s string) string {
	if len(s) > 3 && s[:3] == "SIG" {
		return s[3:]
	}
	return s
}

// checkTTY refuses a terminal in the container when our input is none.
func (cli *CLI) checkTTY(attachStdin, tty bool) error {
	if attachStdin && tty && !cli.In.tty {
		const msg = "the input device is not a TTY"
		if runtime.GOOS == "windows" {
			return errors.New(msg + ".  If you are using mintty, try prefixing the command with 'winpty'")
		}
		return errors.New(msg)
	}
	return nil
}

// detachKeys returns the flag's keys, or those of the configuration.
func (cli *CLI) detachKeys(flag string) (string, error) {
	keys := flag
	if keys == "" {
		keys = cli.Config().DetachKeys
	}
	if keys != "" {
		if _, err := term.ToBytes(keys); err != nil {
			return "", errors.New("invalid detach keys (" + keys + "): " + err.Error())
		}
	}
	return keys, nil
}

// waiter learns how a container ends.
type waiter struct{ result chan waitResult }

type waitResult struct {
	code int
	err  error
}

// waitFor asks for the end of a container. When it returns, the engine holds the question.
func waitFor(ctx context.Context, cl *client.Client, id, condition string) (*waiter, error) {
	q := url.Values{}
	if condition != "" {
		q.Set("condition", condition)
	}
	res, err := cl.Do(ctx, client.Request{Method: http.MethodPost, Path: containerPath(id, "/wait"), Query: q})
	if err != nil {
		return nil, err
	}
	w := &waiter{result: make(chan waitResult, 1)}
	go func() {
		defer res.Body.Close()
		var v struct {
			Error      *struct{ Message string }
			StatusCode int
		}
		if err := decodeOne(res.Body, &v); err != nil {
			w.result <- waitResult{125, err}
			return
		}
		if v.Error != nil && v.Error.Message != "" {
			w.result <- waitResult{125, errors.New(v.Error.Message)}
			return
		}
		w.result <- waitResult{v.StatusCode, nil}
	}()
	return w, nil
}
