package cli_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/stdmux"
)

// runEngine is a fake engine with one container, which says what its image
// name asks for: "echo" gives stdin back, "code7" ends with 7, "missing" is
// pulled first, and "nocmd", "noperm", "broken" do not start.
type runEngine struct {
	mu      sync.Mutex
	image   string
	pulled  bool
	started chan struct{}
	calls   []string
}

func (e *runEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := versionPrefix.ReplaceAllString(r.URL.Path, "")
	w.Header().Set("Api-Version", "1.50")
	w.Header().Set("Content-Type", "application/json")
	if p == "/_ping" {
		return
	}
	fail := func(code int, msg string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": msg})
	}
	e.mu.Lock()
	if strings.HasSuffix(p, "/create") || strings.HasSuffix(p, "/wait") || strings.HasSuffix(p, "/start") || strings.HasSuffix(p, "/attach") {
		e.calls = append(e.calls, r.Method+" "+p+"?"+normalQuery(r.URL.Query()))
	}
	started := e.started
	e.mu.Unlock()
	switch {
	case p == "/containers/create":
		var req struct{ Image string }
		_ = json.NewDecoder(r.Body).Decode(&req)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.image, e.started = req.Image, make(chan struct{})
		if req.Image == "missing" && !e.pulled {
			fail(404, "No such image: missing:latest")
			return
		}
		_, _ = io.WriteString(w, `{"Id":"0123456789abcdef","Warnings":[]}`)
	case p == "/images/create":
		e.pulled = true
		_, _ = io.WriteString(w, `{"status":"Pulling from library/missing","id":"latest"}`+"\n"+`{"status":"Status: Downloaded"}`+"\n")
	case p == "/exec/ex1/start":
		c := make(chan struct{})
		close(c)
		e.attach(w, r, c)
	case strings.HasSuffix(p, "/start"):
		switch e.image {
		case "nocmd":
			close(started)
			fail(400, `failed to create task: exec: "x": executable file not found in $PATH: unknown`)
		case "noperm":
			close(started)
			fail(400, `exec: "/x": permission denied: unknown`)
		case "broken":
			close(started)
			fail(500, "it broke.")
		default:
			w.WriteHeader(204)
			close(started)
		}
	case strings.HasSuffix(p, "/wait"):
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-started
		code := 0
		if e.image == "code7" {
			code = 7
		}
		_, _ = fmt.Fprintf(w, `{"StatusCode":%d}`, code)
	case strings.HasSuffix(p, "/json"):
		_, _ = io.WriteString(w, `{"Id":"0123456789abcdef","Config":{"OpenStdin":true},"HostConfig":{},"State":{"Running":true}}`)
	case strings.HasSuffix(p, "/attach"):
		e.attach(w, r, started)
	case p == "/containers/web/exec":
		_, _ = io.WriteString(w, `{"Id":"ex1"}`)
	case p == "/exec/ex1/json":
		_, _ = io.WriteString(w, `{"ID":"ex1","Running":false,"ExitCode":3}`)
	default:
		fail(404, "No such thing: "+p)
	}
}

func (e *runEngine) attach(w http.ResponseWriter, r *http.Request, started chan struct{}) {
	_, _ = io.Copy(io.Discard, r.Body)
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	<-started
	out, errOut := stdmux.Writer(conn, stdmux.Stdout), stdmux.Writer(conn, stdmux.Stderr)
	switch e.image {
	case "nocmd", "noperm", "broken":
		return
	}
	if e.image == "echo" || r.URL.Query().Get("stdin") == "1" {
		_, _ = io.Copy(out, bufio.NewReader(buf))
		return
	}
	_, _ = io.WriteString(out, "to stdout\n")
	_, _ = io.WriteString(errOut, "to stderr\n")
	// Input that nobody has read would turn the end into a reset.
	if cw, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.Copy(io.Discard, buf)
	}
}

// TestRunParity runs containers in the fake engine with both programs.
func TestRunParity(t *testing.T) {
	docker, berth, home, _, _ := setup(t)
	for _, line := range []string{
		"run plain", "run --rm plain", "run code7", "run -i echo", "run --rm -i echo cat", "run -i plain", "run --sig-proxy=false plain",
		"run nocmd", "run --rm nocmd", "run noperm", "run broken", "run --rm broken", "run missing", "run -q missing", "run --pull never missing", "run --pull always plain", "run --name n plain x",
		"exec web ls", "exec -i web cat", "exec -e A=1 -u me -w /w --privileged web ls", "attach web", "attach --no-stdin web", "start -a web", "start -ai web",
	} {
		t.Run(line, func(t *testing.T) {
			try := func(program string) outcome {
				closed := make(chan struct{})
				close(closed)
				if strings.HasPrefix(line, "run") {
					closed = nil
				} else if strings.HasPrefix(line, "start") {
					closed = make(chan struct{})
				}
				e := &runEngine{started: closed}
				sock := filepath.Join(t.TempDir(), "s")
				l, err := net.Listen("unix", sock)
				if err != nil {
					t.Fatal(err)
				}
				srv := &http.Server{Handler: e}
				go func() { _ = srv.Serve(l) }()
				defer srv.Close()
				o := runCLI(t, &engine{}, program, home, sock, "typed\n", words(line)...)
				o.calls = e.calls
				return o
			}
			want, got := try(docker), try(berth)
			if got.stdout != want.stdout || got.stderr != want.stderr || got.code != want.code {
				t.Errorf("got  %d %q %q\nwant %d %q %q", got.code, got.stdout, got.stderr, want.code, want.stdout, want.stderr)
			}
			for _, c := range want.calls {
				if strings.Contains(c, "/create") && !contains(got.calls, c) {
					t.Errorf("did not ask %s, but %q", c, got.calls)
				}
			}
		})
	}
}

func contains(l []string, s string) bool {
	for _, x := range l {
		if x == s {
			return true
		}
	}
	return false
}

// TestDetachedHint checks that run -d prints only the id on stdout, and explains on stderr what has ended.
func TestDetachedHint(t *testing.T) {
	berth := filepath.Join(t.TempDir(), "berth")
	if out, err := exec.Command("go", "build", "-o", berth, "berth.dev/berth/cmd/berth").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e := &runEngine{}
	srv := httptest.NewServer(e)
	defer srv.Close()
	var errOut strings.Builder
	for range 10 { // run looks for a moment only, which may be too short under load
		errOut.Reset()
		cmd := exec.Command(berth, "-H", strings.Replace(srv.URL, "http:", "tcp:", 1), "run", "-d", "code7")
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil || string(out) != "0123456789abcdef\n" {
			t.Errorf("%v %q", err, out)
		}
		if errOut.Len() > 0 {
			break
		}
	}
	if want := "berth: the container has ended already, with exit code 7: a shell needs -it (or a command to run); see `berth logs 0123456789ab`\n"; errOut.String() != want {
		t.Errorf("stderr %q, want %q", errOut.String(), want)
	}
}
