package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"testing"
)

// These tests run Docker's own command line and ours against one fake engine,
// and compare what they print, their exit codes and what they ask.
// They need a docker command of version 28 in PATH.

// engine is a fake engine which answers from canned and remembers what it was asked.
type engine struct {
	mu    sync.Mutex
	calls []string
}

var versionPrefix = regexp.MustCompile(`^/v1\.\d+`)

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := versionPrefix.ReplaceAllString(r.URL.Path, "")
	w.Header().Set("Api-Version", "1.50")
	w.Header().Set("Ostype", "linux")
	w.Header().Set("Content-Type", "application/json")
	body, _ := io.ReadAll(r.Body)
	if p == "/_ping" {
		return
	}
	e.mu.Lock()
	e.calls = append(e.calls, fmt.Sprintf("%s %s?%s %s", r.Method, p, normalQuery(r.URL.Query()), normalBody(body)))
	e.mu.Unlock()
	answer, ok := canned[r.Method+" "+p]
	switch {
	case ok && answer == "":
		w.WriteHeader(http.StatusNoContent)
	case ok:
		_, _ = io.WriteString(w, answer)
	case strings.Contains(p, "/conflict"):
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"message":"a conflict"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, `{"message":"No such thing: %s"}`, p)
	}
}

func (e *engine) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.calls
	sort.Strings(c) // what runs in parallel has no order
	e.calls = nil
	return c
}

func normalQuery(q url.Values) string {
	for k, v := range q {
		sort.Strings(v)
		if q.Get(k) == "" {
			q.Del(k)
		}
	}
	if f := q.Get("filters"); f != "" {
		q.Set("filters", normalBody([]byte(f)))
	}
	return q.Encode()
}

// normalBody drops everything that is zero, and sorts what has no order.
func normalBody(b []byte) string {
	var v any
	if json.Unmarshal(b, &v) != nil {
		return string(b)
	}
	out, _ := json.Marshal(dropZero("", v))
	return string(out)
}

func dropZero(key string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if e = dropZero(k, e); e == nil {
				delete(x, k)
			} else {
				x[k] = e
			}
		}
		if len(x) == 0 && key != "Volumes" {
			return nil
		}
		return x
	case []any:
		for i, e := range x {
			x[i] = dropZero("[]", e)
		}
		if len(x) == 0 {
			return nil
		}
		if key == "Binds" || key == "Env" || key == "Ulimits" {
			sort.Slice(x, func(i, j int) bool { return fmt.Sprint(x[i]) < fmt.Sprint(x[j]) })
		}
		return x
	case string:
		if x == "" && key != "[]" {
			return nil
		}
	case float64:
		if x == 0 && key != "[]" {
			return nil
		}
	case bool:
		if !x && key != "Init" {
			return nil
		}
	}
	return v
}

type outcome struct {
	stdout, stderr string
	code           int
	calls          []string
}

var (
	moment  = regexp.MustCompile(`\d+ (seconds?|minutes?) ago|About a minute ago|Less than a second ago`)
	spacing = regexp.MustCompile(`(?m)[ ]+$`)
)

func runCLI(t *testing.T, e *engine, program, home, sock string, stdin string, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"HOME=" + home, "DOCKER_HOST=unix://" + sock, "PATH=" + os.Getenv("PATH"), "FROM_ENV=yes", "TZ=UTC"}
	cmd.Dir = home
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	code := 0
	if err != nil {
		code = cmd.ProcessState.ExitCode()
	}
	clean := func(s string) string {
		s = moment.ReplaceAllString(s, "AGO")
		s = strings.ReplaceAll(s, "docs.docker.com", "DOCS")
		s = strings.ReplaceAll(strings.ReplaceAll(s, "docker", "berth"), "Docker", "Berth")
		return spacing.ReplaceAllString(s, "")
	}
	return outcome{clean(out.String()), clean(errOut.String()), code, e.take()}
}

// setup builds our program and starts the fake engine.
func setup(t *testing.T) (docker, berth, home, sock string, e *engine) {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		if os.Getenv("BERTH_TEST_STRICT") != "" {
			t.Fatal("requires the docker command, version 28, in PATH")
		}
		t.Skip("requires the docker command, version 28, in PATH")
	}
	if out, err := exec.Command(docker, "--version").Output(); err != nil || !bytes.Contains(out, []byte("version 28.")) {
		t.Skipf("requires the docker command, version 28, in PATH; %s is %q", docker, out)
	}
	dir := t.TempDir()
	berth = filepath.Join(dir, "berth")
	if out, err := exec.Command("go", "build", "-o", berth, "berth.dev/berth/cmd/berth").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	home = filepath.Join(dir, "home")
	if err := os.MkdirAll(filepath.Join(home, ".docker"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"env":    "# note\nA=from file\nFROM_ENV\nUNSET\n B=2 \n",
		"labels": "l1=one\nl2\n", "bad": "=x\n",
		"seccomp.json": "{\n \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sock = filepath.Join(dir, "engine.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	e = &engine{}
	srv := &http.Server{Handler: e}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return docker, berth, home, sock, e
}

func TestParity(t *testing.T) {
	docker, berth, home, sock, e := setup(t)
	for _, line := range parityLines {
		t.Run(strings.ReplaceAll(line, "/", "∕"), func(t *testing.T) {
			loose := strings.HasPrefix(line, "~") // the questions may differ, the answers not
			args := words(strings.TrimPrefix(line, "~"))
			want := runCLI(t, e, docker, home, sock, "y\n", args...)
			os.RemoveAll(filepath.Join(home, ".docker", "contexts"))
			got := runCLI(t, e, berth, home, sock, "y\n", args...)
			if got.code != want.code {
				t.Errorf("exit code %d, want %d", got.code, want.code)
			}
			if got.stdout != want.stdout {
				t.Errorf("stdout\n%s\nwant\n%s", got.stdout, want.stdout)
			}
			if got.stderr != want.stderr {
				t.Errorf("stderr\n%s\nwant\n%s", got.stderr, want.stderr)
			}
			if g, w := strings.Join(got.calls, "\n"), strings.Join(want.calls, "\n"); g != w && !loose {
				t.Errorf("asked\n%s\nwant\n%s", g, w)
			}
		})
	}
}

// words splits a line like a shell that knows single quotes only.
func words(s string) []string {
	var out []string
	var cur strings.Builder
	in, any := false, false
	for _, c := range s {
		switch {
		case c == '\'':
			in, any = !in, true
		case c == ' ' && !in:
			if any {
				out = append(out, cur.String())
			}
			cur.Reset()
			any = false
		default:
			cur.WriteRune(c)
			any = true
		}
	}
	if any {
		out = append(out, cur.String())
	}
	return out
}
