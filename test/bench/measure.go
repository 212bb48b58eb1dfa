package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// groups are the measurements, in the order of taking them.
func groups() []struct {
	name string
	run  func(*bench) error
} {
	return []struct {
		name string
		run  func(*bench) error
	}{
		// Loading comes first: what the others delete slows ext4 down for minutes.
		{"load", (*bench).measureLoad},
		{"boot", (*bench).measureBoot},
		{"cycle", (*bench).measureCycle},
		{"network", (*bench).measureNetwork},
		{"rate", (*bench).measureRate},
		{"paths", (*bench).measurePaths},
		{"cli", (*bench).measureCLI},
		{"exec", (*bench).measureExec},
		{"remove", (*bench).measureRemove},
		{"many", (*bench).measureMany},
		{"logs", (*bench).measureLogs},
		{"thousand", (*bench).measureThousand},
	}
}

func groupNames() (names []string) {
	for _, g := range groups() {
		names = append(names, g.name)
	}
	return names
}

func (b *bench) measure() error {
	for _, g := range groups() {
		if b.wants(g.name) {
			if err := g.run(b); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	return nil
}

// engines returns those with a socket that work.
func (b *bench) engines() (list []*engine) {
	for _, e := range []*engine{b.berth, b.docker} {
		if e != nil {
			list = append(list, e)
		}
	}
	return list
}

// measureCycle times create, start, wait and remove by API beside the floor.
func (b *bench) measureCycle() error {
	tight := func(e *engine, measure string) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			steps, err := e.api.cycle(spec("true"))
			if err != nil {
				return 0, err
			}
			for i, name := range []string{"create", "start", "wait", "remove"} {
				b.time(measure+": "+name, e.name, steps[i])
			}
			return steps[0] + steps[1] + steps[2] + steps[3], nil
		}
	}
	for _, m := range []struct {
		name        string
		gap         time.Duration
		fast, slow  int
		alsoRuntime bool
	}{{"cycle, tight", 0, 40, 1, true}, {"cycle, 20 ms between", 20 * time.Millisecond, 12, 1, false}} {
		var s []subject
		if b.floor != nil {
			for _, f := range []struct{ name, command string }{
				{"floor", "10"}, {"floor, no netns", "00"}, {"floor, by tasks", "11"}, {"floor, tasks, no netns", "01"},
			} {
				s = append(s, subject{f.name, m.fast / 2, func() (time.Duration, error) { return b.floor.cycle(f.command) }})
			}
			s[0].burst = m.fast
		}
		s = append(s, subject{"berth", m.fast, tight(b.berth, m.name)})
		if m.alsoRuntime {
			if b.docker != nil {
				s = append(s, subject{"docker", m.slow, tight(b.docker, m.name)})
			}
			s = append(s, b.runtimes()...)
		}
		b.interleave(m.name, 2*b.rounds, m.gap, s...)
	}
	return nil
}

func (b *bench) runtimes() (s []subject) {
	if b.crun != nil {
		s = append(s, subject{"crun run", 2, func() (time.Duration, error) { return timed(b.place, b.env, b.crun[0], b.crun[1:]...) }})
	}
	if b.runc != nil {
		s = append(s, subject{"runc run", 2, func() (time.Duration, error) { return timed(b.place, b.env, b.runc[0], b.runc[1:]...) }})
	}
	return s
}

// measureCLI times whole commands.
func (b *bench) measureCLI() error {
	var run, version []subject
	for _, e := range b.engines() {
		n := 4
		if e != b.berth {
			n = 1
		}
		run = append(run, subject{e.name, n, func() (time.Duration, error) { return e.run("run", "--rm", "--network", "none", "busybox", "true") }})
		version = append(version, subject{e.name, 2, func() (time.Duration, error) { return e.run("--version") }})
	}
	if b.podman != nil {
		run = append(run, subject{"podman", 1, func() (time.Duration, error) { return b.runPodman(b.podmanRun("--rm", "busybox", "true")...) }})
		version = append(version, subject{"podman", 1, func() (time.Duration, error) { return b.runPodman("--version") }})
	}
	run = append(run, b.runtimes()...)
	if b.floor != nil {
		run = append(run, subject{"floor", 4, func() (time.Duration, error) { return b.floor.cycle("10") }})
	}
	b.interleave("cli run --rm", b.rounds, 0, run...)
	b.interleave("--version", b.rounds, 0, version...)
	return nil
}

