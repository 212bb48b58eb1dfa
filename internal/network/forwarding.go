package network

import "golang.org/x/sys/unix"

// Forwards reports whether the host forwards IPv4 (net.ipv4.ip_forward), without which a
// bridge network leads nowhere. Where that cannot be read it is taken for granted.
func Forwards() bool {
	fd, err := unix.Open("/proc/sys/net/ipv4/ip_forward", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	return err != nil || n == 0 || b[0] != '0'
}
