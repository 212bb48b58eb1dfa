package runtime

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OOMKills tells how many processes the kernel killed for want of memory.
func (c *Cgroups) OOMKills(g *Cgroup) int {
	file := g.V2 + "/memory.events"
	if !c.host.CgroupV2 {
		dir := c.dirFor(g, "memory")
		if dir == "" {
			return 0
		}
		file = dir + "/memory.oom_control"
	}
	raw, _ := os.ReadFile(file)
	return oomKills(string(raw))
}

func oomKills(text string) int {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}

// MemoryLimited reports whether the cgroup itself limits memory.
func (c *Cgroups) MemoryLimited(g *Cgroup) bool {
	if c.host.CgroupV2 {
		raw, err := os.ReadFile(g.V2 + "/memory.max")
		return err == nil && strings.TrimSpace(string(raw)) != "max"
	}
	dir := c.dirFor(g, "memory")
	if dir == "" {
		return false
	}
	const noLimit = 1 << 62 // the kernel rounds "unlimited" to pages
	n, err := readInt(dir + "/memory.limit_in_bytes")
	return err == nil && n < noLimit
}

// OOMEvents are the descriptor and the epoll events that tell when the cgroup
// runs out of memory: an eventfd on v1, memory.events itself on v2. Each must be
// read by DrainOOM, or it is told again. The descriptor is the caller's.
func (c *Cgroups) OOMEvents(g *Cgroup) (fd int, events uint32, err error) {
	if c.host.CgroupV2 {
		fd, err = unix.Open(g.V2+"/memory.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return fd, unix.EPOLLPRI, err
	}
	dir := c.dirFor(g, "memory")
	if dir == "" {
		return -1, 0, unix.ENOENT
	}
	control, err := unix.Open(dir+"/memory.oom_control", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	defer unix.Close(control)
	if fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return -1, 0, err
	}
	if err = writeCgroup(dir, "cgroup.event_control", fmt.Sprintf("%d %d", fd, control)); err != nil {
		_ = unix.Close(fd)
		return -1, 0, err
	}
	return fd, unix.EPOLLIN, nil
}

// DrainOOM reads a descriptor of OOMEvents. On v2 it returns the number of kills
// so far; on v1, where the event comes before the kill, -1.
func (c *Cgroups) DrainOOM(fd int) int {
	var buf [512]byte
	if !c.host.CgroupV2 {
		_, _ = unix.Read(fd, buf[:8])
		return -1
	}
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		return 0 // the cgroup is gone
	}
	return oomKills(string(buf[:n]))
}
