package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse("dockerd", append([]string{"--config-file", path}, args...), io.Discard)
	if err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), path, "FILE"))
	}
	return c, nil
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		file string
		args []string
		want string
	}{
		{"", []string{"--foo"}, "unknown flag: --foo\nSee 'dockerd --help'."},
		{"", []string{"x"}, `"dockerd" accepts no argument(s).` + "\nSee 'dockerd --help'."},
		{`{"foo":1,"bar":2}`, nil, "unable to configure the Docker daemon with file FILE: the following directives don't match any configuration option: bar, foo"},
		{`{"debug":true,"hosts":["unix:///x"]}`, []string{"-D", "-H", "unix:///y"}, "unable to configure the Docker daemon with file FILE: the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true), hosts: (from flag: [unix:///y], from file: [unix:///x])"},
		{`{"debug":`, nil, "unable to configure the Docker daemon with file FILE: unexpected end of JSON input"},
		{`{"debug":"maybe"}`, nil, "unable to configure the Docker daemon with file FILE: invalid value for debug"},
		{"", []string{"--log-level", "loud"}, "invalid logging level: loud"},
		{"", []string{"--log-opt", "max-file=0"}, "failed to set log opts: max-file cannot be less than 1"},
		{"", []string{"--log-driver", "fluffy"}, "failed to set log opts: logger: no log driver named 'fluffy' is registered"},
		{"", []string{"--label", "x"}, "invalid argument \"x\" for \"--label\" flag: bad attribute format: x"},
		{"", []string{"--dns", "x"}, "invalid argument \"x\" for \"--dns\" flag: x is not an ip address"},
		{"", []string{"--default-ipc-mode", "host"}, `IPC mode "host" is not supported as default value; use "private" or "shareable"`},
		{"", []string{"--default-runtime", "crun"}, "specified default runtime 'crun' does not exist"},
		{"", []string{"--exec-opt", "native.cgroupdriver=x"}, "exec-opt native.cgroupdriver"},
		{"", []string{"-H", "ftp://x"}, "invalid bind address format: ftp://x"},
		{"", []string{"--mtu", "-5"}, "invalid default MTU: -5"},
	} {
		_, err := parse(t, tc.file, tc.args...)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s %v\n got %v\nwant %s", tc.file, tc.args, err, tc.want)
		}
	}
	if _, err := Parse("berthd", []string{"--config-file", "/nonexistent/x"}, io.Discard); err == nil {
		t.Error("a missing file that was asked for is no error")
	}
}

func TestParse(t *testing.T) {
	c, err := parse(t, `{"labels":["a=b"],"log-opts":{"max-size":"10m"},"default-shm-size":"128m","default-ulimits":{"nofile":{"Name":"nofile","Soft":1,"Hard":2}},
		"runtimes":{"crun":{"path":"/usr/bin/crun","runtimeArgs":["--x"]}},"default-runtime":"crun","default-address-pools":[{"base":"10.0.0.0/8","size":24}],
		"dns":["1.1.1.1"],"exec-opts":["native.cgroupdriver=systemd"],"features":{"x":true},"proxies":{"http-proxy":"http://p"},"shutdown-timeout":3,
		"containerd":"/x","insecure-registries":["r:5000"],"mtu":1400,"default-gateway":"10.0.0.1","tlsverify":true}`,
		"--add-runtime", "kata=/k", "--icc=false", "-H", "tcp://", "-H", "fd://", "-H", "/x.sock", "-H", "unix:///x.sock", "--no-new-privileges", "--containerd-namespace", "n", "--cri-containerd")
	if err != nil {
		t.Fatal(err)
	}
	if c.Labels[0] != "a=b" || c.Default.LogOptions["max-size"] != "10m" || c.Default.ShmSize != 128<<20 || c.Default.Ulimits["nofile"].Hard != 2 ||
		c.Runtime.Runtimes["crun"].Path != "/usr/bin/crun" || c.Runtime.Runtimes["kata"].Path != "/k" || c.Network.AddressPools[0].Size != 24 ||
		c.Network.DNS[0].String() != "1.1.1.1" || c.Runtime.CgroupDriver != "systemd" || !c.Features["x"] || c.Proxy.HTTP != "http://p" ||
		c.ShutdownTimeout != 3*time.Second || c.Image.InsecureRegistries[0] != "r:5000" || c.Network.MTU != 1400 || !c.Network.Gateway.IsValid() ||
		c.Network.ICC || !c.Default.NoNewPrivs || !c.API.TLS || strings.Join(c.API.Hosts, " ") != "tcp://localhost:2376 fd:// unix:///x.sock" {
		t.Errorf("%+v", c)
	}
	d, err := parse(t, "")
	if err != nil || d.DataRoot != "/var/lib/berth" || d.ExecRoot != "/run/berth" || !d.API.Default || d.Default.LogDriver != "json-file" || d.Default.ShmSize != 64<<20 || d.Runtime.Default != "berth" {
		t.Errorf("%+v %v", d, err)
	}
}

