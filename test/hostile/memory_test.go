package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// What the engine's processes may have held at most, in KiB. A few megabytes are usual for the
// keeper and some thirty for berthd; the floods below are of gigabytes.
const (
	mostDaemon = 160 << 10
	mostKeeper = 64 << 10
)

func checkMemory(t *testing.T, e *enginetest.Engine, what string) {
	t.Helper()
	if rss := peak(t, e.DaemonPID()); rss > mostDaemon {
		t.Errorf("%s: berthd has used %d KiB", what, rss)
	}
	for _, pid := range e.KeeperPIDs() {
		if rss := peak(t, pid); rss > mostKeeper {
			t.Errorf("%s: the keeper has used %d KiB", what, rss)
		}
	}
}

// deaf sends a request and never reads the answer.
func deaf(t *testing.T, e *enginetest.Engine, method, path, body string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	upgrade := ""
	if method == http.MethodPost {
		upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n"
	}
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: berth\r\n%sContent-Length: %d\r\n\r\n%s", method, path, upgrade, len(body), body); err != nil {
		t.Fatal(err)
	}
	return c
}

// Clients that never read, of containers that never stop to write.
func TestDeafClients(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	base := e.Goroutines()
	cl.Must("run", "-d", "--name", "loud", "--log-opt", "max-size=1m", "--log-opt", "max-file=2", img, "sh", "-c", "while :; do head -c 100000 /dev/zero; usleep 20000; done | tr '\\0' x")
	cl.Must("run", "-d", "--name", "lines", "--log-opt", "max-size=1m", "--log-opt", "max-file=2", img, "sh", "-c", "yes 'a line of a container' | head -c 30000000; sleep 1000")
	cl.Must("run", "-d", "--name", "quiet", img, "sleep", "1000")
	var conns []net.Conn
	add := func(method, path, body string) { conns = append(conns, deaf(t, e, method, path, body)) }
	for range 4 {
		for _, tty := range []bool{false, true} {
			var made struct{ ID string }
			e.Call(http.MethodPost, "/containers/quiet/exec", map[string]any{"Cmd": []string{"yes", strings.Repeat("y", 500)}, "AttachStdout": true, "AttachStderr": true, "Tty": tty}, &made)
			add(http.MethodPost, "/exec/"+made.ID+"/start", fmt.Sprintf(`{"Tty":%v}`, tty))
		}
		add(http.MethodPost, "/containers/loud/attach?stream=1&stdout=1&stderr=1&logs=1", "")
		add(http.MethodPost, "/containers/lines/attach?stream=1&stdout=1&stderr=1&logs=1", "")
		add(http.MethodGet, "/containers/loud/logs?follow=1&stdout=1&stderr=1", "")
		add(http.MethodGet, "/containers/lines/logs?follow=1&stdout=1&stderr=1", "")
		add(http.MethodGet, "/events", "")
		add(http.MethodGet, "/containers/loud/stats", "")
		add(http.MethodGet, "/containers/quiet/export", "")
		add(http.MethodGet, "/containers/quiet/archive?path=/bin", "")
	}
	for n := range 10 { // events that nobody takes
		if got := cl.Must("exec", "quiet", "echo", "hello"); got != "hello" {
			t.Errorf("exec %d of a quiet container: %q", n, got)
		}
	}
	begun := time.Now()
	for range 5 {
		cl.Must("run", "--rm", img, "true")
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("five runs beside deaf clients took %s", d)
	}
	if n := e.Goroutines(); n > base+8*len(conns) {
		t.Errorf("%d goroutines for %d clients, %d before", n, len(conns), base)
	}
	checkMemory(t, e, "deaf clients")
	for _, c := range conns {
		_ = c.Close()
	}
	cl.Must("rm", "-f", "loud", "lines", "quiet")
	enginetest.Eventually(t, "the goroutines end", func() bool { return e.Goroutines() <= base+12 })
}

