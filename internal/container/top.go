package container

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/errs"
)

// proc is what ps knows of a process.
type proc struct {
	pid, ppid, pgid, sid, tpgid, nice, threads int
	uid, euid, gid                             uint32
	state, comm                                string
	args                                       []string
	utime, stime                               uint64 // clock ticks
	start                                      time.Time
	vsz, rss                                   uint64 // KiB
	tty                                        string
	pri, psr                                   int
	wchan                                      string
	locked                                     bool // pages in memory
}

// column is one field of ps -o: its title and its text.
type column struct {
	title string
	text  func(p *proc, env *psEnv) string
}

// psEnv is what all lines of one answer share.
type psEnv struct {
	now    time.Time
	memory uint64 // KiB
	names  map[uint32]string
}

const ticksPerSecond = 100 // USER_HZ, fixed by the kernel's interface

func (e *psEnv) user(uid uint32) string {
	if n, ok := e.names[uid]; ok {
		return n
	}
	n := strconv.Itoa(int(uid))
	if u, err := user.LookupId(n); err == nil && len(u.Username) <= 8 {
		n = u.Username
	}
	e.names[uid] = n
	return n
}

func (p *proc) cpuSeconds() uint64 { return (p.utime + p.stime) / ticksPerSecond }

func (p *proc) percentCPU(e *psEnv) float64 {
	lived := e.now.Sub(p.start).Seconds()
	if lived <= 0 {
		return 0
	}
	return 100 * float64(p.utime+p.stime) / ticksPerSecond / lived
}

func (p *proc) command() string {
	if len(p.args) == 0 {
		return "[" + p.comm + "]"
	}
	return strings.Join(p.args, " ")
}

func hms(sec uint64) string { return fmt.Sprintf("%02d:%02d:%02d", sec/3600, sec/60%60, sec%60) }

// startText is the time on the same day, the date before, as ps has it.
func (p *proc) startText(e *psEnv) string {
	if e.now.Sub(p.start) < 24*time.Hour {
		return p.start.Format("15:04")
	}
	return p.start.Format("Jan02")
}

func elapsed(d time.Duration) string {
	s := uint64(d.Seconds())
	switch {
	case s >= 86400:
		return fmt.Sprintf("%d-%s", s/86400, hms(s%86400))
	case s >= 3600:
		return hms(s)
	default:
		return fmt.Sprintf("%02d:%02d", s/60, s%60)
	}
}

var psColumns = map[string]column{
	"pid":   {"PID", func(p *proc, _ *psEnv) string { return itoa(p.pid) }},
	"ppid":  {"PPID", func(p *proc, _ *psEnv) string { return itoa(p.ppid) }},
	"pgid":  {"PGID", func(p *proc, _ *psEnv) string { return itoa(p.pgid) }},
	"sid":   {"SID", func(p *proc, _ *psEnv) string { return itoa(p.sid) }},
	"user":  {"USER", func(p *proc, e *psEnv) string { return e.user(p.euid) }},
	"uid":   {"UID", func(p *proc, _ *psEnv) string { return strconv.Itoa(int(p.euid)) }},
	"gid":   {"GID", func(p *proc, _ *psEnv) string { return strconv.Itoa(int(p.gid)) }},
	"UID":   {"UID", func(p *proc, e *psEnv) string { return e.user(p.euid) }},
	"c":     {"C", func(p *proc, e *psEnv) string { return itoa(int(p.percentCPU(e))) }},
	"stime": {"STIME", func(p *proc, e *psEnv) string { return p.startText(e) }},
	"start": {"START", func(p *proc, e *psEnv) string { return p.startText(e) }},
	"tty":   {"TTY", func(p *proc, _ *psEnv) string { return p.tty }},
	"TT":    {"TTY", func(p *proc, _ *psEnv) string { return p.tty }},
	"time":  {"TIME", func(p *proc, _ *psEnv) string { return hms(p.cpuSeconds()) }},
	"btime": {"TIME", func(p *proc, _ *psEnv) string { return fmt.Sprintf("%d:%02d", p.cpuSeconds()/60, p.cpuSeconds()%60) }},
	"cmd":   {"CMD", func(p *proc, _ *psEnv) string { return p.command() }},
	"args":  {"COMMAND", func(p *proc, _ *psEnv) string { return p.command() }},
	"comm":  {"COMMAND", func(p *proc, _ *psEnv) string { return p.comm }},
	"ccmd":  {"CMD", func(p *proc, _ *psEnv) string { return p.comm }},
	"%cpu":  {"%CPU", func(p *proc, e *psEnv) string { return fmt.Sprintf("%.1f", p.percentCPU(e)) }},
	"%mem": {"%MEM", func(p *proc, e *psEnv) string {
		return fmt.Sprintf("%.1f", 100*float64(p.rss)/float64(max(1, e.memory)))
	}},
	"vsz":    {"VSZ", func(p *proc, _ *psEnv) string { return strconv.FormatUint(p.vsz, 10) }},
	"rss":    {"RSS", func(p *proc, _ *psEnv) string { return strconv.FormatUint(p.rss, 10) }},
	"sz":     {"SZ", func(p *proc, _ *psEnv) string { return strconv.FormatUint(p.vsz/4, 10) }},
	"stat":   {"STAT", func(p *proc, _ *psEnv) string { return p.stat() }},
	"s":      {"S", func(p *proc, _ *psEnv) string { return p.state }},
	"ni":     {"NI", func(p *proc, _ *psEnv) string { return itoa(p.nice) }},
	"pri":    {"PRI", func(p *proc, _ *psEnv) string { return itoa(39 - p.pri) }},
	"psr":    {"PSR", func(p *proc, _ *psEnv) string { return itoa(p.psr) }},
	"nlwp":   {"NLWP", func(p *proc, _ *psEnv) string { return itoa(p.threads) }},
	"etime":  {"ELAPSED", func(p *proc, e *psEnv) string { return elapsed(e.now.Sub(p.start)) }},
	"lstart": {"STARTED", func(p *proc, _ *psEnv) string { return p.start.Format("Mon Jan _2 15:04:05 2006") }},
	"wchan":  {"WCHAN", func(p *proc, _ *psEnv) string { return p.wchan }},
	"f":      {"F", func(*proc, *psEnv) string { return "4" }},
}

