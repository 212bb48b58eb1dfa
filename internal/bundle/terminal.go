package bundle

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// terminal is a new pseudo terminal of a container.
type terminal struct {
	master, slave int
	name          string // of the slave, in the container
}

func newTerminal(dev *runtime.DevTree, pr *specs.Process, user runtime.Owner) (*terminal, error) {
	t := &terminal{}
	var err error
	if t.master, t.slave, t.name, err = dev.OpenTerminal(); err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(t.master, false) // whoever gets it decides
	if b := pr.ConsoleSize; b != nil {
		_ = unix.IoctlSetWinsize(t.master, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(b.Height), Col: uint16(b.Width)})
	}
	if user.UID != 0 {
		_ = unix.Fchown(t.slave, int(user.UID), -1)
	}
	return t, nil
}

func (t *terminal) closeSlave() { _ = unix.Close(t.slave) }

// terminalsOf opens the devpts of a running container by way of its root. No
// link is followed, and what is found must be a devpts.
func terminalsOf(pid int) (*runtime.DevTree, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	pts, err := unix.Openat2(root, "/dev/pts", &how)
	if err != nil {
		return nil, fmt.Errorf("cannot open the container's /dev/pts: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(pts, &st); err != nil || st.Type != unix.DEVPTS_SUPER_MAGIC {
		_ = unix.Close(pts)
		return nil, errors.New("the container's /dev/pts is no devpts")
	}
	return &runtime.DevTree{Root: -1, Pts: pts, Shm: -1, Null: -1}, nil
}

// sendTerminal hands a terminal's master over a unix socket, as every runtime does.
func sendTerminal(socket string, master int) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("cannot reach the console socket: %w", err)
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(master), nil); err != nil {
		return fmt.Errorf("cannot send the terminal: %w", err)
	}
	return nil
}

// relay connects a terminal's master with this process's own stdio until the
// container's side ends. The master is closed then.
func relay(master int) (wait func()) {
	m := os.NewFile(uintptr(master), "terminal")
	restore := raw(0)
	size := func() {
		if ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, ws)
		}
	}
	size()
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	go func() {
		for range winch {
			size()
		}
	}()
	go func() { _, _ = io.Copy(m, os.Stdin) }()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(os.Stdout, m) // ends with EIO when the last slave is closed
		close(done)
	}()
	return func() {
		<-done
		signal.Stop(winch)
		restore()
		_ = m.Close()
	}
}

// raw puts a terminal into raw mode; for anything else it does nothing.
func raw(fd int) (restore func()) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	t := *old
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, &t) != nil {
		return func() {}
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }
}
