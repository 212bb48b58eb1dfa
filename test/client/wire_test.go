package client

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// raw sends a request that takes its connection over, and returns the answer's
// status line with all that comes after it.
func raw(t *testing.T, e *enginetest.Engine, path, body string) string {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: berth\r\nContent-Type: application/json\r\nConnection: Upgrade, close\r\nUpgrade: tcp\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	var b bytes.Buffer
	_, _ = b.ReadFrom(c)
	return b.String()
}

// What other programs send to the API, and neither command line does.
func TestOtherClients(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	call := func(method, path string, body, out any, want int) {
		t.Helper()
		if code, text := e.Call(method, path, body, out); code != want {
			t.Errorf("%s %s: %d %s, want %d", method, path, code, text, want)
		}
	}
	var made struct{ ID string }
	type m = map[string]any

	// The umask is the container's, for its program and for what is executed in it.
	call(http.MethodPost, "/v1.56/containers/create?name=one", m{"Image": img, "Cmd": []string{"sleep", "1000"}, "HostConfig": m{"Umask": 0o027}}, &made, 201)
	call(http.MethodPost, "/containers/one/start", nil, nil, 204)
	if got := strings.TrimSpace(e.Docker("exec", "one", "sh", "-c", "umask; grep Umask /proc/1/status")); got != "0027\nUmask:\t0027" {
		t.Errorf("umask: %q", got)
	}

	// How the output comes is the start's to say; whether there is a terminal, the creation's.
	for _, tc := range []struct {
		create, start bool
		framed        bool
	}{{true, true, false}, {true, false, true}, {false, true, false}, {false, false, true}} {
		call(http.MethodPost, "/v1.47/containers/one/exec", m{"AttachStdout": true, "Tty": tc.create, "Cmd": []string{"sh", "-c", "test -t 1; echo $?"}}, &made, 201)
		got := raw(t, e, "/v1.47/exec/"+made.ID+"/start", fmt.Sprintf(`{"Tty":%t}`, tc.start))
		head, out, _ := strings.Cut(got, "\r\n\r\n")
		want := "1\n"
		if tc.create {
			want = "0\r\n"
		}
		if tc.framed {
			want = "\x01\x00\x00\x00\x00\x00\x00" + string(rune(len(want))) + want
		}
		if out != want || strings.Contains(head, "multiplexed") != tc.framed {
			t.Errorf("%+v: %q %q, want %q", tc, head, out, want)
		}
	}

	// SIGKILL is over when it is answered.
	call(http.MethodPost, "/v1.47/containers/one/exec", m{"AttachStdout": true, "Tty": true, "Cmd": []string{"sleep", "1000"}}, &made, 201)
	call(http.MethodPost, "/exec/"+made.ID+"/start", m{"Detach": true}, nil, 200)
	call(http.MethodPost, "/containers/one/kill", nil, nil, 204)
	call(http.MethodPost, "/exec/"+made.ID+"/resize?h=40&w=40", nil, nil, 409)
	call(http.MethodDelete, "/containers/one", nil, nil, 204)
	for range 10 {
		e.Docker("run", "-d", "--name", "killed", img, "sleep", "1000")
		e.Docker("kill", "killed")
		e.Docker("rm", "killed")
	}

	// A run in the foreground ends with the first exit, whatever the restart policy.
	for _, c := range e.Clients() {
		if r := c.RunIn(strings.NewReader("exit 11"), "run", "-i", "--name", "again", "--restart", "always", img, "sh"); r.Code != 11 {
			t.Errorf("%q: %d %q", r.Args, r.Code, r.Err)
		}
		c.Must("rm", "-f", "again")
	}

	// A limit that an update takes away is gone from the cgroup, and shown as 0.
	for _, none := range []int{0, -1, -2} {
		e.Docker("run", "-d", "--name", "pids", "--pids-limit", "32", img, "sleep", "1000")
		call(http.MethodPost, "/containers/pids/update", m{"PidsLimit": none}, nil, 200)
		if got := strings.Fields(e.Docker("exec", "pids", "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max")); len(got) != 1 || got[0] != "max" {
			t.Errorf("pids limit %d: %q", none, got)
		}
		if got := strings.TrimSpace(e.Docker("inspect", "-f", "{{.HostConfig.PidsLimit}}", "pids")); got != "0" {
			t.Errorf("pids limit %d is shown as %q", none, got)
		}
		e.Docker("rm", "-f", "pids")
	}

	// A path may climb out of the root: it stays there.
	e.Docker("run", "--name", "path", img, "touch", "/tmp/there")
	e.Docker("cp", "path:../../../tmp/there", t.TempDir())

	// Bad keys are told before the connection is anything else.
	call(http.MethodPost, "/containers/create?name=two", m{"Image": img, "Tty": true}, &made, 201)
	if got := raw(t, e, "/containers/two/attach?stream=1&detachKeys=ctrl-A,a", ""); !strings.HasPrefix(got, "HTTP/1.1 400") || !strings.Contains(got, "Invalid detach keys (ctrl-A,a) provided") {
		t.Errorf("detach keys: %q", got)
	}

	// Only an import from a URL tells how far it is.
	if got := raw(t, e, "/images/create?fromSrc=-&repo=empty", strings.Repeat("\x00", 1024)); strings.Contains(got, "Importing") || !strings.Contains(got, `{"status":"sha256:`) {
		t.Errorf("import: %s", got)
	}

	// Annotations can be looked for.
	call(http.MethodPost, "/v1.56/containers/create?name=noted", m{"Image": img, "HostConfig": m{"Annotations": m{"k": "v"}}}, &made, 201)
	for filter, want := range map[string]int{"k": 1, "k=v": 1, "k=w": 0, "l": 0} {
		var list []m
		call(http.MethodGet, `/containers/json?all=1&filters={"annotation":["`+filter+`"]}`, nil, &list, 200)
		if len(list) != want {
			t.Errorf("annotation %s: %d containers, want %d", filter, len(list), want)
		}
	}
}

