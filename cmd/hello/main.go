// Command hello is the program of the starter image: it greets, and shows what
// the container around it looks like from inside. It is static, needs nothing of the
// image, and exits with 0.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
)

func main() {
	w := bufio.NewWriter(os.Stdout)
	defer w.Flush()
	row := func(label, text string) { fmt.Fprintf(w, "  %-14s%s\n", label, text) }

	host, _ := os.Hostname()
	status := readStatus()
	fmt.Fprintf(w, "\nHello from Berth! This line was printed inside a container.\n\n")
	fmt.Fprintf(w, "What I can see from in here:\n")
	row("Process", processLine())
	row("Hostname", host)
	row("User", fmt.Sprintf("uid %d, gid %d", os.Getuid(), os.Getgid())+userNamespace())
	row("Files", filesLine())
	row("Network", networkLine())
	fmt.Fprintf(w, "\nWhat holds me:\n")
	row("CPU", cpuLimit())
	row("Memory", memoryLimit())
	row("Processes", pidsLimit())
	for i, line := range wrap(capabilities(status["CapEff"]), 60) {
		label := ""
		if i == 0 {
			label = "Capabilities"
		}
		row(label, line)
	}
	row("Seccomp", seccomp(status))
	fmt.Fprintf(w, "\nTry next:\n")
	row("", "berth run --rm -m 64m --cpus 0.5 hello      hold me tighter")
	row("", "berth ps -a                                 see what there is")
	row("", "tar -C DIR -c . | berth import - box        make an image of a directory")
	row("", "berth run -it --name sh box sh              and a shell in it")
	fmt.Fprintln(w)
}

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// readStatus reads /proc/self/status.
func readStatus() map[string]string {
	m := map[string]string{}
	for line := range strings.SplitSeq(readFile("/proc/self/status"), "\n") {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.TrimSpace(v)
	}
	return m
}

func processLine() string {
	entries, err := os.ReadDir("/proc")
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			n++
		}
	}
	pid := os.Getpid()
	switch {
	case err != nil || n == 0:
		return fmt.Sprintf("pid %d", pid)
	case pid == 1 && n == 1:
		return "pid 1, and the only one here"
	case n == 1:
		return fmt.Sprintf("pid %d, and the only one here", pid)
	}
	return fmt.Sprintf("pid %d of %d that I can see", pid, n)
}

func userNamespace() string {
	f := strings.Fields(readFile("/proc/self/uid_map"))
	if len(f) == 3 && f[1] != "0" {
		return fmt.Sprintf(" (uid %s on the host)", f[1])
	}
	return ""
}

// filesLine tells of the root file system and the number of mounts.
func filesLine() string {
	kind, options, n := "unknown", "", 0
	for line := range strings.SplitSeq(readFile("/proc/self/mountinfo"), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if !ok || len(f) < 6 {
			continue
		}
		n++
		if f[4] == "/" {
			kind, _, _ = strings.Cut(right, " ")
			options = f[5]
		}
	}
	mode := "writable"
	if strings.HasPrefix(options, "ro") {
		mode = "read-only"
	}
	article := "a"
	if strings.ContainsAny(kind[:1], "aeiou") {
		article = "an"
	}
	return fmt.Sprintf("%s %s root of my own, %s; %s in view", article, kind, mode, count(n, "mount"))
}

func networkLine() string {
	list, err := net.Interfaces()
	if err != nil || len(list) == 0 {
		return "none"
	}
	var parts []string
	for _, i := range list {
		text := i.Name
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
				text += " " + ip.String()
				break
			}
		}
		parts = append(parts, text)
	}
	if len(parts) > 4 {
		parts = append(parts[:4], fmt.Sprintf("and %d more", len(list)-4))
	}
	return strings.Join(parts, ", ")
}

// cgroup reads a limit: v2 is a file at the top of the cgroup mount as a
// container sees it, or below the path of /proc/self/cgroup; v1 the same for a controller.
func cgroup(controller, v1, v2 string) string {
	for line := range strings.SplitSeq(readFile("/proc/self/cgroup"), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		base, file := "/sys/fs/cgroup", v2
		if f[1] != "" {
			if !strings.Contains(","+f[1]+",", ","+controller+",") {
				continue
			}
			base, file = "/sys/fs/cgroup/"+controller, v1
		}
		for _, dir := range []string{base + f[2], base} {
			if s := readFile(dir + "/" + file); s != "" {
				return s
			}
		}
	}
	return ""
}

func cpuLimit() string {
	quota, period := 0.0, 0.0
	if f := strings.Fields(cgroup("cpu", "", "cpu.max")); len(f) == 2 {
		quota, _ = strconv.ParseFloat(f[0], 64)
		period, _ = strconv.ParseFloat(f[1], 64)
	} else {
		quota, _ = strconv.ParseFloat(cgroup("cpu", "cpu.cfs_quota_us", "-"), 64)
		period, _ = strconv.ParseFloat(cgroup("cpu", "cpu.cfs_period_us", "-"), 64)
	}
	have := count(runtime.NumCPU(), "CPU")
	if quota <= 0 || period <= 0 {
		return "no limit, " + have
	}
	return fmt.Sprintf("%s of %s", strconv.FormatFloat(quota/period, 'g', 3, 64), have)
}

func memoryLimit() string {
	n, err := strconv.ParseUint(cgroup("memory", "memory.limit_in_bytes", "memory.max"), 10, 64)
	if err != nil || n >= 1<<60 {
		return "no limit"
	}
	return size(n)
}

func pidsLimit() string {
	n, err := strconv.Atoi(cgroup("pids", "pids.max", "pids.max"))
	if err != nil {
		return "no limit"
	}
	return fmt.Sprintf("at most %d", n)
}

func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(n), 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return strconv.FormatFloat(v, 'g', 4, 64) + " " + units[u]
}

// names of the capabilities by number.
func names() []string {
	return strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
		linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
		sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod
		lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend
		audit_read perfmon bpf checkpoint_restore`)
}

func capabilities(hex string) string {
	mask, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return "unknown"
	}
	all := names()
	var have []string
	for i, n := range all {
		if mask&(1<<i) != 0 {
			have = append(have, n)
		}
	}
	switch {
	case len(have) == 0:
		return "none"
	case len(have) >= len(all)-3:
		return fmt.Sprintf("all %d: this container is privileged", len(have))
	}
	return fmt.Sprintf("%d of %d: %s", len(have), len(all), strings.Join(have, " "))
}

func seccomp(status map[string]string) string {
	nnp := ""
	if status["NoNewPrivs"] == "1" {
		nnp = ", and no new privileges"
	}
	switch status["Seccomp"] {
	case "2":
		return "system calls are filtered" + nnp
	case "1":
		return "strict" + nnp
	case "0":
		return "off" + nnp
	}
	return "unknown"
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// wrap breaks text at blanks into lines of at most width characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		if line != "" && len(line)+1+len(w) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
