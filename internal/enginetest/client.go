package enginetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// limit is how long one command of a client may take.
const limit = 60 * time.Second

// Client is a command line client of an engine.
type Client struct {
	Name string // docker or berth
	e    *Engine
	path string
}

// Result is what a command has done.
type Result struct {
	Args     []string
	Out, Err string
	Code     int
}

// Clients are the unmodified docker client and berth.
func (e *Engine) Clients() []*Client {
	e.t.Helper()
	RequireDocker(e.t)
	return []*Client{e.client("docker"), e.client("berth")}
}

// Each runs f with both clients, as subtests.
func (e *Engine) Each(t *testing.T, f func(t *testing.T, c *Client)) {
	t.Helper()
	for _, c := range e.Clients() {
		t.Run(c.Name, func(t *testing.T) { f(t, c) })
	}
}

func (e *Engine) client(name string) *Client {
	c := &Client{Name: name, e: e, path: name}
	if name == "berth" {
		c.path = filepath.Join(e.Bin, "berth")
	}
	return c
}

// Docker runs the docker client; it must succeed. It returns the trimmed output.
func (e *Engine) Docker(args ...string) string {
	e.t.Helper()
	RequireDocker(e.t)
	return e.client("docker").Must(args...)
}

// Berth runs berth; it must succeed. It returns the trimmed output.
func (e *Engine) Berth(args ...string) string { e.t.Helper(); return e.client("berth").Must(args...) }

// Client returns one of the clients by name.
func (e *Engine) Client(name string) *Client { return e.client(name) }

// Command prepares a command without running it.
func (c *Client) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.path, args...)
	cmd.Env = append(cleanEnv(), "DOCKER_HOST=unix://"+c.e.Socket, "HOME="+filepath.Join(c.e.Dir, "h"),
		"DOCKER_CONFIG="+filepath.Join(c.e.Dir, "h", ".docker"), "TERM=xterm", "DOCKER_CLI_HINTS=false")
	return cmd
}

// Run runs a command.
func (c *Client) Run(args ...string) Result { c.e.t.Helper(); return c.RunIn(nil, args...) }

// RunIn runs a command with an input.
func (c *Client) RunIn(in io.Reader, args ...string) Result {
	c.e.t.Helper()
	cmd := c.Command(args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errOut
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		c.e.t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !timer.Stop() {
		c.e.t.Errorf("%s %q did not end within %s\nout: %s\nerr: %s\n%s", c.Name, args, limit, &out, &errOut, c.e.Log())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.e.t.Fatalf("%s %q: %v", c.Name, args, err)
	}
	return Result{Args: append([]string{c.Name}, args...), Out: out.String(), Err: errOut.String(), Code: cmd.ProcessState.ExitCode()}
}

// Must runs a command that must succeed, and returns its trimmed output.
func (c *Client) Must(args ...string) string { c.e.t.Helper(); return c.MustIn("", args...) }

// MustIn is Must with an input.
func (c *Client) MustIn(in string, args ...string) string {
	c.e.t.Helper()
	r := c.RunIn(strings.NewReader(in), args...)
	if r.Code != 0 {
		c.e.t.Fatalf("%q ended with %d\nout: %s\nerr: %s", r.Args, r.Code, r.Out, r.Err)
	}
	return strings.TrimSpace(r.Out)
}

// Inspect formats one thing of an inspection.
func (c *Client) Inspect(ref, format string) string {
	c.e.t.Helper()
	return c.Must("inspect", "--format", format, ref)
}

// Call makes an API request and decodes a JSON answer into out, unless that is nil. It
// returns the status and the raw body.
func (e *Engine) Call(method, path string, body, out any) (int, string) {
	e.t.Helper()
	status, b, err := e.TryCall(context.Background(), method, path, body)
	if err != nil {
		e.t.Fatalf("%s %s: %v\n%s", method, path, err, e.Log())
	}
	if out != nil && status < 300 {
		if err := json.Unmarshal(b, out); err != nil {
			e.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
	return status, string(b)
}

// TryCall is Call that leaves errors to its caller.
func (e *Engine) TryCall(ctx context.Context, method, path string, body any) (int, []byte, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, r)
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.HTTP.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// Eventually waits until f is true.
func Eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience()); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within %s: %s", Patience(), what)
}
