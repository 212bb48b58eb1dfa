package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/httpapi"
	"berth.dev/berth/internal/memory"
)

// Run is the engine from start to end. It returns when ctx ends or a signal
// asks for it, after the sockets are closed and the services are down. ready
// is called (when not nil) once requests are answered.
func Run(ctx context.Context, c *Config, ready func()) (err error) {
	memory.Tend()
	level := setLog(c)
	c.warn()
	if err := os.MkdirAll(c.ExecRoot, 0o711); err != nil {
		return err
	}
	removePid, err := writePidFile(c.PidFile)
	if err != nil {
		return err
	}
	defer removePid()

	sockets, err := listenAll(c)
	if err != nil {
		return err
	}
	defer func() {
		for _, e := range sockets {
			_ = e.Close()
		}
	}()

	if c.OOMScoreAdjust != 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(c.OOMScoreAdjust)), 0o644); err != nil {
			slog.Warn("cannot set oom_score_adj", "error", err)
		}
	}
	for _, e := range sockets {
		if a, ok := e.Addr().(*net.TCPAddr); ok {
			c.listening = append(c.listening, a.AddrPort())
		}
	}
	tellLimits(c, "")
	setProxy(&c.Proxy)
	svc, err := NewServices(c)
	if err != nil {
		return fmt.Errorf("failed to start daemon: %w", err)
	}

	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := httpapi.HTTPServer(httpapi.New(svc.Backends, svc.API), base)
	failed := make(chan error, len(sockets))
	sigs := make(chan os.Signal, 8)
	// Before anybody can know that the engine runs: who knows may send a SIGHUP.
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1)
	signal.Ignore(unix.SIGPIPE)
	var serving sync.WaitGroup
	for _, e := range sockets {
		slog.Info("API listen on " + e.addr)
		serving.Go(func() {
			if err := srv.Serve(e.Listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serveAPI on %s: %w", e.addr, err)
			}
		})
	}
	notify(ctx, "READY=1")
	if ready != nil {
		ready()
	}
	slog.Info("Daemon has completed initialization")

	err = wait(ctx, c, level, svc, sigs, failed)

	notify(base, "STOPPING=1")
	slog.Debug(fmt.Sprintf("daemon configured with a %d seconds minimum shutdown timeout", int(c.ShutdownTimeout.Seconds())))
	end(srv, cancel, c.ShutdownGrace())
	serving.Wait()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), c.ShutdownGrace())
	defer done()
	if svc.Close != nil {
		svc.Close(stop)
	}
	slog.Info("Daemon shutdown complete")
	return err
}

// end stops answering: no new connections; requests under way see their
// context end when they have had a moment to finish.
func end(srv *http.Server, cancel func(), grace time.Duration) {
	ctx, done := context.WithTimeout(context.Background(), grace)
	defer done()
	// Streams (events, followed logs, waits) last until somebody ends them.
	timer := time.AfterFunc(min(grace, 250*time.Millisecond), cancel)
	defer timer.Stop()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close()
	}
	cancel()
}

// forceAfter is the number of signals at which the engine ends at once.
const forceAfter = 3

// wait handles signals until one asks for the end, ctx ends, or serving fails.
func wait(ctx context.Context, c *Config, level interface{ Set(slog.Level) }, svc *Services, sigs chan os.Signal, failed <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			signal.Stop(sigs)
			return nil
		case err := <-failed:
			signal.Stop(sigs)
			return err
		case sig := <-sigs:
			switch sig {
			case unix.SIGHUP:
				c = reload(ctx, c, level, svc)
			case unix.SIGUSR1:
				path, err := dumpStacks(c.ExecRoot)
				slog.Info("goroutine stacks written to "+path, "error", err)
			default:
				slog.Info("Processing signal '" + sig.String() + "'")
				go force(sigs)
				return nil
			}
		}
	}
}

// force ends the process when it is asked again and again.
func force(sigs <-chan os.Signal) {
	n := 1
	for sig := range sigs {
		if sig != unix.SIGINT && sig != unix.SIGTERM {
			continue
		}
		if n++; n >= forceAfter {
			slog.Info("Forcing docker daemon shutdown without cleanup; 3 interrupts received")
			os.Exit(128 + int(sig.(unix.Signal)))
		}
	}
}

// tellLimits notes, in dockerd's words, what people look for in the log.
func tellLimits(c *Config, prefix string) {
	slog.Debug(prefix + "Max Concurrent Downloads: " + strconv.Itoa(c.Image.MaxConcurrentDownloads))
	slog.Debug(prefix + "Max Concurrent Uploads: " + strconv.Itoa(c.Image.MaxConcurrentUploads))
	slog.Debug(prefix + "Max Download Attempts: " + strconv.Itoa(c.Image.MaxDownloadAttempts))
}

// reload takes up what has changed in the configuration file. A file with an
// error changes nothing.
func reload(ctx context.Context, c *Config, level interface{ Set(slog.Level) }, svc *Services) *Config {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail
	notify(ctx, "RELOADING=1\nMONOTONIC_USEC="+strconv.FormatInt(now.Nano()/1000, 10))
	defer notify(ctx, "READY=1")
	next, err := c.reloaded()
	if err != nil {
		slog.Error("error reconfiguring the daemon: " + strings.TrimSpace(err.Error()))
		return c
	}
	level.Set(logLevel(next))
	tellLimits(next, "Reset ")
	slog.Debug("Reset Shutdown Timeout: " + strconv.Itoa(int(next.ShutdownTimeout.Seconds())))
	if svc.Reload != nil {
		svc.Reload(next)
	}
	slog.Info("Reloaded configuration", "debug", next.Debug, "labels", next.Labels)
	return next
}
