package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// Another runtime than the engine's own runs a task by the OCI command line:
//
//	create   in a copy of the host's mount namespace, which is gone with the
//	         command, so that nothing of the task is mounted on the host
//	start
//	exec     --detach
//	delete   --force, when the task has ended
//
// Signals, freezing and limits go to the process and to its cgroup directly.
// The process becomes this one's child when the command has ended: the keeper
// is a subreaper from the first such task on.
//
// This process lives in a small root of its own, so each command is forked from
// a thread that has gone back to the host's mount namespace and that ends with it.

// foreign is the keeper's side of other runtimes.
type foreign struct{ *Keeper }

// OCIRuntime names a runtime's program, by its path on the host.
type OCIRuntime struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"` // before the command
	Host int      `json:"host,omitempty"` // descriptor of the host's mount namespace, an index
}

const (
	ociTime     = 2 * time.Minute // for one command
	strayTime   = 2 * time.Second // after which a child that nobody waits for is reaped
	straysEvery = 5 * time.Second
)

func (k foreign) ociDir(id string) string { return filepath.Join(k.cfg.ExecRoot, "keeper", "oci", id) }

// ociCommand returns the arguments of a command for a task.
func (k foreign) ociCommand(o *OCIRuntime, dir string, args ...string) []string {
	argv := append([]string{o.Path}, o.Args...)
	argv = append(argv, "--root", filepath.Join(k.cfg.ExecRoot, "keeper", "oci-state"), "--log", filepath.Join(dir, "log.json"), "--log-format", "json")
	return append(argv, args...)
}

// startOCI is start for a task of another runtime. The steps are numbered as
// there. attach is called, with the loop locked, when the outputs are there to attach to.
func (k foreign) startOCI(r *StartRequest, t *task, l *runtime.Launch, host int, attach func()) (err error) {
	if r.Init {
		return &Failure{Kind: KindStart, Stage: string(runtime.StageProcess), Msg: "--init needs the engine's own runtime: another one has no init program to run"}
	}
	k.awaitLeft(r.ID)
	dir := k.ociDir(r.ID)
	_ = os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	k.subreap(host)
	t.oci = &OCIRuntime{Path: r.OCI.Path, Args: r.OCI.Args}

	// 2. The bundle.
	binds, err := ociBundle(dir, r, l, k.ociParent(r.Parent)+"/"+r.ID)
	if err != nil {
		return err
	}
	prepare := func() error {
		for _, b := range binds {
			if err := b(); err != nil {
				return err
			}
		}
		return nil
	}

	// 3. Stdio.
	args := []string{"create", "--bundle", dir, "--pid-file", filepath.Join(dir, "pid")}
	stdio, console, err := k.ociStdio(t.io, r.Stdin, r.Spec.Process, &args)
	if err != nil {
		return err
	}
	defer closeAll(stdio[:])

	// 4. The process: complete after create, running after start.
	if err := k.runOCI(dir, host, prepare, stdio, k.ociCommand(t.oci, dir, append(args, r.ID)...)); err != nil {
		console.close()
		k.deleteOCI(t.oci, r.ID)
		return err
	}
	fail := func(err error) error {
		k.deleteOCI(t.oci, r.ID)
		return err
	}
	// What a failed create says is not the container's output, so they attach only now.
	if console == nil {
		k.loop.mu.Lock()
		attach()
		k.loop.mu.Unlock()
	} else if err := console.take(t.io, r.Spec.Process, attach); err != nil {
		return fail(err)
	}
	if t.pid, err = readPid(filepath.Join(dir, "pid")); err != nil {
		return fail(err)
	}
	if t.pidFD, err = unix.PidfdOpen(t.pid, 0); err != nil {
		return fail(fmt.Errorf("cannot open process %d: %w", t.pid, err))
	}
	t.mountNS, _ = unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", t.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	t.cgroup = k.cgroups.Find(k.ociParent(r.Parent) + "/" + r.ID)
	if err := k.runOCI(dir, host, nil, [3]int{-1, -1, -1}, k.ociCommand(t.oci, dir, "start", r.ID)); err != nil {
		_ = unix.PidfdSendSignal(t.pidFD, unix.SIGKILL, nil, 0)
		_ = unix.Waitid(unix.P_PIDFD, t.pidFD, nil, unix.WEXITED, nil)
		_ = unix.Close(t.pidFD)
		if t.mountNS >= 0 {
			_ = unix.Close(t.mountNS)
		}
		return fail(err)
	}
	t.at = time.Now()
	t.start = startTime(t.pid)
	return nil
}