// Whoever sees the end of a container's output may ask for its exit code at once.
func TestEndOfOutput(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	for i := range 30 {
		name := fmt.Sprintf("ends%d", i)
		e.Docker("create", "--name", name, img, "sh", "-c", "exit 7")
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", e.Socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /containers/%s/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: berth\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", name)
		out := bufio.NewReader(conn)
		if line, err := out.ReadString('\n'); err != nil || !strings.Contains(line, "101") {
			t.Fatalf("attach: %q %v", line, err)
		}
		if code, text := e.Call(http.MethodPost, "/containers/"+name+"/start", nil, nil); code != 204 {
			t.Fatalf("start: %d %s", code, text)
		}
		_, _ = io.Copy(io.Discard, out)
		conn.Close()
		var got struct{ State struct{ ExitCode int } }
		if code, text := e.Call(http.MethodGet, "/containers/"+name+"/json", nil, &got); code != 200 || got.State.ExitCode != 7 {
			t.Errorf("exit code at the end of the output: %d (%d %s)", got.State.ExitCode, code, text)
		}
		e.Docker("rm", "-f", name)
	}
}

// What the API answers to requests that make no sense, and to those that come too late.
func TestRefusals(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	type m = map[string]any
	refuse := func(what string, body any, want string) {
		t.Helper()
		if code, text := e.Call(http.MethodPost, "/containers/create", body, nil); code != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %q", what, code, text, want)
		}
	}
	port := func(container, host string) m {
		return m{"Image": img, "HostConfig": m{"PortBindings": m{container: []m{{"HostPort": host}}}}}
	}
	refuse("host port", port("80/tcp", "aa80"), `invalid port specification: \"aa80\"`)
	refuse("port 0", port("0/tcp", ""), `invalid port specification: \"0/tcp\"`)

	// What belongs to the container whose network is shared.
	for want, body := range map[string]m{
		"conflicting options: dns and the network mode":                                    {"HostConfig": m{"DNS": []string{"192.0.2.1"}}},
		"conflicting options: custom host-to-IP mapping and the network mode":              {"HostConfig": m{"ExtraHosts": []string{"a:192.0.2.1"}}},
		"conflicting options: port publishing and the container type network mode":         {"HostConfig": m{"PublishAllPorts": true}},
		"conflicting options: port exposing and the container type network mode":           {"ExposedPorts": m{"80/tcp": m{}}},
		"conflicting options: container type network can't be used with links. This would": {"HostConfig": m{"Links": []string{"a:b"}}},
	} {
		hc, _ := body["HostConfig"].(m)
		if hc == nil {
			hc = m{}
		}
		hc["NetworkMode"], body["HostConfig"], body["Image"] = "container:none", hc, img
		refuse(want, body, want)
	}
	refuse("links on the host's network", m{"Image": img, "HostConfig": m{"NetworkMode": "host", "Links": []string{"a:b"}}}, "host type networking can't be used with links")

	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		if r := c.Run("run", "--name", "self", "--net=container:self", img, "true"); r.Code == 0 || !strings.Contains(r.Err, "cannot join own network namespace") {
			t.Errorf("its own network: %d %s", r.Code, r.Err)
		}
		c.Must("rm", "self")

		// Where a working directory is to be, there is one from the beginning.
		c.Must("create", "--name", "work", "-w", "/home/of/work", img, "true")
		c.Must("cp", "work:/home/of/work", t.TempDir())
		if got := c.Must("diff", "work"); !strings.Contains(got, "A /home/of/work") {
			t.Errorf("the working directory after create: %q", got)
		}
		// The files that the engine writes are the container's, also while it does not run.
		for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
			dir := t.TempDir()
			c.Must("cp", "work:/etc/"+f, dir)
			if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || len(b) == 0 {
				t.Errorf("%s: %q %v", f, b, err)
			}
		}
		c.Must("rm", "work")

		// They are part of a root that cannot be written, and know the host by its first name too.
		out := c.Must("run", "--rm", "--read-only", "-h", "web.example.org", "-e", "HOME=", img, "sh", "-c", "echo x >/etc/hosts; echo $HOME; cat /etc/hosts")
		if !strings.HasPrefix(out, "/root\n") || !strings.Contains(out, "\tweb.example.org web") {
			t.Errorf("hosts: %q", out)
		}
	})

	// An error of attach is text: clients show it as it comes.
	if got := raw(t, e, "/containers/nobody/attach", ""); !strings.HasPrefix(got, "HTTP/1.1 404") || !strings.HasSuffix(got, "\r\n\r\nNo such container: nobody\r\n") {
		t.Errorf("attach: %q", got)
	}

	// An upload that nobody has read to its end does not cost the connection.
	func() {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", e.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		answers := bufio.NewReader(conn)
		for range 3 { // an archive that is at its end before the body is
			fmt.Fprintf(conn, "POST /images/load HTTP/1.1\r\nHost: berth\r\nContent-Length: %d\r\n\r\n%s", 300<<10, strings.Repeat("\x00", 300<<10))
			res, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatalf("upload: %v", err)
			}
			text, _ := io.ReadAll(res.Body)
			if res.StatusCode != 400 || !strings.Contains(string(text), "invalid archive") {
				t.Errorf("upload: %s %s", res.Status, text)
			}
		}
	}()

	// An exec that has not run goes with the life that it was made for.
	e.Docker("run", "-d", "--name", "lives", img, "sleep", "1000")
	var ex struct{ ID string }
	if code, text := e.Call(http.MethodPost, "/containers/lives/exec", m{"Cmd": []string{"true"}}, &ex); code != 201 {
		t.Fatalf("exec: %d %s", code, text)
	}
	e.Docker("stop", "-t", "0", "lives")
	for range 2 {
		if code, text := e.Call(http.MethodPost, "/exec/"+ex.ID+"/start", m{"Detach": true}, nil); code != 404 {
			t.Errorf("exec of the life before: %d %s", code, text)
		}
		e.Docker("start", "lives")
	}

	// berth prunes only what its configuration leaves, unless the command line says otherwise.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"pruneFilters": ["label=old"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := e.Client("berth")
	for _, label := range []string{"old", "new"} {
		e.Docker("create", "--name", label, "--label", label, img, "true")
	}
	b.Must("--config", dir, "container", "prune", "-f")
	if got := strings.Fields(e.Docker("ps", "-a", "--format", "{{.Names}}", "--filter", "status=created")); len(got) != 1 || got[0] != "new" {
		t.Errorf("pruned with the filters of the configuration: %q are left", got)
	}
	b.Must("--config", dir, "container", "prune", "-f", "--filter", "label!=old")
	if got := e.Docker("ps", "-aq", "--filter", "status=created"); got != "" {
		t.Errorf("pruned against the filters of the configuration: %q are left", got)
	}

	// A commit with a configuration takes from the container what that leaves out.
	var made struct{ ID string }
	if code, text := e.Call(http.MethodPost, "/commit?container=lives&repo=kept", m{"Labels": m{"k": "v"}}, &made); code != 201 {
		t.Fatalf("commit: %d %s", code, text)
	}
	if got := strings.TrimSpace(e.Docker("inspect", "-f", "{{.Config.Cmd}} {{.Config.Labels.k}}", made.ID)); got != "[sleep 1000] v" {
		t.Errorf("commit: %q", got)
	}
}

