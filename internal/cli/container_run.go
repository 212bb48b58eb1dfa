package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/term"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.dev/berth/internal/client"
)

func decodeOne(r io.Reader, v any) error { return json.NewDecoder(r).Decode(v) }

// createOptions are the flags of create and run besides the container's own.
type createOptions struct {
	name, platform, pull string
	quiet                bool
}

func (o *createOptions) addFlags(cli *CLI, f *pflag.FlagSet, verb string) {
	f.SetInterspersed(false)
	f.StringVar(&o.name, "name", "", "Assign a name to the container")
	f.StringVar(&o.pull, "pull", "missing", `Pull image before `+verb+` ("always", "`+createSeparator(verb)+`missing", "never")`)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress the pull output")
	f.Bool("help", false, "Print usage")
	f.StringVar(&o.platform, "platform", cli.getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	contentTrustFlag(f, "Skip image verification")
}

// contentTrustFlag accepts a flag that has no effect here: signatures of that kind are gone.
func contentTrustFlag(f *pflag.FlagSet, help string) { f.Bool("disable-content-trust", true, help) }

// createSeparator keeps Docker's own text of create --help.
func createSeparator(verb string) string {
	if verb == "creating" {
		return "|"
	}
	return ""
}

func createCmd(cli *CLI, c *cobra.Command) {
	var o createOptions
	var co containerOptions
	o.addFlags(cli, c.Flags(), "creating")
	co.addFlags(cli, c.Flags())
	c.RunE = func(c *cobra.Command, args []string) error {
		co.image, co.args = args[0], args[1:]
		req, err := o.request(cli, &co)
		if err != nil {
			return requestError(err, "create")
		}
		id, err := cli.createContainer(c.Context(), req, &co, &o)
		if err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, id)
		return nil
	}
}

// runError is an error of run or create with the hint where to read more.
func runError(err error, verb string, code int) error {
	return StatusError{Status: fmt.Sprintf("%s: %v\n\nRun '%s %s --help' for more information", program, err, program, verb), Code: code}
}

func requestError(err error, verb string) error {
	var st StatusError
	if errors.As(err, &st) {
		return err
	}
	return runError(err, verb, 125)
}

// windowsOnly refuses flags that no engine on Linux knows.
func windowsOnly(f *pflag.FlagSet) error {
	var lines []string
	for _, name := range []string{"cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"} {
		if f.Changed(name) {
			lines = append(lines, fmt.Sprintf("%q is only supported on a %s daemon running on windows, but the %s daemon is running on linux", "--"+name, product, product))
		}
	}
	if lines == nil {
		return nil
	}
	return StatusError{Status: strings.Join(lines, "\n"), Code: 1}
}

func (o *createOptions) request(cli *CLI, co *containerOptions) (*container.CreateRequest, error) {
	if err := windowsOnly(co.set); err != nil {
		return nil, err
	}
	switch o.pull {
	case "always", "missing", "never":
	default:
		return nil, fmt.Errorf("invalid pull option: '%s': must be one of %q, %q or %q", o.pull, "always", "missing", "never")
	}
	return co.parse(cli)
}

// createContainer creates the container, with a pull when the image is missing.
func (cli *CLI) createContainer(ctx context.Context, req *container.CreateRequest, co *containerOptions, o *createOptions) (string, error) {
	cid, err := openCIDFile(co.cidfile)
	if err != nil {
		return "", err
	}
	defer cid.close()
	cl, err := cli.Client()
	if err != nil {
		return "", err
	}
	if co.useAPISocket {
		useAPISocket(req)
	}
	named, isNamed, err := parseAnyRef(co.image)
	if err != nil {
		return "", err
	}
	pull := func() error {
		return cli.pullImage(ctx, co.image, pullOptions{platform: o.platform, quiet: o.quiet, out: cli.Err})
	}
	if o.pull == "always" {
		if err := pull(); err != nil {
			return "", err
		}
	}
	q := url.Values{}
	if o.name != "" {
		q.Set("name", o.name)
	}
	if o.platform != "" {
		q.Set("platform", normalizePlatform(o.platform))
	}
	create := func() (container.CreateResponse, error) {
		return client.Post[container.CreateResponse](ctx, cl, "/containers/create", q, forVersion(ctx, cl, req, co))
	}
	res, err := create()
	if client.IsNotFound(err) && isNamed && o.pull == "missing" {
		if !o.quiet {
			fmt.Fprintf(cli.Err, "Unable to find image '%s' locally\n", named.withDefaultTag().familiar())
		}
		if err := pull(); err != nil {
			return "", err
		}
		res, err = create()
	}
	if err != nil {
		return "", err
	}
	for _, w := range res.Warnings {
		fmt.Fprintln(cli.Err, "WARNING:", w)
	}
	for _, a := range req.HostConfig.DNS {
		if a.IsLoopback() {
			fmt.Fprintf(cli.Err, "WARNING: Localhost DNS (%s) may fail in containers.\n", a)
			break
		}
	}
	if co.useAPISocket {
		if err := copyCredentials(cli, ctx, cl, res.ID); err != nil {
			return "", err
		}
	}
	return res.ID, cid.write(res.ID)
}

