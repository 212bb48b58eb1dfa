// Package journald is the log driver journald: the journal's native protocol.
//
//	--log-driver journald --log-opt tag=web
//
// What docker logs shows comes from the spool, not from the journal.
package journald

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/ship"
)

// Name is the driver's.
const Name = "journald"

// Socket is where journald listens.
const Socket = "/run/systemd/journal/socket"

// Validate checks options as create does.
func Validate(own map[string]string) error { return logs.Known(Name, own) }

// fieldName makes a name that the journal takes: capitals, digits and underscores, no underscore first.
func fieldName(s string) string {
	var b []byte
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z':
			r -= 'a' - 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
		default:
			r = '_'
		}
		if len(b) > 0 || r != '_' {
			b = append(b, byte(r))
		}
	}
	return string(b)
}

// sendTimeout bounds how long a journal that takes nothing is waited for, at one go.
const sendTimeout = 2 * time.Second

type remote struct {
	mu      sync.Mutex // guards fd
	fd      int        // -1 when closed
	to      unix.SockaddrUnix
	fixed   []byte // the fields that all messages have
	epoch   string
	ordinal uint64
	buf     []byte
}

// Open opens a socket, and fails when there is no journal.
func Open(info *ship.Info) (ship.Remote, error) { return OpenAt(Socket, info) }

// OpenAt is Open for a journal that listens elsewhere.
func OpenAt(socket string, info *ship.Info) (ship.Remote, error) {
	if fi, err := os.Stat(socket); err != nil || fi.Mode()&os.ModeSocket == 0 {
		return nil, errors.New("journald is not enabled on this host")
	}
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	attrs, err := info.Attributes(fieldName)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	limit := unix.NsecToTimeval(int64(sendTimeout))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	var id [16]byte
	_, _ = rand.Read(id[:])
	r := &remote{fd: fd, to: unix.SockaddrUnix{Name: socket}, epoch: hex.EncodeToString(id[:])}
	fields := map[string]string{
		"CONTAINER_ID": info.ID(), "CONTAINER_ID_FULL": info.ContainerID, "CONTAINER_NAME": info.Name(),
		"CONTAINER_TAG": tag, "IMAGE_NAME": info.ImageName(), "SYSLOG_IDENTIFIER": tag,
	}
	for k, v := range attrs {
		fields[k] = v
	}
	for k, v := range fields {
		if k != "" {
			r.fixed = appendField(r.fixed, k, []byte(v))
		}
	}
	r.fixed = appendField(r.fixed, "CONTAINER_LOG_EPOCH", []byte(r.epoch))
	return r, nil
}

// appendField appends NAME=value, or the form with a length for a value of several lines.
func appendField(b []byte, name string, v []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(v, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = binary.LittleEndian.AppendUint64(append(b, '\n'), uint64(len(v)))
	}
	return append(append(b, v...), '\n')
}

func (r *remote) Send(e *ship.Entry) error {
	prio := "6"
	if e.Stream == logs.Stderr {
		prio = "3"
	}
	r.ordinal++
	b := append(r.buf[:0], r.fixed...)
	b = appendField(b, "PRIORITY", []byte(prio))
	b = appendField(b, "SYSLOG_TIMESTAMP", []byte(e.Time.UTC().Format(time.RFC3339Nano)))
	b = appendField(b, "CONTAINER_LOG_ORDINAL", strconv.AppendUint(nil, r.ordinal, 10))
	if p := e.Partial; p.Ordinal > 0 {
		b = appendField(b, "CONTAINER_PARTIAL_ID", []byte(p.ID))
		b = appendField(b, "CONTAINER_PARTIAL_ORDINAL", []byte(strconv.Itoa(p.Ordinal)))
		b = appendField(b, "CONTAINER_PARTIAL_LAST", []byte(strconv.FormatBool(p.Last)))
		if !p.Last {
			b = appendField(b, "CONTAINER_PARTIAL_MESSAGE", []byte("true"))
		}
	}
	b = appendField(b, "MESSAGE", e.Line)
	r.buf = b
	r.mu.Lock()
	defer r.mu.Unlock()
	err := unix.Sendto(r.fd, b, unix.MSG_NOSIGNAL, &r.to)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		err = r.sendFile(b)
	}
	return os.NewSyscallError("sendto", err)
}

// sendFile sends what is too large for a datagram as a sealed memory file.
func (r *remote) sendFile(b []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil {
			return err
		}
		off += n
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	return unix.Sendmsg(r.fd, nil, unix.UnixRights(fd), &r.to, unix.MSG_NOSIGNAL)
}

func (r *remote) Flush() error { return nil }

func (r *remote) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fd := r.fd
	r.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}
