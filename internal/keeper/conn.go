package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// conn frames messages over a unix stream socket.
type conn struct {
	c  *net.UnixConn
	wr sync.Mutex
}

const maxFDs = 200 // the kernel takes 253 in one message

// send writes one message. The descriptors stay the caller's.
func (c *conn) send(m *message, fds []int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxBody || len(fds) > maxFDs {
		return fmt.Errorf("a message of %d bytes and %d descriptors is too large", len(body), len(fds))
	}
	buf := make([]byte, 8, 8+len(body))
	binary.LittleEndian.PutUint32(buf, uint32(len(body)))
	binary.LittleEndian.PutUint32(buf[4:], uint32(len(fds)))
	buf = append(buf, body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.wr.Lock()
	defer c.wr.Unlock()
	n, _, err := c.c.WriteMsgUnix(buf, oob, nil)
	if err == nil && n < len(buf) {
		_, err = c.c.Write(buf[n:])
	}
	return err
}

// receive reads one message with its descriptors, which are the caller's to close.
func (c *conn) receive() (*message, []int, error) {
	var head [8]byte
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	var fds []int
	if oobn > 0 {
		scms, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, nil, err
		}
		for i := range scms {
			got, err := unix.ParseUnixRights(&scms[i])
			if err != nil {
				closeAll(fds)
				return nil, nil, err
			}
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	if _, err := io.ReadFull(c.c, head[n:]); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	size, want := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if flags&unix.MSG_CTRUNC != 0 || int(want) != len(fds) || size > maxBody {
		closeAll(fds)
		return nil, nil, errors.New("a message came in pieces")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.c, body); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	m := &message{}
	if err := json.Unmarshal(body, m); err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return m, fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// peerIsRoot reports whether the other end runs as this process's user: the
// socket's mode keeps others out already, this holds when the mode is lost.
func peerIsUs(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	_ = raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		ok = err == nil && int(cred.Uid) == os.Geteuid()
	})
	return ok
}