func (b *bench) measureExec() error {
	var cli, api []subject
	for _, e := range b.engines() {
		id, err := e.api.run(spec("sleep", "1000"))
		if err != nil {
			b.note("exec: %s: %v", e.name, err)
			continue
		}
		defer func() { _ = e.api.remove(id) }()
		n := 4
		if e != b.berth {
			n = 1
		}
		cli = append(cli, subject{e.name, n, func() (time.Duration, error) { return e.run("exec", id, "true") }})
		api = append(api, subject{e.name, 2 * n, func() (time.Duration, error) {
			begin := time.Now()
			err := e.api.exec(id, "true")
			return time.Since(begin), err
		}})
	}
	if b.podman != nil {
		if _, err := b.runPodman(b.podmanRun("-d", "--name", "x", "busybox", "sleep", "1000")...); err != nil {
			b.note("exec: podman: %v", err)
		} else {
			cli = append(cli, subject{"podman", 1, func() (time.Duration, error) { return b.runPodman("exec", "x", "true") }})
			defer func() { _, _ = b.runPodman("rm", "-f", "-t", "0", "x") }()
		}
	}
	b.interleave("cli exec", b.rounds, 0, cli...)
	b.interleave("api exec", b.rounds, 0, api...)
	return nil
}

// measureRemove times stop -t 0, rm of a stopped and rm -f of a running one.
func (b *bench) measureRemove() error {
	type side struct {
		name string
		n    int
		make func() (string, error)
		run  func(args ...string) (time.Duration, error)
	}
	var sides []side
	for _, e := range b.engines() {
		s := side{e.name, 3, func() (string, error) { return e.api.run(spec("sleep", "1000")) }, e.run}
		if e != b.berth {
			s.n = 1
		}
		sides = append(sides, s)
	}
	if b.podman != nil {
		i := 0
		sides = append(sides, side{"podman", 1, func() (string, error) {
			i++
			name := fmt.Sprint("r", i)
			_, err := b.runPodman(b.podmanRun("-d", "--name", name, "busybox", "sleep", "1000")...)
			return name, err
		}, b.runPodman})
	}
	for range b.rounds {
		for _, s := range sides {
			for range s.n {
				err := func() error {
					id, err := s.make()
					if err != nil {
						return err
					}
					time.Sleep(40 * time.Millisecond)
					for _, step := range [][]string{{"stop", "-t", "0"}, {"rm"}} {
						d, err := s.run(append(step, id)...)
						if err != nil {
							return err
						}
						b.time("cli "+strings.Join(step, " "), s.name, d)
						time.Sleep(20 * time.Millisecond)
					}
					if id, err = s.make(); err != nil {
						return err
					}
					time.Sleep(40 * time.Millisecond)
					force := []string{"rm", "-f"}
					if s.name == "podman" {
						force = append(force, "-t", "0")
					}
					d, err := s.run(append(force, id)...)
					if err == nil {
						b.time("cli rm -f", s.name, d)
					}
					return err
				}()
				if err != nil {
					b.note("remove: %s: %v", s.name, err)
				}
			}
		}
	}
	for _, m := range []string{"cli stop -t 0", "cli rm", "cli rm -f"} {
		b.progress(m)
	}
	return nil
}

