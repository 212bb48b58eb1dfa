package container

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

const passwd = `# users
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:App:/home/app:/bin/sh
1234:x:77:78::/numeric:/bin/sh
nohome:x:1001:100:::
broken
worse:x:notanumber:0::/:
negative:x:-1:0::/:
huge:x:4294967296:0::/:
edge:x:2147483648:0::/:
max:x:2147483647:2147483647::/max:
`

const group = `root:x:0:
app:x:1000:
wheel:x:10:root,app
audio:x:29:app,other
55:x:56:
bad:x:x:app
over:x:2147483648:app
empty:x:30:
`

// rootFS makes a root filesystem with files and returns its descriptor.
func rootFS(t testing.TB, files map[string]string) (string, int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return dir, fd
}

func TestResolveUser(t *testing.T) {
	_, fd := rootFS(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	const (
		outOfRange = "uids and gids must be in range 0-2147483647"
		noUser     = "unable to find user %s: no matching entries in passwd file"
		noGroup    = "unable to find group %s: no matching entries in group file"
	)
	cases := []struct {
		user  string
		add   []string
		want  string // "uid gid [groups] home"
		error string
	}{
		{"", nil, "0 0 [0 10] /root", ""},
		{"root", nil, "0 0 [0 10] /root", ""},
		{"0", nil, "0 0 [0 10] /root", ""},
		{"app", nil, "1000 1000 [1000 10 29] /home/app", ""},
		{"1000", nil, "1000 1000 [1000 10 29] /home/app", ""},
		{"01000", nil, "1000 1000 [1000 10 29] /home/app", ""},
		{"1000:", nil, "1000 1000 [1000 10 29] /home/app", ""},
		{"app:audio", nil, "1000 29 [29] /home/app", ""},
		{"app:29", nil, "1000 29 [29] /home/app", ""},
		{"app:4242", nil, "1000 4242 [4242] /home/app", ""},
		{":audio", nil, "0 29 [29] /root", ""},
		{":", nil, "0 0 [0 10] /root", ""},
		{"4242", nil, "4242 0 [0] /", ""},
		{"4242:4343", nil, "4242 4343 [4343] /", ""},
		{"1234", nil, "77 78 [78] /numeric", ""}, // a name of digits wins
		{"nohome", nil, "1001 100 [100] /", ""},
		{"max", nil, "2147483647 2147483647 [2147483647] /max", ""},
		{"2147483647:2147483647", nil, "2147483647 2147483647 [2147483647] /max", ""},
		{"app", []string{"audio", "99", "empty"}, "1000 1000 [1000 10 29 99 30] /home/app", ""},
		{"4242", []string{"wheel"}, "4242 0 [0 10] /", ""},
		{"nobody", nil, "", fmt.Sprintf(noUser, "nobody")},
		{"broken", nil, "", fmt.Sprintf(noUser, "broken")},
		{"huge", nil, "", fmt.Sprintf(noUser, "huge")},
		{"negative", nil, "", fmt.Sprintf(noUser, "negative")},
		{"edge", nil, "", fmt.Sprintf(noUser, "edge")},
		{"app:nogroup", nil, "", fmt.Sprintf(noGroup, "nogroup")},
		{"app", []string{"nogroup"}, "", fmt.Sprintf(noGroup, "nogroup")},
		{"2147483648", nil, "", outOfRange},
		{"4294967296", nil, "", outOfRange},
		{"18446744073709551616", nil, "", fmt.Sprintf(noUser, "18446744073709551616")},
		{"-1", nil, "", outOfRange},
		{"app:2147483648", nil, "", outOfRange},
		{"0:-1", nil, "", outOfRange},
		{"app", []string{"-5"}, "", outOfRange},
		{"app:a:b", nil, "", fmt.Sprintf(noGroup, "a")},
		{"app\nroot", nil, "", fmt.Sprintf(noUser, "app\nroot")},
		{" 0", nil, "", fmt.Sprintf(noUser, " 0")},
		{"0x0", nil, "", fmt.Sprintf(noUser, "0x0")},
		{"+0", nil, "0 0 [0 10] /root", ""},
	}
	for _, c := range cases {
		t.Run(strings.ReplaceAll(c.user, "\n", "⏎")+"+"+strings.Join(c.add, ","), func(t *testing.T) {
			id, err := resolveUser(fd, c.user, c.add)
			if c.error != "" {
				if err == nil || err.Error() != c.error || !errs.Is(err, errs.Invalid) {
					t.Fatalf("%+v, %v; want %s", id, err, c.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%d %d %v %s", id.UID, id.GID, id.AdditionalGids, id.home); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Files that are missing, odd or hostile. Numbers always work, and quickly.
func TestOddAccountFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name string
		make func(dir string) error
		user string
		ok   bool
	}{
		{"missing", func(string) error { return nil }, "1000", true},
		{"missing, by name", func(string) error { return nil }, "app", false},
		{"a FIFO", func(d string) error { return unix.Mkfifo(d+"/etc/passwd", 0o644) }, "1000", true},
		{"a directory", func(d string) error { return os.Mkdir(d+"/etc/passwd", 0o755) }, "1000", true},
		{"a link to the outside", func(d string) error { return os.Symlink(outside, d+"/etc/passwd") }, "evil", false},
		{"a link up and out", func(d string) error {
			rel, err := filepath.Rel(d+"/etc", outside)
			if err != nil {
				return err
			}
			return os.Symlink(rel, d+"/etc/passwd")
		}, "evil", false},
		{"a link to itself", func(d string) error { return os.Symlink("passwd", d+"/etc/passwd") }, "1000", true},
		{"a magic link", func(d string) error { return os.Symlink("/proc/self/environ", d+"/etc/passwd") }, "1000", true},
		{"a link inside", func(d string) error {
			if err := os.WriteFile(d+"/users", []byte("in:x:5:6::/:\n"), 0o644); err != nil {
				return err
			}
			return os.Symlink("/users", d+"/etc/passwd")
		}, "in", true},
		{"/etc is a link out", func(d string) error {
			if err := os.Remove(d + "/etc"); err != nil {
				return err
			}
			return os.Symlink(filepath.Dir(outside), d+"/etc")
		}, "evil", false},
		{"giant", func(d string) error {
			f, err := os.Create(d + "/etc/passwd")
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1 << 30)
		}, "1000", false},
		{"many lines", func(d string) error {
			return os.WriteFile(d+"/etc/passwd", []byte(strings.Repeat("u:x:1:1::/:\n", 500000)), 0o644)
		}, "1000", false},
		{"one long line", func(d string) error {
			return os.WriteFile(d+"/etc/passwd", []byte(strings.Repeat("x", 2<<20)), 0o644)
		}, "1000", false},
		{"giant group", func(d string) error { return os.WriteFile(d+"/etc/group", make([]byte, 5<<20), 0o644) }, "1000", false},
		{"binary", func(d string) error {
			return os.WriteFile(d+"/etc/passwd", []byte("\x00\xff:::\n:::::::::::\n::0:0\n"), 0o644)
		}, "1000", true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir, fd := rootFS(t, nil)
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			id, err := resolveUser(fd, c.user, nil)
			if (err == nil) != c.ok {
				t.Errorf("%+v, %v", id, err)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

func FuzzResolveUser(f *testing.F) {
	for _, u := range []string{"", "root", "1000:", "0:0", "2147483648", "-1", ":", "a:b"} {
		f.Add(u, passwd, group)
	}
	f.Add("x", "x:x:0:0:0:0:0", "x:x:")
	f.Fuzz(func(t *testing.T, user, passwd, group string) {
		_, fd := rootFS(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
		id, err := resolveUser(fd, user, nil)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if id.UID > maxID || id.GID > maxID || len(id.AdditionalGids) == 0 || !slices.Contains(id.AdditionalGids, id.GID) || id.home == "" {
			t.Fatalf("%+v", id)
		}
		for _, g := range id.AdditionalGids {
			if g > maxID {
				t.Fatalf("%+v", id)
			}
		}
	})
}