var psAliases = map[string]string{
	"euser": "user", "uname": "user", "euid": "uid", "ruser": "user", "pcpu": "%cpu", "pmem": "%mem", "command": "args", "ucmd": "comm",
	"ucomm": "comm", "cputime": "time", "rssize": "rss", "rsz": "rss", "vsize": "vsz", "state": "s", "nice": "ni", "thcount": "nlwp",
	"session": "sid", "sess": "sid", "pgrp": "pgid", "tname": "tty", "tt": "tty", "start_time": "stime", "bsdstart": "start", "bsdtime": "btime",
	"group": "gid", "egid": "gid",
}

func (p *proc) stat() string {
	s := p.state
	if p.nice < 0 {
		s += "<"
	} else if p.nice > 0 {
		s += "N"
	}
	if p.locked {
		s += "L"
	}
	if p.sid == p.pid {
		s += "s"
	}
	if p.threads > 1 {
		s += "l"
	}
	if p.tpgid > 0 && p.tpgid == p.pgid {
		s += "+"
	}
	return s
}

var psStyles = map[string][]string{
	"":  {"pid", "tty", "time", "ccmd"},
	"f": {"UID", "pid", "ppid", "c", "stime", "tty", "time", "cmd"},
	"l": {"f", "s", "uid", "pid", "ppid", "c", "pri", "ni", "sz", "wchan", "tty", "time", "ccmd"},
	"u": {"user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "btime", "args"},
	"x": {"pid", "tty", "stat", "btime", "args"},
	"F": {"f", "UID", "pid", "ppid", "c", "sz", "rss", "psr", "stime", "tty", "time", "cmd"},
}

// parsePs reads the options of ps that choose columns. Those that choose
// processes make no difference: the container does.
func parsePs(text string) ([]column, error) {
	args := strings.Fields(text)
	style := ""
	var fields []string
	titles := map[string]string{}
	take := func(list string) error {
		for _, f := range strings.Split(list, ",") {
			name, title, named := strings.Cut(f, "=")
			if a, ok := psAliases[name]; ok {
				name = a
			}
			if _, ok := psColumns[name]; !ok {
				return errs.New(errs.Internal, "ps: unknown user-defined format specifier %q", f)
			}
			fields = append(fields, name)
			if named {
				titles[name] = title
			}
		}
		return nil
	}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if long, ok := strings.CutPrefix(a, "--format"); ok {
			if strings.HasPrefix(long, "=") {
				long = long[1:]
			} else if i+1 < len(args) {
				i++
				long = args[i]
			}
			if err := take(long); err != nil {
				return nil, err
			}
			continue
		}
		if strings.HasPrefix(a, "--") {
			continue
		}
		dash := strings.HasPrefix(a, "-")
		flags := strings.TrimPrefix(a, "-")
		for j, f := range flags {
			if f == 'o' || f == 'O' {
				list := flags[j+1:]
				if list == "" && i+1 < len(args) {
					i++
					list = args[i]
				}
				if err := take(list); err != nil {
					return nil, err
				}
				break
			}
			switch {
			case f == 'f' && dash, f == 'l', f == 'F':
				style = string(f)
			case (f == 'u' || f == 'x' && style != "u") && !dash:
				style = string(f)
			case f == 'u' && dash && strings.Contains(flags, "a"): // ps -aux is taken for ps aux
				style = "u"
			case strings.ContainsRune("aAedxwHLTmjvwZcfrnSgpt", f):
			default:
				return nil, errs.New(errs.Internal, "ps: unsupported option %q", a)
			}
		}
	}
	if fields == nil {
		fields = psStyles[style]
	}
	cols := make([]column, 0, len(fields))
	for _, f := range fields {
		c := psColumns[f]
		if t, ok := titles[f]; ok && t != "" {
			c.title = t
		}
		cols = append(cols, c)
	}
	if !slices.Contains(fields, "pid") {
		return nil, errs.New(errs.Internal, "Couldn't find PID field in ps output")
	}
	return cols, nil
}

