package httpapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzBody sends bodies to every handler that takes JSON: an answer is a success or
// the client's fault, and is JSON itself.
func FuzzBody(f *testing.F) {
	for _, s := range []string{
		`{"Image":"x","HostConfig":{}}`, `{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"99999"}]},"Ulimits":[null],"Devices":[{}],"Mounts":[{}],"LogConfig":null},"NetworkingConfig":{"EndpointsConfig":{"a":null}}}`,
		`{"Cmd":["ls"]}`, `{"Cmd":null,"Env":[null],"ConsoleSize":[1]}`, `{"Detach":true}`, `{"Memory":-9223372036854775808,"NanoCpus":1e400,"RestartPolicy":{"Name":"x"}}`, `null`, `[]`, `"x"`, `{"Healthcheck":{"Test":null,"Interval":-1}}`,
		`{"Image":"x","Image":"y","iMaGe":"z"}`, `{"Volumes":{"/":{}},"ExposedPorts":{"x/y":{}}}`, strings.Repeat(`{"a":`, 2000), "{}{}", `{"Config":{"Labels":{"a":null}}}`, "\xff\xfe", `{"Hostname":"\u0000","Entrypoint":{}}`,
	} {
		for i := range 6 {
			f.Add(s, uint8(i), uint8(20+i))
		}
	}
	_, b := newFake()
	h := New(b, Options{ServerVersion: "0.1"})
	targets := []string{"/containers/create?name=a", "/containers/web/exec", "/containers/web/update", "/commit?container=web", "/containers/web/start", "/exec/e1/start"}
	f.Fuzz(func(t *testing.T, body string, n, minor uint8) {
		target := targets[int(n)%len(targets)]
		if strings.HasPrefix(target, "/exec/") && !strings.Contains(body, `"Detach":true`) {
			return // takes the connection over
		}
		if minor >= 24 && minor <= 56 {
			target = "/v1." + string([]byte{'0' + minor/10, '0' + minor%10}) + target
		}
		answers(t, h, http.MethodPost, target, body)
	})
}

// FuzzQuery sends filters and other parameters to the lists.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{`{"status":["running"]}`, `{"status":{"running":true}}`, `{"label":["a=b"],"before":["x"],"exited":["-1"],"health":["x"]}`, `{"x":[]}`, `{`, `[]`, `null`, `{"until":["10m","x"]}`, `{"name":["("]}`, `{"id":{"a":1}}`} {
		f.Add(s, "10", "1700000000.5")
	}
	f.Add("", "-1", "x")
	f.Add("", "99999999999999999999", "1e9")
	_, b := newFake()
	h := New(b, Options{ServerVersion: "0.1"})
	f.Fuzz(func(t *testing.T, filters, number, when string) {
		q := url.Values{"filters": {filters}, "limit": {number}, "size": {number}, "all": {when}, "t": {number}, "h": {number}, "w": {number}}.Encode()
		for _, target := range []string{"/containers/json", "/images/json", "/networks", "/volumes"} {
			answers(t, h, http.MethodGet, target+"?"+q, "")
		}
		for _, target := range []string{"/containers/prune", "/images/prune", "/containers/web/resize", "/containers/web/stop", "/containers/web/kill"} {
			answers(t, h, http.MethodPost, target+"?"+q, "")
		}
	})
}

func answers(t *testing.T, h http.Handler, method, target, body string) {
	t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code >= 500 && w.Code != http.StatusNotImplemented {
		t.Fatalf("%s %s: %d %s", method, target, w.Code, w.Body)
	}
	if w.Body.Len() > 0 && strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
		t.Fatalf("%s %s: %d %q is not JSON", method, target, w.Code, w.Body)
	}
}
