package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/logs"
)

// stateEnv names the descriptor of the state that a re-executed keeper reads.
const stateEnv = "BERTH_KEEPER_STATE"

// saved is a keeper's state across an upgrade. Descriptors keep their numbers.
type saved struct {
	Listener int         `json:"listener"`
	Lock     int         `json:"lock"`
	Tasks    []savedTask `json:"tasks"`
	Orphans  []string    `json:"orphans,omitempty"`

	Relays []savedRelay `json:"relays,omitempty"`
}

type savedTask struct {
	TaskInfo
	PidFD   int         `json:"pidfd"`
	Kept    []int       `json:"kept,omitempty"`
	MountNS int         `json:"mnt"`
	NSFlags uint64      `json:"ns"`
	Adopted bool        `json:"adopted,omitempty"`
	OCI     *OCIRuntime `json:"oci,omitempty"`
	IO      savedIO     `json:"io"`
	Execs   []savedExec `json:"execs,omitempty"`
}

type savedExec struct {
	ID    string  `json:"id"`
	Pid   int     `json:"pid"`
	PidFD int     `json:"pidfd"`
	IO    savedIO `json:"io"`
}

type savedIO struct {
	Term     bool            `json:"term,omitempty"`
	In       int             `json:"in"`
	Out      [3]int          `json:"out"`
	Pending  []byte          `json:"pending,omitempty"`
	Once     bool            `json:"once,omitempty"`
	EOF      bool            `json:"eof,omitempty"`
	Spec     *LogSpec        `json:"spec,omitempty"`
	Log      *logs.State     `json:"log,omitempty"`
	Attached []savedAttached `json:"attached,omitempty"`
}

type savedAttached struct {
	FD      int        `json:"fd"`
	Spec    AttachSpec `json:"spec"`
	Pending []byte     `json:"pending,omitempty"`
	InEnd   bool       `json:"inEnd,omitempty"`
	Closing bool       `json:"closing,omitempty"`
}

