package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"berth.dev/berth/internal/stdmux"
)

func do(t testing.TB, h http.Handler, method, target, body string, hdr ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(hdr); i += 2 {
		r.Header.Set(hdr[i], hdr[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAnswers(t *testing.T) {
	_, b := newFake()
	h := New(b, Options{ServerVersion: "0.1"})
	create := `{"Image":"x","HostConfig":{}}`
	for _, tc := range []struct {
		method, target, body string
		status               int
		want                 string // the whole body, or with a trailing … its beginning
	}{
		{"GET", "/_ping", "", 200, "OK"},
		{"HEAD", "/v1.50/_ping", "", 200, ""},
		{"GET", "/nothing", "", 404, `{"message":"page not found"}`},
		{"GET", "/v1.50", "", 404, `{"message":"page not found"}`},
		{"GET", "/vx/info", "", 404, `{"message":"page not found"}`},
		{"PATCH", "/info", "", 404, `{"message":"page not found"}`},
		{"GET", "/swarm", "", 404, `{"message":"page not found"}`},
		{"GET", "/plugins", "", 200, `[]`},
		{"GET", `/plugins?filters={"color":["red"]}`, "", 400, `{"message":"invalid filter 'color'"}`},
		{"GET", "/v1.20/info", "", 400, `{"message":"client version 1.20 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"}`},
		{"GET", "/v1.99/info", "", 400, `{"message":"client version 1.99 is too new. Maximum supported API version is 1.56"}`},
		{"GET", "/v2.0/info", "", 400, `{"message":"client version 2.0 is too new. Maximum supported API version is 1.56"}`},
		{"POST", "/containers/nope/start", "", 404, `{"message":"No such container: nope"}`},
		{"POST", "/containers/web/start", "", 204, ""},
		{"POST", "/containers/web/start", `{"Binds":[]}`, 400, `{"message":"starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"}`},
		{"POST", "/v1.41/containers/web/stop?t=3", "", 304, ""},
		{"POST", "/containers/web/stop?t=x", "", 400, `{"message":"invalid value for t: strconv.Atoi…`},
		{"POST", "/containers/create?name=a", create, 201, `{"Id":"` + fakeID + `","Warnings":[]}`},
		{"POST", "/containers/create", `{`, 400, `{"message":"invalid JSON: unexpected EOF"}`},
		{"POST", "/containers/create", `{}`, 400, `{"message":"config cannot be empty in order to create a container"}`},
		{"POST", "/containers/create", create + create, 400, `{"message":"unexpected content after JSON"}`},
		{"POST", "/containers/create", "", 400, `{"message":"invalid JSON: got EOF while reading request body"}`},
		{"POST", "/containers/web/wait", "", 200, `{"StatusCode":3}`},
		{"POST", "/containers/web/wait?condition=never", "", 400, `{"message":"invalid condition: \"never\""}`},
		{"GET", "/containers/web/logs", "", 400, `{"message":"Bad parameters: you must choose at least one stream"}`},
		{"GET", "/containers/web/changes", "", 200, `[]`},
		{"GET", "/containers/web/top", "", 200, `{"Processes":[["1"]],"Titles":["PID"]}`},
		{"GET", "/containers/web/stats?stream=0", "", 200, `{"id":"` + fakeID + "…"},
		{"GET", "/containers/web/stats?one-shot=1", "", 400, `{"message":"cannot have stream=true and one-shot=true"}`},
		{"POST", "/containers/web/resize?h=1&w=x", "", 400, `{"message":"invalid resize width \"x\": invalid syntax"}`},
		{"POST", "/containers/web/resize?h=-1&w=9", "", 400, `{"message":"invalid resize height \"-1\": value out of range"}`},
		{"POST", "/containers/web/resize?h=1", "", 400, `{"message":"invalid resize width \"\": invalid syntax"}`},
		{"POST", "/v1.43/containers/create", `{"Image":"x","HostConfig":{},"NetworkingConfig":{"EndpointsConfig":{"b":{},"a":{}}}}`, 400, `{"message":"Container cannot be created with multiple network endpoints: a, b"}`},
		{"POST", "/containers/web/exec", `{}`, 400, `{"message":"No exec command specified"}`},
		{"POST", "/containers/web/exec", `{"Cmd":["ls"]}`, 201, `{"Id":"e1"}`},
		{"POST", "/exec/e1/start", `{"Detach":true}`, 200, ""},
		{"POST", "/commit?container=web", "", 201, `{"Id":"sha256:` + fakeID + `"}`},
		{"POST", "/containers/prune", "", 200, `{"ContainersDeleted":["` + fakeID + `"],"SpaceReclaimed":12}`},
		{"POST", "/v1.24/containers/prune", "", 404, `{"message":"page not found"}`},
		{"GET", "/images/lib/x:1/json", "", 200, `{"Id":"sha256:…`},
		{"GET", "/images/json/json", "", 404, `{"message":"No such image: json"}`},
		{"GET", "/images/nope/json", "", 404, `{"message":"No such image: nope"}`},
		{"GET", "/images/lib/x:1/history", "", 200, `[]`},
		{"DELETE", "/images/lib/x:1", "", 200, `[{"Untagged":"lib/x:1"}]`},
		{"GET", "/images/get?names=a&names=b", "", 200, `[a b]`},
		{"GET", "/images/lib/x:1/get", "", 200, `[lib/x:1]`},
		{"POST", "/images/load", "abcd", 200, `{"stream":"Loaded 4 bytes\n"}`},
		{"POST", "/images/load", "abc", 200, "{\"stream\":\"Loaded 3 bytes\\n\"}\n" + `{"errorDetail":{"message":"archive is too short"},"error":"archive is too short"}`},
		{"POST", "/images/create?fromImage=lib/x&tag=1", "", 200, `{"status":"Status: Image is up to date for lib/x:1"}`},
		{"POST", "/images/create?fromImage=other&tag=1", "", 404, `{"message":"pull access denied for other:1"}`},
		{"POST", "/images/create?fromSrc=-", "tar", 200, `{"status":"sha256:` + fakeID + `"}`},
		{"GET", "/networks", "", 200, `[{"Name":"none",…`},
		{"GET", "/volumes", "", 200, `{"Volumes":[],"Warnings":null}`},
		{"GET", "/containers/web/archive", "", 400, `{"message":"bad parameter: path cannot be empty"}`},
		{"GET", "/system/df?type=dog", "", 400, `{"message":"unknown object type: dog"}`},
		{"GET", "/containers/json?filters=x", "", 400, `{"message":"invalid filter…`},
		{"GET", "/events?since=5&until=3", "", 400, "{\"message\":\"`since` time (5) cannot be after `until` time (3)\"}"},
	} {
		w := do(t, h, tc.method, tc.target, tc.body)
		got := strings.TrimSuffix(w.Body.String(), "\n")
		want, prefix := strings.CutSuffix(tc.want, "…")
		if w.Code != tc.status || !prefix && got != want || !strings.HasPrefix(got, want) {
			t.Errorf("%s %s\n got %d %s\nwant %d %s", tc.method, tc.target, w.Code, got, tc.status, tc.want)
		}
		if w.Header().Get("Api-Version") != "1.56" || w.Header().Get("Server") != "Berth/0.1 (linux)" || w.Header().Get("Ostype") != "linux" || w.Header().Get("Docker-Experimental") != "false" {
			t.Errorf("%s %s: headers %v", tc.method, tc.target, w.Header())
		}
	}
}

func TestContentType(t *testing.T) {
	_, b := newFake()
	h := New(b, Options{})
	w := do(t, h, "POST", "/containers/create", "{}", "Content-Type", "text/plain")
	if w.Code != 400 || !strings.Contains(w.Body.String(), "unsupported Content-Type header (text/plain): must be 'application/json'") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = do(t, h, "POST", "/containers/create", `{"Image":"x"}`, "Content-Type", "application/json; charset=utf-8")
	if w.Code != 201 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = do(t, h, "POST", "/containers/create", `{"Image":"`+strings.Repeat("x", maxJSON)+`"}`); w.Code != 400 {
		t.Errorf("huge body: %d", w.Code)
	}
}

func TestNilBackendsHaveNoRoutes(t *testing.T) {
	h := New(Backends{}, Options{})
	for _, p := range []string{"/info", "/events", "/containers/json", "/images/json", "/networks", "/volumes"} {
		if w := do(t, h, "GET", p, ""); w.Code != 404 {
			t.Errorf("%s: %d", p, w.Code)
		}
	}
}

func TestAuthorize(t *testing.T) {
	_, b := newFake()
	var seen []Access
	h := New(b, Options{Authorize: func(_ context.Context, a Access) error {
		seen = append(seen, a)
		if a.Class == Write {
			return errPageNotFound
		}
		return nil
	}})
	do(t, h, "GET", "/images/lib/x:1/json", "")
	if w := do(t, h, "DELETE", "/containers/web", ""); w.Code != 404 {
		t.Error("not refused")
	}
	if fmt.Sprint(seen) != "[{1 GET /images/{name}/json lib/x:1} {2 DELETE /containers/{name} web}]" {
		t.Error(seen)
	}
}

// keys decodes an object, or the first one of an array.
func keys(t *testing.T, h http.Handler, target string) map[string]any {
	t.Helper()
	w := do(t, h, "GET", target, "")
	body := bytes.TrimLeft(w.Body.Bytes(), "[")
	var m map[string]any
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&m); err != nil || w.Code != 200 {
		t.Fatalf("%s: %d %s: %v", target, w.Code, w.Body, err)
	}
	return m
}

func has(m map[string]any, path string) bool {
	for {
		key, rest, more := strings.Cut(path, ".")
		v, ok := m[key]
		if !ok || !more {
			return ok
		}
		if m, ok = v.(map[string]any); !ok {
			return false
		}
		path = rest
	}
}

// TestVersionShapes checks which fields exist up to, and from, which version.
func TestVersionShapes(t *testing.T) {
	_, b := newFake()
	h := New(b, Options{})
	for _, tc := range []struct {
		target, field string
		first, last   Version // with the field; 0: no bound
	}{
		{"/containers/web/json", "NetworkSettings.IPAddress", 0, 51},
		{"/containers/web/json", "NetworkSettings.Networks", 0, 0},
		{"/containers/web/json", "Config.OnBuild", 0, 51},
		{"/containers/web/json", "Config.MacAddress", 0, 43},
		{"/containers/web/json", "ImageManifestDescriptor", 48, 0},
		{"/images/lib/x:1/json", "VirtualSize", 0, 43},
		{"/images/lib/x:1/json", "ContainerConfig", 0, 44},
		{"/images/lib/x:1/json", "Container", 0, 44},
		{"/images/lib/x:1/json", "Config.Hostname", 0, 49},
		{"/images/lib/x:1/json", "Config.Entrypoint", 0, 51},
		{"/images/lib/x:1/json", "Config.Cmd", 0, 0},
		{"/images/lib/x:1/json", "Parent", 0, 51},
		{"/images/lib/x:1/json", "Descriptor", 48, 0},
		{"/images/json", "VirtualSize", 0, 43},
		{"/images/json", "Descriptor", 48, 0},
		{"/system/df", "LayersSize", 0, 52},
		{"/system/df", "ImageUsage", 52, 0},
		{"/info", "BridgeNfIptables", 0, 49},
		{"/info", "ContainerdCommit.ID", 0, 0},
		{"/info", "CDISpecDirs", 44, 0},
	} {
		for v := Version(25); v <= MaxVersion; v++ {
			want := v >= tc.first && (tc.last == 0 || v <= tc.last)
			if got := has(keys(t, h, "/v"+v.String()+tc.target), tc.field); got != want {
				t.Errorf("%s %s in %s: %v", tc.target, tc.field, v, got)
			}
		}
	}
	ip := keys(t, h, "/v1.50/containers/web/json")["NetworkSettings"].(map[string]any)
	if ip["IPAddress"] != "172.17.0.2" || ip["MacAddress"] != "02:42:01:02:03:04" || ip["EndpointID"] != "" {
		t.Errorf("%v", ip)
	}
}

func TestCreateOldClients(t *testing.T) {
	f, b := newFake()
	h := New(b, Options{})
	body := `{"Image":"x","MacAddress":"02:42:01:02:03:04","HostConfig":{"AutoRemove":true,"PidsLimit":-1,"Annotations":{"a":"b"},"NetworkMode":"default",
		"Mounts":[{"Type":"bind","Source":"/a","Target":"/b"}]},"NetworkingConfig":{"EndpointsConfig":{"default":{"Aliases":["z"]}}}}`
	w := do(t, h, "POST", "/v1.24/containers/create", body)
	hc := f.created.HostConfig
	if w.Code != 201 || hc.AutoRemove || hc.IpcMode != "shareable" || hc.CgroupnsMode != "host" || hc.PidsLimit != nil || hc.Annotations != nil ||
		hc.NetworkMode != "bridge" || !hc.Mounts[0].BindOptions.ReadOnlyNonRecursive {
		t.Errorf("%d %s %+v", w.Code, w.Body, hc)
	}
	ep := f.created.NetworkingConfig.EndpointsConfig["bridge"]
	if ep == nil || ep.MacAddress.String() != "02:42:01:02:03:04" || len(ep.Aliases) != 1 {
		t.Errorf("endpoint: %+v", ep)
	}
	if w = do(t, h, "POST", "/v1.50/containers/create?platform=linux/amd64", body); !strings.Contains(w.Body.String(), "container-wide MacAddress") || !f.created.HostConfig.AutoRemove || f.created.Platform != "linux/amd64" {
		t.Errorf("1.50: %s %+v", w.Body, f.created)
	}
	if do(t, h, "POST", "/v1.52/containers/create", body); len(f.created.NetworkingConfig.EndpointsConfig["bridge"].MacAddress) != 0 {
		t.Error("1.52 takes the container-wide MAC address")
	}
	if do(t, h, "POST", "/v1.41/containers/web/stop?signal=INT", ""); f.stop.Signal != "" || f.stop.Timeout != nil {
		t.Errorf("%+v", f.stop)
	}
	if do(t, h, "POST", "/containers/web/stop?signal=INT&t=-1", ""); f.stop.Signal != "INT" || *f.stop.Timeout != -1 {
		t.Errorf("%+v", f.stop)
	}
}

func TestEventsFormats(t *testing.T) {
	f, b := newFake()
	h := New(b, Options{})
	f.bus.Log("container", "start", "c1", map[string]string{"image": "nginx"})
	until := "&until=" + fmt.Sprint(time.Now().Add(time.Second).Unix())
	until = strings.Replace(until, "&", "?", 1)
	if got := do(t, h, "GET", "/v1.51/events"+until, "").Body.String(); !strings.HasPrefix(got, `{"status":"start","id":"c1","from":"nginx","Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"image":"nginx"}},"scope":"local","time":`) {
		t.Error(got)
	}
	w := do(t, h, "GET", "/events"+until, "", "Accept", "text/html, application/json-seq;q=0.5")
	if got := w.Body.String(); !strings.HasPrefix(got, "\x1e"+`{"Type":"container","Action":"start"`) || w.Header().Get("Content-Type") != "application/json-seq" {
		t.Error(w.Header(), got)
	}
	if ct := do(t, h, "GET", "/events"+until, "", "Accept", "*/*").Header().Get("Content-Type"); ct != "application/json" {
		t.Error(ct)
	}
}

// dial sends a raw request head and returns the connection after the answer's head.
func dial(t *testing.T, sock, request string) (c *net.UnixConn, br *bufio.Reader, head string) {
	t.Helper()
	nc, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(nc, request); err != nil {
		t.Fatal(err)
	}
	br = bufio.NewReader(nc)
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, head)
		}
		if head += line; line == "\r\n" {
			return nc.(*net.UnixConn), br, head
		}
	}
}

