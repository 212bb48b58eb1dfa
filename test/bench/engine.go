package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// engine is one with a socket: berth or docker.
type engine struct {
	name   string
	dir    string // its roots, log and socket
	client string // the command-line client
	argv   []string
	env    []string
	cmd    *exec.Cmd
	api    *client
}

func (e *engine) sock() string { return filepath.Join(e.dir, "s") }

// boot starts the engine and waits for its first answer; it returns how long
// that took from the fork.
func (e *engine) boot() (time.Duration, error) {
	log, err := os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	e.cmd = exec.Command(e.argv[0], e.argv[1:]...)
	e.cmd.Env, e.cmd.Stdout, e.cmd.Stderr = e.env, log, log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	begin := time.Now()
	if err := e.cmd.Start(); err != nil {
		return 0, err
	}
	dead := make(chan error, 1)
	go func(c *exec.Cmd) { dead <- c.Wait() }(e.cmd)
	for !ping(e.sock()) {
		select {
		case err := <-dead:
			text, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			e.cmd = nil
			return 0, fmt.Errorf("%s ended: %w: %s", e.name, err, last(text, 400))
		default:
		}
		if time.Since(begin) > time.Minute {
			return 0, fmt.Errorf("%s does not answer", e.name)
		}
		time.Sleep(300 * time.Microsecond)
	}
	took := time.Since(begin)
	if e.api, err = dial(e.sock()); err != nil {
		return 0, err
	}
	return took, nil
}

// end sends a signal and waits until the process is gone.
func (e *engine) end(sig syscall.Signal) {
	if e.cmd == nil {
		return
	}
	if e.api != nil {
		e.api.close()
	}
	pid := e.cmd.Process.Pid
	_ = unix.Kill(pid, sig)
	for i := 0; i < 3000 && unix.Kill(pid, 0) == nil; i++ {
		if time.Sleep(10 * time.Millisecond); i == 2000 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	e.cmd = nil
}

// run runs the engine's client and returns how long it took.
func (e *engine) run(args ...string) (time.Duration, error) {
	return timed(nil, e.env, e.client, args...)
}

// last returns the end of a text.
func last(text []byte, n int) string {
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-n):])
}

// place is a mount and network namespace of our own in which the peers without
// a daemon run: what they mount stays there, and the unified hierarchy, which
// old versions of crun refuse beside others, is not.
type place struct{ work chan func() }

func newPlace() (*place, error) {
	p := &place{work: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		_ = unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
		if ready <- err; err != nil {
			return
		}
		for f := range p.work {
			f()
		}
	}()
	return p, <-ready
}

func (p *place) do(f func()) {
	done := make(chan struct{})
	p.work <- func() { defer close(done); f() }
	<-done
}

// timed runs a program to its end, in a place when one is given. Output is
// dropped, but told when the program fails.
func timed(p *place, env []string, name string, args ...string) (took time.Duration, err error) {
	f := func() {
		var out bytes.Buffer
		errFile, err2 := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
		if err2 != nil {
			err = err2
			return
		}
		file := os.NewFile(uintptr(errFile), "stderr")
		defer file.Close()
		c := exec.Command(name, args...)
		c.Env, c.Stderr = env, file // a file: nothing is copied while the clock runs
		begin := time.Now()
		err = c.Run()
		if took = time.Since(begin); err != nil {
			_, _ = file.Seek(0, 0)
			_, _ = out.ReadFrom(file)
			err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, last(out.Bytes(), 300))
		}
	}
	if p != nil {
		p.do(f)
	} else {
		f()
	}
	return took, err
}

// processes returns those whose command line holds the text.
func processes(text string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		raw, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(raw, []byte(text)) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(f, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// memory sums a field of smaps_rollup over processes, in MiB.
func memory(pids []int, field string) (mib float64) {
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == field+":" {
				kib, _ := strconv.ParseFloat(f[1], 64)
				mib += kib / 1024
			}
		}
	}
	return mib
}

// hierarchies returns the cgroup mounts as "1:/path" or "2:/path".
func hierarchies() (dirs []string) {
	raw, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(raw)) {
		switch f := strings.Fields(line); f[2] {
		case "cgroup":
			dirs = append(dirs, "1:"+f[1])
		case "cgroup2":
			dirs = append(dirs, "2:"+f[1])
		}
	}
	return dirs
}

// makeGroups makes a cgroup in every hierarchy, ready to hold children.
func makeGroups(name string) (dirs []string, err error) {
	for _, h := range hierarchies() {
		dir := filepath.Join(h[2:], name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if filepath.Base(h[2:]) == "cpuset" || strings.Contains(h, "cpuset") {
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if v, err := os.ReadFile(filepath.Join(h[2:], f)); err == nil {
					_ = os.WriteFile(filepath.Join(dir, f), v, 0o600)
				}
			}
			_ = os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o600)
		}
		dirs = append(dirs, h[:2]+dir)
	}
	return dirs, nil
}

// removeGroups removes what is left below our cgroups; those in use stay.
func removeGroups(prefix string) {
	for _, h := range hierarchies() {
		tops, _ := filepath.Glob(filepath.Join(h[2:], prefix+"*"))
		for _, top := range tops {
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				_ = unix.Rmdir(dirs[i])
			}
		}
	}
}
