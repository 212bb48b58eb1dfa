package bundle

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const usage = `berth-runtime runs containers from bundles, as the OCI runtime specification says.

Usage: berth-runtime [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND ...

Commands:
  create [-b BUNDLE] [--console-socket SOCKET] [--pid-file FILE] ID
  run    [-b BUNDLE] [-d] [--keep] [--console-socket SOCKET] [--pid-file FILE] ID
  start  ID
  state  ID
  exec   [-t] [-d] [-u UID[:GID]] [-e NAME=VALUE] [--cwd DIR] [-p PROCESS.json] [--pid-file FILE] ID COMMAND [ARG...]
  kill   [--all] ID [SIGNAL]
  delete [--force] ID
  pause  ID
  update [-r FILE | --memory N --cpu-quota N --pids-limit N ...] ID
  events [--stats] [--interval DURATION] ID
  resume ID
  list   [-f table|json] [-q]
  ps     [-f table|json] ID
  spec   [-b BUNDLE]
  features
`

// flags is a flag set in which a flag may have several names.
type flags struct{ *flag.FlagSet }

func newFlags(name string) flags {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return flags{f}
}

func (f flags) text(to *string, def string, names ...string) {
	for _, n := range names {
		f.StringVar(to, n, def, "")
	}
}

func (f flags) yes(to *bool, names ...string) {
	for _, n := range names {
		f.BoolVar(to, n, false, "")
	}
}

func (f flags) list(to *[]string, names ...string) {
	for _, n := range names {
		f.Func(n, "", func(v string) error { *to = append(*to, v); return nil })
	}
}

// ignored takes flags of runc that mean nothing here.
func (f flags) ignored(names ...string) {
	for _, n := range names {
		f.BoolFunc(n, "", func(string) error { return nil })
	}
}

// all parses flags before, between and after the arguments.
func (f flags) all(args []string) ([]string, error) {
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
}

// Main is the program. It returns the exit status.
func Main(args []string) int { return run(args, os.Stdout, os.Stderr) }

func run(args []string, out, errOut io.Writer) int {
	p := &program{out: out, errno: 1}
	var logFile, format string
	var version, systemd, debug bool
	f := newFlags("berth-runtime")
	f.text(&p.root, "/run/berth-runtime", "root")
	f.text(&logFile, "", "log")
	f.text(&format, "text", "log-format")
	f.yes(&version, "version", "v")
	f.yes(&systemd, "systemd-cgroup")
	f.yes(&debug, "debug")
	var unused string
	f.text(&unused, "", "rootless", "criu")
	err := f.Parse(args)
	log := &logger{format: format, debug: debug, w: errOut}
	if logFile != "" {
		file, ferr := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if ferr != nil {
			fmt.Fprintln(errOut, ferr)
			return 1
		}
		defer file.Close()
		log.w = file
	}
	p.note = func(text string, args ...any) { log.write("warning", fmt.Sprintf(text, args...)) }
	code := 0
	switch {
	case errors.Is(err, flag.ErrHelp) || err == nil && f.NArg() == 0 && !version:
		fmt.Fprint(out, usage)
		err = nil
	case err != nil:
	case version:
		fmt.Fprintf(out, "berth-runtime version %s\nspec: %s\n", Version, specs.Version)
	default:
		if systemd {
			p.note("--systemd-cgroup is ignored: cgroups are made directly")
		}
		log.write("debug", "command: "+strings.Join(args, " "))
		code, err = p.dispatch(f.Arg(0), f.Args()[1:])
	}
	if err != nil {
		log.write("error", err.Error())
		if logFile != "" {
			fmt.Fprintln(errOut, "berth-runtime:", err)
		}
		return p.errno
	}
	return code
}

// logger writes lines as runc's do: engines read the errors from them.
type logger struct {
	w      io.Writer
	format string
	debug  bool
}

func (l *logger) write(level, msg string) {
	if level == "debug" && !l.debug {
		return
	}
	now := time.Now().Format(time.RFC3339)
	if l.format == "json" {
		raw, err := json.Marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, msg, now})
		if err == nil {
			fmt.Fprintf(l.w, "%s\n", raw)
		}
		return
	}
	fmt.Fprintf(l.w, "time=%q level=%s msg=%q\n", now, level, msg)
}

