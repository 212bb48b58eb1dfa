package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth.dev/berth/internal/enginetest"
)

// judge is an authorization plugin.
type judge struct {
	name string
	mu   sync.Mutex
	seen []question
	deny func(phase string, q *question) string // why not, "" to allow
}

type question struct {
	Phase              string `json:"-"`
	RequestMethod      string
	RequestURI         string `json:"RequestUri"`
	RequestBody        []byte
	RequestHeaders     map[string]string
	ResponseStatusCode int
	ResponseBody       []byte
}

func newJudge(t *testing.T) *judge {
	t.Helper()
	enginetest.RequireRoot(t)
	j := &judge{name: fmt.Sprintf("berth-judge-%d-%s", os.Getpid(), strings.ToLower(t.Name()))}
	const dir = "/run/docker/plugins"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, j.name+".sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: j}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); _ = os.Remove(sock) })
	return j
}

func (j *judge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	phase := strings.TrimPrefix(r.URL.Path, "/AuthZPlugin.")
	if phase == "/Plugin.Activate" {
		_, _ = io.WriteString(w, `{"Implements":["authz"]}`)
		return
	}
	var q question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q.Phase = phase
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen = append(j.seen, q)
	why := ""
	if j.deny != nil {
		why = j.deny(phase, &q)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"Allow": why == "", "Msg": why})
}

// last is the newest question about a path.
func (j *judge) last(phase, path string) *question {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := len(j.seen) - 1; i >= 0; i-- {
		if j.seen[i].Phase == phase && strings.Contains(j.seen[i].RequestURI, path) {
			return &j.seen[i]
		}
	}
	return nil
}

func TestAuthorizationPlugin(t *testing.T) {
	t.Parallel()
	j := newJudge(t)
	j.deny = func(phase string, q *question) string {
		switch {
		case phase == "AuthZReq" && strings.Contains(q.RequestURI, "/containers/create") && bytes.Contains(q.RequestBody, []byte(`"Privileged":true`)):
			return "no privileges here"
		case phase == "AuthZRes" && strings.Contains(q.RequestURI, "/info"):
			return "that is secret"
		}
		return ""
	}
	e := enginetest.Start(t, enginetest.WithArgs("--authorization-plugin", j.name))
	c := e.Client("docker")
	if got := c.Must("run", "--rm", img, "echo", "allowed"); got != "allowed" {
		t.Errorf("run says %q", got)
	}
	if r := c.Run("run", "--rm", "--privileged", img, "true"); r.Code != 125 || !strings.Contains(r.Err, "authorization denied by plugin "+j.name+": no privileges here") {
		t.Errorf("a denied run: %d %q", r.Code, r.Err)
	}
	if r := c.Run("info", "--format", "{{.ID}}"); !strings.Contains(r.Err, "that is secret") {
		t.Errorf("a denied answer: %d %q %q", r.Code, r.Out, r.Err)
	}
	if q := j.last("AuthZRes", "/containers/create"); q == nil || q.ResponseStatusCode != 201 || !bytes.Contains(q.ResponseBody, []byte(`"Id"`)) {
		t.Errorf("the answer to a create: %+v", q)
	}
	// Attach, logs, exec, save and cp go through it as streams.
	c.Must("run", "-d", "--name", "streams", img, "sh", "-c", "echo logged; sleep 100")
	enginetest.Eventually(t, "logs", func() bool { return c.Must("logs", "streams") == "logged" })
	if got := c.MustIn("piped", "exec", "-i", "streams", "cat"); got != "piped" {
		t.Errorf("exec says %q", got)
	}
	if r := c.Run("save", img); r.Code != 0 || len(r.Out) < 1<<20 {
		t.Errorf("save: %d, %d bytes %q", r.Code, len(r.Out), r.Err)
	}
	c.Must("rm", "-f", "streams")
	if names := c.Run("ps", "-aq").Out; names != "" {
		t.Errorf("a denied create has left %q", names)
	}
}