// startMany starts containers that stay, from clients in parallel. Given a
// measure it records every start call.
func (b *bench) startMany(e *engine, n, clients int, measure string, argv ...string) (time.Duration, error) {
	var (
		mu    sync.Mutex
		first error
		group sync.WaitGroup
		jobs  = make(chan struct{}, n)
	)
	for range n {
		jobs <- struct{}{}
	}
	close(jobs)
	begin := time.Now()
	for range clients {
		group.Go(func() {
			c, err := dial(e.sock())
			for range jobs {
				if err != nil {
					break
				}
				var id string
				if id, err = c.create(spec(argv...)); err != nil {
					break
				}
				t := time.Now()
				if err = c.start(id); err == nil && measure != "" {
					d := time.Since(t)
					mu.Lock()
					b.time(measure, e.name, d)
					mu.Unlock()
				}
			}
			if c != nil {
				c.close()
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
		})
	}
	group.Wait()
	return time.Since(begin), first
}

// removeAll removes every container of an engine.
func removeAll(c *client) {
	ids, err := list(c)
	if err != nil {
		return
	}
	var group sync.WaitGroup
	jobs := make(chan string, len(ids))
	for _, id := range ids {
		jobs <- id
	}
	close(jobs)
	for range 4 {
		group.Go(func() {
			c, err := dial(c.path)
			if err != nil {
				return
			}
			defer c.close()
			for id := range jobs {
				_ = c.remove(id)
			}
		})
	}
	group.Wait()
}

// measureMany starts 200 containers, 8 at a time, and asks what they cost.
func (b *bench) measureMany() error {
	for _, e := range b.engines() {
		pids := func() []int { return processes(e.dir + "/") }
		time.Sleep(300 * time.Millisecond)
		idle := memory(pids(), "Pss")
		b.add("pss idle engine, after work", e.name, "MiB", idle)
		n := 100
		if e != b.berth {
			n = 30
		}
		if _, err := b.startMany(e, n, 1, "start, sequential", "sleep", "1000"); err != nil {
			b.note("many: %s: %v", e.name, err)
			continue
		}
		removeAll(e.api)
		time.Sleep(500 * time.Millisecond)
		n = 200
		if e != b.berth && !b.full {
			n = 100
		}
		idle = memory(pids(), "Pss")
		took, err := b.startMany(e, 100, 8, "start, 8 clients", "sleep", "1000")
		if err != nil {
			b.note("many: %s: %v", e.name, err)
			continue
		}
		b.measurePS(e, "100 running")
		if n > 100 {
			more, err := b.startMany(e, n-100, 8, "start, 8 clients", "sleep", "1000")
			if err != nil {
				b.note("many: %s: %v", e.name, err)
				continue
			}
			took += more
		}
		b.time("many starts, each", e.name, took/time.Duration(n))
		time.Sleep(time.Second)
		b.add("pss per container", e.name, "MiB", (memory(pids(), "Pss")-idle)/float64(n))
		b.add("pss engine with many", e.name, "MiB", memory(pids(), "Pss"))
		begin := time.Now()
		removeAll(e.api)
		b.time("rm -f of all, 4 at a time, each", e.name, time.Since(begin)/time.Duration(n))
	}
	if b.podman != nil {
		const n = 5
		dir := filepath.Join(b.dir, "podman") + "/"
		idle := memory(processes(dir), "Pss")
		for i := range n {
			if _, err := b.runPodman(b.podmanRun("-d", "--name", fmt.Sprint("m", i), "busybox", "sleep", "1000")...); err != nil {
				b.note("many: podman: %v", err)
				break
			}
		}
		b.add("pss per container", "podman", "MiB", (memory(processes(dir), "Pss")-idle)/n)
		_, _ = b.runPodman("rm", "-f", "-t", "0", "-a")
	}
	for _, m := range []string{"start, sequential", "start, 8 clients", "many starts, each", "pss per container", "pss idle engine, after work"} {
		b.progress(m)
	}
	return nil
}

func (b *bench) measurePS(e *engine, what string) {
	for range b.rounds {
		if d, err := e.run("ps"); err == nil {
			b.time("cli ps, "+what, e.name, d)
		}
		begin := time.Now()
		if _, err := e.api.do("GET", "/containers/json", nil); err == nil {
			b.time("api ps, "+what, e.name, time.Since(begin))
		}
	}
	b.progress("cli ps, " + what)
}

// measureThousand runs 1,000 containers on berth.
func (b *bench) measureThousand() error {
	if !b.full {
		return nil
	}
	e := b.berth
	idle := memory(processes(e.dir+"/"), "Pss")
	took, err := b.startMany(e, 1000, 8, "", "sleep", "1000")
	if err != nil {
		b.note("1,000 containers: %v", err)
	} else {
		b.time("1000 starts, each", e.name, took/1000)
		b.measurePS(e, "1000 running")
		b.add("pss per container, of 1000", e.name, "MiB", (memory(processes(e.dir+"/"), "Pss")-idle)/1000)
	}
	removeAll(e.api)
	return nil
}

// measureBoot times from fork to the first answer.
func (b *bench) measureBoot() error {
	for i := range 3 {
		for _, e := range b.engines() {
			if e != b.berth && i > 0 && !b.full {
				continue
			}
			for range map[bool]int{true: 3, false: 1}[e == b.berth] {
				e.end(unix.SIGTERM)
				d, err := e.boot()
				if err != nil {
					return err
				}
				b.time("boot, idle", e.name, d)
			}
		}
	}
	b.progress("boot, idle")
	time.Sleep(500 * time.Millisecond)
	for _, e := range b.engines() {
		b.add("pss idle engine, fresh", e.name, "MiB", memory(processes(e.dir+"/"), "Pss"))
	}
	const what = "boot, 200 stopped 100 running"
	for _, e := range b.engines() {
		if e != b.berth && !b.full {
			continue
		}
		_, err := b.startMany(e, 200, 4, "", "true")
		if err == nil {
			_, err = b.startMany(e, 100, 4, "", "sleep", "1000")
		}
		if err != nil {
			b.note("%s: %s: %v", what, e.name, err)
			continue
		}
		time.Sleep(300 * time.Millisecond)
		for range map[bool]int{true: 5, false: 1}[e == b.berth] {
			e.end(unix.SIGKILL)
			d, err := e.boot()
			if err != nil {
				return err
			}
			b.time(what, e.name, d)
			time.Sleep(100 * time.Millisecond)
		}
		if ids, err := list(e.api); err == nil && e == b.berth && len(ids) != 300 {
			b.note("%s: berth knows %d of 300", what, len(ids))
		}
		removeAll(e.api)
	}
	b.progress(what)
	return nil
}

// measureLogs writes lines of 80 bytes through the engine and reads them back.
func (b *bench) measureLogs() error {
	share := filepath.Join(b.dir, "share")
	if err := os.Mkdir(share, 0o755); err != nil {
		return err
	}
	const block = 1 << 20
	line := append([]byte(strings.Repeat("0123456789", 8)[:79]), '\n')
	var text []byte
	for len(text)+len(line) <= block {
		text = append(text, line...)
	}
	for _, size := range []int{50, 200} {
		f, err := os.Create(filepath.Join(share, fmt.Sprint(size)))
		if err != nil {
			return err
		}
		for range size {
			if _, err := f.Write(text); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	for i := range 2 {
		for _, e := range b.engines() {
			size := 200
			if e != b.berth && !b.full {
				if size = 50; i > 0 {
					continue
				}
			}
			if err := b.logs(e, share, size, int64(size*len(text))); err != nil {
				b.note("logs: %s: %v", e.name, err)
			}
		}
	}
	for _, m := range []string{"logs write", "logs read", "logs rss growth"} {
		b.progress(m)
	}
	return os.RemoveAll(share)
}

func (b *bench) logs(e *engine, share string, size int, bytes int64) error {
	s := object{"Image": "busybox", "Cmd": []string{"cat", fmt.Sprintf("/mnt/%d", size)}, "HostConfig": object{
		"NetworkMode": "none", "Binds": []string{share + ":/mnt:ro"},
		"LogConfig": object{"Type": "json-file", "Config": object{"max-size": "10g", "max-file": "1"}},
	}}
	pids := processes(e.dir + "/")
	before, most := memory(pids, "Rss"), 0.0
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				most = max(most, memory(pids, "Rss"))
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
		b.add("logs rss growth", e.name, "MiB", most-before)
	}()
	begin := time.Now()
	id, err := e.api.run(s)
	if err != nil {
		return err
	}
	defer func() { _ = e.api.remove(id) }()
	if err := e.api.wait(id); err != nil {
		return err
	}
	mb := float64(bytes) / 1e6
	b.add("logs write", e.name, "MB/s", mb/time.Since(begin).Seconds())
	begin = time.Now()
	n, err := readLogs(e.sock(), id)
	if err != nil {
		return err
	}
	b.add("logs read", e.name, "MB/s", mb/time.Since(begin).Seconds())
	if n < bytes {
		return fmt.Errorf("%d bytes came back of %d", n, bytes)
	}
	return nil
}

// measureLoad loads a docker-archive and imports a root filesystem.
func (b *bench) measureLoad() error {
	tree := b.tree
	if tree == "" {
		tree = filepath.Join(b.dir, "tree")
		if err := makeTree(tree); err != nil {
			return err
		}
	}
	l, err := newLayers(b.dir, tree)
	if err != nil {
		return err
	}
	packed, err := os.Stat(l.packed)
	if err != nil {
		return err
	}
	whole, err := os.Stat(l.tar)
	if err != nil {
		return err
	}
	b.note("load: a layer of %d MB, %d MB gzipped", whole.Size()/1e6, packed.Size()/1e6)
	rounds := 3
	if b.full {
		rounds = 5
	}
	for n := range rounds {
		archive, err := l.archive(n)
		if err != nil {
			return err
		}
		plain, err := l.plain(rounds + n)
		if err != nil {
			return err
		}
		for _, m := range []struct{ name, file, path string }{
			{"load", archive, "/images/load?quiet=1"}, {"import", plain, fmt.Sprintf("/images/create?fromSrc=-&repo=imported&tag=%d", n)},
		} {
			var s []subject
			for _, e := range b.engines() {
				s = append(s, subject{e.name, 1, func() (time.Duration, error) {
					unix.Sync() // what others have left to write is not this one's
					begin := time.Now()
					err := uploadFile(e.api, m.path, m.file)
					return time.Since(begin), err
				}})
			}
			if b.podman != nil {
				args := []string{"load", "-q", "-i", m.file}
				if m.name == "import" {
					args = []string{"import", "-q", m.file, fmt.Sprintf("imported:%d", n)}
				}
				s = append(s, subject{"podman", 1, func() (time.Duration, error) {
					unix.Sync()
					return b.runPodman(args...)
				}})
			}
			b.interleave(m.name, 1, 0, s...)
		}
		if err := errors.Join(os.Remove(archive), os.Remove(plain)); err != nil {
			return err
		}
	}
	return nil
}
