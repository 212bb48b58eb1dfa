package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// runHook runs one hook with the state on its stdin (runtime.md, config.md
// "POSIX-platform Hooks").
func runHook(h *specs.Hook, st *specs.State) error {
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(raw), &out, &out
	cmd.WaitDelay = time.Second // a grandchild may hold the output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("error running hook: hook ran past specified timeout of %.1fs", time.Duration(*h.Timeout*int(time.Second)).Seconds())
		}
		return fmt.Errorf("error running hook: %w, stdout and stderr: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// createHooks runs the hooks of create, in the order of the specification, while the
// process waits just before its root filesystem becomes its root.
func (p *program) createHooks(rt *runtime.Runtime, r *record, g *runtime.Cgroup, pid int) error {
	h := r.Spec.Hooks
	st := r.state(specs.StateCreating)
	st.Pid = pid
	//nolint:staticcheck // deprecated, and still asked for
	for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime} {
		for i := range list {
			if err := runHook(&list[i], st); err != nil {
				return err
			}
		}
	}
	if len(h.CreateContainer) == 0 {
		return nil
	}
	pidFD, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidFD)
	all := rt.Host.Capabilities()
	who := &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}}
	in := &inside{rt, pidFD, r.Spec.Linux.Namespaces, g, who}
	for i := range h.CreateContainer {
		if err := in.run(&h.CreateContainer[i], st); err != nil {
			return err
		}
	}
	return nil
}

// inside is where a createContainer or startContainer hook runs: in the
// namespaces of a container's process, as who.
type inside struct {
	rt         *runtime.Runtime
	pidFD      int
	namespaces []specs.LinuxNamespace
	cgroup     *runtime.Cgroup
	who        *specs.Process // user, capabilities, no_new_privileges
}

// run runs one hook there, with the state on its stdin.
func (in *inside) run(h *specs.Hook, st *specs.State) error {
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	var files [2]*os.File // stdin, and both outputs
	for i := range files {
		fd, err := unix.MemfdCreate("hook", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), "hook")
		defer files[i].Close()
	}
	if _, err := files[0].WriteAt(raw, 0); err != nil {
		return err
	}
	pr := *in.who
	pr.Args, pr.Env, pr.Cwd, pr.Terminal = append([]string{h.Path}, h.Args[min(1, len(h.Args)):]...), h.Env, "/", false
	spec := &specs.Spec{Process: &pr, Linux: &specs.Linux{Namespaces: in.namespaces}}
	l := &runtime.Launch{
		Spec: spec, Stdio: [3]int{int(files[0].Fd()), int(files[1].Fd()), int(files[1].Fd())}, CgroupV1: in.cgroup.V1, CgroupV2: -1, CgroupView: -1,
		StartFD: -1, Join: in.pidFD,
	}
	for _, ns := range in.namespaces {
		l.JoinPid = l.JoinPid || ns.Type == specs.PIDNamespace
	}
	p, err := in.rt.Exec(l)
	if err != nil {
		return fmt.Errorf("error running hook: %w", err)
	}
	defer unix.Close(p.PidFD)
	limit := -1
	if h.Timeout != nil {
		limit = *h.Timeout * 1000
	}
	poll := []unix.PollFd{{Fd: int32(p.PidFD), Events: unix.POLLIN}}
	late := false
	for {
		n, err := unix.Poll(poll, limit)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if late = n == 0; late {
			_ = unix.PidfdSendSignal(p.PidFD, unix.SIGKILL, nil, 0)
		}
		break
	}
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(p.Pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if late {
		return fmt.Errorf("error running hook: hook ran past specified timeout of %.1fs", float64(*h.Timeout))
	}
	if ws.ExitStatus() != 0 {
		out, _ := io.ReadAll(io.NewSectionReader(files[1], 0, 4096))
		return fmt.Errorf("error running hook: exit status %d, stdout and stderr: %s", ws.ExitStatus(), bytes.TrimSpace(out))
	}
	return nil
}
