package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is one open listening socket.
type endpoint struct {
	net.Listener
	addr string // as configured
	path string // of a unix socket that we made
}

// Close closes the socket and removes its name.
func (e *endpoint) Close() error {
	err := e.Listener.Close()
	if e.path != "" {
		_ = os.Remove(e.path)
	}
	return err
}

// defaultTLSAddress is where TLS is spoken when no -H says where.
const defaultTLSAddress = "localhost:2376"

// listenAll opens all sockets, or none.
func listenAll(c *Config) (all []*endpoint, err error) {
	defer func() {
		if err != nil {
			for _, e := range all {
				_ = e.Close()
			}
			err = fmt.Errorf("failed to load listeners: %w", err)
		}
	}()
	var conf *tls.Config
	if c.API.TLS { // also where nobody listens by TCP: it was meant
		if conf, err = serverTLS(&c.API); err != nil {
			return nil, err
		}
	}
	if c.API.Default {
		own := DefaultSocket
		if c.ExecRoot != DefaultExecRoot { // a second engine on the machine
			own = filepath.Join(c.ExecRoot, "berth.sock")
		}
		e, err := listenUnix(own, c.API.Group)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
		if c.API.TLS {
			es, err := listenTCP(c, defaultTLSAddress, conf)
			if err != nil {
				return all, err
			}
			all = append(all, es...)
		}
		if own != DefaultSocket && c.Program != "dockerd" {
			return all, nil
		}
		// Docker's own path, for every client there is, unless it is taken.
		if e, err := listenUnix(DockerSocket, c.API.Group); err == nil {
			all = append(all, e)
		} else {
			slog.Info("not listening on Docker's socket", "path", DockerSocket, "reason", err.Error())
		}
		return all, nil
	}
	for _, h := range c.API.Hosts {
		proto, addr, _ := strings.Cut(h, "://")
		var es []*endpoint
		switch proto {
		case "unix":
			var e *endpoint
			if e, err = listenUnix(addr, c.API.Group); err == nil {
				es = []*endpoint{e}
			}
		case "tcp":
			es, err = listenTCP(c, addr, conf)
		case "fd":
			es, err = activated(addr)
		}
		all = append(all, es...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

var errSocketTaken = errors.New("another engine is listening there")

// listenUnix opens a unix socket for the group. A socket that nobody listens on
// any more is replaced; a live one is left alone.
func listenUnix(path, group string) (*endpoint, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	switch fi, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		_ = os.Remove(path) // a dangling link
	case err != nil:
		return nil, err
	case fi.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("can't create unix socket %s: something else is there", path)
	default:
		if c, err := net.DialTimeout("unix", path, 200*time.Millisecond); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("can't create unix socket %s: %w", path, errSocketTaken)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The socket must never be open to all, not even for a moment.
	old := unix.Umask(0o777)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("can't create unix socket %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // endpoint.Close does
	e := &endpoint{Listener: l, addr: "unix://" + path, path: path}
	if err := os.Chown(path, 0, groupID(group)); err != nil && os.Geteuid() == 0 {
		_ = e.Close()
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = e.Close()
		return nil, err
	}
	return e, nil
}

// groupID returns a group's number; root's when there is no such group.
func groupID(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if name != "docker" && name != "" {
			slog.Warn("could not change group of the socket", "group", name, "error", err)
		}
		return 0
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0
	}
	return n
}

// listenTCP opens addr, with TLS unless conf is nil.
func listenTCP(c *Config, addr string, conf *tls.Config) ([]*endpoint, error) {
	if conf == nil {
		slog.Warn("[DEPRECATION NOTICE] API is accessible on http://" + addr + " without encryption. " +
			"Access to the remote API is equivalent to root access on the host. Refer to the 'Docker daemon attack surface' section in the documentation for more information: https://docs.docker.com/go/attack-surface/")
	}
	if c.API.TLS && !c.API.TLSVerify {
		slog.Warn("[DEPRECATION NOTICE] API is accessible on https://" + addr + " without TLS client verification. " +
			"Access to the remote API is equivalent to root access on the host")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	return []*endpoint{{Listener: l, addr: "tcp://" + l.Addr().String()}}, nil
}

// serverTLS loads the certificates. With TLSVerify clients must show one that
// the CA has signed.
func serverTLS(a *APIConfig) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(a.Cert, a.Key)
	if err != nil {
		return nil, fmt.Errorf("could not load X509 key pair (cert: %q, key: %q): %w", a.Cert, a.Key, err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if !a.TLSVerify {
		return conf, nil
	}
	pem, err := os.ReadFile(a.CACert)
	if err != nil {
		return nil, fmt.Errorf("could not read CA certificate %q: %w", a.CACert, err)
	}
	conf.ClientCAs = x509.NewCertPool()
	if !conf.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("failed to append certificates from PEM file: %q", a.CACert)
	}
	conf.ClientAuth = tls.RequireAndVerifyClientCert
	return conf, nil
}

// activated returns the sockets that systemd has opened for us
// (sd_listen_fds(3)): all, or the one with the given number or name.
func activated(which string) ([]*endpoint, error) {
	if pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID")); pid != os.Getpid() {
		return nil, errors.New("no sockets found via socket activation: make sure the service was started by systemd")
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	const first = 3
	var all []*endpoint
	for i := range n {
		fd := first + i
		name := ""
		if i < len(names) {
			name = names[i]
		}
		if which != "" && which != "*" && which != name && which != strconv.Itoa(fd) {
			continue
		}
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return all, fmt.Errorf("socket %d from systemd: %w", fd, err)
		}
		all = append(all, &endpoint{Listener: l, addr: "fd://" + strconv.Itoa(fd)})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no sockets found via socket activation for fd://%s", which)
	}
	return all, nil
}

// notify tells systemd about our state (sd_notify(3)); without systemd it does nothing.
func notify(ctx context.Context, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := new(net.Dialer).DialContext(ctx, "unixgram", path)
	if err != nil {
		slog.Warn("cannot notify systemd", "error", err)
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state)) // systemd's affair
}