func TestAttachHijack(t *testing.T) {
	_, sock := serve(t)
	for _, tc := range []struct{ version, headers, status, kind string }{
		{"v1.50", "Connection: Upgrade\r\nUpgrade: tcp\r\n", "HTTP/1.1 101 UPGRADED", "application/vnd.docker.multiplexed-stream"},
		{"v1.41", "Connection: Upgrade\r\nUpgrade: tcp\r\n", "HTTP/1.1 101 UPGRADED", "application/vnd.docker.raw-stream"},
		{"v1.50", "", "HTTP/1.1 200 OK", "application/vnd.docker.raw-stream"},
	} {
		// the first bytes of stdin come in the same packet as the request
		c, br, head := dial(t, sock, "POST /"+tc.version+"/containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"+tc.headers+"Content-Length: 0\r\n\r\nearly ")
		if !strings.HasPrefix(head, tc.status) || !strings.Contains(head, "Content-Type: "+tc.kind+"\r\n") {
			t.Errorf("head %q", head)
		}
		_, _ = io.WriteString(c, "late")
		_ = c.CloseWrite()
		var out, errw bytes.Buffer
		if err := stdmux.Copy(&out, &errw, br); err != nil || out.String() != "early late" || errw.String() != "ready\n" {
			t.Errorf("%v %q %q", err, &out, &errw)
		}
	}
	_, _, head := dial(t, sock, "POST /containers/nope/attach HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 404 Not Found") {
		t.Errorf("%q", head)
	}
}

