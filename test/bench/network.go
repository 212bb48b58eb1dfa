package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// room is a network namespace.
type room struct{ file *os.File }

// in runs f on a thread in the namespace.
func (r room) in(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Setns(int(r.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (r room) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.file.Fd()) }

// roomOf is the namespace of a process.
func roomOf(pid int) (room, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	return room{f}, err
}

// newRoom makes a namespace, with its loopback up.
func newRoom() (room, error) {
	type result struct {
		r   room
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // as above
		var r room
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopback()
		}
		if err == nil {
			r.file, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- result{r, err}
	}()
	x := <-done
	return x.r, x.err
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// join makes a veth pair between two namespaces, with an address at each end.
func veth(a, b room, name, addrA, addrB string) error {
	err := a.in(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(int(b.file.Fd()))}
		return netlink.LinkAdd(pair)
	})
	for _, end := range []struct {
		in   room
		addr string
	}{{a, addrA}, {b, addrB}} {
		if err == nil {
			err = end.in.in(func() error {
				l, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				addr, err := netlink.ParseAddr(end.addr)
				if err == nil {
					err = netlink.AddrAdd(l, addr)
				}
				if err != nil {
					return err
				}
				return netlink.LinkSetUp(l)
			})
		}
	}
	return err
}

// networked are the engines with networks: docker needs another process for those.
func (b *bench) networked() (list []*engine) {
	list = append(list, b.berth)
	if b.docker == nil {
		return list
	}
	if b.docknt == nil {
		client, _ := exec.LookPath("docker")
		daemon, _ := exec.LookPath("dockerd")
		e := b.newEngine("docker", client, daemon, "--log-level", "error")
		e.dir = filepath.Join(b.dir, "dn")
		_ = os.Mkdir(e.dir, 0o711)
		e = &engine{name: e.name, client: client, dir: e.dir}
		e.env = append(b.env[:len(b.env):len(b.env)], "DOCKER_HOST=unix://"+e.sock(), "DOCKER_CONFIG="+b.dir)
		e.argv = []string{
			daemon, "--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "run"), "-H", "unix://" + e.sock(),
			"-p", filepath.Join(e.dir, "pid"), "--cgroup-parent", "/" + b.group + "-dn", "--log-level", "error",
		}
		_, err := e.boot()
		if err == nil {
			err = importImage(e, filepath.Join(b.dir, "busybox.tar"))
		}
		if err != nil {
			b.note("docker's networks do not work here: %v", err)
			e.end(unix.SIGTERM)
			return list
		}
		b.docknt = e
	}
	for _, e := range []*engine{b.berth, b.docknt} {
		if r, err := roomOf(e.cmd.Process.Pid); err == nil {
			_ = r.in(loopback)
			if e == b.berth {
				// As on a machine where no other engine has had bridges filter frames.
				_ = r.in(func() error {
					return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o600)
				})
			}
			_ = r.file.Close()
		}
	}
	return append(list, b.docknt)
}

// onBridge describes a container on the default network; port is one to publish, 0 for none.
func onBridge(port int, argv ...string) object {
	host := object{}
	if port != 0 {
		host["PortBindings"] = object{"7000/tcp": []object{{"HostIp": "", "HostPort": fmt.Sprint(port)}}}
	}
	return object{"Image": "busybox", "Cmd": argv, "HostConfig": host, "ExposedPorts": object{"7000/tcp": object{}}}
}