// flood writes until it is told to stop or the other side has had enough.
type flood struct {
	head  []byte
	chunk []byte
	until time.Time
	sent  int64
}

func (f *flood) Read(p []byte) (int, error) {
	if len(f.head) > 0 {
		n := copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	if time.Now().After(f.until) {
		return 0, io.ErrUnexpectedEOF
	}
	n := 0
	for n < len(p) {
		n += copy(p[n:], f.chunk)
	}
	f.sent += int64(n)
	return n, nil
}

// Producers that never end: each is refused, or given up with nothing left.
func TestEndlessInput(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	cl := e.Client("berth")
	cl.Must("create", "--name", "box", img, "true")
	header := func(h *tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	small := header(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644})
	var zero bytes.Buffer // a member of a gzip stream: four megabytes of nothing in four kilobytes
	g, _ := gzip.NewWriterLevel(&zero, gzip.BestCompression)
	_, _ = g.Write(make([]byte, 4<<20))
	_ = g.Close()
	var head bytes.Buffer
	g = gzip.NewWriter(&head)
	_, _ = g.Write(header(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 33}))
	_ = g.Close()
	pax := func(key string) []byte { // a header record that is gigabytes long
		b := header(&tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"comment": "y"}, Mode: 0o644})
		copy(b[124:136], "77777777777\x00")
		sum := 0
		copy(b[148:156], "        ")
		for _, x := range b[:512] {
			sum += int(x)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return append(b[:512:512], key...)
	}
	for _, path := range []string{"/images/create?fromSrc=-&repo=endless", "/images/load", "/containers/box/archive?path=/"} {
		method := http.MethodPost
		if strings.HasPrefix(path, "/containers") {
			method = http.MethodPut
		}
		for what, f := range map[string]*flood{
			"long header":   {head: pax("77777777777 comment="), chunk: []byte("y")},
			"many entries":  {chunk: small},
			"manifest bomb": {head: head.Bytes(), chunk: zero.Bytes()},
			"gzip header":   {head: []byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03"), chunk: []byte("name")},
			"garbage":       {chunk: []byte("garbage")},
			"empty gzips":   {chunk: []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		} {
			f.until = time.Now().Add(100 * time.Millisecond)
			req, err := http.NewRequest(method, "http://berth"+path, io.NopCloser(f))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-tar")
			resp, err := e.HTTP.Do(req)
			if err == nil {
				b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK && !bytes.Contains(b, []byte("error")) {
					t.Errorf("%s to %s was taken: %s", what, path, b)
				}
			}
			checkMemory(t, e, what+" to "+path)
		}
	}
	// Bodies of JSON that never end, or go a million levels deep.
	for what, f := range map[string]*flood{
		"string": {head: []byte(`{"Image":"`), chunk: []byte("x")}, "array": {head: []byte(`{"Image":"x","Cmd":[`), chunk: []byte(`"x",`)},
		"depth": {chunk: []byte(`{"Labels":`)}, "lists": {head: []byte(`{"Cmd":`), chunk: []byte("[")}, "space": {chunk: []byte(" ")},
	} {
		for _, path := range []string{"/containers/create", "/containers/box/exec", "/containers/box/update", "/commit?container=box"} {
			f.until = time.Now().Add(2 * time.Second)
			resp, err := e.HTTP.Post("http://berth"+path, "application/json", io.NopCloser(&flood{head: f.head, chunk: f.chunk, until: f.until}))
			if err != nil {
				continue // the connection was closed on it
			}
			_ = resp.Body.Close()
			if resp.StatusCode < 400 || resp.StatusCode >= 500 {
				t.Errorf("%s to %s: %s", what, path, resp.Status)
			}
			if time.Now().After(f.until) {
				t.Errorf("%s to %s was read for two seconds", what, path)
			}
		}
		checkMemory(t, e, what)
	}
	cl.Must("rm", "box")
}