func TestAttachWebsocket(t *testing.T) {
	_, sock := serve(t)
	cl := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}}
	c, _, err := websocket.Dial(t.Context(), "ws://x/containers/web/attach/ws?stream=1&stdin=1&stdout=1", &websocket.DialOptions{HTTPClient: cl})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	kind, b, err := c.Read(t.Context())
	if err != nil || kind != websocket.MessageBinary || string(b) != "ready\n" {
		t.Fatalf("%v %q %v", kind, b, err)
	}
	if err := c.Write(t.Context(), websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, b, err = c.Read(t.Context()); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Fatal(err)
	}
}

func TestWaitHeadersAtOnceAndDisconnect(t *testing.T) {
	f, sock := serve(t)
	c, _, head := dial(t, sock, "POST /containers/web/wait?condition=removed HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK") {
		t.Fatalf("%q", head)
	}
	_ = c.Close()
	select {
	case <-f.gone:
	case <-time.After(3 * time.Second):
		t.Fatal("the wait outlives its client")
	}
}

func TestExportBroken(t *testing.T) {
	_, sock := serve(t)
	_, br, _ := dial(t, sock, "GET /containers/"+fakeID[:12]+"/export HTTP/1.1\r\nHost: x\r\n\r\n")
	b, _ := io.ReadAll(br)
	if bytes.HasSuffix(b, []byte("0\r\n\r\n")) {
		t.Error("a broken export ends like a whole one")
	}
}

