package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

func attachCmd(cli *CLI, c *cobra.Command) {
	var noStdin, proxy bool
	var keys string
	f := c.Flags()
	f.BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	f.BoolVar(&proxy, "sig-proxy", true, "Proxy all received signals to the process")
	f.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		info, err := inspectContainer(ctx, cl, args[0])
		if err != nil {
			return err
		}
		switch st := info.State; {
		case st == nil:
		case !st.Running:
			return errors.New("cannot attach to a stopped container, start it first")
		case st.Paused:
			return errors.New("cannot attach to a paused container, unpause it first")
		case st.Restarting:
			return errors.New("cannot attach to a restarting container, wait until it is running")
		}
		if err := cli.checkTTY(!noStdin, info.Config.Tty); err != nil {
			return err
		}
		if keys, err = cli.detachKeys(keys); err != nil {
			return err
		}
		wait, err := waitFor(ctx, cl, info.ID, "")
		if err != nil {
			return err
		}
		cfg := &container.Config{Tty: info.Config.Tty, AttachStdin: !noStdin && info.Config.OpenStdin, AttachStdout: true, AttachStderr: true}
		if proxy && !cfg.Tty {
			cli.forwardSignals(ctx, cl).to(info.ID)
		}
		s, err := cli.attachTo(ctx, cl, info.ID, cfg, keys)
		if err != nil {
			return err
		}
		defer s.conn.Close()
		if cfg.Tty && cli.Out.IsTerminal() {
			nudgeSize(cli, ctx, cl, info.ID)
			cli.followSize(ctx, cl, containerPath(info.ID, ""))
		}
		if err := s.run(ctx); err != nil {
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
}

// nudgeSize makes the program redraw: a size that changes twice is a change.
func nudgeSize(cli *CLI, ctx context.Context, cl *client.Client, id string) {
	h, w := cli.Out.Size()
	_ = cl.Call(ctx, http.MethodPost, containerPath(id, "/resize"), url.Values{"h": {fmt.Sprint(h + 1)}, "w": {fmt.Sprint(w + 1)}})
}

func startCmd(cli *CLI, c *cobra.Command) {
	var attach, openStdin bool
	var keys, checkpoint, checkpointDir string
	f := c.Flags()
	f.BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	f.BoolVarP(&openStdin, "interactive", "i", false, "Attach container's STDIN")
	f.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	f.StringVar(&checkpoint, "checkpoint", "", "Restore from this checkpoint")
	f.StringVar(&checkpointDir, "checkpoint-dir", "", "Use a custom checkpoint storage directory")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{}
		if checkpoint != "" {
			q.Set("checkpoint", checkpoint)
		}
		if checkpointDir != "" {
			q.Set("checkpoint-dir", checkpointDir)
		}
		switch {
		case (attach || openStdin) && len(args) > 1:
			return errors.New("you cannot start and attach multiple containers at once")
		case attach || openStdin:
			return startAttached(cli, c.Context(), cl, args[0], openStdin, keys, q)
		case checkpoint != "" && len(args) > 1:
			return errors.New("you cannot restore multiple containers at once")
		}
		failed := []string{}
		for _, ref := range args {
			if err := checkRef(ref); err == nil {
				err = cl.Call(c.Context(), http.MethodPost, containerPath(ref, "/start"), q)
				if err != nil {
					fmt.Fprintln(cli.Err, err)
					failed = append(failed, ref)
					continue
				}
			} else {
				return err
			}
			fmt.Fprintln(cli.Out, ref)
		}
		if len(failed) > 0 {
			return errors.New("Error: failed to start containers: " + joinComma(failed))
		}
		return nil
	}
}

func startAttached(cli *CLI, ctx context.Context, cl *client.Client, ref string, openStdin bool, keys string, q url.Values) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	info, err := inspectContainer(ctx, cl, ref)
	if err != nil {
		return err
	}
	if keys, err = cli.detachKeys(keys); err != nil {
		return err
	}
	cfg := &container.Config{Tty: info.Config.Tty, AttachStdin: openStdin && info.Config.OpenStdin, AttachStdout: true, AttachStderr: true}
	if !cfg.Tty {
		cli.forwardSignals(ctx, cl).to(info.ID)
	}
	s, err := cli.attachTo(ctx, cl, info.ID, cfg, keys)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	condition := "next-exit"
	if info.HostConfig != nil && info.HostConfig.AutoRemove {
		condition = "removed"
	}
	wait, err := waitFor(ctx, cl, info.ID, condition)
	if err != nil {
		return err
	}
	streamed := make(chan error, 1)
	go func() { streamed <- s.run(ctx) }()
	if err := cl.Call(ctx, http.MethodPost, containerPath(info.ID, "/start"), q); err != nil {
		s.conn.Close()
		<-streamed
		if condition == "removed" {
			<-wait.result
		}
		return err
	}
	if cfg.Tty && cli.Out.IsTerminal() {
		cli.followSize(ctx, cl, containerPath(info.ID, ""))
	}
	if err := <-streamed; err != nil {
		var esc term.EscapeError
		if errors.As(err, &esc) {
			return nil
		}
		return err
	}
	if r := <-wait.result; r.err != nil {
		return StatusError{Status: "Error waiting for container: " + r.err.Error(), Code: r.code}
	} else if r.code != 0 {
		return StatusError{Code: r.code}
	}
	return nil
}