// A read-only mount is read-only with all that is mounted below it, unless told
// otherwise; and the engine's own files are shown by slaves.
func TestReadOnlyBelow(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		for _, tc := range []struct {
			args []string
			want string
		}{
			{[]string{"-v", "/dev:/d:ro"}, "ro"},
			{[]string{"--mount", "type=bind,src=/dev,dst=/d,ro"}, "ro"},
			{[]string{"--mount", "type=bind,src=/dev,dst=/d,ro,bind-propagation=rprivate,bind-recursive=readonly"}, "ro"},
			{[]string{"--mount", "type=bind,src=/dev,dst=/d,ro,bind-recursive=writable"}, "rw"},
			{[]string{"-v", "/dev:/d"}, "rw"},
		} {
			out := c.Must(append(append([]string{"run", "--rm"}, tc.args...), img, "awk", `$5 == "/d/shm" { print substr($6, 1, 2) }`, "/proc/self/mountinfo")...)
			for _, got := range strings.Fields(out) {
				if got != tc.want {
					t.Errorf("%v: /dev/shm is %s, want %s", tc.args, got, tc.want)
				}
			}
		}
		for source, want := range map[string]string{e.DataRoot: "rslave", e.DataRoot + "/containers": "rslave", e.Dir: "rslave", "/usr": "rprivate"} {
			c.Must("create", "--name", "mm", "-v", source+":/m", img)
			if got := strings.TrimSpace(c.Must("inspect", "-f", "{{(index .Mounts 0).Propagation}}", "mm")); got != want {
				t.Errorf("%s: %s, want %s", source, got, want)
			}
			c.Must("rm", "mm")
		}
		if r := c.Run("create", "-v", e.DataRoot+":/m:private", img); r.Code == 0 || !strings.Contains(r.Err, `must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root`) {
			t.Errorf("a private copy of the engine's own files: %d %q", r.Code, r.Err)
		}
		if r := c.Run("create", "--pid", "container:nope", img); r.Code == 0 || !strings.Contains(r.Err, "No such container: nope") {
			t.Errorf("the pid namespace of no container: %d %q", r.Code, r.Err)
		}
	})
}