func TestDockerCLI(t *testing.T) {
	cli, err := exec.LookPath("docker")
	if err != nil {
		if os.Getenv("BERTH_TEST_STRICT") != "" {
			t.Fatal("requires the docker CLI")
		}
		t.Skip("requires the docker CLI")
	}
	_, sock := serve(t)
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cli, append([]string{"-H", "unix://" + sock}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("docker %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, tc := range []struct{ args, want string }{
		{"version --format {{.Server.APIVersion}}/{{.Client.APIVersion}}", "1.56"},
		{"info", "Server Version: 0.1"},
		{"ps", "nginx"},
		{"images", "lib/x"},
		{"inspect web --format {{.NetworkSettings.IPAddress}}", "172.17.0.2"},
		{"image inspect lib/x:1 --format {{.Size}}", "42"},
		{"logs web", "one\ntwo\n"},
		{"system df", "Local Volumes"},
		{"system df -v", "lib/x"},
		{"stats --no-stream web", fakeID[:12]},
		{"wait web", "3"},
		{"start web", "web"},
		{"rm web", "web"},
		{"create lib/x:1", fakeID},
		{"network ls", "none"},
		{"volume ls", "VOLUME NAME"},
		{"container prune -f", "Total reclaimed space: 12B"},
		{"top web", "PID"},
		{"diff web", ""},
		{"pull lib/x:1", "Image is up to date"},
		{"rename web other", ""},
		{"exec -i web cat", "echoed"},
	} {
		if out := run("echoed", strings.Fields(tc.args)...); !strings.Contains(out, tc.want) {
			t.Errorf("docker %s:\n%s", tc.args, out)
		}
	}
}

func client(sock string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}, DisableCompression: true}}
}

