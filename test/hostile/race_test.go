package hostile

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/enginetest"
)

// swapper swaps, as fast as it can, a directory and a link that leads somewhere
// else every few rounds, both in dir: dir/d is now the one, now the other.
type swapper struct {
	rounds atomic.Int64
	stop   chan struct{}
	done   sync.WaitGroup
}

func swap(t *testing.T, dir string, links []string) *swapper {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "d"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(links[0], filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &swapper{stop: make(chan struct{})}
	s.done.Go(func() {
		defer unix.Close(fd)
		for n := 1; ; n++ {
			select {
			case <-s.stop:
				return
			default:
			}
			for range 2 { // an even number: afterwards l is the link
				_ = unix.Renameat2(fd, "d", fd, "l", unix.RENAME_EXCHANGE)
				s.rounds.Add(1)
			}
			if n%16 == 0 {
				_ = unix.Unlinkat(fd, "new", 0)
				_ = unix.Symlinkat(links[n/16%len(links)], fd, "new")
				_ = unix.Renameat(fd, "new", fd, "l")
				_ = unix.Renameat2(fd, "d", fd, "l", unix.RENAME_EXCHANGE) // for a while d is the link
				time.Sleep(50 * time.Microsecond)
				_ = unix.Renameat2(fd, "d", fd, "l", unix.RENAME_EXCHANGE)
			}
		}
	})
	return s
}

func (s *swapper) end() int64 {
	close(s.stop)
	s.done.Wait()
	return s.rounds.Load()
}

// canary is a directory of the host that nothing of a container may change or cover.
type canary struct {
	t       *testing.T
	dir     string
	content string
	mounts  string
	mark    string // begins the names of what containers try to make
}

func newCanary(t *testing.T, e *enginetest.Engine) *canary {
	t.Helper()
	c := &canary{t: t, dir: filepath.Join(e.Dir, "canary"), mark: "hostile-" + filepath.Base(e.Dir)}
	if err := os.MkdirAll(filepath.Join(c.dir, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "secret"), []byte("of the host"), 0o666); err != nil {
		t.Fatal(err)
	}
	c.content, c.mounts = c.list(), mounts(t)
	return c
}

func (c *canary) list() string {
	c.t.Helper()
	all := ""
	err := filepath.WalkDir(c.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		all += fmt.Sprintf("%s %o %d:%d %d\n", p, st.Mode, st.Uid, st.Gid, st.Dev)
		if d.Type().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			all += string(b) + "\n"
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// check fails when the host is not as it was.
func (c *canary) check(e *enginetest.Engine) {
	c.t.Helper()
	if now := c.list(); now != c.content {
		c.t.Errorf("the canary was touched:\n%swas\n%s", now, c.content)
	}
	if now := mounts(c.t); now != c.mounts {
		c.t.Errorf("the host's mounts have changed:\n%swere\n%s", now, c.mounts)
	}
	places := []string{"/", "/dev", "/proc", "/tmp", e.Dir, e.DataRoot, e.ExecRoot}
	for _, pid := range e.KeeperPIDs() {
		for _, d := range []string{"", "tmp", "mnt", "empty", "dev"} {
			places = append(places, fmt.Sprintf("/proc/%d/root/%s", pid, d))
		}
	}
	for _, p := range places {
		found, err := filepath.Glob(filepath.Join(p, c.mark+"*"))
		if err != nil || len(found) > 0 {
			c.t.Errorf("made on the host: %v %v", found, err)
		}
		for _, f := range found {
			_ = os.RemoveAll(f)
		}
	}
}

// links lead from a container's tree to the canary and other places of the host,
// by name, and by the magic links of a procfs: 401 is where the first process
// keeps the old root while it sets up its mounts.
func (c *canary) links() []string {
	return []string{
		c.dir, fmt.Sprintf("/proc/%d/root%s", os.Getpid(), c.dir), "../../../../../../../../.." + c.dir, "/proc/self/fd/401/dev", "/proc/self/fd/401/tmp", "/", "/proc",
		"/proc/self/root", "/proc/self/cwd", "/proc/thread-self/fd/5", "/sys/fs", "/dev/shm",
	}
}

func (c *canary) name(n int64) string { return fmt.Sprintf("%s-%d", c.mark, n) }

// Mount points on a volume whose directories another container swaps for links,
// between the look and the mount.
func TestMountTargetRace(t *testing.T) {
	t.Parallel()
	starts, rounds := int64(100), int64(20_000)
	if os.Getenv("BERTH_STRESS") == "full" {
		starts, rounds = 4000, 100_000
	}
	e := enginetest.Start(t)
	c := newCanary(t, e)
	shared, source := filepath.Join(e.Dir, "shared"), filepath.Join(e.Dir, "source")
	if err := os.MkdirAll(source, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(e.Dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	s := swap(t, shared, c.links())
	var made, ran atomic.Int64
	var work sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	for range 4 {
		work.Go(func() {
			for n := made.Add(1); n <= starts || s.rounds.Load() < rounds; n = made.Add(1) {
				if ctx.Err() != nil {
					return
				}
				ran.Add(c.one(ctx, e, n, shared, source, file))
			}
		})
	}
	work.Wait()
	c.check(e)
	if found, err := os.ReadDir(source); err != nil || len(found) != 0 {
		t.Errorf("the source of a read-only mount was written: %v %v", found, err)
	}
	n := s.end()
	t.Logf("%d rounds, %d of %d containers ran", n, ran.Load(), starts)
	if ran.Load() == 0 {
		t.Error("no container has run: the test shows nothing")
	}
}

// one makes, runs and removes a container with a mount below the directory that is
// swapped, and returns 1 when it ran.
func (c *canary) one(ctx context.Context, e *enginetest.Engine, n int64, shared, source, file string) int64 {
	name := c.name(n)
	top := "/vol"
	if n%2 == 0 { // made in the second pass, when there is a procfs
		top = "/dev/vol"
	}
	target := top + "/d/" + name
	host := map[string]any{}
	// What is mounted read-only must be so wherever it has come to lie.
	body := map[string]any{"Image": img, "HostConfig": host, "Cmd": []string{"sh", "-c", fmt.Sprintf("if grep -q '%s [^ ]* rw' /proc/self/mountinfo; then exit 77; fi", source)}}
	binds := []string{shared + ":" + top}
	switch n / 2 % 5 {
	case 0:
		binds = append(binds, source+":"+target+":ro")
	case 1:
		host["Tmpfs"] = map[string]string{target + "/deep": ""}
	case 2:
		binds = append(binds, file+":"+target+":ro")
	case 3:
		body["WorkingDir"] = target
	case 4:
		binds = append(binds, source+":"+top+"/d:ro")
	}
	if n%3 == 0 {
		host["PidMode"] = "host" // so that /proc has processes of the host
	}
	host["Binds"] = binds
	if status, text, err := e.TryCall(ctx, http.MethodPost, "/containers/create?name="+name, body); err != nil || status != http.StatusCreated {
		c.t.Errorf("create: %d %s %v", status, text, err)
		return 0
	}
	ran := int64(0)
	status, text, err := e.TryCall(ctx, http.MethodPost, "/containers/"+name+"/start", nil)
	switch {
	case err != nil:
		c.t.Error(err)
	case status == http.StatusNoContent:
		ran = 1
		if status, text, err = e.TryCall(ctx, http.MethodPost, "/containers/"+name+"/wait", nil); err != nil || status != http.StatusOK {
			c.t.Errorf("wait: %d %s %v", status, text, err)
		}
		if string(text) != "{\"StatusCode\":0}\n" && string(text) != `{"StatusCode":0}` {
			c.t.Errorf("%v: a mount that was to be read-only can be written: %s", binds, text)
		}
	case status != http.StatusInternalServerError && status != http.StatusBadRequest: // led astray: refused
		c.t.Errorf("start: %d %s", status, text)
	}
	if status, text, err := e.TryCall(ctx, http.MethodDelete, "/containers/"+name+"?force=1&v=1", nil); err != nil || status != http.StatusNoContent {
		c.t.Errorf("remove: %d %s %v", status, text, err)
	}
	return ran
}
