package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"slices"
	"time"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/stdmux"
)

// LogsOptions choose what of a container's output is read back.
type LogsOptions struct {
	Stdout, Stderr, Follow, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int // lines, -1 for all
}

// systemError is the stream on which the engine tells what went wrong.
const systemError = 3

// logBatch is about how much is gathered before it is written to the client.
const logBatch = 64 << 10

// Logs reads a container's log back. begin is called once all is well.
func (s Streams) Logs(ctx context.Context, ref string, o LogsOptions, begin func(tty bool) io.Writer) error {
	c, err := s.Get(ref)
	if err != nil {
		return err
	}
	if !o.Stdout && !o.Stderr {
		return errs.New(errs.Invalid, "You must choose at least one stream")
	}
	r := c.Record()
	if !r.readable() {
		return logs.ErrNotReadable
	}
	tty := r.Config.Tty
	return s.copyLogs(ctx, c, o, begin(tty), !tty)
}

// replay writes what was logged before an attach.
func (s Streams) replay(ctx context.Context, c *Container, o AttachOptions, mux bool, w io.Writer) error {
	if !c.Record().readable() {
		return nil
	}
	return s.copyLogs(ctx, c, LogsOptions{Stdout: o.Stdout, Stderr: o.Stderr, Tail: -1}, w, mux)
}

func (s Streams) copyLogs(ctx context.Context, c *Container, o LogsOptions, w io.Writer, mux bool) error {
	var stopped <-chan struct{}
	if o.Follow {
		if stopped = c.exitChan(); stopped == nil {
			done := make(chan struct{})
			close(done)
			stopped = done
		}
	}
	driver, path := c.Record().logFile(s.dir(c.Record().ID))
	rd := logs.Read(ctx, path, logs.ReadOptions{Driver: driver, Since: o.Since, Until: o.Until, Tail: o.Tail, Follow: o.Follow, Stopped: stopped, Attrs: o.Details})
	defer rd.Close()
	out := make([]byte, 0, logBatch+32<<10)
	flush := func() error {
		if len(out) == 0 {
			return nil
		}
		_, err := w.Write(out)
		out = out[:0]
		return err
	}
	for {
		m, err := rd.Next()
		if err != nil {
			if ferr := flush(); ferr != nil {
				return ferr
			}
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			text := "Error grabbing logs: " + err.Error() + "\n"
			if mux {
				out = stdmux.AppendHeader(out, systemError, len(text))
			}
			out = append(out, text...)
			return flush()
		}
		if m.Stream == logs.Stdout && !o.Stdout || m.Stream == logs.Stderr && !o.Stderr {
			continue
		}
		out = appendLine(out, *m, o, mux)
		if len(out) >= logBatch || !rd.Buffered() {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// appendLine adds one entry as the API streams it.
func appendLine(out []byte, m logs.Message, o LogsOptions, mux bool) []byte {
	var prefix []byte
	if o.Timestamps {
		prefix = append(m.Time.UTC().AppendFormat(prefix, "2006-01-02T15:04:05.000000000Z07:00"), ' ')
	}
	if o.Details {
		prefix = append(append(prefix, detailText(m.Attrs)...), ' ')
	}
	line := m.Line
	if mux {
		out = stdmux.AppendHeader(out, m.Stream, len(prefix)+len(line))
	}
	return append(append(out, prefix...), line...)
}

func detailText(attrs map[string]string) string {
	var b bytes.Buffer
	keys := make([]string, 0, len(attrs))
	for k := range attrs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(url.QueryEscape(k) + "=" + url.QueryEscape(attrs[k]))
	}
	return b.String()
}
