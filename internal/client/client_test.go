package client

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
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
