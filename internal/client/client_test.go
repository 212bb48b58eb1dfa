package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return "unix://" + sock
}

// An optimistic client asks with its own version, and once more when that is too new.
func TestOptimisticVersion(t *testing.T) {
	var paths []string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		if !strings.HasPrefix(r.URL.Path, "/v1.41/") {
			w.WriteHeader(400)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "client version 1.56 is too new. Maximum supported API version is 1.41"})
			return
		}
		_, _ = io.WriteString(w, `"hi"`)
	})
	c, err := New(Options{Host: host, Optimistic: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s, err := Get[string](context.Background(), c, "/x", nil); err != nil || s != "hi" {
			t.Fatal(s, err)
		}
	}
	if got := strings.Join(paths, " "); got != "/v1.56/x /v1.41/x /v1.41/x" {
		t.Error(got)
	}
}

// Any other client pings first and takes the lower version; a fixed version is sent as it is.
func TestNegotiatedVersion(t *testing.T) {
	var paths []string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.Method+r.URL.Path)
		w.Header().Set("Api-Version", "1.44")
		_, _ = io.WriteString(w, `"hi"`)
	})
	for _, version := range []string{"", "1.30"} {
		c, err := New(Options{Host: host, Version: version})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Get[string](context.Background(), c, "/x", url.Values{"a": {"b"}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(paths, " "); got != "HEAD/_ping GET/v1.44/x GET/v1.30/x" {
		t.Error(got)
	}
}

func TestErrors(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1.56/json":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `{"message":"No such container: x"}`)
		case "/v1.56/text":
			http.Error(w, "plain", 500)
		default:
			w.WriteHeader(404)
		}
	})
	c, _ := New(Options{Host: host, Optimistic: true})
	for path, want := range map[string]string{
		"/json": "Error response from daemon: No such container: x", "/text": "Error response from daemon: plain",
		"/none": "Error response from daemon: request returned Not Found for API route and version /v1.56/none, check if the server supports the requested API version",
	} {
		if err := c.Call(context.Background(), "GET", path, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := c.Call(context.Background(), "GET", "/json", nil); !IsNotFound(err) {
		t.Error(err)
	}
	c, _ = New(Options{Host: "unix:///nonexistent/s"})
	if err := c.Call(context.Background(), "GET", "/x", nil); err == nil || err.Error() != "Cannot connect to the Berth daemon at unix:///nonexistent/s. Is the berth daemon running?" {
		t.Error(err)
	}
}

// Refused is asked once, and what it started is used.
func TestRefused(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	var asked atomic.Int32
	c, _ := New(Options{Host: "unix://" + sock, Optimistic: true, Refused: func(context.Context) error {
		asked.Add(1)
		l, err := net.Listen("unix", sock)
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "1") })}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close() })
		return nil
	}})
	if n, err := Get[int](context.Background(), c, "/x", nil); n != 1 || err != nil || asked.Load() != 1 {
		t.Error(n, err, asked.Load())
	}
}

func TestHijack(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "tcp" {
			t.Error("no upgrade asked")
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	})
	c, _ := New(Options{Host: host, Optimistic: true})
	h, err := c.Hijack(context.Background(), Request{Method: "POST", Path: "/attach"})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	_, _ = io.WriteString(h, "both ways")
	_ = h.CloseWrite()
	if b, err := io.ReadAll(h); string(b) != "both ways" || err != nil || h.MediaType != "application/vnd.docker.raw-stream" {
		t.Error(string(b), err, h.MediaType)
	}
}

func TestLess(t *testing.T) {
	if !Less("1.9", "1.24") || Less("1.50", "1.50") || Less("2.0", "1.99") {
		t.Error("order of versions")
	}
}

// One connection serves one plain request after the other; a body that is not
// read to its end, and an end of the context, cost it.
func TestConnections(t *testing.T) {
	var mu sync.Mutex
	conns, kills := map[string]int{}, 0
	release := make(chan struct{})
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	srv := &http.Server{
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			mu.Lock()
			defer mu.Unlock()
			next++
			return context.WithValue(ctx, connKey{}, strconv.Itoa(next))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id := r.Context().Value(connKey{}).(string)
			mu.Lock()
			conns[id]++
			mu.Unlock()
			switch r.URL.Path {
			case "/v1.56/long":
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					mu.Lock()
					kills++
					mu.Unlock()
					release <- struct{}{}
				case <-release:
				}
			case "/v1.56/none":
				w.WriteHeader(204)
			case "/v1.56/drop":
				conn, _, _ := w.(http.Hijacker).Hijack()
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\"x\"")
				conn.Close()
			case "/v1.56/moved":
				http.Redirect(w, r, "/else", http.StatusFound)
			default:
				_, _ = io.WriteString(w, `"`+strings.Repeat("x", 100000)+`"`)
			}
		}),
	}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	c, _ := New(Options{Host: "unix://" + sock, Optimistic: true})
	defer c.Close()
	ctx := context.Background()
	get := func(path string) {
		t.Helper()
		if _, err := Get[string](ctx, c, path, nil); err != nil {
			t.Error(path, err)
		}
	}
	count := func(want int) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if len(conns) != want {
			t.Errorf("%d connections, want %d: %v", len(conns), want, conns)
		}
	}
	get("/a")
	get("/b")
	if err := c.Call(ctx, "POST", "/none", nil); err != nil {
		t.Error(err)
	}
	count(1)
	get("/drop") // the engine ends the connection behind a complete answer
	get("/c")
	count(2)
	if err := c.Call(ctx, "POST", "/moved", nil); err == nil || !strings.Contains(err.Error(), "unexpected redirect") {
		t.Error(err)
	}
	long, cancel := context.WithCancel(ctx)
	res, err := c.Do(long, Request{Method: "GET", Path: "/long"})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := io.ReadAll(res.Body); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-release
	if res, err = c.Do(ctx, Request{Method: "GET", Path: "/long"}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { res.Body.Close() }) // while it is read
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("a closed body ended well")
	}
	<-release
	if kills != 2 {
		t.Errorf("%d of 2 long requests have ended", kills)
	}
	get("/d")
}

type connKey struct{}

// A streamed body may be refused before it is read.
func TestStreamRefused(t *testing.T) {
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.44")
		if r.Method == http.MethodPost {
			http.Error(w, "no room", 500)
		}
	})
	c, _ := New(Options{Host: host, Optimistic: true})
	r, w := io.Pipe()
	defer w.Close()
	if _, err := c.Do(context.Background(), Request{Method: "POST", Path: "/load", Stream: r}); err == nil || err.Error() != "Error response from daemon: no room" {
		t.Error(err)
	}
}
