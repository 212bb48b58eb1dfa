package registryd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// Serve listens until ctx ends, lets requests finish, and returns.
func (s *Server) Serve(ctx context.Context) error {
	tc, err := s.tlsConfig()
	if err != nil {
		return err
	}
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	if tc != nil {
		l = tls.NewListener(l, tc)
	}
	return s.serve(ctx, l)
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	kind := s.c.HTTP.Net
	if kind == "" {
		kind = "tcp"
	}
	if kind == "unix" {
		if c, err := net.Dial("unix", s.c.HTTP.Addr); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another server listens on %s", s.c.HTTP.Addr)
		}
		if st, err := os.Lstat(s.c.HTTP.Addr); err == nil && st.Mode()&os.ModeSocket != 0 {
			_ = os.Remove(s.c.HTTP.Addr)
		}
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, kind, s.c.HTTP.Addr)
}

// serve is Serve on a listener that it closes.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!s.c.HTTP.HTTP2.Disabled)
	protocols.SetUnencryptedHTTP2(s.c.HTTP.H2C.Enabled)
	srv := &http.Server{
		Handler: s, Protocols: &protocols, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	if s.c.HTTP.Debug.Addr != "" {
		dl, err := net.Listen("tcp", s.c.HTTP.Debug.Addr)
		if err != nil {
			_ = l.Close()
			return fmt.Errorf("http.debug.addr: %w", err)
		}
		debug := &http.Server{Handler: s.debug(), ReadHeaderTimeout: 30 * time.Second}
		wg.Go(func() { _ = debug.Serve(dl) })
		wg.Go(func() { <-ctx.Done(); _ = debug.Close() })
	}
	// Events that wait are still sent while the server drains.
	tell, quiet := context.WithCancel(context.WithoutCancel(ctx))
	defer quiet()
	s.events.start(tell, &wg)
	s.upkeep(ctx, &wg)
	s.log.Info("listening", "addr", l.Addr().String(), "tls", s.c.HTTP.TLS.Certificate != "", "root", s.c.Storage.Filesystem.RootDirectory)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	drain, stop := context.WithTimeout(context.Background(), s.c.HTTP.DrainTimeout)
	defer stop()
	if err := srv.Shutdown(drain); err != nil {
		_ = srv.Close()
	}
	<-done
	s.events.drain(drain)
	return nil
}

// upkeep starts what happens beside requests.
func (s *Server) upkeep(ctx context.Context, wg *sync.WaitGroup) {
	m := s.c.Storage.Maintenance
	if s.c.Health.StorageDriver.Enabled {
		h := s.c.Health.StorageDriver
		failed := 0
		wg.Go(func() {
			every(ctx, h.Interval, func() {
				if _, err := os.ReadDir(s.store.root + "/blobs"); err != nil {
					failed++
					s.log.Error("the store cannot be read", "err", err)
				} else {
					failed = 0
				}
				s.healthy.Store(failed < h.Threshold)
			})
		})
	}
	if m.ReadOnly.Enabled {
		return
	}
	if on(m.UploadPurging.Enabled) {
		wg.Go(func() {
			every(ctx, m.UploadPurging.Interval, func() {
				n, err := s.store.purgeUploads(m.UploadPurging.Age, m.UploadPurging.DryRun)
				if n > 0 || err != nil {
					s.log.Info("purged uploads", "count", n, "err", err)
				}
			})
		})
	}
	if on(m.GC.Enabled) {
		wg.Go(func() {
			every(ctx, m.GC.Interval, func() {
				c, err := s.store.collect(ctx, CollectOptions{Grace: m.GC.Grace, Untagged: m.GC.Untagged})
				if c.Blobs+c.Manifests > 0 || err != nil {
					s.log.Info("collected garbage", "blobs", c.Blobs, "manifests", c.Manifests, "bytes", c.Bytes, "err", err)
				}
			})
		})
	}
	if s.proxy != nil && s.proxy.ttl > 0 {
		wg.Go(func() {
			every(ctx, min(time.Hour, s.proxy.ttl), func() {
				if err := s.store.expire(s.proxy.ttl); err != nil {
					s.log.Error("cannot expire", "err", err)
				}
			})
		})
	}
}

// debug serves /metrics and /debug/health.
func (s *Server) debug() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/health", func(w http.ResponseWriter, _ *http.Request) {
		status := map[string]string{}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		if !s.healthy.Load() {
			status["storagedriver_filesystem"] = "the store cannot be read"
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = writeJSON(w, "application/json; charset=utf-8", status)
	})
	if s.c.HTTP.Debug.Prometheus.Enabled {
		path := s.c.HTTP.Debug.Prometheus.Path
		if path == "" {
			path = "/metrics"
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			s.metrics.write(w)
		})
	}
	return mux
}

// tlsConfig returns nil without a certificate.
func (s *Server) tlsConfig() (*tls.Config, error) {
	t := s.c.HTTP.TLS
	if t.Certificate == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(t.Certificate, t.Key)
	if err != nil {
		return nil, fmt.Errorf("http.tls: %w", err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if s.c.HTTP.HTTP2.Disabled {
		c.NextProtos = []string{"http/1.1"}
	}
	switch t.MinimumTLS {
	case "", "tls1.2":
	case "tls1.3":
		c.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("http.tls.minimumtls is %q: it may be tls1.2 or tls1.3", t.MinimumTLS)
	}
	for _, name := range t.CipherSuites {
		found := false
		for _, cs := range tls.CipherSuites() {
			if cs.Name == strings.ToUpper(name) {
				c.CipherSuites, found = append(c.CipherSuites, cs.ID), true
			}
		}
		if !found {
			return nil, fmt.Errorf("http.tls.ciphersuites: %s is unknown or not safe", name)
		}
	}
	if len(t.ClientCAs) == 0 {
		if t.ClientAuth != "" {
			return nil, errors.New("http.tls.clientauth needs clientcas")
		}
		return c, nil
	}
	c.ClientCAs = x509.NewCertPool()
	for _, path := range t.ClientCAs {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("http.tls.clientcas: %w", err)
		}
		if !c.ClientCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("http.tls.clientcas: %s has no certificate", path)
		}
	}
	switch t.ClientAuth {
	case "", "require-and-verify-client-cert":
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case "verify-client-cert-if-given":
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case "require-any-client-cert":
		c.ClientAuth = tls.RequireAnyClientCert
	case "request-client-cert":
		c.ClientAuth = tls.RequestClientCert
	default:
		return nil, fmt.Errorf("http.tls.clientauth is %q, which is unknown", t.ClientAuth)
	}
	return c, nil
}