// Which directories hold descriptions of devices: the two usual ones unless told.
func TestParseCDI(t *testing.T) {
	for _, tc := range []struct{ config, flag, want string }{
		{`{}`, "none", "/etc/cdi /var/run/cdi"},
		{`{"features":{"cdi":true}}`, "none", "/etc/cdi /var/run/cdi"},
		{`{"features":{"cdi":false}}`, "/a", ""},
		{`{"cdi-spec-dirs":[]}`, "none", ""},
		{`{"cdi-spec-dirs":["/b"]}`, "none", "/b"},
		{`{}`, "/a", "/a"},
		{`{}`, "", ""},
	} {
		var args []string
		if tc.flag != "none" {
			args = append(args, "--cdi-spec-dir="+tc.flag)
		}
		c, err := parse(t, tc.config, args...)
		if err != nil || c.CDISpecDirs == nil || strings.Join(c.CDISpecDirs, " ") != tc.want {
			t.Errorf("%s %s: %q %v", tc.config, tc.flag, c.CDISpecDirs, err)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out bytes.Buffer
	if _, err := Parse("berthd", []string{"--help"}, &out); !errors.Is(err, ErrHelp) || !strings.Contains(out.String(), "--default-shm-size bytes") || strings.Contains(out.String(), "cri-containerd") {
		t.Errorf("%v\n%s", err, &out)
	}
	if _, err := Parse("berthd", []string{"-v"}, io.Discard); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"": "unix:///run/berth.sock", "unix:///a": "unix:///a", "/a": "unix:///a", "tcp://:1": "tcp://localhost:1", "0.0.0.0": "tcp://0.0.0.0:2375",
		"tcp://[::1]:5": "tcp://[::1]:5", "tcp://[::1]": "tcp://[::1]:2375", "fd://": "fd://", "h:x": "!", "tcp://h/p": "!", "tcp://a:b:c": "!", "tcp://h:99999": "!",
	} {
		got, err := parseHost(in, false)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s")
	e, err := listenUnix(path, "0")
	if err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", fi.Mode())
	}
	if _, err := listenUnix(path, "0"); !errors.Is(err, errSocketTaken) {
		t.Errorf("a live socket: %v", err)
	}
	_ = e.Listener.Close() // leaves the name: a dead socket
	e, err = listenUnix(path, "0")
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	_ = e.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("the socket is left")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path, "0"); err == nil {
		t.Error("a file was replaced")
	}
}

func TestPidFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	remove, err := writePidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	remove()
	_ = os.WriteFile(path, []byte("999999999"), 0o600)
	if remove, err = writePidFile(path); err != nil {
		t.Errorf("a dead engine's file: %v", err)
	}
	remove()
}

func TestRunAndReload(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "daemon.json")
	write := func(s string) {
		if err := os.WriteFile(conf, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"labels":["a=1"]}`)
	sock := filepath.Join(dir, "s.sock")
	c, err := Parse("berthd", []string{"--config-file", conf, "-H", "unix://" + sock, "-H", "tcp://127.0.0.1:0", "--exec-root", dir + "/run", "--data-root", dir + "/lib", "-l", "error", "--bridge", "none", "--iptables=false"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	write(`{"labels":["a=2"],"mtu":1234}`)
	next, err := c.reloaded()
	if err != nil || next.Labels[0] != "a=2" || next.Network.MTU != 0 || c.Labels[0] != "a=1" || next.DataRoot != c.DataRoot {
		t.Fatalf("%+v %v", next, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Run(ctx, c, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	cl := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}}
	res, err := cl.Get("http://x/version")
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ APIVersion string }
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil || v.APIVersion != "1.56" {
		t.Errorf("%+v %v", v, err)
	}
	_ = res.Body.Close()
	stream, err := cl.Get("http://x/events") // must not hold up the end
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	begin := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("the end took %v", d)
	}
	if _, err := os.Stat(sock); !os.IsNotExist(err) {
		t.Error("the socket is left")
	}
	if _, err := os.Stat(dir + "/run/berthd.pid"); !os.IsNotExist(err) {
		t.Error("the pid file is left")
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	notify(t.Context(), "READY=1")
	buf := make([]byte, 100)
	if n, err := l.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("%q %v", buf[:n], err)
	}
}

func TestDumpStacks(t *testing.T) {
	path, err := dumpStacks(t.TempDir())
	if b, rerr := os.ReadFile(path); err != nil || rerr != nil || !bytes.Contains(b, []byte("TestDumpStacks")) {
		t.Error(err, rerr)
	}
}
