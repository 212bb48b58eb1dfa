package plugin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/errs"
)

// echo is a plugin that says what it is told.
func echo(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/Plugin.Activate":
		_, _ = io.WriteString(w, `{"Implements":["Echo"]}`)
	case "/Echo.Say":
		_, _ = io.Copy(w, r.Body)
	case "/Echo.Fail":
		http.Error(w, `{"Err":"it failed"}`, http.StatusInternalServerError)
	default:
		http.NotFound(w, r)
	}
}

func say(p *Plugin, text string) (string, error) {
	var out struct{ Text string }
	err := p.Call(context.Background(), "Echo", "Echo.Say", map[string]string{"Text": text}, &out)
	return out.Text, err
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWhere(t *testing.T) {
	plain, secret := httptest.NewServer(http.HandlerFunc(echo)), httptest.NewUnstartedServer(http.HandlerFunc(echo))
	secret.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	secret.StartTLS()
	defer plain.Close()
	defer secret.Close()
	dir, run := t.TempDir(), t.TempDir()
	dirs := Dirs{Sockets: []string{run}, Specs: []string{dir}}
	l, err := net.Listen("unix", filepath.Join(run, "sock.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(echo)}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	ca := write(t, dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secret.Certificate().Raw})))
	inJSON := func(addr string, conf map[string]any) string {
		raw, err := json.Marshal(map[string]any{"Name": "x", "Addr": addr, "TLSConfig": conf})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	write(t, dir, "http.spec", plain.URL+"\n")
	write(t, dir, "tcp/tcp.spec", "tcp://"+plain.Listener.Addr().String())
	write(t, dir, "known.json", inJSON(secret.URL, map[string]any{"CAFile": ca}))
	write(t, dir, "any.json", inJSON(secret.URL, map[string]any{"InsecureSkipVerify": true}))
	write(t, dir, "unknown.json", inJSON(secret.URL, map[string]any{}))
	write(t, dir, "odd.spec", "ftp://somewhere")
	write(t, dir, "broken.json", "{")
	for _, name := range []string{"sock", "http", "tcp", "known", "any"} {
		if got, err := say(New(name, dirs), "hello"); got != "hello" || err != nil {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"nosuch": `plugin "nosuch" not found`, "odd": "unknown protocol", "broken": "unexpected end of JSON", "../http": "invalid plugin name", "": "invalid plugin name",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		if err := New(name, dirs).Activate(ctx, "Echo"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := New("unknown", dirs).Activate(ctx, "Echo"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody: %v", err)
	}
	if err := New("http", dirs).Activate(context.Background(), "Other"); !strings.Contains(fmt.Sprint(err), "Plugin does not implement the requested driver") {
		t.Errorf("another interface: %v", err)
	}
	var e *Error
	if err := New("http", dirs).Call(context.Background(), "Echo", "Echo.Fail", nil, nil); !errors.As(err, &e) || e.Status != http.StatusInternalServerError || e.Text != "it failed" {
		t.Errorf("a failure: %v", err)
	}
	if err := New("http", dirs).Call(context.Background(), "Echo", "Echo.None", nil, nil); !errors.As(err, &e) || e.Status != http.StatusNotFound {
		t.Errorf("a method that is not there: %v", err)
	}
}

// A plugin that was there is waited for where that was asked for, also at a new address.
func TestRetry(t *testing.T) {
	dir := t.TempDir()
	dirs := Dirs{Specs: []string{dir}}
	first := httptest.NewServer(http.HandlerFunc(echo))
	file := write(t, dir, "p.spec", first.URL)
	p, impatient := New("p", dirs), New("p", dirs)
	p.Retry = 10 * time.Second
	for _, x := range []*Plugin{p, impatient} {
		if _, err := say(x, ""); err != nil {
			t.Fatal(err)
		}
	}
	first.Close()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got, err := say(impatient, "x"); err == nil {
		t.Errorf("nobody there: %q", got)
	}
	again := httptest.NewServer(http.HandlerFunc(echo))
	defer again.Close()
	done := make(chan error)
	go func() { _, err := say(p, "hello"); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	write(t, dir, "p.spec", again.URL)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := New("gone", dirs).Activate(context.Background(), "Echo"); !errs.Is(err, errs.NotFound) {
		t.Errorf("one that was never there: %v", err)
	}
}
