package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run: what it was asked for, and what it has started.
type bench struct {
	results
	rounds int
	full   bool
	only   *regexp.Regexp
	bin    string // the programs to measure
	tree   string // root filesystem for load and import, "" to generate one

	dir    string // scratch; every path of the run is below it
	group  string // prefix of our cgroups
	env    []string
	place  *place
	floor  *floor
	berth  *engine
	docker *engine
	docknt *engine  // docker with networks, while those are measured
	podman []string // command, nil when it does not work here
	crun   []string
	runc   []string
}

// wants tells whether a group of measurements was asked for.
func (b *bench) wants(name string) bool { return b.only.MatchString(name) }

// subject is something that gives samples.
type subject struct {
	name  string
	burst int // samples in a round
	take  func() (time.Duration, error)
}

// interleave takes a measurement in rounds; gap is slept before each sample. A
// subject that fails is named in the notes and takes no further part.
func (b *bench) interleave(measure string, rounds int, gap time.Duration, subjects ...subject) {
	broken := map[string]bool{}
	for range rounds {
		for _, s := range subjects {
			if broken[s.name] {
				continue
			}
			time.Sleep(30 * time.Millisecond)
			for range s.burst {
				time.Sleep(gap)
				d, err := s.take()
				if err != nil {
					b.note("%s: %s: %v", measure, s.name, err)
					broken[s.name] = true
					break
				}
				b.time(measure, s.name, d)
			}
		}
	}
	b.progress(measure)
}

func (b *bench) progress(measure string) {
	if b.live == nil {
		return
	}
	var parts []string
	for _, s := range b.all {
		if s.Measure == measure {
			parts = append(parts, fmt.Sprintf("%s %s", s.Subject, number(quantile(s.Values, 0.5))))
		}
	}
	fmt.Fprintf(b.live, "%s  %s: %s\n", time.Now().Format("15:04:05"), measure, strings.Join(parts, ", "))
}

