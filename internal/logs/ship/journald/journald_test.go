package journald

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
	"berth.dev/berth/internal/logs/ship"
)

// journal listens as journald does.
func journal(t *testing.T, inbox *logstest.Inbox) string {
	path := filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf, oob := make([]byte, 1<<20), make([]byte, 256)
		for {
			n, on, _, _, err := c.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			msg := buf[:n]
			if on > 0 {
				msg = fromFile(t, oob[:on])
			}
			take(t, inbox, msg)
		}
	}()
	return path
}

func fromFile(t *testing.T, oob []byte) []byte {
	cms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Error(err)
		return nil
	}
	fds, _ := unix.ParseUnixRights(&cms[0])
	f := os.NewFile(uintptr(fds[0]), "entry")
	defer f.Close()
	b, _ := io.ReadAll(io.NewSectionReader(f, 0, 1<<24))
	return b
}

func take(t *testing.T, inbox *logstest.Inbox, b []byte) {
	fields := map[string]string{}
	for len(b) > 0 {
		nl := bytes.IndexByte(b, '\n')
		if eq := bytes.IndexByte(b[:nl], '='); eq >= 0 {
			fields[string(b[:eq])] = string(b[eq+1 : nl])
			b = b[nl+1:]
			continue
		}
		n := int(binary.LittleEndian.Uint64(b[nl+1:]))
		fields[string(b[:nl])] = string(b[nl+9 : nl+9+n])
		b = b[nl+10+n:]
	}
	for k, want := range map[string]string{
		"CONTAINER_ID": "0123456789ab", "CONTAINER_ID_FULL": strings.Repeat("0123456789abcdef", 4), "CONTAINER_NAME": "web",
		"CONTAINER_TAG": "t/web", "SYSLOG_IDENTIFIER": "t/web", "IMAGE_NAME": "busybox",
	} {
		if fields[k] != want {
			t.Errorf("%s is %q, want %q", k, fields[k], want)
		}
	}
	l := logstest.Line{Text: fields["MESSAGE"], Stream: logs.Stdout, Attrs: map[string]string{"color": fields["COLOR"], "shape": fields["SHAPE"]}}
	l.Time, _ = time.Parse(time.RFC3339Nano, fields["SYSLOG_TIMESTAMP"])
	if fields["PRIORITY"] == "3" {
		l.Stream = logs.Stderr
	} else if fields["PRIORITY"] != "6" {
		t.Errorf("priority %q", fields["PRIORITY"])
	}
	if id := fields["CONTAINER_PARTIAL_ID"]; id != "" {
		n, _ := strconv.Atoi(fields["CONTAINER_PARTIAL_ORDINAL"])
		l.Part = logs.Partial{ID: id, Ordinal: n, Last: fields["CONTAINER_PARTIAL_LAST"] == "true"}
		if (fields["CONTAINER_PARTIAL_MESSAGE"] == "true") == l.Part.Last {
			t.Error("CONTAINER_PARTIAL_MESSAGE is for all parts but the last")
		}
	}
	if n, err := strconv.Atoi(fields["CONTAINER_LOG_ORDINAL"]); err != nil || n < 1 || len(fields["CONTAINER_LOG_EPOCH"]) != 32 {
		t.Errorf("ordinal %q of %q", fields["CONTAINER_LOG_ORDINAL"], fields["CONTAINER_LOG_EPOCH"])
	}
	inbox.Add(l)
}

func TestConformance(t *testing.T) {
	logstest.Run(t, logstest.Driver{Parts: true, New: func(t *testing.T, labels map[string]string) logstest.Log {
		inbox := &logstest.Inbox{}
		socket := journal(t, inbox)
		info := logstest.Info(map[string]string{"tag": "t/{{.Name}}"}, labels)
		return logstest.NewRemoteLog(t, inbox, func() (ship.Remote, error) { return OpenAt(socket, info) })
	}})
}

// What a datagram does not hold goes as a memory file.
func TestLargeEntry(t *testing.T) {
	inbox := &logstest.Inbox{}
	info := logstest.Info(map[string]string{"tag": "t/web"}, map[string]string{"color": strings.Repeat("c", 300<<10) + "\nd"})
	r, err := OpenAt(journal(t, inbox), info)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Send(&ship.Entry{Stream: logs.Stdout, Time: time.Now(), Line: []byte("big")}); err != nil {
		t.Fatal(err)
	}
	if got := inbox.Wait(t, 1); len(got) != 1 || got[0].Text != "big" || len(got[0].Attrs["color"]) != 300<<10+2 {
		t.Fatalf("%d entries", len(got))
	}
}

func TestNoJournal(t *testing.T) {
	_, err := OpenAt(filepath.Join(t.TempDir(), "none"), logstest.Info(nil, nil))
	if err == nil || err.Error() != "journald is not enabled on this host" {
		t.Fatal(err)
	}
	if err := Validate(map[string]string{"x": ""}); err == nil || err.Error() != "unknown log opt 'x' for journald log driver" {
		t.Fatal(err)
	}
	if got := fieldName("_com.example/Name-1"); got != "COM_EXAMPLE_NAME_1" {
		t.Fatal(got)
	}
}
