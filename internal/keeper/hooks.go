package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// hookPlace is where hooks find their bundle while they run, a directory, and the mount
// namespace that they run in.
type hookPlace struct {
	bundle string
	mounts int
}

// launch starts a task's process. With OCI hooks, which devices of CDI bring
// along, the process is made first, complete but for its execve; then the hooks
// run in the engine's mount namespace, since the keeper's own shows
// next to nothing, and then it may go on.
//
// What createContainer hooks change lies below the root of the container, which
// they find in the configuration of the bundle: its path is /proc/PID/root.
func launch(rt *runtime.Runtime, l *runtime.Launch, at hookPlace, id string) (*runtime.Process, error) {
	if l.Spec.Hooks == nil {
		return rt.Start(l)
	}
	var start, late [2]int
	if err := unix.Pipe2(start[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	if err := unix.Pipe2(late[:], unix.O_CLOEXEC); err != nil {
		closeAll(start[:])
		return nil, err
	}
	l.StartFD, l.LateFD = start[0], late[1]
	p, err := rt.Start(l)
	_, _ = unix.Close(start[0]), unix.Close(late[1])
	defer unix.Close(late[0])
	if err != nil {
		_ = unix.Close(start[1])
		return nil, err
	}
	ran := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with this goroutine
		ran <- at.run(l.Spec, id, p.Pid)
	}()
	if err = <-ran; err == nil {
		_, err = unix.Write(start[1], []byte{0})
	} else {
		_ = unix.PidfdSendSignal(p.PidFD, unix.SIGKILL, nil, 0)
	}
	_ = unix.Close(start[1])
	if err == nil {
		err = lateReport(l.Spec.Process, late[0])
	}
	if err != nil {
		var si siginfo
		for waitid(p.PidFD, &si) == unix.EINTR { //nolint:errorlint // a bare errno
		}
		_ = unix.Close(p.PidFD)
		if p.MountNS >= 0 {
			_ = unix.Close(p.MountNS)
		}
		return nil, err
	}
	return p, nil
}

// lateReport reads the reports of execves that failed, to the end that one that
// succeeds makes.
func lateReport(pr *specs.Process, fd int) error {
	failed := &runtime.StartError{Stage: runtime.StageExec, Path: pr.Args[0], Errno: unix.ENOENT}
	var buf [16]byte
	for left, n := len(runtime.Candidates(pr)), 0; ; {
		m, err := unix.Read(fd, buf[n:])
		switch {
		case err == unix.EINTR: //nolint:errorlint // a bare errno
			continue
		case err != nil:
			return err
		case m == 0 && left > 0:
			return nil
		case m == 0:
			return failed
		}
		if n += m; n == len(buf) {
			n, left = 0, left-1
			errno := unix.Errno(binary.LittleEndian.Uint64(buf[8:]))
			if errno == unix.EACCES || failed.Errno == unix.ENOENT {
				failed.Errno = errno
			}
		}
	}
}

// run runs the hooks that come before a container's program, and its
// poststart hooks, which may as well run then. The calling thread moves to the
// mount namespace for good.
func (at hookPlace) run(s *specs.Spec, id string, pid int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(at.mounts, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot join the engine's mount namespace: %w", err)
	}
	dir := at.bundle
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config := *s
	config.Root = &specs.Root{Path: fmt.Sprintf("/proc/%d/root", pid)}
	raw, err := json.Marshal(&config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600); err != nil {
		return err
	}
	state, err := json.Marshal(&specs.State{Version: specs.Version, ID: id, Status: specs.StateCreating, Pid: pid, Bundle: dir, Annotations: s.Annotations})
	if err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		list []specs.Hook
	}{
		{"prestart", s.Hooks.Prestart}, //nolint:staticcheck // deprecated, and still asked for
		{"createRuntime", s.Hooks.CreateRuntime}, {"createContainer", s.Hooks.CreateContainer}, {"poststart", s.Hooks.Poststart},
	} {
		for i := range x.list {
			if err := runHook(&x.list[i], state, dir); err != nil {
				return &Failure{Kind: KindStart, Stage: "hook", Msg: fmt.Sprintf("error running %s hook #%d: %v", x.name, i, err)}
			}
		}
	}
	return nil
}

// hookTime is how long a hook may take that sets no limit.
const hookTime = time.Minute

// runHook runs a program with the state on its stdin. Its output is kept for the error.
func runHook(h *specs.Hook, state []byte, dir string) error {
	var files [2]*os.File // stdin, and both outputs
	for i := range files {
		fd, err := unix.MemfdCreate("hook", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), "hook")
		defer files[i].Close()
	}
	if _, err := files[0].WriteAt(state, 0); err != nil {
		return err
	}
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	p, err := os.StartProcess(h.Path, args, &os.ProcAttr{Dir: dir, Env: append([]string{}, h.Env...), Files: []*os.File{files[0], files[1], files[1]}})
	if err != nil {
		return err
	}
	limit := hookTime
	if h.Timeout != nil && *h.Timeout > 0 {
		limit = time.Duration(*h.Timeout) * time.Second
	}
	timer := time.AfterFunc(limit, func() { _ = p.Kill() })
	st, err := p.Wait()
	switch inTime := timer.Stop(); {
	case err != nil:
		return err
	case !inTime:
		return fmt.Errorf("hook ran past specified timeout of %s", limit)
	case !st.Success():
		out, _ := io.ReadAll(io.NewSectionReader(files[1], 0, 4096))
		return errors.New(st.String() + ", output: " + strings.TrimSpace(string(out)))
	}
	return nil
}