// oldRequest is the request for engines before API 1.44, which know one MAC address for all networks.
type oldRequest struct {
	*container.CreateRequest
	MacAddress string `json:",omitempty"`
}

func forVersion(ctx context.Context, cl *client.Client, req *container.CreateRequest, co *containerOptions) any {
	if co.mac != "" && !cl.AtLeast(ctx, "1.44") {
		return oldRequest{req, co.mac}
	}
	return req
}

// cidFile is --cidfile: made before the container, removed when there is none.
type cidFile struct {
	path    string
	f       *os.File
	written bool
}

func openCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	if _, err := os.Stat(path); err == nil {
		return nil, fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", path)
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("failed to create the container ID file: %w", err)
	}
	return &cidFile{path: path, f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := c.f.WriteString(id); err != nil {
		return fmt.Errorf("failed to write the container ID (%s) to file: %w", id, err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close() {
	if c.f == nil {
		return
	}
	c.f.Close()
	if !c.written {
		os.Remove(c.path)
	}
}

type runOptions struct {
	createOptions
	detach, sigProxy bool
	detachKeys       string
}

func runCmd(cli *CLI, c *cobra.Command) {
	var o runOptions
	var co containerOptions
	f := c.Flags()
	o.addFlags(cli, f, "running")
	co.addFlags(cli, f)
	f.BoolVarP(&o.detach, "detach", "d", false, "Run container in background and print container ID")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	f.StringVar(&o.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		co.image, co.args = args[0], args[1:]
		req, err := o.request(cli, &co)
		if err != nil {
			return requestError(err, "run")
		}
		return cli.runContainer(c.Context(), &o, &co, req)
	}
}

func (cli *CLI) runContainer(ctx context.Context, o *runOptions, co *containerOptions, req *container.CreateRequest) error {
	cfg := req.Config
	attach := cfg.AttachStdin || cfg.AttachStdout || cfg.AttachStderr
	if o.detach {
		if len(co.attach.values) != 0 {
			return errors.New("conflicting options: cannot specify both --attach and --detach")
		}
		cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr, cfg.StdinOnce = false, false, false, false
		attach = false
	} else if err := cli.checkTTY(cfg.AttachStdin, cfg.Tty); err != nil {
		return err
	}
	keys, err := cli.detachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if cfg.Tty {
		h, w := cli.Out.Size()
		req.HostConfig.ConsoleSize = [2]uint{h, w}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cl, err := cli.Client()
	if err != nil {
		return err
	}
	var signals *signalForwarder
	if o.sigProxy && attach {
		signals = cli.forwardSignals(ctx, cl)
	}
	id, err := cli.createContainer(ctx, req, co, &o.createOptions)
	if err != nil {
		return startError(err, "run")
	}
	if signals != nil {
		signals.to(id)
	}
	// The wait and the attach are both with the engine before the start, so
	// that nothing of a short life is missed.
	var s *streamer
	attached := make(chan error, 1)
	if attach {
		go func() {
			var err error
			s, err = cli.attachTo(ctx, cl, id, cfg, keys)
			attached <- err
		}()
	} else {
		attached <- nil
	}
	condition := "next-exit"
	if co.autoRemove {
		condition = "removed"
	}
	var wait *waiter
	var waitErr error
	wait, waitErr = waitFor(ctx, cl, id, condition)
	if err := <-attached; err != nil {
		return err
	}
	if waitErr != nil {
		return waitErr
	}
	streamed := make(chan error, 1)
	if s != nil {
		defer s.conn.Close()
		go func() { streamed <- s.run(ctx) }()
	}
	if err := cl.Call(ctx, http.MethodPost, containerPath(id, "/start"), nil); err != nil {
		if s != nil {
			s.conn.Close()
			<-streamed
		}
		if co.autoRemove {
			select { // the engine removes it; wait, so that its name is free again
			case <-wait.result:
			case <-time.After(10 * time.Second):
			}
		}
		return startError(err, "run")
	}
	if !attach {
		fmt.Fprintln(cli.Out, id)
		hintEarlyExit(cli, wait, id, co)
		return nil
	}
	if cfg.Tty && cli.Out.IsTerminal() {
		cli.followSize(ctx, cl, containerPath(id, ""))
	}
	if err := <-streamed; err != nil {
		var esc term.EscapeError
		if errors.As(err, &esc) {
			return nil // the user has detached
		}
		return err
	}
	r := <-wait.result
	if r.err != nil {
		return StatusError{Status: "Error waiting for container: " + r.err.Error(), Code: r.code}
	}
	if r.code != 0 {
		return StatusError{Code: r.code}
	}
	return nil
}

// How long run -d looks whether the container has ended already: a person
// waits for a moment, a script only as long as a program needs that has nothing to do.
const (
	hintDelay       = 100 * time.Millisecond
	hintDelayScript = 15 * time.Millisecond
)

// hintEarlyExit explains on the error stream why a detached container is not there.
func hintEarlyExit(cli *CLI, w *waiter, id string, co *containerOptions) {
	if co.restart != "" && co.restart != "no" {
		return
	}
	delay := hintDelayScript
	if cli.Err.IsTerminal() {
		delay = hintDelay
	}
	var r waitResult
	select {
	case r = <-w.result:
	case <-time.After(delay):
		return
	}
	if r.err != nil {
		return
	}
	advice := "a service must stay in the foreground"
	if !co.tty && !co.interactive && isShell(co) {
		advice = "a shell needs -it (or a command to run)"
	}
	more := fmt.Sprintf("; see `%s logs %s`", program, shortID(id))
	if co.autoRemove {
		more = "; without --rm its logs would be kept"
	}
	fmt.Fprintf(cli.Err, "%s: the container has ended already, with exit code %d: %s%s\n", program, r.code, advice, more)
}

func isShell(co *containerOptions) bool {
	if len(co.args) == 0 {
		return co.entrypoint == ""
	}
	switch filepath.Base(co.args[0]) {
	case "sh", "bash", "ash", "dash", "zsh", "fish":
		return len(co.args) == 1
	}
	return false
}

// attachTo opens the container's streams.
func (cli *CLI) attachTo(ctx context.Context, cl *client.Client, id string, cfg *container.Config, keys string) (*streamer, error) {
	q := url.Values{"stream": {"1"}}
	s := &streamer{cli: cli, tty: cfg.Tty, detachKeys: keys}
	if cfg.AttachStdin {
		q.Set("stdin", "1")
		s.in = cli.In
	}
	if cfg.AttachStdout {
		q.Set("stdout", "1")
		s.out = cli.Out
	}
	if cfg.AttachStderr {
		q.Set("stderr", "1")
		s.err = cli.Err
		if cfg.Tty {
			s.err = cli.Out
			if s.out == nil {
				s.out = cli.Out
			}
		}
	}
	if keys != "" {
		q.Set("detachKeys", keys)
	}
	conn, err := cl.Hijack(ctx, client.Request{Method: http.MethodPost, Path: containerPath(id, "/attach"), Query: q})
	if err != nil {
		return nil, err
	}
	s.conn = conn
	return s, nil
}

// startError gives a failed create or start its exit code: 127 when the
// command is not there, 126 when it cannot be executed, else 125.
func startError(err error, verb string) error {
	var st StatusError
	if errors.As(err, &st) {
		return err
	}
	msg, code := err.Error(), 125
	switch {
	case strings.Contains(msg, "executable file not found"),
		strings.Contains(msg, "no such file or directory"),
		strings.Contains(msg, "system cannot find the file specified"):
		code = 127
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "is a directory"):
		code = 126
	}
	return runError(err, verb, code)
}
