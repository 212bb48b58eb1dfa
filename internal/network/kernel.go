package network

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// load is what brings the kernel's part of bridge networks, where it is made of
// modules. The kernel loads them by itself as they are used; not where modprobe
// or the modules are not there, as in some containers and small machines.
const load = "modprobe -a bridge veth nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_fib_inet"

// lacks reports whether an error says that the kernel has no bridges, or not all
// that the firewall's rules are made of.
func lacks(err error) bool {
	return slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT}, func(e error) bool { return errors.Is(err, e) })
}

// advised adds to such an error what to do.
func advised(err error) error {
	if !lacks(err) {
		return err
	}
	return fmt.Errorf("%w (the kernel lacks something: %s, then start the engine again)", err, load)
}

// withoutBridges goes on where the kernel lacks what bridge networks need: what
// runs without them, or on the host's network, has no reason to wait. No network
// is used without its rules, which keep it apart from others.
func withoutBridges(s *Service, err error) {
	s.o.Log.Error("no bridge networks: the kernel lacks what they need; load it and start the engine again", "load", load, "error", err)
	s.fault = advised(err)
	for _, n := range s.all() {
		if n.Driver == "bridge" {
			n.fault, n.pool = s.fault, nil
		}
	}
}
