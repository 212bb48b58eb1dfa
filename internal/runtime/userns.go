package runtime

import (
	"encoding/binary"
	"fmt"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime/initprog"
)

// # User namespaces
//
// A container of berthd does not make its user namespace: it joins one that
// was made ahead of it (NewUserNS), together with the network namespace inside
// it. So the network can be set up before there is a process, and containers
// that share a namespace can share the user namespace that owns it, which the
// kernel demands of them.
//
//	keeper ──clone──▶ first child, still the host's root:
//	                    cgroups, oom score, limits · namespaces given · user namespace
//	                    clone(CLONE_PARENT | the new namespaces) ──▶ the container's process
//	                    report its number · exit
//
// Namespaces made by that second clone belong to the container's user namespace.
// Its child is the keeper's child, like any other. It becomes root of the user
// namespace, and then goes the way of every container.

// NewUserNS makes a user namespace with the given mappings; with net set, also
// a network namespace that it owns, whose loopback is up. With user not
// negative only a network namespace is made, inside that user namespace. The
// descriptors are the caller's; they are all that keeps the namespaces.
func (r *Runtime) NewUserNS(user int, uids, gids []specs.LinuxIDMapping, net bool) (userFD, netFD int, err error) {
	p := &plan{table: newTable(), l: &Launch{Spec: &specs.Spec{Process: &specs.Process{Args: []string{"namespaces"}}}, Join: -1, CgroupV2: -1, StartFD: -1}}
	p.stage = StageNamespace
	attr := &syscall.SysProcAttr{}
	files := []int{-1, -1, -1, -1, -1}
	if user >= 0 {
		files = append(files, user)
		p.call("user", unix.SYS_SETNS, fdRoot, unix.CLONE_NEWUSER)
		if net {
			p.call("network", unix.SYS_UNSHARE, unix.CLONE_NEWNET)
		}
	} else {
		attr.Cloneflags = unix.CLONE_NEWUSER
		if net {
			attr.Cloneflags |= unix.CLONE_NEWNET
		}
		attr.UidMappings, attr.GidMappings = idMap(uids), idMap(gids)
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{NoSetGroups: true} // its root, or the execve would take all power away
	}
	if net {
		p.loopback()
	}
	here := initprog.TableAddr + initprog.HeaderSize + uint64(len(p.ops))*initprog.OpSize
	p.call("ready", unix.SYS_WRITE, initprog.FDReport, p.words(here, 0), 16)
	p.call("wait", unix.SYS_PPOLL, 0, 0, 0, 0, 8) // for the kill
	p.call("exit", unix.SYS_EXIT_GROUP, 0)
	p.call("exit", unix.SYS_EXIT_GROUP, 0)
	proc, err := r.run(p, files, attr, -1)
	if err != nil {
		return -1, -1, fmt.Errorf("cannot make a user namespace: %w", err)
	}
	defer func() {
		_ = unix.PidfdSendSignal(proc.PidFD, unix.SIGKILL, nil, 0)
		_ = unix.Waitid(unix.P_PIDFD, proc.PidFD, nil, unix.WEXITED, nil)
		_ = unix.Close(proc.PidFD)
		if proc.MountNS >= 0 {
			_ = unix.Close(proc.MountNS)
		}
	}()
	open := func(name string) (int, error) {
		return unix.Open(fmt.Sprintf("/proc/%d/ns/%s", proc.Pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	userFD, netFD = -1, -1
	if user < 0 {
		if userFD, err = open("user"); err != nil {
			return -1, -1, err
		}
	}
	if net {
		if netFD, err = open("net"); err != nil {
			if userFD >= 0 {
				_ = unix.Close(userFD)
			}
			return -1, -1, err
		}
	}
	return userFD, netFD, nil
}

// loopback brings lo up in the process's network namespace, and lets everybody
// there bind low ports.
func (p *plan) loopback() {
	req := make([]byte, 40) // struct ifreq
	copy(req, "lo")
	binary.LittleEndian.PutUint16(req[16:], unix.IFF_UP|unix.IFF_RUNNING)
	s := p.call("lo", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	p.feed(s, p.call("lo", unix.SYS_IOCTL, 0, unix.SIOCSIFFLAGS, p.bytes(req)), 0)
	port := "/proc/sys/net/ipv4/ip_unprivileged_port_start"
	fd := p.call(port, unix.SYS_OPENAT, atFDCWD, p.str(port), unix.O_WRONLY|unix.O_CLOEXEC)
	p.last().flags, p.last().skipErr = initprog.FlagIgnore, 1
	p.feed(fd, p.call(port, unix.SYS_WRITE, 0, p.str("0"), 1), 0)
	p.last().flags = initprog.FlagIgnore
}

// joinsUser reports whether the container joins a user namespace made ahead.
func (l *Launch) joinsUser() bool {
	_, ok := l.NSFD[specs.UserNamespace]
	return ok
}

// enterUser is the first child's part: see above. flags are the namespaces to
// be made inside.
func (p *plan) enterUser(host *Host, flags uintptr) {
	s := p.l.Spec
	// What only the host's root may do, inherited by the process.
	p.stage = StageProcess
	if adj := s.Process.OOMScoreAdj; adj != nil && *adj != host.OOMScoreAdj {
		p.writeFile("/proc/self/oom_score_adj", fmt.Sprint(*adj))
	}
	p.raiseLimits(s.Process.Rlimits)
	p.stage = StageNamespace
	for _, ns := range s.Linux.Namespaces {
		if fd, given := p.l.NSFD[ns.Type]; given && ns.Type != specs.UserNamespace {
			p.call(string(ns.Type), unix.SYS_SETNS, p.pass(fd), uint64(nsFlags[ns.Type]))
		}
	}
	p.call("user", unix.SYS_SETNS, p.pass(p.l.NSFD[specs.UserNamespace]), unix.CLONE_NEWUSER)
	report := p.words(0, 0)
	c := p.call("clone", unix.SYS_CLONE, unix.CLONE_PARENT|uint64(flags), 0, 0, 0, 0)
	p.ops[c].store = report + 8
	// The new process is in another pid namespace than its parent, and sees
	// none: that tells the two apart.
	parent := p.call("clone", unix.SYS_GETPPID)
	probe := p.call("clone", unix.SYS_PIDFD_OPEN, 0, 0)
	p.feed(parent, probe, 0)
	p.last().flags, p.last().skipErr = initprog.FlagIgnore, 2
	here := p.call("handoff", unix.SYS_WRITE, initprog.FDReport, report, 16)
	p.handoff = initprog.TableAddr + initprog.HeaderSize + uint64(here)*initprog.OpSize
	binary.LittleEndian.PutUint64(p.data[report-initprog.TableAddr-dataOffset:], p.handoff)
	p.call("exit", unix.SYS_EXIT_GROUP, 0)
	p.stage = StageUser
	p.call("setgid", unix.SYS_SETRESGID, 0, 0, 0)
	p.call("setuid", unix.SYS_SETRESUID, 0, 0, 0)
	p.stage = StageNamespace
	if p.ownCgroupNS() {
		p.call("cgroup", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
}

// raiseLimits makes room for limits above this process's own, which a process
// in a user namespace may not raise. The final values come later.
func (p *plan) raiseLimits(list []specs.POSIXRlimit) {
	p.stage = StageRlimit
	for _, l := range list {
		n, ok := rlimitNumbers[l.Type]
		if !ok {
			continue // reported later
		}
		var now unix.Rlimit
		if unix.Getrlimit(int(n), &now) != nil || l.Hard <= now.Max {
			continue
		}
		p.call(l.Type, unix.SYS_PRLIMIT64, 0, n, p.words(l.Hard, l.Hard), 0)
	}
}
