// Package idmap knows user and group ids of containers that run in a user
// namespace, and those of the host that stand for them.
//
// A Mapping comes from the host's /etc/subuid and /etc/subgid, as dockerd's
// --userns-remap has it: the ranges of one user, put one after another, are the
// container's ids from 0 on.
//
//	/etc/subuid            container    host
//	dockremap:100000:5     0…4          100000…100004
//	dockremap:200000:10    5…14         200000…200009
package idmap

// Overflow is what an id without a mapping is shown as.
const Overflow = 65534

// Range maps Size ids from Inside on, the container's, to those from Outside on.
type Range struct {
	Inside  uint32
	Outside uint32
	Size    uint32
}

// Map is a list of ranges that do not overlap.
type Map []Range

// Out returns the host's id for a container's; ok is false when there is none.
func (m Map) Out(id uint32) (host uint32, ok bool) {
	for _, r := range m {
		if id >= r.Inside && id-r.Inside < r.Size {
			return r.Outside + (id - r.Inside), true
		}
	}
	return 0, false
}

// In returns the container's id for one of the host, Overflow when there is none.
func (m Map) In(id uint32) uint32 {
	for _, r := range m {
		if id >= r.Outside && id-r.Outside < r.Size {
			return r.Inside + (id - r.Outside)
		}
	}
	return Overflow
}

// Mapping maps users and groups.
type Mapping struct {
	User, Group string // whose ranges they are
	UID, GID    Map
}

// Root returns the host's ids of the container's root.
func (m *Mapping) Root() (uid, gid uint32) {
	uid, _ = m.UID.Out(0)
	gid, _ = m.GID.Out(0)
	return uid, gid
}