func main() {
	b := &bench{}
	only := flag.String("run", "", "measure only the groups that match this regular expression: "+strings.Join(groupNames(), " "))
	flag.IntVar(&b.rounds, "n", 8, "rounds of the short measurements")
	flag.BoolVar(&b.full, "full", false, "1,000 containers, and the slow cases of peers at full size")
	flag.StringVar(&b.bin, "bin", "bin", "directory of berthd, berth-keeper and berth")
	flag.StringVar(&b.tree, "tree", "", "root filesystem to load and import (such as one made by debootstrap); a generated one by default")
	asJSON := flag.Bool("json", false, "print one JSON object")
	keep := flag.Bool("keep", false, "do not remove the scratch directory, which holds the logs of the engines")
	flag.Parse()
	var err error
	if b.only, err = regexp.Compile(*only); err != nil {
		fatal(err)
	}
	if os.Getuid() != 0 {
		fatal(errors.New("this needs root: it starts engines"))
	}
	b.live = os.Stderr
	if b.dir, err = os.MkdirTemp("", "bb"); err != nil { // short: socket paths are below it
		fatal(err)
	}
	stop := func() {
		b.stop()
		if *keep {
			fmt.Fprintln(os.Stderr, "kept:", b.dir)
		} else if err := os.RemoveAll(b.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	go func() { <-interrupted; stop(); os.Exit(130) }()
	if err = b.start(); err == nil {
		err = b.measure()
	}
	stop()
	if err != nil {
		fatal(err)
	}
	if *asJSON {
		for _, s := range b.all {
			s.sum()
		}
		b.judge()
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"series": b.all, "targets": b.targets, "notes": b.notes})
		return
	}
	b.print(os.Stdout)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// start makes the scratch data and starts what can be started.
func (b *bench) start() error {
	b.group = "berth-bench-" + fmt.Sprint(os.Getpid())
	b.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "TMPDIR=" + b.dir}
	var err error
	if b.place, err = newPlace(); err != nil {
		return fmt.Errorf("cannot make namespaces: %w", err)
	}
	rootfs := filepath.Join(b.dir, "busybox")
	if err := makeBusybox(rootfs); err != nil {
		return err
	}
	archive := filepath.Join(b.dir, "busybox.tar")
	if err := tarTree(archive, rootfs); err != nil {
		return err
	}
	bin := filepath.Join(b.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	programs, _ := filepath.Glob(filepath.Join(b.bin, "berth*"))
	if len(programs) == 0 {
		return fmt.Errorf("no programs in %s: run `make build`", b.bin)
	}
	for _, p := range programs {
		if err := copyFile(filepath.Join(bin, filepath.Base(p)), p); err != nil {
			return err
		}
	}
	groups, err := makeGroups(b.group + "-floor")
	if err == nil {
		b.floor, err = startFloor(b.dir, rootfs, groups)
	}
	if err == nil {
		_, err = b.floor.cycle("11")
	}
	if err != nil {
		b.note("no floor: %v", err)
		b.floor = nil
	}
	b.berth = b.newEngine("berth", filepath.Join(bin, "berth"), filepath.Join(bin, "berthd"), "--log-level", "warn")
	if _, err := b.berth.boot(); err != nil {
		return err
	}
	if err := importImage(b.berth, archive); err != nil {
		return err
	}
	if b.docker = b.startDocker(archive); b.docker != nil {
		defer b.progress("started")
	}
	b.findPodman(archive)
	b.crun, b.runc = b.findRuntime("crun", rootfs), b.findRuntime("runc", rootfs)
	return nil
}

// newEngine describes an engine with roots of its own.
func (b *bench) newEngine(name, client, daemon string, more ...string) *engine {
	e := &engine{name: name, client: client, dir: filepath.Join(b.dir, name)}
	_ = os.Mkdir(e.dir, 0o711)
	e.env = append(b.env[:len(b.env):len(b.env)], "DOCKER_HOST=unix://"+e.sock(), "DOCKER_CONFIG="+b.dir)
	e.argv = append([]string{
		daemon, "--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "run"), "-H", "unix://" + e.sock(),
		"-p", filepath.Join(e.dir, "pid"), "--cgroup-parent", "/" + b.group + "-" + name,
	}, more...)
	return e
}

func (b *bench) startDocker(archive string) *engine {
	client, err := exec.LookPath("docker")
	if err != nil {
		b.note("no docker: %v", err)
		return nil
	}
	daemon, err := exec.LookPath("dockerd")
	if err != nil {
		b.note("no dockerd: %v", err)
		return nil
	}
	e := b.newEngine("docker", client, daemon, "--iptables=false", "--bridge=none", "--log-level", "error")
	if _, err := e.boot(); err != nil {
		b.note("docker does not work here: %v", err)
		return nil
	}
	if err := importImage(e, archive); err != nil {
		b.note("docker does not work here: %v", err)
		e.end(unix.SIGTERM)
		return nil
	}
	version, _ := exec.Command(daemon, "--version").Output()
	b.note("docker: %s", strings.TrimSpace(string(version)))
	return e
}

func (b *bench) findPodman(archive string) {
	path, err := exec.LookPath("podman")
	if err != nil {
		b.note("no podman: %v", err)
		return
	}
	d := filepath.Join(b.dir, "podman")
	p := []string{
		path, "--root", filepath.Join(d, "data"), "--runroot", filepath.Join(d, "run"), "--tmpdir", filepath.Join(d, "tmp"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file",
	}
	if _, err = timed(b.place, b.env, p[0], append(p[1:], "import", archive, "busybox")...); err == nil {
		_, err = timed(b.place, b.env, p[0], append(p[1:], b.podmanRun("--rm", "busybox", "true")...)...)
	}
	if err != nil {
		b.note("podman does not work here: %v", err)
		return
	}
	b.podman = p
	version, _ := exec.Command(path, "--version").Output()
	b.note("podman: %s", strings.TrimSpace(string(version)))
}

// podmanRun gives the arguments of `podman run` without a network. The limits
// are there because the default ones need CAP_SYS_RESOURCE.
func (b *bench) podmanRun(args ...string) []string {
	return append([]string{"run", "--network", "none", "--cgroup-parent", "/" + b.group + "-podman", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, args...)
}

func (b *bench) runPodman(args ...string) (time.Duration, error) {
	return timed(b.place, b.env, b.podman[0], append(b.podman[1:len(b.podman):len(b.podman)], args...)...)
}

// findRuntime prepares an OCI runtime and a bundle for it.
func (b *bench) findRuntime(name, rootfs string) []string {
	path, err := exec.LookPath(name)
	if err != nil {
		b.note("no %s: %v", name, err)
		return nil
	}
	bundle := filepath.Join(b.dir, name)
	if err = os.Mkdir(bundle, 0o711); err == nil {
		err = writeBundle(bundle, rootfs, "/"+b.group+"-"+name+"/c")
	}
	run := []string{path, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, name + "-bench"}
	if err == nil {
		_, err = timed(b.place, b.env, run[0], run[1:]...)
	}
	if err != nil {
		b.note("%s does not work here: %v", name, err)
		return nil
	}
	return run
}

// stop ends all that was started, by process id, and removes its cgroups.
func (b *bench) stop() {
	if b.floor != nil {
		b.floor.stop()
	}
	for _, e := range []*engine{b.berth, b.docker, b.docknt} {
		if e == nil {
			continue
		}
		if c, err := dial(e.sock()); err == nil {
			removeAll(c)
			c.close()
		}
		e.end(syscall.SIGTERM)
	}
	if b.podman != nil {
		_, _ = b.runPodman("rm", "-f", "-t", "0", "-a")
	}
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		for i := 0; i < 100 && len(processes(b.dir+"/")) > 0; i++ {
			if i == 0 {
				for _, pid := range processes(b.dir + "/") {
					_ = unix.Kill(pid, sig)
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	removeGroups(b.group)
}
