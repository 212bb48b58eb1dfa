package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/client"
)

// containerPath returns /containers/ID and what follows it. An id may hold no slash.
func containerPath(ref, rest string) string { return "/containers/" + ref + rest }

// checkRef refuses a name that would change the path of the request.
func checkRef(ref string) error {
	if strings.TrimSpace(ref) == "" {
		return errors.New("invalid container name or ID: value is empty")
	}
	return nil
}

// eachContainer makes a command that posts to /containers/ID/verb for every argument.
func eachContainer(cli *CLI, c *cobra.Command, verb string, query func() url.Values) {
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		var q url.Values
		if query != nil {
			q = query()
		}
		return cli.forEach(args, func(ref string) error {
			if err := checkRef(ref); err != nil {
				return err
			}
			return cl.Call(c.Context(), http.MethodPost, containerPath(ref, verb), q)
		})
	}
}

func stopFlags(cli *CLI, c *cobra.Command, verb string) {
	var signal string
	var timeout int
	f := c.Flags()
	f.StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	f.IntVarP(&timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
	f.IntVar(&timeout, "time", 0, "Seconds to wait before killing the container (deprecated: use --timeout)")
	f.Lookup("time").Hidden = true
	eachContainer(cli, c, verb, func() url.Values {
		q := url.Values{}
		if signal != "" {
			q.Set("signal", signal)
		}
		if f.Changed("timeout") || f.Changed("time") {
			q.Set("t", strconv.Itoa(timeout))
		}
		return q
	})
}

func stopCmd(cli *CLI, c *cobra.Command)    { stopFlags(cli, c, "/stop") }
func restartCmd(cli *CLI, c *cobra.Command) { stopFlags(cli, c, "/restart") }
func pauseCmd(cli *CLI, c *cobra.Command)   { eachContainer(cli, c, "/pause", nil) }
func unpauseCmd(cli *CLI, c *cobra.Command) { eachContainer(cli, c, "/unpause", nil) }

func killCmd(cli *CLI, c *cobra.Command) {
	var signal string
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	eachContainer(cli, c, "/kill", func() url.Values {
		if signal == "" {
			return nil
		}
		return url.Values{"signal": {signal}}
	})
}

func rmCmd(cli *CLI, c *cobra.Command) {
	var force, link, volumes bool
	f := c.Flags()
	f.BoolVarP(&volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	f.BoolVarP(&link, "link", "l", false, "Remove the specified link")
	f.BoolVarP(&force, "force", "f", false, "Force the removal of a running container (uses SIGKILL)")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{}
		for k, v := range map[string]bool{"v": volumes, "link": link, "force": force} {
			if v {
				q.Set(k, "1")
			}
		}
		var gone error
		err = cli.forEach(args, func(ref string) error {
			ref = strings.Trim(ref, "/")
			if ref == "" {
				return errors.New("container name cannot be empty")
			}
			err := cl.Call(c.Context(), http.MethodDelete, containerPath(ref, ""), q)
			if force && client.IsNotFound(err) {
				fmt.Fprintln(cli.Err, err)
				return errSkip
			}
			return err
		})
		for _, e := range unjoin(err) {
			if !errors.Is(e, errSkip) {
				gone = errors.Join(gone, e)
			}
		}
		return gone
	}
}

// errSkip marks an argument that is neither printed nor a failure.
var errSkip = errors.New("skip")

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the joined error itself is meant
		return j.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func renameCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, args []string) error {
		oldName, newName := strings.TrimSpace(args[0]), strings.TrimSpace(args[1])
		if oldName == "" || newName == "" {
			return errors.New("Error: Neither old nor new names may be empty") //nolint:staticcheck // Docker's words
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		if err := cl.Call(c.Context(), http.MethodPost, containerPath(oldName, "/rename"), url.Values{"name": {newName}}); err != nil {
			return fmt.Errorf("%w\nError: failed to rename container named %s", err, oldName)
		}
		return nil
	}
}

func waitCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		var errs []error
		for _, ref := range args {
			res, err := client.Post[container.WaitResponse](c.Context(), cl, containerPath(ref, "/wait"), nil, nil)
			switch {
			case err != nil:
				errs = append(errs, err)
			case res.Error != nil:
				errs = append(errs, errors.New(res.Error.Message))
			default:
				fmt.Fprintln(cli.Out, res.StatusCode)
			}
		}
		return errors.Join(errs...)
	}
}

