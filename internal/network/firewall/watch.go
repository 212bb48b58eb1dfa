package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long the kernel's news are gathered before the rules are looked at.
const settle = 20 * time.Millisecond

// Watch writes the engine's rules again whenever somebody else has removed them, as
// "nft flush ruleset" does. It ends with stop. What the rules were that an
// administrator had in the chain user is not known: these do not come back.
// tell hears of each repair, with the error if it failed.
func (f *Firewall) Watch(tell func(error)) (stop func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("cannot watch nftables: %w", err)
	}
	sock := os.NewFile(uintptr(fd), "nftables")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("cannot watch nftables: %w", err)
	}
	gone := make(chan struct{}, 1)
	go func() {
		defer close(gone)
		buf := make([]byte, 64<<10)
		for {
			n, err := sock.Read(buf)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err == nil && !removes(buf[:n]) {
				continue
			}
			select {
			case gone <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		for range gone {
			time.Sleep(settle)
			if again, err := f.reassert(); again || err != nil {
				tell(err)
			}
		}
	}()
	return func() { _ = sock.Close() }, nil
}

// removes reports whether a batch of messages tells that tables, chains or rules
// are gone.
func removes(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		n, typ := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
		if typ>>8 == unix.NFNL_SUBSYS_NFTABLES {
			switch typ & 0xff {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE:
				return true
			}
		}
		n = (n + 3) &^ 3
		if n < unix.NLMSG_HDRLEN || int(n) > len(b) {
			return false
		}
		b = b[n:]
	}
	return false
}

// reassert writes the table again if it is not whole, and tells whether.
func (f *Firewall) reassert() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.wrote || f.b.whole() {
		return false, nil
	}
	return true, f.write()
}