// However a body comes, the plugin judges the bytes that are acted on.
func TestAuthorizationBody(t *testing.T) {
	t.Parallel()
	j := newJudge(t)
	e := enginetest.Start(t, enginetest.WithArgs("--authorization-plugin", j.name))
	body := fmt.Sprintf(`{"Image":%q,"Cmd":["true"],"HostConfig":{"Privileged":true}}`, img)
	send := func(name string, body io.Reader, header http.Header) (*http.Response, string) {
		req, err := http.NewRequest(http.MethodPost, "http://berth/v1.44/containers/create?name="+name, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		res, err := e.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		out, _ := io.ReadAll(res.Body)
		return res, string(out)
	}
	kind := func(list ...string) http.Header { return http.Header{"Content-Type": list} }
	large := body[:len(body)-1] + `,"Labels":{"pad":"` + strings.Repeat("x", 2<<20) + `"}}`
	for name, try := range map[string]struct {
		body   io.Reader
		header http.Header
		want   string
		status int
	}{
		"plain":     {strings.NewReader(body), kind("application/json"), body, 201},
		"chunked":   {io.MultiReader(strings.NewReader(body)), kind("application/json"), body, 201},
		"charset":   {strings.NewReader(body), kind("application/json; charset=utf-8"), body, 201},
		"large":     {strings.NewReader(large), kind("application/json"), large, 201},
		"twotypes":  {strings.NewReader(body), kind("application/json", "text/plain"), body, 201},
		"othertype": {strings.NewReader(body), kind("text/plain"), body, 400},
		"none":      {strings.NewReader(body), http.Header{}, body, 400},
		"gzip":      {strings.NewReader("\x1f\x8bnot json"), http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, "\x1f\x8bnot json", 400},
		"empty":     {http.NoBody, kind("application/json"), "", 400},
	} {
		res, out := send(name, try.body, try.header)
		if res.StatusCode != try.status {
			t.Errorf("%s: %d %s", name, res.StatusCode, out)
		}
		if q := j.last("AuthZReq", "name="+name); q == nil || string(q.RequestBody) != try.want {
			t.Errorf("%s: the plugin saw another body than the engine", name)
		}
		if res.StatusCode == 201 {
			e.Docker("rm", name)
		}
	}
	if res, out := send("oversize", strings.NewReader(`{"x":"`+strings.Repeat("x", 9<<20)), kind("application/json")); res.StatusCode != 400 || !strings.Contains(out, "too large") {
		t.Errorf("oversize: %d %s", res.StatusCode, out)
	}
	if j.last("AuthZReq", "name=oversize") != nil {
		t.Error("the plugin was asked about a request that is refused anyway")
	}
}

// An engine does not start without its plugin, and one that dies refuses.
func TestAuthorizationPluginGone(t *testing.T) {
	t.Parallel()
	j := newJudge(t)
	file := filepath.Join(t.TempDir(), "daemon.json")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"debug": false}`)
	e := enginetest.Start(t, enginetest.WithArgs("--config-file", file))
	c := e.Client("docker")
	e.StopDaemon()
	write(`{"authorization-plugins": ["berth-missing"]}`)
	if err := e.TryStartDaemon(); err == nil || !strings.Contains(e.Log(), `plugin \"berth-missing\" not found`) && !strings.Contains(e.Log(), `plugin "berth-missing" not found`) {
		t.Errorf("started without its plugin: %v\n%s", err, e.Log())
	}
	write(`{"debug": false}`)
	e.StartDaemon()
	write(fmt.Sprintf(`{"authorization-plugins": [%q]}`, j.name))
	e.Reload()
	enginetest.Eventually(t, "the plugin is taken up", func() bool {
		return c.Must("info", "--format", "{{.Plugins.Authorization}}") == "["+j.name+"]"
	})
	j.mu.Lock()
	j.deny = func(string, *question) string { return "closed" }
	j.mu.Unlock()
	if r := c.Run("ps"); r.Code == 0 || !strings.Contains(r.Err, "closed") {
		t.Errorf("ps: %d %q", r.Code, r.Err)
	}
	write(`{}`)
	e.Reload()
	enginetest.Eventually(t, "the plugin is dropped", func() bool { return c.Run("ps").Code == 0 })
}