// measureNetwork times what a network adds to a container's life. The floor's namespace, with a
// veth pair and an address, is made before its clock runs.
func (b *bench) measureNetwork() error {
	list := b.networked()
	outer, err := newRoom()
	if err != nil {
		return err
	}
	defer outer.file.Close()
	made := 0
	ready := func() (time.Duration, error) {
		made++ // the one before may not be gone yet
		ns, err := newRoom()
		if err != nil {
			return 0, err
		}
		defer ns.file.Close()
		if err := veth(outer, ns, fmt.Sprint("v", made), "10.9.0.1/24", "10.9.0.2/24"); err != nil {
			return 0, err
		}
		return b.floor.cycle("21" + ns.path())
	}
	cycle := func(e *engine, s object) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			steps, err := e.api.cycle(s)
			return steps[0] + steps[1] + steps[2] + steps[3], err
		}
	}
	for _, m := range []struct {
		name string
		gap  time.Duration
		n    int
	}{{"bridge cycle, tight", 0, 20}, {"bridge cycle, 20 ms between", 20 * time.Millisecond, 10}} {
		var s []subject
		if b.floor != nil {
			s = append(s, subject{"floor", 3, ready})
		}
		for _, e := range list {
			n := m.n
			if e != b.berth {
				n = 1
			}
			s = append(s, subject{e.name, n, cycle(e, onBridge(0, "true"))}, subject{e.name + ", a port", n, cycle(e, onBridge(17000, "true"))})
		}
		b.interleave(m.name, b.rounds, m.gap, s...)
	}
	var creates, starts []subject
	for _, e := range list {
		i := 0
		creates = append(creates, subject{e.name, 3, func() (time.Duration, error) {
			i++
			name := fmt.Sprint("made", i)
			begin := time.Now()
			_, err := e.api.do("POST", "/networks/create", object{"Name": name, "CheckDuplicate": true})
			took := time.Since(begin)
			if err == nil {
				_, err = e.api.do("DELETE", "/networks/"+name, nil)
			}
			return took, err
		}})
		starts = append(starts, subject{e.name, 1, func() (time.Duration, error) { return manyStarts(e, 200) }})
	}
	b.interleave("network create", b.rounds, 0, creates...)
	b.interleave("200 starts on the bridge", 1, 0, starts...)
	return nil
}

// measureRate starts 100 containers a second, for ten seconds or with -full a minute, each of which
// ends at once and is removed. What is told is how much later than planned they were done, and, to
// see a backlog that grows, the same of the last second.
func (b *bench) measureRate() error {
	_ = b.networked()
	const perSecond, clients = 100, 8
	seconds := 10
	if b.full {
		seconds = 60
	}
	total := seconds * perSecond
	late := make([]time.Duration, total)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			c, err := dial(b.berth.sock())
			if err != nil {
				errs <- err
				return
			}
			defer c.close()
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				due := begin.Add(time.Duration(i) * time.Second / perSecond)
				time.Sleep(time.Until(due))
				if _, err := c.cycle(onBridge(0, "true")); err != nil {
					errs <- err
					return
				}
				late[i] = time.Since(due)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	for i, d := range late {
		b.time("100 starts a second, done after", "berth", d)
		if i >= total-perSecond {
			b.time("100 starts a second, last second", "berth", d)
		}
	}
	b.progress("100 starts a second, last second")
	return nil
}

