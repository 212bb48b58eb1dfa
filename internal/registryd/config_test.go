package registryd

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func readConfig(t *testing.T, text string, environ ...string) (*Config, error) {
	t.Helper()
	path := ""
	if text != "" {
		path = filepath.Join(t.TempDir(), "config.yml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := ReadConfig(path, environ)
	if err == nil {
		err = c.finish()
	}
	return c, err
}

// A file as people have it.
const usual = `
version: 0.1
log:
  accesslog: {disabled: true}
  level: debug
  formatter: text
  fields: {service: registry, environment: staging}
storage:
  filesystem: {rootdirectory: /data, maxthreads: 100}
  delete: {enabled: true}
  redirect: {disable: false}
  cache: {blobdescriptor: inmemory}
  maintenance:
    uploadpurging: {enabled: true, age: 100h, interval: 24h, dryrun: false}
    readonly: {enabled: false}
  quota: {total: 10GiB}
auth:
  htpasswd: {realm: basic-realm, path: /path/to/htpasswd}
http:
  addr: localhost:5000
  prefix: /my/
  host: https://example.com
  secret: asecret
  relativeurls: false
  draintimeout: 60s
  tls: {certificate: /c, key: /k, clientcas: [/ca.pem]}
  debug: {addr: "localhost:5001", prometheus: {enabled: true, path: /metrics}}
  headers: {X-Content-Type-Options: [nosniff]}
  http2: {disabled: false}
  h2c: {enabled: false}
notifications:
  events: {includereferences: true}
  endpoints:
    - name: alistener
      url: https://my.listener.com/event
      headers: {A: [b]}
      timeout: 1s
      threshold: 10
      backoff: 1s
      ignoredmediatypes: [application/octet-stream]
      ignore: {mediatypes: [a], actions: [pull]}
redis: {addrs: ["localhost:6379"]}
health:
  storagedriver: {enabled: true, interval: 10s, threshold: 3}
validation:
  manifests: {urls: {allow: [a]}}
`

func TestConfig(t *testing.T) {
	c, err := readConfig(t, usual,
		"REGISTRY_HTTP_ADDR=:6000", "REGISTRY_STORAGE_DELETE_ENABLED=false", "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/env",
		"REGISTRY_HTTP_TLS_CLIENTCAS=[/x, /y]", "REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL=http://env", "REGISTRY_NOTIFICATIONS_ENDPOINTS_1_URL=http://env1",
		"REGISTRY_STORAGE_MAINTENANCE_GC_GRACE=5m", "REGISTRY_STORAGE_QUOTA_REPOSITORY=1g", "REGISTRY_HTTP_HEADERS_X=[y]", "REGISTRY_PROXY_TTL=1h",
		"REGISTRY_PORT=tcp://10.0.0.1:5000", "REGISTRY_SERVICE_HOST=x", "OTHER=1", "REGISTRY_STORAGE_MAINTENANCE_READONLY={enabled: true}")
	if err != nil {
		t.Fatal(err)
	}
	if c.HTTP.Addr != ":6000" || c.Storage.Delete.Enabled || c.Storage.Filesystem.RootDirectory != "/env" || len(c.HTTP.TLS.ClientCAs) != 2 ||
		c.Notifications.Endpoints[0].URL != "http://env" || c.Notifications.Endpoints[0].Name != "alistener" || c.Notifications.Endpoints[1].URL != "http://env1" ||
		c.Storage.Maintenance.GC.Grace != 5*time.Minute || c.Storage.Quota.Total != 10<<30 || c.Storage.Quota.Repository != 1<<30 || c.Auth.Htpasswd.Realm != "basic-realm" ||
		*c.Proxy.TTL != time.Hour || !c.Storage.Maintenance.ReadOnly.Enabled || strings.Join(c.Ignored, " ") != "REGISTRY_PORT REGISTRY_SERVICE_HOST" {
		t.Errorf("%+v", c)
	}
	if c, err = readConfig(t, "", "REGISTRY_AUTH_HTPASSWD_REALM=r", "REGISTRY_AUTH_HTPASSWD_PATH=/p", "REGISTRY_AUTH=htpasswd_is_a_word"); err == nil {
		t.Error("auth is no section any more:", c.Auth)
	}
	if c, err = readConfig(t, "", "REGISTRY_AUTH_HTPASSWD_REALM=Registry Realm", "REGISTRY_AUTH_HTPASSWD_PATH=/p"); err != nil || c.Auth.Htpasswd.Realm != "Registry Realm" || c.HTTP.Addr != ":5000" {
		t.Error(c, err)
	}
	if c, err = readConfig(t, "loglevel: warn\n"); err != nil || c.Log.Level != "warn" {
		t.Error(c, err)
	}
	for text, want := range map[string]string{
		"version: 0.1\nhttp:\n  adr: x\n": `line 3: unknown key "adr"`,
		"storage:\n  s3: {}\n":            `line 2: storage driver "s3" is not supported, only filesystem`,
		"version: 7\n":                    `version is "7"`,
		"http:\n  tls: {key: x}\n":        "needs both certificate and key",
		"auth:\n  anonymous: pull\n":      "needs auth.htpasswd",
		"auth:\n  token: {realm: x}\n":    "auth.token needs",
		"storage:\n  quota: {total: x}\n": `line 2: "x" is not a size`,
		"\n":                              "the file is empty",
		"- a\n":                           "cannot unmarshal",
		"http: [":                         "yaml",
	} {
		if _, err := readConfig(t, text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "registryd.") && want != "cannot unmarshal" {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := readConfig(t, "", "REGISTRY_HTTP_DRAINTIMEOUT=soon"); err == nil || !strings.Contains(err.Error(), "REGISTRY_HTTP_DRAINTIMEOUT") {
		t.Error(err)
	}
}

func TestMainLine(t *testing.T) {
	t.Setenv("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", t.TempDir())
	for _, l := range []struct {
		line string
		code int
		want string
	}{
		{"", 0, "Commands:"},
		{"help", 0, "Commands:"},
		{"bogus", 1, "unknown command: bogus"},
		{"serve --help", 0, "--anonymous-pull"},
		{"serve --bogus", 125, "unknown flag: --bogus"},
		{"serve a b", 125, "at most one"},
		{"serve /nope/x.yml", 1, "cannot read the configuration"},
		{"/nope/x.yml", 1, "cannot read the configuration"},
		{"serve --quota x", 1, `--quota: "x" is not a size`},
		{"serve --log-level loud", 1, "log.level"},
		{"serve --htpasswd /nope", 1, "auth.htpasswd: stat /nope: no such file or directory"},
		{"serve --proxy nothing", 1, "proxy.remoteurl"},
		{"gc --root /nope", 1, "there is no registry in /nope"},
		{"garbage-collect -d -m --root /nope", 1, "there is no registry in /nope"},
	} {
		var out bytes.Buffer
		if code := Main(context.Background(), strings.Fields(l.line), &out, &out); code != l.code || !strings.Contains(out.String(), l.want) {
			t.Errorf("%q: %d %s", l.line, code, out.String())
		}
	}
}
