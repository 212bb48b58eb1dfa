package keeper

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/stdmux"
)

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

func testLoop(t *testing.T) *loop {
	t.Helper()
	l, err := newLoop(silent(), func(*source) {})
	if err != nil {
		t.Fatal(err)
	}
	go l.run()
	return l
}

// proc is the other side of a stdio: what a process would hold.
type proc struct {
	t        *testing.T
	io       *stdio
	in       *os.File // read end of stdin
	out, err *os.File // write ends
	drained  chan struct{}
}

func newProc(t *testing.T, l *loop, once bool) *proc {
	t.Helper()
	p := &proc{t: t, drained: make(chan struct{})}
	s := &stdio{loop: l, once: once, onDrain: func() { close(p.drained) }}
	p.io = s
	pipe := func() (r, w int) {
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		return fd[0], fd[1]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r, w := pipe()
	_ = unix.SetNonblock(w, true)
	p.in, s.in = os.NewFile(uintptr(r), "stdin"), &source{fd: w, stream: streamStdin, io: s}
	l.add(s.in)
	for i, f := range []**os.File{&p.out, &p.err} {
		r, w := pipe()
		_ = unix.SetNonblock(r, true)
		_ = unix.SetNonblock(w, true) // so that deadlines work
		*f = os.NewFile(uintptr(w), "out")
		s.out[i+1] = &source{fd: r, stream: byte(i + 1), io: s}
		l.add(s.out[i+1])
	}
	s.interest()
	t.Cleanup(func() {
		p.in.Close()
		p.out.Close()
		p.err.Close()
		l.mu.Lock()
		s.abandon()
		l.mu.Unlock()
	})
	return p
}

func (p *proc) attach(spec AttachSpec) *net.UnixConn {
	p.t.Helper()
	remote, local, err := SocketPair()
	if err != nil {
		p.t.Fatal(err)
	}
	p.io.loop.mu.Lock()
	p.io.attach(remote, spec)
	p.io.loop.mu.Unlock()
	_ = local.SetDeadline(time.Now().Add(20 * time.Second))
	p.t.Cleanup(func() { local.Close() })
	return local
}

func (p *proc) write(s string) {
	p.t.Helper()
	_ = p.out.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(p.out, s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proc) log(path string) {
	p.io.loop.mu.Lock()
	defer p.io.loop.mu.Unlock()
	p.io.logSpec = &LogSpec{Driver: "json-file", Path: path}
}

func (p *proc) end() { p.out.Close(); p.err.Close() }

// held is how much the keeper keeps for a client.
func (p *proc) held() (n int) {
	p.io.loop.mu.Lock()
	defer p.io.loop.mu.Unlock()
	for _, a := range p.io.attached {
		n += len(a.pending)
	}
	return n
}

func (p *proc) attachedCount() int {
	p.io.loop.mu.Lock()
	defer p.io.loop.mu.Unlock()
	return len(p.io.attached)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatal(what)
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("%q, %v; want %q", b, err, want)
	}
}

func TestAttach(t *testing.T) {
	p := newProc(t, testLoop(t), false)
	c := p.attach(AttachSpec{Stdin: true, Stdout: true, Stderr: true})
	onlyErr := p.attach(AttachSpec{Stderr: true})
	if _, err := c.Write([]byte("in")); err != nil {
		t.Fatal(err)
	}
	read(t, p.in, "in")
	p.write("out")
	read(t, c, "out")
	fmt.Fprint(p.err, "err")
	read(t, c, "err")
	read(t, onlyErr, "err")
	p.end()
	for _, c := range []*net.UnixConn{c, onlyErr} {
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d, %v after the end", n, err)
		}
	}
	<-p.drained
	late := p.attach(AttachSpec{Stdout: true})
	if _, err := late.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("attached after the end: %v", err)
	}
}

func TestMuxFraming(t *testing.T) {
	p := newProc(t, testLoop(t), false)
	c := p.attach(AttachSpec{Stdout: true, Stderr: true, Mux: true})
	var want, wantErr, got, gotErr bytes.Buffer
	done := make(chan error)
	go func() { done <- stdmux.Copy(&got, &gotErr, c) }()
	for i := range 2000 {
		line := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", i%3000))
		p.write(line)
		want.WriteString(line)
		if i%7 == 0 {
			_ = p.err.SetWriteDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(p.err, "e%d\n", i)
			fmt.Fprintf(&wantErr, "e%d\n", i)
		}
	}
	p.end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) || !bytes.Equal(gotErr.Bytes(), wantErr.Bytes()) {
		t.Errorf("%d and %d bytes, want %d and %d", got.Len(), gotErr.Len(), want.Len(), wantErr.Len())
	}
}