// Top lists a container's processes, in the columns of ps with psArgs ("" is "-ef").
func (s Views) Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error) {
	none := container.TopResponse{}
	if psArgs == "" {
		psArgs = "-ef"
	}
	cols, err := parsePs(psArgs)
	if err != nil {
		return none, err
	}
	c, err := s.Get(ref)
	if err != nil {
		return none, err
	}
	switch st := c.Status(); {
	case st.Phase == Restarting:
		return none, errs.New(errs.Conflict, "Container %s is restarting, wait until the container is running", c.Record().ID)
	case !st.Phase.Running():
		return none, errNotRunning(c)
	}
	pids, err := s.keeper.Pids(ctx, string(c.Record().ID))
	if err != nil {
		return none, keeperError(err)
	}
	slices.Sort(pids)
	env := &psEnv{now: time.Now(), names: map[uint32]string{}}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		env.memory = uint64(info.Totalram) * uint64(info.Unit) / 1024
	}
	boot := time.Now().Add(-uptime())
	out := container.TopResponse{Processes: [][]string{}}
	for _, c := range cols {
		out.Titles = append(out.Titles, c.title)
	}
	for _, pid := range pids {
		p, err := readProc(pid, boot)
		if err != nil {
			continue // it has ended meanwhile
		}
		row := make([]string, 0, len(cols))
		for _, c := range cols {
			row = append(row, c.text(p, env))
		}
		out.Processes = append(out.Processes, row)
	}
	s.event(c, "top")
	return out, nil
}

func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // always there
	return time.Duration(ts.Nano())
}

// readProc reads /proc/PID/stat, status and cmdline (proc(5)).
func readProc(pid int, boot time.Time) (*proc, error) {
	dir := "/proc/" + itoa(pid)
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	text := string(raw)
	open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || shut < open {
		return nil, fmt.Errorf("%s/stat makes no sense", dir)
	}
	f := strings.Fields(text[shut+1:])
	if len(f) < 37 {
		return nil, fmt.Errorf("%s/stat is too short", dir)
	}
	num := func(i int) int { n, _ := strconv.Atoi(f[i-3]); return n } // i as proc(5) counts
	u64 := func(i int) uint64 { n, _ := strconv.ParseUint(f[i-3], 10, 64); return n }
	p := &proc{
		pid: pid, comm: text[open+1 : shut], state: f[0], ppid: num(4), pgid: num(5), sid: num(6), tpgid: num(8), utime: u64(14), stime: u64(15),
		pri: num(18), nice: num(19), threads: num(20), vsz: u64(23) / 1024, rss: u64(24) * uint64(os.Getpagesize()) / 1024, psr: num(39),
	}
	p.start = boot.Add(time.Duration(u64(22)) * time.Second / ticksPerSecond)
	p.tty = ttyName(num(7))
	p.wchan = "-"
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		v := strings.Fields(line)
		if len(v) < 3 {
			continue
		}
		if v[0] == "VmLck:" && v[1] != "0" {
			p.locked = true
		}
		a, _ := strconv.ParseUint(v[1], 10, 32)
		b, _ := strconv.ParseUint(v[2], 10, 32)
		switch v[0] {
		case "Uid:":
			p.uid, p.euid = uint32(a), uint32(b)
		case "Gid:":
			p.gid = uint32(b)
		}
	}
	cmd, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return nil, err
	}
	if len(cmd) > 0 {
		p.args = strings.Split(strings.TrimRight(string(cmd), "\x00"), "\x00")
	}
	return p, nil
}

func ttyName(dev int) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return "?"
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8+minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	default:
		return "?"
	}
}