// upgrade replaces this process's program by the one in progFD, after the
// reply. Tasks, execs and attachments stay; engines connect again.
func (k *Keeper) upgrade(progFD int) error {
	prog, err := unix.FcntlInt(uintptr(progFD), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.holding = true
	k.mu.Unlock()
	go func() {
		defer unix.Close(prog)
		k.busy.Wait() // the reply to this request too
		err := k.reexec(prog)
		k.cfg.Log.Error("the upgrade failed; this keeper goes on", "error", err)
		k.mu.Lock()
		k.holding = false
		k.mu.Unlock()
		k.pool = newPool(k)
		k.pool.start()
	}()
	return nil
}

// reexec returns only when it failed.
func (k *Keeper) reexec(prog int) error {
	k.pool.close()
	k.flushReaping()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	st, keep := k.save()
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	mem, err := unix.MemfdCreate("keeper-state", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	if _, err := unix.Pwrite(mem, raw, 0); err != nil {
		return err
	}
	keep = append(keep, mem, st.Listener)
	for _, fd := range keep {
		if fd >= 0 {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
		}
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d", stateEnv, mem))
	err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", prog), os.Args, env)
	for _, fd := range keep {
		if fd >= 0 {
			unix.CloseOnExec(fd)
		}
	}
	return err
}

func (k *Keeper) save() (saved, []int) {
	st := saved{Listener: k.listenFD, Lock: k.lockFD}
	var keep []int
	st.Relays, keep = k.relays.save()
	keep = append(keep, k.lockFD)
	io := func(s *stdio) savedIO {
		out := savedIO{Term: s.term, In: -1, Pending: s.pending, Once: s.once, EOF: s.eof, Spec: s.logSpec}
		if s.in != nil {
			out.In = s.in.fd
			keep = append(keep, s.in.fd)
		}
		for i, src := range s.out {
			out.Out[i] = -1
			if src != nil {
				out.Out[i] = src.fd
				keep = append(keep, src.fd)
			}
		}
		if s.log != nil {
			ls := s.log.State()
			out.Log = &ls
		}
		for _, a := range s.attached {
			out.Attached = append(out.Attached, savedAttached{a.src.fd, a.spec, a.pending, a.inEnd, a.closing})
			keep = append(keep, a.src.fd)
		}
		return out
	}
	for _, t := range k.tasks {
		x := savedTask{
			TaskInfo: TaskInfo{ID: t.id, Pid: t.pid, StartTime: t.start, At: t.at, Cgroup: t.cgroup.Rel, Frozen: t.frozen, Exit: t.exit},
			PidFD:    t.pidFD, Kept: t.kept, MountNS: t.mountNS, NSFlags: t.nsFlags, Adopted: t.adopted, OCI: t.oci, IO: io(t.io),
		}
		keep = append(append(keep, t.pidFD, t.mountNS), t.kept...)
		for _, ex := range t.exec {
			x.Execs = append(x.Execs, savedExec{ex.id, ex.pid, ex.pidFD, io(ex.io)})
			keep = append(keep, ex.pidFD)
		}
		st.Tasks = append(st.Tasks, x)
	}
	return st, keep
}

// restore reads the state that the keeper before this one left, if it did.
func restore() (*saved, error) {
	v := os.Getenv(stateEnv)
	if v == "" {
		return nil, nil
	}
	_ = os.Unsetenv(stateEnv)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(&offsetReader{f: f}); err != nil {
		return nil, err
	}
	st := &saved{}
	return st, json.Unmarshal(b.Bytes(), st)
}

type offsetReader struct {
	f   *os.File
	off int64
}

func (r *offsetReader) Read(p []byte) (int, error) {
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	return n, err
}

// resume rebuilds the tasks of st.
func (k *Keeper) resume(st *saved) error {
	k.relays.resume(k.loop, st.Relays)
	k.loop.mu.Lock()
	defer k.loop.mu.Unlock()
	io := func(x savedIO) *stdio {
		s := &stdio{loop: k.loop, term: x.Term, pending: x.Pending, once: x.Once, eof: x.EOF, logSpec: x.Spec}
		for i, fd := range x.Out {
			if fd >= 0 {
				unix.CloseOnExec(fd)
				s.out[i] = &source{fd: fd, stream: byte(i), io: s}
				k.loop.add(s.out[i])
				if fd == x.In {
					s.in = s.out[i]
				}
			}
		}
		if x.In >= 0 && s.in == nil {
			unix.CloseOnExec(x.In)
			s.in = &source{fd: x.In, stream: streamStdin, io: s}
			k.loop.add(s.in)
		}
		if x.Log != nil {
			if w, err := logs.Resume(*x.Log); err == nil {
				s.log = w
			} else {
				k.loop.warn("cannot open the log again", x.Log.Path, err)
			}
		}
		for _, a := range x.Attached {
			unix.CloseOnExec(a.FD)
			at := &attachment{spec: a.Spec, pending: a.Pending, inEnd: a.InEnd, closing: a.Closing}
			at.src = &source{fd: a.FD, io: s, at: at}
			s.attached = append(s.attached, at)
			k.loop.add(at.src)
		}
		s.interest()
		return s
	}
	for _, x := range st.Tasks {
		t := &task{
			id: x.ID, pid: x.Pid, pidFD: x.PidFD, start: x.StartTime, at: x.At, cgroup: k.cgroups.Find(x.Cgroup), mountNS: x.MountNS,
			nsFlags: x.NSFlags, frozen: x.Frozen, exit: x.Exit, adopted: x.Adopted, oci: x.OCI, term: x.IO.Term, io: io(x.IO), kept: x.Kept,
		}
		delete(k.orphans, t.id)
		for _, fd := range append([]int{t.pidFD, t.mountNS}, t.kept...) {
			if fd >= 0 {
				unix.CloseOnExec(fd)
			}
		}
		for _, e := range x.Execs {
			unix.CloseOnExec(e.PidFD)
			ex := &execution{id: e.ID, task: t, pid: e.Pid, pidFD: e.PidFD, io: io(e.IO), term: e.IO.Term}
			ex.src = &source{fd: ex.pidFD, ex: ex}
			if t.exec == nil {
				t.exec = map[string]*execution{}
			}
			t.exec[ex.id] = ex
			k.loop.add(ex.src)
			k.loop.want(ex.src, unix.EPOLLIN)
		}
		k.tasks[t.id] = t
		if t.exit == nil && t.pidFD >= 0 {
			t.watch(k.loop)
			if k.cgroups.MemoryLimited(t.cgroup) {
				go t.watchOOM(k, false)
			}
		}
	}
	return nil
}

// listen makes or takes over the control socket. Its descriptor is kept by
// number for an upgrade.
func (k *Keeper) listen(path string, st *saved) (*net.UnixListener, error) {
	var fd int
	if st != nil {
		fd = st.Listener
		unix.CloseOnExec(fd)
	} else {
		_ = os.Remove(path)
		var err error
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return nil, err
		}
		old := unix.Umask(0o177)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		unix.Umask(old)
		if err == nil {
			err = unix.Listen(fd, 64)
		}
		if err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
		}
	}
	k.listenFD = fd
	f := os.NewFile(uintptr(fd), path)
	l, err := net.FileListener(f) // a copy; f stays open under its number
	if err != nil {
		return nil, err
	}
	k.listenFile = f
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("the control socket is of another kind")
	}
	ul.SetUnlinkOnClose(false)
	_ = ul.SetDeadline(time.Time{})
	return ul, nil
}