// A client that never reads: the process waits, the keeper holds little, and
// other containers do not notice. When it is gone all goes on.
func TestBackPressure(t *testing.T) {
	for _, mux := range []bool{false, true} {
		t.Run(fmt.Sprintf("mux=%v", mux), func(t *testing.T) {
			l := testLoop(t)
			p, other := newProc(t, l, false), newProc(t, l, false)
			lazy := p.attach(AttachSpec{Stdout: true, Stderr: true, Mux: mux})
			busy := other.attach(AttachSpec{Stdout: true})
			chunk := bytes.Repeat([]byte("y"), 32<<10)
			_ = p.out.SetWriteDeadline(time.Now().Add(400 * time.Millisecond))
			written := 0
			for {
				n, err := p.out.Write(chunk)
				written += n
				if err != nil {
					break
				}
				if written > 64<<20 {
					t.Fatal("the process is never held up")
				}
			}
			if h := p.held(); h == 0 || h > readSize+8 {
				t.Errorf("%d bytes are held for the client", h)
			}
			for range 100 {
				other.write("ping")
				read(t, busy, "ping")
			}
			lazy.Close()
			eventually(t, "the client stays", func() bool { return p.attachedCount() == 0 })
			_ = p.out.SetWriteDeadline(time.Now().Add(10 * time.Second))
			for range 20 {
				if _, err := p.out.Write(chunk); err != nil {
					t.Fatalf("the process is still held up: %v", err)
				}
			}
		})
	}
}

// A slow client loses nothing, nor does a quick one beside it.
func TestSlowReader(t *testing.T) {
	p := newProc(t, testLoop(t), false)
	slow, quick := p.attach(AttachSpec{Stdout: true, Mux: true}), p.attach(AttachSpec{Stdout: true})
	sum := func(r io.Reader, wait time.Duration) [32]byte {
		h := sha256.New()
		b := make([]byte, 10000)
		for i := 0; ; i++ {
			n, err := r.Read(b)
			h.Write(b[:n])
			if err != nil {
				return [32]byte(h.Sum(nil))
			}
			if i%20 == 0 {
				time.Sleep(wait)
			}
		}
	}
	var wg sync.WaitGroup
	var a, b [32]byte
	pr, pw := io.Pipe()
	wg.Add(3)
	go func() { defer wg.Done(); pw.CloseWithError(stdmux.Copy(pw, io.Discard, slow)) }()
	go func() { defer wg.Done(); a = sum(pr, time.Millisecond) }()
	go func() { defer wg.Done(); b = sum(quick, 0) }()
	h := sha256.New()
	for i := range 300 {
		s := strings.Repeat(fmt.Sprint(i), 3000)
		h.Write([]byte(s))
		p.write(s)
	}
	p.end()
	wg.Wait()
	if want := [32]byte(h.Sum(nil)); a != want || b != want {
		t.Errorf("slow reader got it all: %v, quick one: %v", a == want, b == want)
	}
}

// Input that the process does not read is held to a bound; the client waits.
func TestInputIsBounded(t *testing.T) {
	p := newProc(t, testLoop(t), false)
	c := p.attach(AttachSpec{Stdin: true, Stdout: true})
	_ = c.SetWriteDeadline(time.Now().Add(400 * time.Millisecond))
	chunk := make([]byte, 64<<10)
	for written := 0; ; {
		n, err := c.Write(chunk)
		written += n
		if err != nil {
			break
		}
		if written > 64<<20 {
			t.Fatal("the client is never held up")
		}
	}
	p.io.loop.mu.Lock()
	held := len(p.io.pending)
	p.io.loop.mu.Unlock()
	if held > maxInput+readSize {
		t.Errorf("%d bytes of input are held", held)
	}
	p.write("still") // output goes on
	read(t, c, "still")
}