// ociParent is where the cgroups of such tasks are: a parent without the device
// rules that the engine's own tasks inherit, since the runtime sets its own.
func (k foreign) ociParent(parent string) string {
	if parent != "" {
		return parent
	}
	return k.cfg.Parent + devicesSuffix
}

// ociBundle writes config.json and returns what is to be mounted for it, in the
// mount namespace of the command.
func ociBundle(dir string, r *StartRequest, l *runtime.Launch, cgroup string) (binds []func() error, err error) {
	attach := func(fd int, target string) {
		binds = append(binds, func() error {
			if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("cannot mount on %s: %w", target, err)
			}
			return nil
		})
	}
	spec, linux := *r.Spec, *r.Spec.Linux
	spec.Linux = &linux
	spec.Root = &specs.Root{Path: filepath.Join(dir, "rootfs"), Readonly: r.Spec.Root != nil && r.Spec.Root.Readonly}
	attach(l.RootFD, spec.Root.Path)
	spec.Mounts = append([]specs.Mount(nil), r.Spec.Mounts...)
	for i, fd := range l.MountFD {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		at := filepath.Join(dir, "mount-"+strconv.Itoa(i))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = os.Mkdir(at, 0o700)
		} else {
			err = os.WriteFile(at, nil, 0o600)
		}
		if err != nil {
			return nil, err
		}
		spec.Mounts[i].Source = at
		attach(fd, at)
	}
	linux.Namespaces = append([]specs.LinuxNamespace(nil), linux.Namespaces...)
	for i, ns := range linux.Namespaces {
		fd, ok := l.NSFD[ns.Type]
		if !ok {
			continue
		}
		at := filepath.Join(dir, "ns-"+string(ns.Type))
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			return nil, err
		}
		linux.Namespaces[i].Path = at
		binds = append(binds, func() error { return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), at, "", unix.MS_BIND, "") })
	}
	linux.CgroupsPath = cgroup
	spec.Version = "1.0.2" // nothing here is newer, and runtimes refuse what they do not know
	res := specs.LinuxResources{}
	if linux.Resources != nil {
		res = *linux.Resources
	}
	res.Devices = append(runtime.DefaultDeviceRules(), res.Devices...)
	linux.Resources = &res
	raw, err := json.Marshal(&spec)
	if err != nil {
		return nil, err
	}
	return binds, os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600)
}

// consoleSocket takes a terminal from the runtime.
type consoleSocket struct{ l *net.UnixListener }

func (c *consoleSocket) close() {
	if c != nil {
		_ = c.l.Close()
	}
}

// take receives the terminal's master and gives it to s, then calls attach.
func (c *consoleSocket) take(s *stdio, pr *specs.Process, attach func()) error {
	defer c.close()
	_ = c.l.SetDeadline(time.Now().Add(10 * time.Second))
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return fmt.Errorf("the runtime has sent no terminal: %w", err)
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) == 0 {
		return errors.New("the runtime has sent no terminal")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		closeAll(fds)
		return errors.New("the runtime has sent no terminal")
	}
	unix.CloseOnExec(fds[0])
	_ = unix.SetNonblock(fds[0], true)
	s.terminal(fds[0], -1, pr, attach)
	return nil
}

// ociStdio makes the descriptors of a command's process; for a terminal, the
// socket on which the runtime sends it.
func (k foreign) ociStdio(s *stdio, stdin bool, pr *specs.Process, args *[]string) ([3]int, *consoleSocket, error) {
	if !s.term {
		fds, _, err := s.open(nil, stdin, pr)
		return fds, nil, err
	}
	// A socket's path has at most 107 bytes, so it is not in the task's directory.
	path := filepath.Join(k.cfg.ExecRoot, "keeper", fmt.Sprintf("tty%d", k.ttys.Add(1)))
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return [3]int{-1, -1, -1}, nil, err
	}
	*args = append(*args, "--console-socket", path)
	return [3]int{-1, -1, -1}, &consoleSocket{l}, nil
}

