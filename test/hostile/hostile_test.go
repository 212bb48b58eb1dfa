package hostile

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

const img = enginetest.Image

// entry is something to add to, or to put over, the busybox root filesystem.
type entry struct {
	name, link string
	kind       byte
	mode       int64
	body       []byte
}

// image imports busybox with other entries; names given replace those there.
func image(t *testing.T, e *enginetest.Engine, name string, entries []entry, changes ...string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	replaced := map[string]bool{}
	for _, x := range entries {
		replaced[strings.TrimSuffix(x.name, "/")] = true
	}
	for r := tar.NewReader(bytes.NewReader(enginetest.Rootfs(t))); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if replaced[strings.TrimSuffix(h.Name, "/")] {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range entries {
		h := &tar.Header{Name: x.name, Linkname: x.link, Typeflag: x.kind, Mode: x.mode, Size: int64(len(x.body)), ModTime: time.Unix(1, 0)}
		if x.kind == tar.TypeChar || x.kind == tar.TypeBlock { // 0:0 would be a whiteout
			h.Devmajor, h.Devminor = 1, 5
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(x.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	q := url.Values{"fromSrc": {"-"}, "repo": {name}, "changes": append([]string{"ENV PATH=/bin"}, changes...)}
	resp, err := e.HTTP.Post("http://berth/images/create?"+q.Encode(), "application/x-tar", &buf)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || bytes.Contains(b, []byte("errorDetail")) {
		t.Fatalf("import: %s %s", resp.Status, b)
	}
}

func hashes(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	for _, name := range []string{"berth", "berthd", "berth-keeper", "berth-runtime", "berth-init"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && name != "berth-init" {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%x", sha256.Sum256(b)))
	}
	return strings.Join(all, " ")
}

// Overwriting the runtime through /proc/self/exe.
func TestProcSelfExe(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	before := hashes(t, e.Bin)
	image(t, e, "evil", []entry{
		{name: "entry", kind: tar.TypeReg, mode: 0o755, body: []byte("#!/proc/self/exe\n")},
		{name: "bin/link", kind: tar.TypeSymlink, link: "/proc/self/exe", mode: 0o777},
	})
	c := e.Client("berth")
	for _, args := range [][]string{{"evil", "/entry"}, {"evil", "/bin/link"}, {"evil", "/proc/self/exe"}, {"--privileged", "evil", "/entry"}} {
		c.Run(append([]string{"run", "--rm"}, args...)...) // may fail, and must end
	}
	c.Must("run", "-d", "--name", "target", "--privileged", "evil", "sleep", "1000")
	for range 10 {
		c.Run("exec", "target", "/entry")
		c.Run("exec", "target", "/proc/self/exe", "x")
	}
	c.Must("rm", "-f", "target")
	// What is sealed cannot be written, what is bound for execution neither.
	c.Must("run", "-d", "--name", "writer", "evil", "sh", "-c", `while :; do for p in /proc/[0-9]*/exe; do echo x >> $p; done; done 2>/dev/null`)
	for range 10 {
		c.Run("exec", "writer", "true")
	}
	if after := hashes(t, e.Bin); after != before {
		t.Error("a program of the engine has been changed from inside a container")
	}
	if got := c.Must("run", "--rm", img, "echo", "fine"); got != "fine" {
		t.Errorf("afterwards: %q", got)
	}
}

// Leaked descriptors.
func TestDescriptors(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	for name, args := range map[string][]string{
		"run":        {"run", "--rm", img, "ls", "-l", "/proc/self/fd"},
		"run --init": {"run", "--rm", "--init", img, "ls", "-l", "/proc/self/fd"},
		"exec":       {"exec", "target", "ls", "-l", "/proc/self/fd"},
	} {
		out := c.Must(args...)
		if n := strings.Count(out, "\n"); n != 4 { // 0, 1, 2 and the directory itself, below a headline
			t.Errorf("%s: descriptors:\n%s", name, out)
		}
	}
	// The init in front of the container's program has nothing open either. A program that is quick may
	// still see that there was a pipe, and can neither tell what it is nor open it.
	for range 10 {
		script := `for f in /proc/1/fd/*; do case $f in */[012]) ;; *) readlink $f && echo "is $f" ;; esac; done; sleep 0.1; ls -l /proc/1/fd`
		if out := c.Must("run", "--rm", "--init", img, "sh", "-c", script+" 2>/dev/null"); strings.Count(out, "\n") > 4 || strings.Contains(out, "is /proc") {
			t.Fatalf("descriptors of the init:\n%s", out)
		}
	}
}

// A working directory that is a descriptor of the engine.
func TestWorkingDirectory(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	for n := range 24 {
		dir := fmt.Sprintf("/proc/self/fd/%d", n)
		for _, args := range [][]string{
			{"run", "--rm", "-w", dir, img, "sh", "-c", "ls -a ../../.. ; pwd -P"},
			{"exec", "-w", dir, "target", "sh", "-c", "ls -a ../../..; pwd -P"},
		} {
			r := c.Run(args...)
			if strings.Contains(r.Out, "workspace") || strings.Contains(r.Out, "boot\n") || strings.Contains(r.Out, "lost+found") {
				t.Errorf("%q shows the host: %s", args, r.Out)
			}
		}
	}
	image(t, e, "linked", []entry{{name: "w", kind: tar.TypeSymlink, link: "/proc/self/fd/9", mode: 0o777}}, "WORKDIR /w")
	if r := c.Run("run", "--rm", "linked", "sh", "-c", "ls -a ../../.."); strings.Contains(r.Out, "boot\n") {
		t.Errorf("through a link: %s", r.Out)
	}
}

// /proc, /sys and /dev of the image are links that lead elsewhere.
func TestLinkedMountTargets(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	for _, name := range []string{"proc", "sys", "dev", "etc"} {
		for i, to := range []string{"/tmp", "../../../../../../tmp", "/"} {
			tag := fmt.Sprintf("linked-%s-%d", name, i)
			entries := []entry{{name: name, kind: tar.TypeSymlink, link: to, mode: 0o777}}
			if name == "etc" { // an ancestor of files that the engine mounts
				entries = []entry{{name: "etc/hosts", kind: tar.TypeSymlink, link: to, mode: 0o777}}
			}
			image(t, e, tag, entries)
			before := mounts(t)
			r := c.Run("run", "--rm", tag, "sh", "-c", "grep -c . /proc/self/mountinfo")
			if r.Code == 0 && name == "proc" {
				t.Errorf("%s → %s: was run: %q", name, to, r.Out)
			}
			if after := mounts(t); after != before {
				t.Errorf("%s → %s: the host's mounts have changed", name, to)
			}
		}
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == "/tmp" || f[4] == "/proc" || f[4] == "/sys" || f[4] == "/dev" || f[4] == "/") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// What of /proc and /sys is masked, and what cannot be written.
func TestMasks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	out := c.Must("run", "--rm", img, "sh", "-c", `
		for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats /proc/interrupts; do [ -e $f ] && [ -n "$(head -c 1 $f 2>/dev/null)" ] && echo open $f; done
		for d in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && [ -n "$(ls -A $d)" ] && echo open $d; done
		for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq /proc/bus /proc/fs; do [ -e $f ] && ( [ -d $f ] && touch $f/x || echo h > $f ) 2>/dev/null && echo written $f; done
		touch /sys/x 2>/dev/null && echo written /sys
		echo end`)
	if out != "end" {
		t.Errorf("not masked: %s", out)
	}
	want := "[/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware]"
	c.Must("create", "--name", "plain", img, "true")
	got := c.Inspect("plain", "{{.HostConfig.MaskedPaths}}")
	for p := range strings.FieldsSeq(strings.Trim(want, "[]")) {
		if !strings.Contains(got, p) {
			t.Errorf("%s is not in the masked paths %s", p, got)
		}
	}
	if got := c.Inspect("plain", "{{.HostConfig.ReadonlyPaths}}"); got != "[/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger]" {
		t.Errorf("read-only paths %s", got)
	}
}

// Inheritable capabilities, and every form of USER.
func TestCredentials(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	both := func(user, command string) []enginetest.Result {
		return []enginetest.Result{
			c.Run("run", "--rm", "-u", user, img, "sh", "-c", command),
			c.Run("exec", "-u", user, "target", "sh", "-c", command),
		}
	}
	for _, user := range []string{"root", "berth", "65534"} {
		for _, r := range both(user, "grep -E '^Cap(Inh|Amb)' /proc/self/status") {
			if strings.Count(r.Out, "0000000000000000") != 2 {
				t.Errorf("%q: %s%s", r.Args, r.Out, r.Err)
			}
		}
	}
	for user, want := range map[string]string{
		"":           "0 0 0 2001",
		"root":       "0 0 0 2001",
		"0":          "0 0 0 2001",
		"berth":      "1000 1001 1001 2000 2001",
		"1000":       "1000 1001 1001 2000 2001",
		"4242":       "4242 0 0",
		"berth:more": "1000 2001 2001",
		"4242:4343":  "4242 4343 4343",
		"2147483647": "2147483647 0 0",
		"1000:":      "1000 1001 1001 2000 2001",
		"berth:":     "1000 1001 1001 2000 2001",
		":2000":      "0 2000 2000",
		":more":      "0 2001 2001",
		":":          "0 0 0 2001",
		"007":        "7 0 0",
		"1:2:3":      "1 2 2", // Docker reads no further, and so do we
	} {
		for _, r := range both(user, "echo $(id -u) $(id -g) $(id -G)") {
			if strings.TrimSpace(r.Out) != want {
				t.Errorf("%q: %q %s, want %q", r.Args, strings.TrimSpace(r.Out), r.Err, want)
			}
		}
	}
	for _, user := range []string{"nobody-there", "berth:nogroup-there", "2147483648", "4294967296", "-1", "1000:-1", "18446744073709551616", "0x0", "1e3", "root ", "0:4294967296", "root/0"} {
		for _, r := range both(user, "id") {
			if r.Code == 0 {
				t.Errorf("%q was accepted: %s", r.Args, r.Out)
			}
		}
	}
}

// Odd and giant user databases.
func TestUserDatabases(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	secret := filepath.Join(e.Dir, "secret")
	if err := os.WriteFile(secret, []byte("intruder:x:7777:7777::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	giant := append(bytes.Repeat([]byte("x"), 64<<20), '\n')
	for name, x := range map[string]entry{
		"fifo":   {kind: tar.TypeFifo, mode: 0o644},
		"link":   {kind: tar.TypeSymlink, link: secret, mode: 0o777},
		"up":     {kind: tar.TypeSymlink, link: "../../../../../.." + secret, mode: 0o777},
		"device": {kind: tar.TypeSymlink, link: "/dev/zero", mode: 0o777},
		"giant":  {kind: tar.TypeReg, mode: 0o644, body: giant},
		"dir":    {kind: tar.TypeDir, mode: 0o755},
	} {
		x.name = "etc/passwd"
		image(t, e, "users-"+name, []entry{x})
		if r := c.Run("run", "--rm", "-u", "intruder", "users-"+name, "id", "-u"); r.Code == 0 {
			t.Errorf("%s: the host's user was found: %s", name, r.Out)
		}
		if name == "giant" {
			if rss := peak(t, e.DaemonPID()); rss > 200<<10 {
				t.Errorf("berthd has used %d KiB", rss)
			}
		}
	}
}

// A container changes its user database before an exec looks at it.
func TestUserDatabaseChanged(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("run", "-d", "--name", "target", img, "sleep", "1000")
	for _, change := range []string{
		"rm /etc/passwd; mkfifo /etc/passwd",
		"rm /etc/passwd; ln -s /proc/self/mem /etc/passwd",
		"rm /etc/passwd; ln -s /dev/zero /etc/passwd; ln -sf /dev/zero /etc/group",
		"rm -r /etc/passwd; ln -s /etc/passwd /etc/passwd",
		"rm -f /etc/passwd /etc/group; mkdir /etc/passwd /etc/group",
	} {
		c.Must("exec", "-u", "0", "target", "sh", "-c", change)
		if r := c.Run("exec", "-u", "berth", "target", "id"); r.Code == 0 {
			t.Errorf("%s: a user was found: %s", change, r.Out)
		}
	}
	if r := c.Run("exec", "-u", "1000:5", "target", "sh", "-c", "echo $(id -u) $(id -g) $(id -G)"); strings.TrimSpace(r.Out) != "1000 5 5" {
		t.Errorf("numbers need no database: %q %s", r.Out, r.Err)
	}
	c.Must("exec", "-u", "0", "target", "sh", "-c", "rmdir /etc/passwd; truncate -s 1G /etc/passwd")
	if r := c.Run("exec", "-u", "berth", "target", "id"); r.Code != 126 || !strings.Contains(r.Out+r.Err, "/etc/passwd of the container is too large to be read") {
		t.Errorf("a giant database: %d %s%s", r.Code, r.Out, r.Err)
	}
	if rss := peak(t, e.DaemonPID()); rss > 200<<10 {
		t.Errorf("berthd has used %d KiB", rss)
	}
	c.Must("rm", "-f", "target")
}

// peak is the most memory that a process has held, in KiB.
func peak(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(rest, &kib)
		}
	}
	return kib
}

// Links in the container do not lead a copy out of it.
func TestCopyLinks(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	canary := filepath.Join(e.Dir, "canary")
	if err := os.MkdirAll(canary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(canary, "secret"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Must("run", "-d", "--name", "box", img, "sh", "-c", "ln -s "+canary+" /out; ln -s ../../../../../../.."+canary+" /up; sleep 1000")
	enginetest.Eventually(t, "the links", func() bool { return c.Run("exec", "box", "test", "-L", "/up").Code == 0 })
	for _, from := range []string{"/out/secret", "/up/secret"} {
		if r := c.Run("cp", "box:"+from, "-"); strings.Contains(r.Out, "of the host") {
			t.Errorf("cp box:%s reads the host's file", from)
		}
	}
	mine := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(mine, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Run("cp", mine, "box:/out/")
	c.Run("cp", mine, "box:/up/")
	if _, err := os.Lstat(filepath.Join(canary, "mine")); err == nil {
		t.Error("cp has written to the host")
	}
	// The same while the links change under the copy.
	c.Must("exec", "-d", "box", "sh", "-c", "mkdir /a; while :; do mv /a /b; ln -s "+canary+" /a; rm /a; mv /b /a; done 2>/dev/null")
	for range 40 {
		c.Run("cp", mine, "box:/a/mine")
		if r := c.Run("cp", "box:/a/secret", "-"); strings.Contains(r.Out, "of the host") {
			t.Fatal("a racing link has led the copy out")
		}
	}
	if _, err := os.Lstat(filepath.Join(canary, "mine")); err == nil {
		t.Error("a racing link has led the copy out")
	}
}

// The engine's directories are closed, and it opens no abstract socket.
func TestModes(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	e.Berth("run", "-d", "--name", "box", img, "sleep", "1000")
	for dir, most := range map[string]os.FileMode{
		e.DataRoot: 0o711, filepath.Join(e.DataRoot, "containers"): 0o710, filepath.Join(e.DataRoot, "snapshots"): 0o710, filepath.Join(e.DataRoot, "state"): 0o710,
		e.ExecRoot: 0o711, filepath.Join(e.ExecRoot, "keeper"): 0o700,
	} {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Error(err)
			continue
		}
		if extra := fi.Mode().Perm() &^ most; extra != 0 {
			t.Errorf("%s has mode %o, at most %o", dir, fi.Mode().Perm(), most)
		}
	}
	if fi, err := os.Stat(e.Socket); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v %v", fi.Mode(), err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", e.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), " @") {
		t.Errorf("an abstract socket:\n%s", b)
	}
}
