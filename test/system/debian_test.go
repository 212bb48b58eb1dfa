package system

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

const suite = "bookworm"

// debian is the image that importDebian makes.
const debian = "debian:" + suite

// importDebian gives an engine the system as an image, through a client.
func importDebian(t *testing.T, c *enginetest.Client) {
	t.Helper()
	c.Must("import", "--change", `CMD ["bash"]`, "--change", "ENV LANG=C.UTF-8", debianTar(t), debian)
}

// debianTar is a minimal Debian as a tar archive. It is made once per machine, with
// the mirror that the machine itself uses.
func debianTar(t *testing.T) string {
	t.Helper()
	debootstrap, err := exec.LookPath("debootstrap")
	if err != nil {
		debootstrap = "/usr/sbin/debootstrap"
	}
	if _, err := os.Stat(debootstrap); err != nil {
		enginetest.Skip(t, enginetest.NeedsDebian)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "berth-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "debian-"+suite+".tar")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	work, err := os.MkdirTemp(dir, "make-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	// In a mount namespace of its own: what debootstrap mounts goes with it. As in
	// Debian's own images no daemon is started when its package is installed.
	const script = `set -e
		"$1" --variant=minbase "$2" "$3/root" "$4" >"$3/log" 2>&1 || { tail -n 30 "$3/log" "$3/root/debootstrap/debootstrap.log" || :; exit 1; }
		umount "$3/root/proc" "$3/root/sys" 2>/dev/null || :
		rm -rf "$3"/root/var/cache/apt/archives/*.deb "$3"/root/var/lib/apt/lists/* "$3"/root/dev/*
		printf '#!/bin/sh\nexit 101\n' >"$3/root/usr/sbin/policy-rc.d"
		chmod 755 "$3/root/usr/sbin/policy-rc.d"
		tar -C "$3/root" --numeric-owner --one-file-system -cf "$3/tar" .
		mv "$3/tar" "$5"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", debootstrap, suite, work, mirror(), file)
	cmd.Env = append(os.Environ(), proxies()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap %s from %s: %v\n%s", suite, mirror(), err, out)
	}
	return file
}

// mirror is the address of the machine's Debian archive.
func mirror() string {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, f := range append([]string{"/etc/apt/sources.list"}, files...) {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		uri := ""
		for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
			fields := strings.Fields(s.Text())
			switch {
			case len(fields) < 2:
			case fields[0] == "URIs:":
				uri = fields[1]
			case fields[0] == "Suites:" && has(fields[1:], suite) && uri != "":
				return uri
			case fields[0] == "deb" && has(fields, suite):
				for _, f := range fields {
					if strings.Contains(f, "://") {
						return f
					}
				}
			}
		}
	}
	return "http://deb.debian.org/debian"
}

func has(words []string, word string) bool {
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}

// aptConf is what the machine's apt says about ways and dates; a package manager in
// a container has to follow it.
func aptConf() string {
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, " ")
		if strings.HasPrefix(name, "Acquire::Check-") || strings.HasPrefix(name, "Acquire::http") && strings.HasSuffix(name, "::Proxy") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// proxies are the variables of the environment that name proxies, and what apt has
// as a proxy: debootstrap knows nothing of apt.
func proxies() []string {
	var env []string
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	for line := range strings.Lines(aptConf()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if value = strings.Trim(value, `";`); strings.HasPrefix(name, "Acquire::http::") && value != "" {
			env = append(env, "http_proxy="+value)
		}
	}
	return env
}