// runOCI runs one command on the host and waits for it. With prepare, which runs
// before it, the command gets a copy of the host's mount namespace.
func (k foreign) runOCI(dir string, host int, prepare func() error, stdio [3]int, argv []string) error {
	_ = os.Remove(filepath.Join(dir, "log.json"))
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	files := make([]uintptr, 3)
	for i, fd := range stdio {
		files[i] = uintptr(null)
		if fd >= 0 {
			files[i] = uintptr(fd)
		}
	}
	type started struct {
		pidFD int
		err   error
	}
	ch := make(chan started, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread, and its namespace, end with this goroutine
		pidFD := -1
		err := func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(host, unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("cannot enter the host's mount namespace: %w", err)
			}
			if prepare != nil {
				if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
					return err
				}
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
					return err
				}
				if err := prepare(); err != nil {
					return err
				}
			}
			_, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
				Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Files: files,
				Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidFD},
			})
			return err
		}()
		ch <- started{pidFD, err}
	}()
	s := <-ch
	if s.err != nil {
		return &Failure{Kind: KindStart, Stage: string(runtime.StageProcess), Msg: fmt.Sprintf("cannot run %s: %v", argv[0], s.err)}
	}
	defer unix.Close(s.pidFD)
	timer := time.AfterFunc(ociTime, func() { _ = unix.PidfdSendSignal(s.pidFD, unix.SIGKILL, nil, 0) })
	defer timer.Stop()
	var si siginfo
	for {
		err := waitid(s.pidFD, &si)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if si.exitCode() == 0 {
		return nil
	}
	return ociFailure(filepath.Join(dir, "log.json"), argv[0], si.exitCode())
}

// ociFailure reads from a runtime's log why a command failed. There is nothing
// but the text to tell a program that is not there from the rest.
func ociFailure(log, program string, code int) error {
	msg := fmt.Sprintf("%s: exit status %d", filepath.Base(program), code)
	raw, _ := os.ReadFile(log)
	for _, line := range bytes.Split(raw, []byte("\n")) {
		var e struct{ Level, Msg string }
		if json.Unmarshal(line, &e) == nil && e.Level == "error" && e.Msg != "" {
			msg = e.Msg
		}
	}
	f := &Failure{Kind: KindStart, Stage: string(runtime.StageProcess), Msg: ociReason(msg)}
	switch text := strings.ToLower(msg); {
	case strings.Contains(text, "executable file"), strings.Contains(text, "no such file or directory") && strings.Contains(text, "exec"):
		f.Stage, f.Errno = string(runtime.StageExec), int(unix.ENOENT)
	case strings.Contains(text, "permission denied") && strings.Contains(text, "exec"):
		f.Stage, f.Errno = string(runtime.StageExec), int(unix.EACCES)
	}
	return f
}

// libcTexts are errors in the words of the C library, as crun writes them, and in Go's.
// Clients look for Go's to tell what a container's exit status would be.
var libcTexts = strings.NewReplacer(
	"No such file or directory", unix.ENOENT.Error(), "Permission denied", unix.EACCES.Error(), "Is a directory", unix.EISDIR.Error(),
)

// ociReason is a runtime's message without what the engine says itself.
func ociReason(msg string) string {
	msg = libcTexts.Replace(msg)
	for _, p := range []string{"runc create failed: ", "runc start failed: ", "exec failed: ", "unable to start container process: ", "error during container init: "} {
		msg = strings.TrimPrefix(msg, p)
	}
	return msg
}

func readPid(file string) (int, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// execOCI runs one more process in a task of another runtime.
func (k foreign) execOCI(r *ExecRequest, t *task, ex *execution, host int, attach func()) error {
	dir := k.ociDir(t.id)
	own := filepath.Join(dir, "exec-"+r.ExecID)
	if err := os.MkdirAll(own, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(own)
	raw, err := json.Marshal(r.Process)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "process.json"), raw, 0o600); err != nil {
		return err
	}
	k.subreap(host)
	args := []string{"exec", "--detach", "--process", filepath.Join(own, "process.json"), "--pid-file", filepath.Join(own, "pid")}
	stdio, console, err := k.ociStdio(ex.io, r.Stdin, r.Process, &args)
	if err != nil {
		return err
	}
	defer closeAll(stdio[:])
	if console == nil {
		k.loop.mu.Lock()
		attach()
		k.loop.mu.Unlock()
	}
	if err := k.runOCI(own, host, nil, stdio, k.ociCommand(t.oci, own, append(args, t.id)...)); err != nil {
		console.close()
		return err
	}
	if console != nil {
		if err := console.take(ex.io, r.Process, attach); err != nil {
			return err
		}
	}
	if ex.pid, err = readPid(filepath.Join(own, "pid")); err != nil {
		return err
	}
	if ex.pidFD, err = unix.PidfdOpen(ex.pid, 0); err != nil {
		return fmt.Errorf("cannot open process %d: %w", ex.pid, err)
	}
	return nil
}

