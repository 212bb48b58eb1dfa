// Package linux wraps system calls of which the standard library and x/sys give
// only the raw form, with EINTR handled here and nowhere else.
package linux

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// OpenInRoot opens path below the directory root as if root were "/": no link
// and no ".." leads out of it, and no magic link of procfs is followed.
func OpenInRoot(root int, path string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 64 { // EAGAIN: something was renamed meanwhile
		fd, err := unix.Openat2(root, path, &how)
		if err != unix.EAGAIN && err != unix.EINTR { //nolint:errorlint // bare errnos
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// CloneTree makes a detached copy of the mount at path; with recursive, of
// those below it too. It shows in no mount table until it is attached.
func CloneTree(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(unix.AT_FDCWD, path, flags)
}

// NewNetNS makes a network namespace whose loopback interface is up, and
// returns a descriptor that keeps it. It must not be called on the main thread.
func NewNetNS() (fd int, err error) {
	type result struct {
		fd  int
		err error
	}
	ch := make(chan result, 1)
	go func() {
		// The thread is in the new namespace: it ends with this goroutine,
		// which never unlocks it.
		runtime.LockOSThread()
		fd, err := enterNetNS()
		ch <- result{fd, err}
	}()
	r := <-ch
	return r.fd, r.err
}

func enterNetNS() (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("cannot make a network namespace: %w", err)
	}
	if err := LoopbackUp(); err != nil {
		return -1, err
	}
	openNet()
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// openNet lets everybody in the calling thread's network namespace bind low
// ports and send pings, as Docker does: there are no others there to protect.
// Interfaces to come have no IPv6 unless their network turns it on, and believe no
// router's advertisement. A kernel that does not know a setting needs none.
func openNet() {
	for file, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
		"/proc/sys/net/ipv4/ping_group_range":           "0 2147483647",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6":  "1",
		"/proc/sys/net/ipv6/conf/default/accept_ra":     "0",
	} {
		fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		_, _ = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
}

// LoopbackUp brings lo up in the calling thread's network namespace.
func LoopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("cannot bring the loopback interface up: %w", err)
	}
	return nil
}
