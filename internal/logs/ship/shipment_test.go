package ship_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/logs"
	"berth.dev/berth/internal/logs/logstest"
	"berth.dev/berth/internal/logs/ship"
)

// server is a remote that can be down.
type server struct {
	mu    sync.Mutex
	lines []string
	kept  []string // sent, not flushed
	down  bool
	limit int // entries until the next failure; 0 is none
}

func (s *server) open() (ship.Remote, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("down")
	}
	s.kept = nil
	return s, nil
}

func (s *server) Send(e *ship.Entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit > 0 {
		if s.limit--; s.limit == 0 {
			return errors.New("broken")
		}
	}
	if s.down {
		return errors.New("down")
	}
	s.kept = append(s.kept, string(e.Line))
	return nil
}

func (s *server) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("down")
	}
	s.lines, s.kept = append(s.lines, s.kept...), nil
	return nil
}

func (s *server) Close() error { return nil }

func (s *server) set(down bool, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down, s.limit = down, limit
}

func (s *server) wait(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		lines := append([]string(nil), s.lines...)
		s.mu.Unlock()
		if len(lines) >= n {
			return lines
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d entries: %v", len(lines), n, lines)
		}
	}
}

type world struct {
	t    *testing.T
	dir  string
	srv  server
	sink logs.Sink
	n    int
}

func newWorld(t *testing.T, o logs.Options) *world {
	w := &world{t: t, dir: t.TempDir()}
	var err error
	if w.sink, err = logs.Open(logs.DriverLocal, filepath.Join(w.dir, "spool"), o); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) print(n int) {
	for range n {
		if err := w.sink.Write(logs.Stdout, time.Now(), fmt.Appendf(nil, "%d\n", w.n)); err != nil {
			w.t.Fatal(err)
		}
		w.n++
	}
}

func (w *world) order(stopped <-chan struct{}) ship.Order {
	return ship.Order{ID: "x", Spool: filepath.Join(w.dir, "spool"), Cursor: filepath.Join(w.dir, "cursor"), Open: w.srv.open, Stopped: stopped, Wait: time.Millisecond}
}

func (w *world) check(lines []string) {
	w.t.Helper()
	for i, l := range lines {
		if l != fmt.Sprint(i) {
			w.t.Fatalf("entry %d is %s", i, l)
		}
	}
}

// An engine that ends, and one that comes, lose and double nothing, though the
// spool rotates and is compressed meanwhile.
func TestEngineRestarts(t *testing.T) {
	w := newWorld(t, logs.Options{MaxSize: 2000, MaxFile: 50, Compress: true})
	for range 6 {
		var engine ship.Shipments
		w.print(30)
		engine.Start(w.order(nil))
		w.print(30)
		w.check(w.srv.wait(t, w.n))
		engine.Close()
		w.print(100)
	}
	ended := make(chan struct{})
	close(ended)
	var engine ship.Shipments
	_ = w.sink.Close()
	engine.Start(w.order(ended))
	engine.Finish("x", 5*time.Second)
	w.check(w.srv.wait(t, w.n))
	if ship.Pending(filepath.Join(w.dir, "cursor")) {
		t.Error("something is left to send")
	}
	engine.Close()
}

func TestRemoteDown(t *testing.T) {
	w := newWorld(t, logs.Options{MaxSize: 2000, MaxFile: 50, Compress: true})
	var engine ship.Shipments
	defer engine.Close()
	engine.Start(w.order(nil))
	w.print(10)
	w.srv.wait(t, 10)
	w.srv.set(true, 0)
	w.print(200)
	if !ship.Pending(filepath.Join(w.dir, "cursor")) {
		t.Error("nothing is pending")
	}
	w.srv.set(false, 7) // it comes back, and breaks once more
	w.check(w.srv.wait(t, w.n))
}

// A container that ends while the remote is down keeps what was not sent for
// the next start.
func TestEndsWhileDown(t *testing.T) {
	w := newWorld(t, logs.Options{})
	var engine ship.Shipments
	defer engine.Close()
	w.srv.set(true, 0)
	ended := make(chan struct{})
	engine.Start(w.order(ended))
	w.print(5)
	close(ended)
	begin := time.Now()
	engine.Finish("x", 20*time.Millisecond)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("the end took %v", d)
	}
	w.srv.set(false, 0)
	w.print(5)
	engine.Start(w.order(nil))
	w.check(w.srv.wait(t, 10))
}

func TestRetriesBound(t *testing.T) {
	w := newWorld(t, logs.Options{})
	w.print(3)
	w.srv.set(true, 0)
	o := w.order(nil)
	o.Retries = 2
	tries := 0
	o.Open = func() (ship.Remote, error) {
		if tries++; tries > 3 {
			w.srv.set(false, 0)
		}
		return w.srv.open()
	}
	var engine ship.Shipments
	defer engine.Close()
	engine.Start(o)
	if got := w.srv.wait(t, 2); got[0] != "1" || got[1] != "2" {
		t.Errorf("arrived: %v", got)
	}
}

// A connect that hangs holds nobody up.
func TestHangingConnect(t *testing.T) {
	w := newWorld(t, logs.Options{})
	w.print(1)
	var engine ship.Shipments
	o := w.order(nil)
	dialing, release := make(chan struct{}), make(chan struct{})
	o.Open = func() (ship.Remote, error) {
		close(dialing)
		<-release
		return nil, errors.New("late")
	}
	engine.Start(o)
	<-dialing
	engine.Start(w.order(nil))
	w.check(w.srv.wait(t, 1))
	engine.Close()
	close(release)
}

func TestDamagedCursor(t *testing.T) {
	w := newWorld(t, logs.Options{})
	w.print(3)
	if err := os.WriteFile(filepath.Join(w.dir, "cursor"), []byte("{\"ino\":1,\"off\":99999999}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var engine ship.Shipments
	defer engine.Close()
	engine.Start(w.order(nil))
	w.check(w.srv.wait(t, 3))
}

func TestTagAndAttributes(t *testing.T) {
	info := logstest.Info(map[string]string{"labels": "", "env": "A,none", "env-regex": "^B", "labels-regex": "^com\\."}, map[string]string{"com.x": "1", "org.y": "2"})
	attrs, err := info.Attributes(nil)
	if err != nil || fmt.Sprint(attrs) != "map[A:1 B:2 com.x:1]" {
		t.Errorf("%v, %v", attrs, err)
	}
	for in, want := range map[string]string{
		"": "0123456789ab", "{{.Name}}/{{.FullID}}": "web/" + info.ContainerID, "{{.ImageID}} {{.ImageName}} {{.DaemonName}}": "sha256:fffff busybox docker",
		"{{.Command | upper}}": "SH -C TRUE", "{{json .ContainerArgs}}": `["-c","true"]`, "{{truncate .ImageFullID 8}}|{{pad .Name 1 2}}|{{title .Name}}": "sha256:f| web  |Web",
		`{{join (split .ImageFullID ":") "-"}}`: "sha256-" + info.ContainerImageID[7:], `{{index .ContainerLabels "org.y"}}`: "2",
	} {
		info.Config["tag"] = in
		if got, err := info.Tag(ship.DefaultTag); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	info.Config["tag"] = "{{.Nope}}"
	if _, err := info.Tag(""); err == nil {
		t.Error("a wrong field is no error")
	}
	info.Config["env-regex"] = "["
	if _, err := info.Attributes(nil); err == nil {
		t.Error("a wrong expression is no error")
	}
}
