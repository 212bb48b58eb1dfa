package runtime

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are the capabilities by number (linux/capability.h).
var capNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Capabilities returns the names of the capabilities that this kernel knows
// and this process can give.
func (h *Host) Capabilities() []string {
	var out []string
	for i, n := range capNames {
		if i <= h.LastCap && h.Caps&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}

// IsCapability reports whether a name, in its long form, is that of a capability.
func IsCapability(name string) bool { return slices.Contains(capNames, name) }

// IsRlimit reports whether a name, as --ulimit has it, is that of a resource limit.
func IsRlimit(name string) bool {
	_, ok := rlimitNumbers["RLIMIT_"+strings.ToUpper(name)]
	return ok
}

func capMask(names []string) (uint64, error) {
	var m uint64
	for _, n := range names {
		i := slices.Index(capNames, strings.ToUpper(n))
		if i < 0 {
			return 0, &StartError{Stage: StageCapability, Errno: unix.EINVAL, Msg: fmt.Sprintf("unknown capability %q", n)}
		}
		m |= 1 << i
	}
	return m, nil
}

// credentials sets groups, user and capabilities, in the only order that works:
// the bounding set while CAP_SETPCAP is there, groups before the user, and the
// other sets last, kept across the change of user by PR_SET_KEEPCAPS.
func (p *plan) credentials(pr *specs.Process) error {
	p.stage = StageCapability
	var bounding, effective, permitted, inheritable, ambient uint64
	if c := pr.Capabilities; c != nil {
		for _, f := range []struct {
			to    *uint64
			names []string
		}{{&bounding, c.Bounding}, {&effective, c.Effective}, {&permitted, c.Permitted}, {&inheritable, c.Inheritable}, {&ambient, c.Ambient}} {
			m, err := capMask(f.names)
			if err != nil {
				return err
			}
			*f.to = m & (1<<(p.l.lastCap+1) - 1) & p.l.caps
		}
	}
	if pr.Capabilities != nil {
		for i := 0; i <= p.l.lastCap; i++ {
			if bounding&(1<<i) == 0 {
				p.call("bounding", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uint64(i))
			}
		}
	}
	p.stage = StageUser
	user := pr.User
	if user.UID != 0 {
		p.call("keepcaps", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	}
	groups := make([]byte, 0, 4*len(user.AdditionalGids))
	for _, g := range user.AdditionalGids {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	p.call("setgroups", unix.SYS_SETGROUPS, uint64(len(user.AdditionalGids)), p.bytes(groups))
	if p.l.userNS() {
		p.last().allow = unix.EPERM // setgroups may be denied there
	}
	gid, uid := uint64(user.GID), uint64(user.UID)
	p.call("setgid", unix.SYS_SETRESGID, gid, gid, gid)
	p.call("setuid", unix.SYS_SETRESUID, uid, uid, uid)
	if pr.Capabilities != nil {
		p.stage = StageCapability
		hdr := p.words(0x20080522)
		data := make([]byte, 24)
		le := binary.LittleEndian
		le.PutUint32(data, uint32(effective))
		le.PutUint32(data[4:], uint32(permitted))
		le.PutUint32(data[8:], uint32(inheritable))
		le.PutUint32(data[12:], uint32(effective>>32))
		le.PutUint32(data[16:], uint32(permitted>>32))
		le.PutUint32(data[20:], uint32(inheritable>>32))
		p.call("capset", unix.SYS_CAPSET, hdr, p.bytes(data))
		for i := 0; i <= p.l.lastCap; i++ {
			if ambient&(1<<i) != 0 {
				p.call("ambient", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uint64(i), 0, 0)
			}
		}
	}
	return nil
}

var rlimitNumbers = map[string]uint64{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
	"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

func (p *plan) rlimits(list []specs.POSIXRlimit) error {
	p.stage = StageRlimit
	for _, r := range list {
		n, ok := rlimitNumbers[r.Type]
		if !ok {
			return &StartError{Stage: StageRlimit, Errno: unix.EINVAL, Msg: fmt.Sprintf("unknown rlimit %q", r.Type)}
		}
		p.call(r.Type, unix.SYS_PRLIMIT64, 0, n, p.words(r.Soft, r.Hard), 0)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