func topCmd(cli *CLI, c *cobra.Command) {
	c.Flags().SetInterspersed(false)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{}
		if len(args) > 1 {
			q.Set("ps_args", strings.Join(args[1:], " "))
		}
		top, err := client.Get[container.TopResponse](c.Context(), cl, containerPath(args[0], "/top"), q)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cli.Out, 20, 1, 3, ' ', 0)
		fmt.Fprintln(w, strings.Join(top.Titles, "\t"))
		for _, p := range top.Processes {
			fmt.Fprintln(w, strings.Join(p, "\t"))
		}
		return w.Flush()
	}
}

// inspectContainer fetches what the engine knows about one container.
func inspectContainer(ctx context.Context, cl *client.Client, ref string) (container.InspectResponse, error) {
	if err := checkRef(ref); err != nil {
		return container.InspectResponse{}, err
	}
	return client.Get[container.InspectResponse](ctx, cl, containerPath(ref, "/json"), nil)
}

func portCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		info, err := inspectContainer(c.Context(), cl, args[0])
		if err != nil {
			return err
		}
		var lines []string
		address := func(b network.PortBinding) string {
			ip := ""
			if b.HostIP.IsValid() {
				ip = b.HostIP.String()
				if b.HostIP.Is6() {
					ip = "[" + ip + "]"
				}
			}
			return ip + ":" + b.HostPort
		}
		var ports network.PortMap
		if info.NetworkSettings != nil {
			ports = info.NetworkSettings.Ports
		}
		if len(args) == 2 {
			num, proto, _ := strings.Cut(args[1], "/")
			if proto == "" {
				proto = "tcp"
			}
			if _, err := strconv.ParseUint(num, 10, 16); err != nil {
				return fmt.Errorf("Error: invalid port (%s): %w", num, err) //nolint:staticcheck // Docker's words
			}
			p, err := network.ParsePort(num + "/" + proto)
			if err != nil {
				return err
			}
			bindings, ok := ports[p]
			if !ok {
				return fmt.Errorf("Error: No public port '%s' published for %s", args[1], args[0]) //nolint:staticcheck // Docker's words
			}
			for _, b := range bindings {
				lines = append(lines, address(b))
			}
		} else {
			for from, bindings := range ports {
				for _, b := range bindings {
					lines = append(lines, fmt.Sprintf("%s -> %s", from, address(b)))
				}
			}
		}
		sort.Slice(lines, func(i, j int) bool { return naturalLess(lines[i], lines[j]) })
		if len(lines) > 0 {
			fmt.Fprintln(cli.Out, strings.Join(lines, "\n"))
		}
		return nil
	}
}