func bench(b *testing.B, method, path, body string) {
	_, sock := serve(b)
	cl := client(sock)
	b.ReportAllocs()
	for b.Loop() {
		req, _ := http.NewRequestWithContext(b.Context(), method, "http://x"+path, strings.NewReader(body))
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := cl.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
}

func BenchmarkSocketPing(b *testing.B)  { bench(b, "GET", "/_ping", "") }
func BenchmarkSocketStart(b *testing.B) { bench(b, "POST", "/v1.50/containers/web/start", "") }
func BenchmarkSocketWait(b *testing.B)  { bench(b, "POST", "/v1.50/containers/web/wait", "") }
func BenchmarkSocketCreate(b *testing.B) {
	bench(b, "POST", "/v1.50/containers/create?name=a", createJSON)
}

// createJSON is about what the CLI sends.
var createJSON = func() string {
	b, _ := json.Marshal(map[string]any{"Image": "x", "Cmd": []string{"true"}, "Env": []string{"A=b"}, "HostConfig": map[string]any{
		"Binds": nil, "NetworkMode": "default", "RestartPolicy": map[string]any{"Name": "no"}, "AutoRemove": true, "CapAdd": nil, "Dns": []string{}, "Memory": 0,
		"MaskedPaths": nil, "ReadonlyPaths": nil, "PidsLimit": 0, "Ulimits": []string{}, "LogConfig": map[string]any{"Type": "", "Config": map[string]any{}},
	}, "NetworkingConfig": map[string]any{"EndpointsConfig": map[string]any{"default": map[string]any{}}}})
	return string(b)
}()

// discardWriter is a ResponseWriter that costs nothing.
type discardWriter struct{ h http.Header }

func (d *discardWriter) Header() http.Header         { return d.h }
func (d *discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (d *discardWriter) WriteHeader(int)             {}
func (d *discardWriter) Flush()                      {}

func benchHandler(b *testing.B, method, path, body string) {
	_, be := newFake()
	h := New(be, Options{})
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		h.ServeHTTP(&discardWriter{http.Header{}}, r)
	}
}

func BenchmarkHandlerStart(b *testing.B) { benchHandler(b, "POST", "/v1.50/containers/web/start", "") }

func BenchmarkHandlerWait(b *testing.B) { benchHandler(b, "POST", "/v1.50/containers/web/wait", "") }

func BenchmarkHandlerCreate(b *testing.B) {
	benchHandler(b, "POST", "/v1.50/containers/create?name=a", createJSON)
}

func BenchmarkHandlerInspect(b *testing.B) {
	benchHandler(b, "GET", "/v1.50/containers/web/json", "")
}