func (p *program) dispatch(name string, args []string) (int, error) {
	switch name {
	case "create":
		return 0, p.cmdCreate(args)
	case "run":
		return p.cmdRun(args)
	case "exec":
		p.errno = 255
		return p.cmdExec(args)
	case "start", "state", "pause", "resume":
		rest, err := newFlags(name).all(args)
		if err != nil {
			return 0, err
		}
		if len(rest) != 1 {
			return 0, fmt.Errorf("%q requires exactly 1 argument", name)
		}
		r, err := p.load(rest[0])
		if err != nil {
			return 0, err
		}
		switch name {
		case "start":
			return 0, p.start(r)
		case "pause":
			return 0, p.freeze(r, true)
		case "resume":
			return 0, p.freeze(r, false)
		}
		return 0, p.showState(r)
	case "kill":
		return 0, p.cmdKill(args)
	case "delete":
		return 0, p.cmdDelete(args)
	case "list":
		return 0, p.cmdList(args)
	case "ps":
		return 0, p.cmdPs(args)
	case "spec":
		return 0, p.cmdSpec(args)
	case "features":
		return 0, p.cmdFeatures()
	case "help":
		fmt.Fprint(p.out, usage)
		return 0, nil
	case "update":
		return 0, p.cmdUpdate(args)
	case "events":
		return 0, p.cmdEvents(args)
	case "checkpoint", "restore":
		return 0, fmt.Errorf("%s is not supported by this runtime", name)
	}
	return 0, fmt.Errorf("no help topic for '%s'", name)
}

func createFlags(name string, o *createOptions) flags {
	f := newFlags(name)
	f.text(&o.bundle, ".", "bundle", "b")
	f.text(&o.console, "", "console-socket")
	f.text(&o.pidFile, "", "pid-file")
	f.IntVar(&o.keepFDs, "preserve-fds", 0, "")
	f.ignored("no-pivot", "no-new-keyring")
	return f
}

func (p *program) cmdCreate(args []string) error {
	var o createOptions
	rest, err := createFlags("create", &o).all(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New(`"create" requires exactly 1 argument`)
	}
	_, err = p.create(rest[0], o)
	return err
}

func (p *program) cmdRun(args []string) (int, error) {
	var o createOptions
	var detach, keep bool
	f := createFlags("run", &o)
	f.yes(&detach, "detach", "d")
	f.yes(&keep, "keep")
	f.ignored("no-subreaper")
	rest, err := f.all(args)
	if err != nil {
		return 0, err
	}
	if len(rest) != 1 {
		return 0, errors.New(`"run" requires exactly 1 argument`)
	}
	o.local = !detach && o.console == ""
	var signals caught
	if !detach {
		signals = catchSignals() // before anybody can see that the container runs
	}
	c, err := p.create(rest[0], o)
	if err != nil {
		return 0, err
	}
	err = p.start(c.record)
	if err != nil || detach {
		if err != nil {
			_, _ = unix.Wait4(c.Pid, nil, 0, nil) // it ends by itself, or delete ends it
			_ = p.delete(c.record, true)
		}
		return 0, err
	}
	signals.passTo(c.Pid)
	code, err := foreground(c.Pid, c.master)
	if err == nil && !keep {
		err = p.delete(c.record, true)
	}
	return code, err
}

func (p *program) cmdExec(args []string) (int, error) {
	o := &execOptions{}
	f := newFlags("exec")
	f.text(&o.processFile, "", "process", "p")
	f.text(&o.console, "", "console-socket")
	f.text(&o.pidFile, "", "pid-file")
	f.text(&o.cwd, "", "cwd")
	f.text(&o.user, "", "user", "u")
	f.text(&o.apparmor, "", "apparmor")
	f.list(&o.env, "env", "e")
	f.list(&o.groups, "additional-gids", "g")
	f.list(&o.caps, "cap", "c")
	f.yes(&o.tty, "tty", "t")
	f.yes(&o.detach, "detach", "d")
	f.yes(&o.noNewPrivs, "no-new-privs")
	f.IntVar(&o.keepFDs, "preserve-fds", 0, "")
	f.ignored("ignore-paused")
	if err := f.Parse(args); err != nil {
		return 0, err
	}
	if f.NArg() < 1 || f.NArg() < 2 && o.processFile == "" {
		return 0, errors.New(`"exec" requires a minimum of 2 arguments`)
	}
	r, err := p.load(f.Arg(0))
	if err != nil {
		return 0, err
	}
	o.args = f.Args()[1:]
	return p.exec(r, o)
}

