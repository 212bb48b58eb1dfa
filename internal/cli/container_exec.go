package cli

import (
	"context"
	"errors"
	"net/http"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

func execCmd(cli *CLI, c *cobra.Command) {
	var req container.ExecCreateRequest
	var detach, interactive bool
	var keys string
	env, envFile := list(cli.checkEnv), list(nil)
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	f.BoolVarP(&interactive, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.BoolVarP(&req.Tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.BoolVarP(&detach, "detach", "d", false, "Detached mode: run command in the background")
	f.StringVarP(&req.User, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	f.BoolVar(&req.Privileged, "privileged", false, "Give extended privileges to the command")
	f.VarP(env, "env", "e", "Set environment variables")
	f.Var(envFile, "env-file", "Read in a file of environment variables")
	f.StringVarP(&req.WorkingDir, "workdir", "w", "", "Working directory inside the container")
	c.RunE = func(c *cobra.Command, args []string) error {
		for _, p := range envFile.values {
			kv, err := readKVFile(p, cli.environ)
			if err != nil {
				return err
			}
			req.Env = append(req.Env, kv...)
		}
		req.Env = append(req.Env, env.values...)
		req.Cmd = args[1:]
		if !detach {
			req.AttachStdout, req.AttachStderr, req.AttachStdin = true, true, interactive
		}
		var err error
		if req.DetachKeys, err = cli.detachKeys(keys); err != nil {
			return err
		}
		if err := checkRef(args[0]); err != nil {
			return err
		}
		if !detach {
			if err := cli.checkTTY(req.AttachStdin, req.Tty); err != nil {
				return err
			}
		}
		if req.Tty {
			if h, w := cli.Out.Size(); h != 0 || w != 0 {
				req.ConsoleSize = &[2]uint{h, w}
			}
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		created, err := client.Post[container.ExecCreateResponse](c.Context(), cl, containerPath(args[0], "/exec"), nil, req)
		if err != nil {
			return execError(err)
		}
		if created.ID == "" {
			return errors.New("exec ID empty")
		}
		start := container.ExecStartRequest{Detach: detach, Tty: req.Tty, ConsoleSize: req.ConsoleSize}
		path := "/exec/" + created.ID
		if detach {
			return cl.JSON(c.Context(), client.Request{Method: http.MethodPost, Path: path + "/start", Body: start}, nil)
		}
		return execAttached(cli, c.Context(), cl, path, &req, start)
	}
}

// execError gives a command that cannot be executed its exit code.
func execError(err error) error {
	var st StatusError
	if e := startError(err, "exec"); errors.As(e, &st) && st.Code != 125 {
		return StatusError{Status: err.Error(), Code: st.Code}
	}
	return err
}

func execAttached(cli *CLI, ctx context.Context, cl *client.Client, path string, req *container.ExecCreateRequest, start container.ExecStartRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := cl.Hijack(ctx, client.Request{Method: http.MethodPost, Path: path + "/start", Body: start})
	if err != nil {
		return execError(err)
	}
	defer conn.Close()
	s := &streamer{cli: cli, conn: conn, tty: req.Tty, out: cli.Out, err: cli.Err, detachKeys: req.DetachKeys}
	if req.AttachStdin {
		s.in = cli.In
	}
	if req.Tty && cli.Out.IsTerminal() {
		cli.followSize(ctx, cl, path)
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	info, err := client.Get[container.ExecInspectResponse](ctx, cl, path+"/json", nil)
	if err != nil {
		var ce *client.ConnectError
		if errors.As(err, &ce) {
			return StatusError{Code: -1}
		}
		return err
	}
	if info.ExitCode != nil && *info.ExitCode != 0 {
		return StatusError{Code: *info.ExitCode}
	}
	return nil
}