// naturalLess compares digits by their number: a2 comes before a10.
func naturalLess(a, b string) bool {
	for a != "" && b != "" {
		if isDigit(a[0]) && isDigit(b[0]) {
			x, y := digits(a), digits(b)
			m, n := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(m) != len(n) {
				return len(m) < len(n)
			}
			if m != n {
				return m < n
			}
			a, b = a[len(x):], b[len(y):]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func digits(s string) string {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return s[:i]
}

func diffCmd(cli *CLI, c *cobra.Command) {
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		changes, err := client.Get[[]container.FilesystemChange](c.Context(), cl, containerPath(args[0], "/changes"), nil)
		if err != nil {
			return err
		}
		for _, ch := range changes {
			fmt.Fprintln(cli.Out, ch.Kind, ch.Path)
		}
		return nil
	}
}

func exportCmd(cli *CLI, c *cobra.Command) {
	var output string
	c.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	c.RunE = func(c *cobra.Command, args []string) error {
		if output == "" && cli.Out.IsTerminal() {
			return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
		}
		if err := checkOutput(output); err != nil {
			return fmt.Errorf("failed to export container: %w", err)
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		res, err := cl.Do(c.Context(), client.Request{Method: http.MethodGet, Path: containerPath(args[0], "/export")})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return cli.saveStream(output, res.Body)
	}
}

// saveStream copies to the named file, complete or not at all, or to our output.
func (cli *CLI) saveStream(path string, r io.Reader) error {
	if path == "" {
		_, err := io.Copy(cli.Out, r)
		return err
	}
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() { // a device or a pipe is written in place
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// checkOutput refuses a path that cannot be written, before anything is asked of the engine.
func checkOutput(path string) error {
	if path == "" {
		return nil
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("invalid output path: %w", err)
	}
	st, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return errors.New("cannot write to a directory")
	case st.Mode()&os.ModeDevice != 0 && path != os.DevNull:
		return errors.New("cannot write to a device")
	}
	return nil
}

func commitCmd(cli *CLI, c *cobra.Command) {
	var author, message string
	var pause bool
	changes := list(nil)
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&pause, "pause", "p", true, "Pause container during commit")
	f.StringVarP(&message, "message", "m", "", "Commit message")
	f.StringVarP(&author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	f.VarP(changes, "change", "c", "Apply Dockerfile instruction to the created image")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		q := url.Values{"container": {args[0]}, "comment": {message}, "author": {author}}
		if len(args) > 1 && args[1] != "" {
			repo, tag, err := splitRepoTag(args[1])
			if err != nil {
				return err
			}
			q.Set("repo", repo)
			q.Set("tag", tag)
		}
		for _, ch := range changes.values {
			q.Add("changes", ch)
		}
		if !pause {
			q.Set("pause", "0")
		}
		res, err := client.Post[container.CommitResponse](c.Context(), cl, "/commit", q, nil)
		if err != nil {
			return err
		}
		fmt.Fprintln(cli.Out, res.ID)
		return nil
	}
}

func updateCmd(cli *CLI, c *cobra.Command) {
	var o struct {
		memory, reservation, swap, kernel    bytesValue
		cpus                                 cpusValue
		blkio                                uint16
		period, quota, rtPeriod, rtRuntime   int64
		shares, pids                         int64
		cpusetCpus, cpusetMems, restartValue string
	}
	o.swap.swap = true
	f := c.Flags()
	f.Uint16Var(&o.blkio, "blkio-weight", 0, `Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)`)
	f.Int64Var(&o.period, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&o.quota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	f.Int64Var(&o.rtPeriod, "cpu-rt-period", 0, "Limit the CPU real-time period in microseconds")
	f.Int64Var(&o.rtRuntime, "cpu-rt-runtime", 0, "Limit the CPU real-time runtime in microseconds")
	f.StringVar(&o.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	f.Int64VarP(&o.shares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.VarP(&o.memory, "memory", "m", "Memory limit")
	f.Var(&o.reservation, "memory-reservation", "Memory soft limit")
	f.Var(&o.swap, "memory-swap", `Swap limit equal to memory plus swap: -1 to enable unlimited swap`)
	f.Var(&o.kernel, "kernel-memory", "Kernel memory limit (deprecated)")
	f.Lookup("kernel-memory").Hidden = true
	f.StringVar(&o.restartValue, "restart", "", "Restart policy to apply when a container exits")
	f.Int64Var(&o.pids, "pids-limit", 0, `Tune container pids limit (set -1 for unlimited)`)
	f.Var(&o.cpus, "cpus", "Number of CPUs")
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.NFlag() == 0 {
			return errors.New("you must provide one or more flags when using this command")
		}
		policy, err := parseRestart(o.restartValue)
		if err != nil {
			return err
		}
		cfg := container.UpdateConfig{RestartPolicy: policy, Resources: container.Resources{
			BlkioWeight: o.blkio, CpusetCpus: o.cpusetCpus, CpusetMems: o.cpusetMems, CPUShares: o.shares, Memory: o.memory.n,
			MemoryReservation: o.reservation.n, MemorySwap: o.swap.n, CPUPeriod: o.period, CPUQuota: o.quota,
			CPURealtimePeriod: o.rtPeriod, CPURealtimeRuntime: o.rtRuntime, NanoCPUs: int64(o.cpus),
		}}
		if f.Changed("pids-limit") {
			cfg.PidsLimit = &o.pids
		}
		cl, err := cli.Client()
		if err != nil {
			return err
		}
		var warns []string
		var errs []error
		for _, ref := range args {
			res, err := client.Post[container.UpdateResponse](c.Context(), cl, containerPath(ref, "/update"), nil, cfg)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(cli.Out, ref)
			warns = append(warns, res.Warnings...)
		}
		if len(warns) > 0 {
			fmt.Fprintln(cli.Out, strings.Join(warns, "\n"))
		}
		return errors.Join(errs...)
	}
}