// startForeignExec is startExec for a task of another runtime.
func (k foreign) startForeignExec(r *ExecRequest, t *task, ex *execution, fds []int, keep map[int]bool) (*StartReply, error) {
	host := -1
	if r.Host >= 0 && r.Host < len(fds) {
		host = fds[r.Host]
	}
	attach := func() {
		for _, a := range r.Attach {
			if a.FD >= 0 && a.FD < len(fds) {
				keep[a.FD] = true
				ex.io.attach(fds[a.FD], a)
			}
		}
	}
	if err := k.execOCI(r, t, ex, host, attach); err != nil {
		k.loop.mu.Lock()
		ex.io.abandon()
		k.loop.mu.Unlock()
		return nil, err
	}
	return k.registerExec(t, ex), nil
}

// deleteOCI has the runtime forget a task that has ended, or was never whole.
func (k foreign) deleteOCI(o *OCIRuntime, id string) {
	dir := k.ociDir(id)
	k.mu.Lock()
	host := k.hostNS
	k.mu.Unlock()
	if host > 0 {
		if err := k.runOCI(dir, host, nil, [3]int{-1, -1, -1}, k.ociCommand(o, dir, "delete", "--force", id)); err != nil {
			k.cfg.Log.Warn("cannot delete a container of another runtime", "id", id, "runtime", o.Path, "error", err)
		}
	}
	_ = os.RemoveAll(filepath.Join(k.cfg.ExecRoot, "keeper", "oci-state", id))
	_ = os.RemoveAll(dir)
}

// leave notes that a task has ended, before anybody is told. forget removes what
// is left of it. No start takes the id of another runtime's task again until
// that is done: the runtime would refuse it, or delete the new one.
func (k foreign) leave(t *task) (forget func()) {
	if t.oci == nil {
		return func() { k.removeCgroup(t.cgroup) }
	}
	done := make(chan struct{})
	k.mu.Lock()
	if k.leaving == nil {
		k.leaving = map[string]chan struct{}{}
	}
	k.leaving[t.id] = done
	k.mu.Unlock()
	return func() {
		k.deleteOCI(t.oci, t.id)
		k.removeCgroup(t.cgroup)
		k.mu.Lock()
		delete(k.leaving, t.id)
		k.mu.Unlock()
		close(done)
	}
}

// awaitLeft waits until the runtime has forgotten a task of this id.
func (k foreign) awaitLeft(id string) {
	k.mu.Lock()
	done := k.leaving[id]
	k.mu.Unlock()
	if done != nil {
		<-done
	}
}

// subreap makes the processes that a runtime leaves behind children of this
// one. The namespace is kept for the commands that no request brings.
func (k foreign) subreap(host int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hostNS > 0 {
		return
	}
	fd, err := unix.FcntlInt(uintptr(host), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return
	}
	k.hostNS = fd
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		k.cfg.Log.Warn("cannot become a subreaper", "error", err)
		return
	}
	go k.reapStrays()
}

// reapStrays takes the exit status of children that came without being asked
// for: as a subreaper this process gets the orphans of everything that it started.
func (k foreign) reapStrays() {
	seen := map[int]time.Time{}
	for {
		time.Sleep(straysEvery)
		now := map[int]time.Time{}
		for _, pid := range zombies() {
			first, ok := seen[pid]
			if !ok {
				first = time.Now()
			}
			if time.Since(first) > strayTime && !k.knows(pid) {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
				continue
			}
			now[pid] = first
		}
		seen = now
	}
}

// knows reports whether pid is a task or an exec whose end is waited for.
func (k foreign) knows(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.tasks {
		if t.pid == pid && t.exit == nil {
			return true
		}
		for _, ex := range t.exec {
			if ex.pid == pid {
				return true
			}
		}
	}
	return false
}

// zombies are this process's children that have ended.
func zombies() []int {
	var out []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, l := range lists {
		raw, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if st := statFields(pid); len(st) > 0 && st[0] == "Z" {
				out = append(out, pid)
			}
		}
	}
	return out
}