func TestStdinEnd(t *testing.T) {
	for _, once := range []bool{true, false} {
		for _, how := range []string{"close write", "close"} {
			t.Run(fmt.Sprintf("once=%v/%s", once, how), func(t *testing.T) {
				p := newProc(t, testLoop(t), once)
				c := p.attach(AttachSpec{Stdin: true, Stdout: true})
				if _, err := c.Write([]byte("bye")); err != nil {
					t.Fatal(err)
				}
				if how == "close" {
					c.Close()
				} else if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				read(t, p.in, "bye")
				_ = unix.SetNonblock(int(p.in.Fd()), true)
				eof := func() bool {
					n, err := unix.Read(int(p.in.Fd()), make([]byte, 1))
					return n == 0 && err == nil
				}
				if once {
					eventually(t, "stdin stays open", eof)
					return
				}
				time.Sleep(30 * time.Millisecond)
				if eof() {
					t.Fatal("stdin was closed")
				}
				next := p.attach(AttachSpec{Stdin: true})
				if _, err := next.Write([]byte("again")); err != nil {
					t.Fatal(err)
				}
				_ = unix.SetNonblock(int(p.in.Fd()), false)
				read(t, p.in, "again")
				if how == "close write" {
					p.write("out")
					read(t, c, "out")
				}
			})
		}
	}
}

// A process that closes its stdin: the client's input is dropped, its output stays.
func TestProcessClosesStdin(t *testing.T) {
	p := newProc(t, testLoop(t), false)
	c := p.attach(AttachSpec{Stdin: true, Stdout: true})
	p.in.Close()
	for range 50 {
		if _, err := c.Write(make([]byte, 8192)); err != nil {
			t.Fatal(err)
		}
	}
	p.write("x")
	read(t, c, "x")
}

// What is written just before the end reaches a client that is behind.
func TestDrainAfterExit(t *testing.T) {
	l := testLoop(t)
	p := newProc(t, l, false)
	c := p.attach(AttachSpec{Stdout: true})
	const total = 600 << 10
	go func() {
		_ = p.out.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = p.out.Write(make([]byte, total))
		p.end()
		l.mu.Lock()
		p.io.drain(l.buf)
		l.mu.Unlock()
	}()
	time.Sleep(50 * time.Millisecond)
	n, err := io.Copy(io.Discard, c)
	if n != total || err != nil {
		t.Errorf("%d bytes of %d, %v", n, total, err)
	}
}

func TestLogGetsEverything(t *testing.T) {
	dir := t.TempDir()
	p := newProc(t, testLoop(t), false)
	p.log(dir + "/log")
	p.write("one\ntwo")
	p.end()
	<-p.drained
	raw, err := os.ReadFile(dir + "/log")
	if err != nil || strings.Count(string(raw), "\n") != 2 || !strings.Contains(string(raw), `"log":"one\n"`) || !strings.Contains(string(raw), `"log":"two"`) {
		t.Errorf("%s %v", raw, err)
	}
	// A log that cannot be opened holds nothing up.
	q := newProc(t, testLoop(t), false)
	q.log(dir + "/no/such/log")
	c := q.attach(AttachSpec{Stdout: true})
	q.write("x")
	read(t, c, "x")
}

// Clients that come and go at random leave nothing behind.
func TestChurn(t *testing.T) {
	l := testLoop(t)
	p := newProc(t, l, false)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = p.out.SetWriteDeadline(time.Now().Add(time.Second))
				_, _ = p.out.Write([]byte("some output\n"))
			}
		}
	}()
	before := openFDs(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 40 {
				remote, local, err := SocketPair()
				if err != nil {
					t.Error(err)
					return
				}
				l.mu.Lock()
				p.io.attach(remote, AttachSpec{Stdin: j%2 == 0, Stdout: true, Mux: i%2 == 0})
				l.mu.Unlock()
				_ = local.SetDeadline(time.Now().Add(5 * time.Second))
				if j%3 != 0 {
					_, _ = local.Read(make([]byte, 64))
				}
				if j%4 == 0 {
					_ = local.CloseWrite()
				}
				local.Close()
			}
		}()
	}
	wg.Wait()
	close(stop)
	eventually(t, "clients stay", func() bool { return p.attachedCount() == 0 })
	eventually(t, "descriptors stay", func() bool { return openFDs(t) <= before })
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}
