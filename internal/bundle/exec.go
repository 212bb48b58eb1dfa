package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
	"berth.dev/berth/internal/undo"
)

// execOptions are the flags of exec.
type execOptions struct {
	processFile string
	console     string
	pidFile     string
	cwd         string
	user        string
	env         []string
	groups      []string
	caps        []string
	tty, detach bool
	noNewPrivs  bool
	apparmor    string
	keepFDs     int
	args        []string
}

// process is what exec is to run: a file's whole process, or the container's
// own with what the flags change.
func (o *execOptions) process(base *specs.Process) (*specs.Process, error) {
	if o.processFile != "" {
		raw, err := os.ReadFile(o.processFile)
		if err != nil {
			return nil, err
		}
		p := &specs.Process{}
		if err := json.Unmarshal(raw, p); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", o.processFile, err)
		}
		return p, checkProcess(p)
	}
	p := *base
	p.Args, p.Terminal, p.ConsoleSize = o.args, o.tty, nil
	if o.cwd != "" {
		p.Cwd = o.cwd
	}
	if o.apparmor != "" {
		p.ApparmorProfile = o.apparmor
	}
	p.Env = append(slices.Clone(p.Env), o.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || o.noNewPrivs
	if len(o.caps) > 0 && p.Capabilities != nil {
		c := *p.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
			*set = append(slices.Clone(*set), o.caps...)
		}
		p.Capabilities = &c
	}
	if o.user != "" {
		uid, gid, both := strings.Cut(o.user, ":")
		p.User.AdditionalGids = nil
		if err := parseID(uid, &p.User.UID); err != nil {
			return nil, err
		}
		if both {
			if err := parseID(gid, &p.User.GID); err != nil {
				return nil, err
			}
		}
	}
	for _, g := range o.groups {
		var gid uint32
		if err := parseID(g, &gid); err != nil {
			return nil, err
		}
		p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), gid)
	}
	return &p, checkProcess(&p)
}

func parseID(s string, to *uint32) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("invalid user or group %q: it has to be a number", s)
	}
	*to = uint32(n)
	return nil
}

// exec runs one more process in a container. It returns the exit status of one
// that is not detached.
func (p *program) exec(r *record, o *execOptions) (int, error) {
	c, err := cgroups()
	if err != nil {
		return 0, err
	}
	switch r.status(c) {
	case specs.StateStopped, specs.StateCreating:
		return 0, errors.New("cannot exec a container that has stopped")
	case statusPaused:
		return 0, errors.New("cannot exec in a paused container")
	}
	pr, err := o.process(r.Spec.Process)
	if err != nil {
		return 0, err
	}
	local := pr.Terminal && o.console == "" && !o.detach
	if err := checkConsole(pr.Terminal, createOptions{console: o.console, local: local}); err != nil {
		return 0, err
	}
	rt, err := runtime.New()
	if err != nil {
		return 0, err
	}
	var u undo.Stack
	defer u.Run()
	join, err := r.pidFD()
	if err != nil {
		return 0, err
	}
	u.Add(func() { _ = unix.Close(join) })
	spec := &specs.Spec{Process: pr, Linux: &specs.Linux{Namespaces: r.Spec.Linux.Namespaces}}
	l := &runtime.Launch{Spec: spec, Stdio: [3]int{0, 1, 2}, CgroupV2: -1, CgroupView: -1, StartFD: -1, Join: join}
	for _, ns := range r.Spec.Linux.Namespaces {
		l.JoinPid = l.JoinPid || ns.Type == specs.PIDNamespace
	}
	if l.Preserve, err = preserve(o.keepFDs, pr); err != nil {
		return 0, err
	}
	if s := r.Spec.Linux.Seccomp; s != nil {
		if l.Seccomp, l.SeccompFlags, err = runtime.CompileSeccomp(s); err != nil {
			return 0, err
		}
	}
	g := c.Find(r.Cgroup)
	l.CgroupV1 = g.V1
	if g.V2 != "" {
		if l.CgroupV2, err = unix.Open(g.V2, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return 0, err
		}
		u.Add(func() { _ = unix.Close(l.CgroupV2) })
	}
	master := -1
	user, err := hostIDs(r.Spec.Linux, pr.User)
	if err != nil {
		return 0, err
	}
	if pr.Terminal {
		dev, err := terminalsOf(r.Pid)
		if err != nil {
			return 0, err
		}
		u.Add(dev.Close)
		t, err := newTerminal(dev, pr, user)
		if err != nil {
			return 0, err
		}
		u.Add(t.closeSlave)
		master, l.Stdio = t.master, [3]int{t.slave, t.slave, t.slave}
	} else {
		giveStdio(user)
	}
	var signals caught
	if !o.detach {
		signals = catchSignals() // before there is a process that others can see
	}
	proc, err := rt.Exec(l)
	if err != nil {
		return 0, fmt.Errorf("exec failed: %w", startError(err))
	}
	u.Run()
	if master >= 0 && !local {
		if err := sendTerminal(o.console, master); err != nil {
			_ = unix.Kill(proc.Pid, unix.SIGKILL)
			return 0, err
		}
		_ = unix.Close(master)
		master = -1
	}
	if o.pidFile != "" {
		if err := writePid(o.pidFile, proc.Pid); err != nil {
			return 0, err
		}
	}
	if o.detach {
		return 0, nil
	}
	signals.passTo(proc.Pid)
	return foreground(proc.Pid, master)
}

// caught are the signals for this process, which go to a container's process.
type caught struct{ to chan int }

// catchSignals takes signals from now on. Those that come before passTo wait for it.
func catchSignals() caught {
	c := caught{to: make(chan int, 1)}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	go func() {
		pid := 0
		var early []unix.Signal
		for {
			select {
			case pid = <-c.to:
				for _, n := range early {
					_ = unix.Kill(pid, n)
				}
			case s := <-signals:
				n, ok := s.(unix.Signal)
				switch {
				case !ok || n == unix.SIGCHLD || n == unix.SIGURG || n == unix.SIGPIPE || n == unix.SIGWINCH:
				case pid == 0:
					early = append(early, n)
				default:
					_ = unix.Kill(pid, n)
				}
			}
		}
	}()
	return c
}

// passTo gives the signals to a process.
func (c caught) passTo(pid int) { c.to <- pid }

// foreground waits for a child and relays its terminal.
func foreground(pid, master int) (int, error) {
	finish := func() {}
	if master >= 0 {
		finish = relay(master)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		break
	}
	finish()
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}
