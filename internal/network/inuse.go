package network

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inUse returns one of the ports from first to last that a program of the host has on an
// address, or on all; 0 for none. It reads the kernel's list of sockets.
func inUse(proto uint8, host netip.Addr, first, last uint16) (uint16, error) {
	file := "/proc/thread-self/net/tcp"
	if proto == unix.IPPROTO_UDP {
		file = "/proc/thread-self/net/udp"
	}
	files := []string{file, file + "6"} // one on [::] may have IPv4, too
	if host.Is6() {
		files = files[1:]
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			// sl local_address rem_address st: 0A is a listener, 07 a datagram socket.
			if len(f) < 4 || f[3] != "0A" && f[3] != "07" {
				continue
			}
			addr, hex, ok := strings.Cut(f[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if !ok || err != nil || uint16(port) < first || uint16(port) > last {
				continue
			}
			if host.IsUnspecified() || strings.Trim(addr, "0") == "" || addr == kernelForm(host) {
				return uint16(port), nil
			}
		}
	}
	return 0, nil
}

// kernelForm is an address as /proc/net shows it: words of the machine's order.
func kernelForm(a netip.Addr) string {
	b := a.AsSlice()
	const digits = "0123456789ABCDEF"
	var out strings.Builder
	for i := 0; i < len(b); i += 4 {
		for j := 3; j >= 0; j-- {
			out.WriteByte(digits[b[i+j]>>4])
			out.WriteByte(digits[b[i+j]&15])
		}
	}
	return out.String()
}
