package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

var errPermission = os.ErrPermission

// TLSFiles name the PEM files of a TLS endpoint. Empty names are left out.
type TLSFiles struct {
	CA, Cert, Key string
	// PEM contents, for endpoints from a context store; they win over the files.
	CAPEM, CertPEM, KeyPEM []byte
	SkipVerify             bool
}

func (t *TLSFiles) config(serverName string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName, InsecureSkipVerify: t.SkipVerify} //nolint:gosec // asked for by the user
	load := func(pem []byte, file string) ([]byte, error) {
		if pem != nil || file == "" {
			return pem, nil
		}
		return os.ReadFile(file)
	}
	ca, err := load(t.CAPEM, t.CA)
	if err != nil {
		return nil, fmt.Errorf("could not read CA certificate %q: %w", t.CA, err)
	}
	if ca != nil && !t.SkipVerify {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("failed to append certificates from PEM file: %q", t.CA)
		}
	}
	cert, err := load(t.CertPEM, t.Cert)
	if err != nil {
		return nil, fmt.Errorf("could not load X509 key pair: %w", err)
	}
	key, err := load(t.KeyPEM, t.Key)
	if err != nil {
		return nil, fmt.Errorf("could not load X509 key pair: %w", err)
	}
	if cert != nil || key != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("could not load X509 key pair: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// setDialer reads the host and decides how connections are made.
func (c *Client) setDialer() error {
	proto, rest, ok := strings.Cut(c.opts.Host, "://")
	if !ok {
		return fmt.Errorf("unable to parse docker host `%s`", c.opts.Host)
	}
	d := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	switch proto {
	case "unix":
		c.urlHost = "unix"
		c.dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", rest) }
	case "fd":
		return errors.New("the fd protocol is for daemons, not for clients")
	case "tcp", "http", "https":
		u, err := url.Parse("tcp://" + rest)
		if err != nil {
			return err
		}
		host := u.Host
		if u.Port() == "" {
			port := "2375"
			if c.opts.TLS != nil {
				port = "2376"
			}
			host = net.JoinHostPort(u.Hostname(), port)
		}
		c.urlHost, c.basePath = host, strings.TrimSuffix(u.Path, "/")
		tlsFiles := c.opts.TLS
		if tlsFiles == nil && proto == "https" {
			tlsFiles = &TLSFiles{}
		}
		if tlsFiles == nil {
			c.dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", host) }
			return nil
		}
		cfg, err := tlsFiles.config(u.Hostname())
		if err != nil {
			return err
		}
		td := &tls.Dialer{NetDialer: d, Config: cfg}
		c.dial = func(ctx context.Context) (net.Conn, error) { return td.DialContext(ctx, "tcp", host) }
	case "ssh":
		u, err := url.Parse(c.opts.Host)
		if err != nil {
			return fmt.Errorf("invalid SSH URL: %w", err)
		}
		args, err := sshArgs(u)
		if err != nil {
			return err
		}
		c.urlHost = "docker.example.com"
		c.dial = func(ctx context.Context) (net.Conn, error) { return dialCommand(ctx, "ssh", args...) }
	default:
		return fmt.Errorf("protocol not available: %q", proto)
	}
	return nil
}

// connect dials, and once asks Refused when nobody listens on a unix socket.
func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err == nil {
		return conn, nil
	}
	if c.opts.Refused != nil && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)) {
		c.mu.Lock()
		first := !c.refused
		c.refused = true
		var startErr error
		if first {
			startErr = c.opts.Refused(ctx)
		}
		c.mu.Unlock()
		if startErr != nil {
			return nil, &ConnectError{Host: c.opts.Host, Err: startErr, plain: true}
		}
		if conn, err = c.dial(ctx); err == nil {
			return conn, nil
		}
	}
	return nil, &ConnectError{Host: c.opts.Host, Err: err}
}

// Connect returns a raw connection to the engine, for dial-stdio.
func (c *Client) Connect(ctx context.Context) (net.Conn, error) { return c.connect(ctx) }

// sshArgs returns the arguments of ssh. On the other side whichever of the two
// programs is there proxies the connection.
func sshArgs(u *url.URL) ([]string, error) {
	switch {
	case u.Hostname() == "":
		return nil, errors.New("no host specified")
	case u.RawQuery != "":
		return nil, fmt.Errorf("extra query after the host: %q", u.RawQuery)
	case u.Fragment != "":
		return nil, fmt.Errorf("extra fragment after the host: %q", u.Fragment)
	}
	var args []string
	if u.User != nil {
		if _, has := u.User.Password(); has {
			return nil, errors.New("plain-text password is not supported")
		}
		args = append(args, "-l", u.User.Username())
	}
	if p := u.Port(); p != "" {
		args = append(args, "-p", p)
	}
	host := ""
	if strings.Trim(u.Path, "/") != "" {
		host = " --host " + shellQuote("unix://"+u.Path)
	}
	script := "if command -v berth >/dev/null 2>&1; then exec berth" + host + " system dial-stdio; else exec docker" + host + " system dial-stdio; fi"
	return append(args, "-o", "ConnectTimeout=30", "-T", "--", u.Hostname(), "sh", "-c", shellQuote(script)), nil
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// cmdConn is a connection over the standard streams of a command.
type cmdConn struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	errOut *tail
	once   sync.Once
}

func dialCommand(_ context.Context, name string, args ...string) (net.Conn, error) {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for us, not for ssh
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c := &cmdConn{cmd: cmd, in: in, out: out, errOut: &tail{}}
	cmd.Stderr = c.errOut
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cmdConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if err == io.EOF {
		if msg := c.errOut.String(); msg != "" {
			return n, fmt.Errorf("command [%s] has exited, make sure the URL is valid, and Berth is installed on the remote host: stderr=%s",
				strings.Join(c.cmd.Args, " "), msg)
		}
	}
	return n, err
}

func (c *cmdConn) Write(p []byte) (int, error) { return c.in.Write(p) }
func (c *cmdConn) CloseWrite() error           { return c.in.Close() }

func (c *cmdConn) Close() error {
	c.once.Do(func() {
		c.in.Close()
		t := time.AfterFunc(3*time.Second, func() { _ = c.cmd.Process.Kill() })
		go func() {
			_, _ = io.Copy(io.Discard, c.out)
			_ = c.cmd.Wait()
			t.Stop()
		}()
	})
	return nil
}

type cmdAddr struct{}

func (cmdAddr) Network() string { return "command" }
func (cmdAddr) String() string  { return "command" }

func (c *cmdConn) LocalAddr() net.Addr              { return cmdAddr{} }
func (c *cmdConn) RemoteAddr() net.Addr             { return cmdAddr{} }
func (c *cmdConn) SetDeadline(time.Time) error      { return nil }
func (c *cmdConn) SetReadDeadline(time.Time) error  { return nil }
func (c *cmdConn) SetWriteDeadline(time.Time) error { return nil }

// tail keeps the first 4 KiB that a command says on its error stream.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 4096 - len(t.b); room > 0 {
		t.b = append(t.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
