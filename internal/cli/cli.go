// Package cli is the command line of Berth: Docker's commands, flags, texts
// and exit codes over the Engine API, and nothing but the API.
//
// Model. A CLI value holds the three streams, the configuration directory and
// the connection, which is made when a command first asks for it. Commands are
// cobra commands made in root.go from one table; each has a build function
// which adds its flags and its RunE, and which runs only for the command that
// was named, so that the hundreds of flags of all others cost nothing at start.
// The same build function serves both spellings of a command ("ps" and
// "container ls").
//
// Output. Lists are rows (one type per object, in a file named like its
// command) whose methods are the template fields; formatter.go renders rows as
// a table, as JSON lines or through a Go template. Errors are plain; a
// StatusError carries an exit code. Main prints the error and returns the code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/term"

	"berth.dev/berth/internal/client"
)

// program is the name in messages; product the name in sentences.
const (
	program = "berth"
	product = "Berth"
)

// Out is an output stream which knows its terminal.
type Out struct {
	io.Writer
	fd  uintptr
	tty bool
}

// infoMark begins a remark beside the result.
func (o *Out) infoMark() string {
	if o.tty {
		return "i Info → "
	}
	return " Info -> "
}

// IsTerminal reports whether the stream is a terminal.
func (o *Out) IsTerminal() bool { return o.tty }

// Size returns the height and width of the terminal, or zeros.
func (o *Out) Size() (height, width uint) {
	if !o.tty {
		return 0, 0
	}
	ws, err := term.GetWinsize(o.fd)
	if err != nil {
		return 0, 0
	}
	return uint(ws.Height), uint(ws.Width)
}

// In is the input stream.
type In struct {
	io.Reader
	fd  uintptr
	tty bool
}

// CLI is one invocation.
type CLI struct {
	In       *In
	Out, Err *Out
	environ  func(string) (string, bool)
	opts     globalOptions
	config   *configFile
	client   *client.Client
}

// globalOptions are the flags before the command.
type globalOptions struct {
	configDir, context, logLevel string
	debug, tls, tlsVerify        bool
	hosts                        []string
	ca, cert, key                string
	tlsSet                       bool
}

// New returns a CLI over the process's streams.
func New(in, out, errOut *os.File) *CLI {
	return &CLI{
		In:      &In{in, in.Fd(), term.IsTerminal(in.Fd())},
		Out:     &Out{out, out.Fd(), term.IsTerminal(out.Fd())},
		Err:     &Out{errOut, errOut.Fd(), term.IsTerminal(errOut.Fd())},
		environ: os.LookupEnv,
	}
}

func (cli *CLI) getenv(k string) string { v, _ := cli.environ(k); return v }

// StatusError ends the program with Code. An empty Status prints nothing.
type StatusError struct {
	Status string
	Code   int
}

func (e StatusError) Error() string { return e.Status }

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, args []string, in, out, errOut *os.File) int {
	cli := New(in, out, errOut)
	err := cli.run(ctx, args)
	if cli.client != nil {
		cli.client.Close()
	}
	if err == nil {
		return 0
	}
	var st StatusError
	if errors.As(err, &st) {
		if st.Status != "" {
			fmt.Fprintln(cli.Err, st.Status)
		}
		if st.Code == 0 {
			return 1
		}
		return st.Code
	}
	if errors.Is(err, context.Canceled) {
		return 130
	}
	fmt.Fprintln(cli.Err, err)
	return 1
}

// Client returns the connection to the engine, made on first use.
func (cli *CLI) Client() (*client.Client, error) {
	if cli.client != nil {
		return cli.client, nil
	}
	ep, err := cli.endpoint()
	if err != nil {
		return nil, err
	}
	o := client.Options{
		Host: ep.host, TLS: ep.tls, Version: cli.getenv("DOCKER_API_VERSION"),
		Headers: cli.Config().HTTPHeaders, UserAgent: "Docker-Client/" + version + " (linux)",
		Optimistic: strings.HasPrefix(ep.host, "unix://"),
	}
	if ep.standard {
		o.Refused = cli.autostart
	}
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	cli.client = c
	return c, nil
}

// forEach calls f for each argument, up to 50 at once, prints each that
// succeeded in the order given, and joins the errors.
func (cli *CLI) forEach(args []string, f func(arg string) error) error {
	if len(args) == 1 {
		err := f(args[0])
		if err == nil {
			fmt.Fprintln(cli.Out, args[0])
			return nil
		}
		return errors.Join(err)
	}
	type result struct{ err error }
	results := make([]chan result, len(args))
	slots := make(chan struct{}, 50)
	for i, a := range args {
		results[i] = make(chan result, 1)
		go func() {
			slots <- struct{}{}
			results[i] <- result{f(a)}
			<-slots
		}()
	}
	var errs []error
	for i, a := range args {
		if r := <-results[i]; r.err != nil {
			errs = append(errs, r.err)
		} else {
			fmt.Fprintln(cli.Out, a)
		}
	}
	return errors.Join(errs...)
}

// confirm asks a yes or no question. The default is no.
func (cli *CLI) confirm(message string) bool {
	if message == "" {
		message = "Are you sure you want to proceed?"
	}
	fmt.Fprint(cli.Out, message+" [y/N] ")
	var b strings.Builder
	buf := make([]byte, 1)
	for {
		n, err := cli.In.Read(buf)
		if n == 1 && buf[0] != '\n' {
			b.WriteByte(buf[0])
		}
		if err != nil || n == 1 && buf[0] == '\n' {
			break
		}
	}
	return strings.EqualFold(strings.TrimSpace(b.String()), "y")
}
