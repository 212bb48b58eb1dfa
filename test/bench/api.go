package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// client talks HTTP over one kept connection to an engine's socket. It is made
// for timing: a call is one write and one read, on the caller's goroutine.
type client struct {
	path string
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

const apiVersion = "/v1.41"

func dial(path string) (*client, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	return &client{path: path, conn: c, in: bufio.NewReaderSize(c, 64<<10)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

// send writes a request and returns the answer, whose body is not read yet. A
// body of unknown length is given with length -1 and sent in chunks.
func (c *client) send(method, path string, body io.Reader, length int64, kind string) (*http.Response, error) {
	c.out = fmt.Appendf(c.out[:0], "%s %s%s HTTP/1.1\r\nHost: engine\r\nContent-Length: %d\r\n", method, apiVersion, path, max(length, 0))
	if kind != "" {
		c.out = fmt.Appendf(c.out, "Content-Type: %s\r\n", kind)
	}
	c.out = append(c.out, '\r', '\n')
	if b, ok := body.(*bytes.Reader); ok && b.Len() < 16<<10 {
		n := len(c.out)
		c.out = append(c.out, make([]byte, b.Len())...)
		_, _ = b.Read(c.out[n:])
		body = nil
	}
	_ = c.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := c.conn.Write(c.out); err != nil {
		return nil, err
	}
	if body != nil {
		if _, err := io.Copy(c.conn, body); err != nil {
			return nil, err
		}
	}
	return http.ReadResponse(c.in, nil)
}

// do makes one call and returns the body; a status of 400 and more is an error.
func (c *client) do(method, path string, in any) ([]byte, error) {
	var (
		body io.Reader
		n    int64
		kind string
	)
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body, n, kind = bytes.NewReader(raw), int64(len(raw)), "application/json"
	}
	res, err := c.send(method, path, body, n, kind)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, strings.TrimSpace(string(out)))
	}
	return out, err
}

// upload sends a tar and fails when the stream of progress holds an error.
func (c *client) upload(path string, body io.Reader, length int64) error {
	res, err := c.send("POST", path, body, length, "application/x-tar")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode >= 400 || bytes.Contains(out, []byte(`"errorDetail"`))) {
		err = fmt.Errorf("%s: %s: %s", path, res.Status, out)
	}
	return err
}

type object = map[string]any

// spec describes a container without a network.
func spec(argv ...string) object {
	return object{"Image": "busybox", "Cmd": argv, "HostConfig": object{"NetworkMode": "none"}}
}

func (c *client) create(s object) (string, error) {
	out, err := c.do("POST", "/containers/create", s)
	if err != nil {
		return "", err
	}
	var r struct{ ID string }
	err = json.Unmarshal(out, &r)
	return r.ID, err
}

func (c *client) start(id string) error {
	_, err := c.do("POST", "/containers/"+id+"/start", nil)
	return err
}

func (c *client) wait(id string) error {
	_, err := c.do("POST", "/containers/"+id+"/wait", nil)
	return err
}

func (c *client) remove(id string) error {
	_, err := c.do("DELETE", "/containers/"+id+"?force=1&v=1", nil)
	return err
}

// run makes and starts a container.
func (c *client) run(s object) (string, error) {
	id, err := c.create(s)
	if err == nil {
		err = c.start(id)
	}
	return id, err
}

// cycle is a container's whole life; the steps are timed apart.
func (c *client) cycle(s object) (steps [4]time.Duration, err error) {
	t := time.Now()
	lap := func(i int) { now := time.Now(); steps[i] = now.Sub(t); t = now }
	id, err := c.create(s)
	if err != nil {
		return steps, err
	}
	lap(0)
	if err = c.start(id); err != nil {
		return steps, err
	}
	lap(1)
	if err = c.wait(id); err != nil {
		return steps, err
	}
	lap(2)
	err = c.remove(id)
	lap(3)
	return steps, err
}

// exec runs a command in a container through the API and reads its output.
func (c *client) exec(id string, argv ...string) error {
	out, err := c.do("POST", "/containers/"+id+"/exec", object{"Cmd": argv, "AttachStdout": true, "AttachStderr": true})
	if err != nil {
		return err
	}
	var r struct{ ID string }
	if err := json.Unmarshal(out, &r); err != nil {
		return err
	}
	h, err := dial(c.path)
	if err != nil {
		return err
	}
	defer h.close()
	raw := []byte(`{}`)
	res, err := h.send("POST", "/exec/"+r.ID+"/start", bytes.NewReader(raw), int64(len(raw)), "application/json")
	if err != nil {
		return err
	}
	if res.StatusCode >= 400 {
		return fmt.Errorf("exec: %s", res.Status)
	}
	// A hijacked stream ends with the connection, after 101 as after 200.
	_, err = io.Copy(io.Discard, h.in)
	return err
}

// ping tells whether an engine answers.
func ping(path string) bool {
	c, err := dial(path)
	if err != nil {
		return false
	}
	defer c.close()
	_, err = c.do("GET", "/_ping", nil)
	return err == nil
}

// list returns the ids of all containers.
func list(c *client) ([]string, error) {
	out, err := c.do("GET", "/containers/json?all=1", nil)
	if err != nil {
		return nil, err
	}
	var all []struct{ ID string }
	err = json.Unmarshal(out, &all)
	ids := make([]string, len(all))
	for i := range all {
		ids[i] = all[i].ID
	}
	return ids, err
}

// readLogs reads all logs of a container and returns how many bytes of output
// they held.
func readLogs(sock, id string) (int64, error) {
	c, err := dial(sock)
	if err != nil {
		return 0, err
	}
	defer c.close()
	res, err := c.send("GET", "/containers/"+id+"/logs?stdout=1&stderr=1", nil, 0, "")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 400 {
		return 0, fmt.Errorf("logs: %s", res.Status)
	}
	in := bufio.NewReaderSize(res.Body, 256<<10)
	var total int64
	for {
		h, err := in.Peek(8)
		if err == io.EOF && len(h) == 0 {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n := int(h[4])<<24 | int(h[5])<<16 | int(h[6])<<8 | int(h[7])
		if _, err := in.Discard(8 + n); err != nil {
			return total, err
		}
		total += int64(n)
	}
}

// uploadFile posts a file.
func uploadFile(c *client, path, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return c.upload(path, f, info.Size())
}

// importImage makes the busybox image from its tar.
func importImage(e *engine, archive string) error {
	return uploadFile(e.api, "/images/create?fromSrc=-&repo=busybox&tag=latest", archive)
}
