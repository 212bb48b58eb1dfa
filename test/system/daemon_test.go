package system

import (
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// A package manager installs a daemon, which becomes an image and then a service.
func TestInstalledDaemon(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t, enginetest.HostNetwork())
	docker := e.Client("docker")
	enginetest.RequireDocker(t)
	importDebian(t, docker)

	args := []string{"run", "--name", "build", "--network", "host", "-i", "-e", "DEBIAN_FRONTEND=noninteractive"}
	for _, p := range proxies() {
		args = append(args, "-e", p)
	}
	args = append(args, debian, "sh", "-ec",
		"cat >/etc/apt/apt.conf.d/99machine; apt-get update -q; apt-get install -q -y --no-install-recommends redis-server; rm -rf /var/lib/apt/lists/*")
	install := docker.Command(args...)
	install.Stdin = strings.NewReader(aptConf())
	install.WaitDelay = time.Second
	timer := time.AfterFunc(4*time.Minute, func() { _ = install.Process.Kill() })
	out, err := install.CombinedOutput()
	timer.Stop()
	if err != nil {
		t.Fatalf("installation: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "Setting up redis-server") {
		t.Errorf("installation: %s", out)
	}
	docker.Must("commit", "--change", `CMD ["redis-server", "--save", ""]`, "--change", "USER redis", "--change", "WORKDIR /var/lib/redis", "build", "redis")
	docker.Must("rm", "build")

	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		name := "redis-" + c.Name
		c.Must("run", "-d", "--name", name, "--network", "none", "redis")
		enginetest.Eventually(t, "PONG", func() bool {
			return strings.TrimSpace(c.Run("exec", name, "redis-cli", "ping").Out) == "PONG"
		})
		if got := c.Must("exec", name, "redis-cli", "set", "ship", "moored"); got != "OK" {
			t.Errorf("set: %s", got)
		}
		if got := c.MustIn("get ship\n", "exec", "-i", name, "redis-cli"); got != "moored" {
			t.Errorf("get: %s", got)
		}
		if got := c.Must("exec", name, "id", "-un"); got != "redis" {
			t.Errorf("user: %s", got)
		}
		if log := c.Must("logs", name); !strings.Contains(log, "Ready to accept connections") {
			t.Errorf("log: %s", log)
		}
		c.Must("stop", name)
		if got := c.Inspect(name, "{{.State.Status}} {{.State.ExitCode}}"); got != "exited 0" {
			t.Errorf("state: %s", got)
		}
		if log := c.Must("logs", "--tail", "3", name); !strings.Contains(log, "Redis is now ready to exit") {
			t.Errorf("last words: %s", log)
		}
		c.Must("rm", name)
	})
}