func (p *program) cmdKill(args []string) error {
	var all bool
	f := newFlags("kill")
	f.yes(&all, "all", "a")
	rest, err := f.all(args)
	if err != nil {
		return err
	}
	if len(rest) < 1 || len(rest) > 2 {
		return errors.New(`"kill" requires a minimum of 1 argument and a maximum of 2`)
	}
	r, err := p.load(rest[0])
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if len(rest) == 2 {
		if sig, err = parseSignal(rest[1]); err != nil {
			return err
		}
	}
	return p.kill(r, sig, all)
}

func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return unix.Signal(n), nil
	}
	if sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func (p *program) cmdDelete(args []string) error {
	var force bool
	f := newFlags("delete")
	f.yes(&force, "force", "f")
	rest, err := f.all(args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New(`"delete" requires exactly 1 argument`)
	}
	r, err := p.load(rest[0])
	if err != nil {
		if dir, derr := p.dir(rest[0]); derr == nil && force { // nothing, or a create that was killed half way
			return os.RemoveAll(dir)
		}
		return err
	}
	return p.delete(r, force)
}

func (p *program) json(v any) error {
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// shown is a container as state and list print it: the specification's state
// and what runc adds to it.
type shown struct {
	*specs.State
	Rootfs  string    `json:"rootfs"`
	Created time.Time `json:"created"`
	Owner   string    `json:"owner"`
}

func (p *program) show(r *record) (*shown, error) {
	c, err := cgroups()
	if err != nil {
		return nil, err
	}
	return &shown{r.state(r.status(c)), r.Spec.Root.Path, r.Created, r.Owner}, nil
}

func (p *program) showState(r *record) error {
	s, err := p.show(r)
	if err != nil {
		return err
	}
	return p.json(s)
}

func (p *program) cmdList(args []string) error {
	var format string
	var quiet bool
	f := newFlags("list")
	f.text(&format, "table", "format", "f")
	f.yes(&quiet, "quiet", "q")
	if _, err := f.all(args); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	list := []*shown{}
	for _, e := range entries {
		r, err := p.load(e.Name())
		if err != nil {
			continue // being made or removed
		}
		s, err := p.show(r)
		if err != nil {
			return err
		}
		list = append(list, s)
	}
	switch {
	case quiet:
		for _, s := range list {
			fmt.Fprintln(p.out, s.ID)
		}
		return nil
	case format == "json":
		return json.NewEncoder(p.out).Encode(list)
	case format != "table":
		return errors.New("invalid format option")
	}
	rows := [][]string{{"ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"}}
	for _, s := range list {
		rows = append(rows, []string{s.ID, strconv.Itoa(s.Pid), string(s.Status), s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner})
	}
	p.table(rows)
	return nil
}

func (p *program) table(rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len(c))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c + strings.Repeat(" ", width[i]-len(c)+3))
		}
		fmt.Fprintln(p.out, strings.TrimRight(b.String(), " "))
	}
}

func (p *program) cmdPs(args []string) error {
	var format string
	f := newFlags("ps")
	f.text(&format, "table", "format", "f")
	rest, err := f.all(args)
	if err != nil {
		return err
	}
	if len(rest) < 1 {
		return errors.New(`"ps" requires a minimum of 1 argument`)
	}
	r, err := p.load(rest[0])
	if err != nil {
		return err
	}
	c, err := cgroups()
	if err != nil {
		return err
	}
	pids, err := c.Pids(c.Find(r.Cgroup))
	if err != nil {
		return err
	}
	slices.Sort(pids)
	if format == "json" {
		return json.NewEncoder(p.out).Encode(pids)
	}
	rows := [][]string{{"PID", "CMD"}}
	for _, pid := range pids {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		rows = append(rows, []string{strconv.Itoa(pid), strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))})
	}
	p.table(rows)
	return nil
}