// manyStarts times n containers on the bridge, made and started by four clients.
func manyStarts(e *engine, n int) (time.Duration, error) {
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, 4)
	begin := time.Now()
	for range 4 {
		wg.Go(func() {
			c, err := dial(e.sock())
			if err != nil {
				errs <- err
				return
			}
			defer c.close()
			for left.Add(-1) >= 0 {
				if _, err := c.run(onBridge(0, "sleep", "1000")); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	removeAll(e.api)
	select {
	case err := <-errs:
		return 0, err
	default:
		return took, nil
	}
}

// server answers, or drinks, in a namespace.
func server(r room, addr string) (net.Listener, error) {
	var l net.Listener
	if err := r.in(func() (err error) { l, err = net.Listen("tcp4", addr); return err }); err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				kind := make([]byte, 1)
				if _, err := io.ReadFull(c, kind); err != nil {
					return
				}
				if kind[0] == 's' {
					_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
					return
				}
				buf := make([]byte, 64)
				for {
					if _, err := io.ReadFull(c, buf); err != nil {
						return
					}
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, nil
}

// requests counts answers a second over 16 connections.
func requests(r room, addr string, d time.Duration) (float64, error) {
	const clients = 16
	conns := make([]net.Conn, clients)
	err := r.in(func() (err error) {
		for i := range conns {
			if conns[i], err = net.DialTimeout("tcp4", addr, 5*time.Second); err != nil {
				return err
			}
		}
		return nil
	})
	for _, c := range conns {
		if c != nil {
			defer c.Close()
		}
	}
	if err != nil {
		return 0, err
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			_ = c.SetDeadline(begin.Add(d))
			buf := make([]byte, 64)
			if _, err := c.Write([]byte("e")); err != nil {
				return
			}
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(begin).Seconds(), nil
}

// stream counts megabytes a second over one connection.
func stream(r room, addr string, d time.Duration) (float64, error) {
	var c net.Conn
	if err := r.in(func() (err error) { c, err = net.DialTimeout("tcp4", addr, 5*time.Second); return err }); err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	_ = c.SetDeadline(begin.Add(d))
	buf := make([]byte, 256<<10)
	buf[0] = 's'
	total := 0
	for {
		n, err := c.Write(buf)
		total += n
		if err != nil {
			break
		}
	}
	return float64(total) / 1e6 / time.Since(begin).Seconds(), nil
}

// measurePaths compares the ways to a container with a bare veth pair, and with each other.
func (b *bench) measurePaths() error {
	type path struct {
		name string
		from room
		addr string
	}
	var paths []path
	var close []func()
	defer func() {
		for _, f := range close {
			f()
		}
	}()
	keep := func(r room) { close = append(close, func() { _ = r.file.Close() }) }
	serve := func(r room, addr string) error {
		l, err := server(r, addr)
		if err == nil {
			close = append(close, func() { _ = l.Close() })
		}
		return err
	}
	one, err := newRoom()
	if err != nil {
		return err
	}
	keep(one)
	two, err := newRoom()
	if err != nil {
		return err
	}
	keep(two)
	if err := veth(one, two, "v", "10.9.1.1/24", "10.9.1.2/24"); err != nil {
		return err
	}
	if err := serve(two, "10.9.1.2:7000"); err != nil {
		return err
	}
	paths = append(paths, path{"bare veth", one, "10.9.1.2:7000"})
	for i, e := range b.networked() {
		host, err := roomOf(e.cmd.Process.Pid)
		if err != nil {
			return err
		}
		keep(host)
		outside, err := newRoom()
		if err != nil {
			return err
		}
		keep(outside)
		hostAddr := fmt.Sprintf("10.9.%d.1", 10+i)
		if err := veth(host, outside, "out", hostAddr+"/24", fmt.Sprintf("10.9.%d.2/24", 10+i)); err != nil {
			return err
		}
		inside := func(port int) (room, string, error) {
			id, err := e.api.run(onBridge(port, "sleep", "1000"))
			if err != nil {
				return room{}, "", err
			}
			close = append(close, func() { _ = e.api.remove(id) })
			pid, addr, err := where(e.api, id)
			if err != nil {
				return room{}, "", err
			}
			r, err := roomOf(pid)
			if err == nil {
				keep(r)
				err = serve(r, "0.0.0.0:7000")
			}
			return r, addr, err
		}
		web, addr, err := inside(17000)
		if err != nil {
			return err
		}
		peer, _, err := inside(0)
		if err != nil {
			return err
		}
		paths = append(paths,
			path{e.name + ", direct", host, addr + ":7000"},
			path{e.name + ", loopback", host, "127.0.0.1:17000"},
			path{e.name + ", host address", host, hostAddr + ":17000"},
			path{e.name + ", hairpin", web, hostAddr + ":17000"},
			path{e.name + ", from outside", outside, hostAddr + ":17000"},
			path{e.name + ", containers", peer, addr + ":7000"},
		)
	}
	const each = 400 * time.Millisecond
	for range b.rounds {
		for _, p := range paths {
			for _, m := range []struct {
				name, unit string
				take       func(room, string, time.Duration) (float64, error)
			}{{"requests", "1/s", requests}, {"stream", "MB/s", stream}} {
				v, err := m.take(p.from, p.addr, each)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", m.name, p.name, err)
				}
				b.add(m.name, p.name, m.unit, v)
			}
		}
	}
	b.progress("requests")
	b.progress("stream")
	return nil
}

// where is a container's process and its address.
func where(c *client, id string) (pid int, addr string, err error) {
	out, err := c.do("GET", "/containers/"+id+"/json", nil)
	if err != nil {
		return 0, "", err
	}
	var r struct {
		State           struct{ Pid int }
		NetworkSettings struct{ IPAddress string }
	}
	err = json.Unmarshal(out, &r)
	if err == nil && !strings.Contains(r.NetworkSettings.IPAddress, ".") {
		err = fmt.Errorf("container %s has no address", id)
	}
	return r.State.Pid, r.NetworkSettings.IPAddress, err
}
