package cli

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
)

// listValue is a flag that may be given many times. check may rewrite a value.
type listValue struct {
	values []string
	check  func(string) (string, error)
	kind   string
}

func list(check func(string) (string, error)) *listValue {
	return &listValue{check: check, kind: "list"}
}

func (l *listValue) String() string {
	if len(l.values) == 0 && l.kind == "list" {
		return ""
	}
	return fmt.Sprint(l.values)
}

func (l *listValue) Type() string { return l.kind }

func (l *listValue) Set(s string) error {
	if l.check != nil {
		v, err := l.check(s)
		if err != nil {
			return err
		}
		s = v
	}
	l.values = append(l.values, s)
	return nil
}

func (l *listValue) has(s string) bool { return slices.Contains(l.values, s) }

// GetSlice lets completion see the values.
func (l *listValue) GetSlice() []string { return l.values }

// orEmpty returns the values, or an empty list where nil would read as null.
func orEmpty(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

// mapValue is a flag of key=value pairs.
type mapValue struct {
	values map[string]string
	check  func(string) (string, error)
}

func kvMap(check func(string) (string, error)) *mapValue {
	return &mapValue{values: map[string]string{}, check: check}
}

func (m *mapValue) String() string { return fmt.Sprintf("%v", m.values) }
func (m *mapValue) Type() string   { return "map" }

func (m *mapValue) Set(s string) error {
	if m.check != nil {
		v, err := m.check(s)
		if err != nil {
			return err
		}
		s = v
	}
	k, v, _ := strings.Cut(s, "=")
	m.values[k] = v
	return nil
}

// filterValue is --filter.
type filterValue struct{ args map[string]map[string]bool }

func (f *filterValue) String() string {
	if len(f.args) == 0 {
		return ""
	}
	b, _ := json.Marshal(f.args)
	return string(b)
}
func (f *filterValue) Type() string { return "filter" }

func (f *filterValue) Set(s string) error {
	if s == "" {
		return nil
	}
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("bad format of filter (expected name=value)")
	}
	f.add(strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v))
	return nil
}

func (f *filterValue) add(k, v string) {
	if f.args == nil {
		f.args = map[string]map[string]bool{}
	}
	if f.args[k] == nil {
		f.args[k] = map[string]bool{}
	}
	f.args[k][v] = true
}

func (f *filterValue) has(k string) bool { return len(f.args[k]) > 0 }

// query sets the filters parameter when there is a filter.
func (f *filterValue) query(q url.Values) {
	if len(f.args) > 0 {
		q.Set("filters", f.String())
	}
}

// bytesValue is a size. With swap, -1 is allowed.
type bytesValue struct {
	n    int64
	swap bool
}

func (b *bytesValue) String() string {
	if b.n > 0 {
		return units.BytesSize(float64(b.n))
	}
	return "0"
}
func (b *bytesValue) Type() string { return "bytes" }

func (b *bytesValue) Set(s string) error {
	if b.swap && s == "-1" {
		b.n = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	b.n = n
	return err
}

// cpusValue is --cpus: billionths of a CPU.
type cpusValue int64

func (c *cpusValue) String() string {
	if *c == 0 {
		return ""
	}
	return big.NewRat(int64(*c), 1e9).FloatString(3)
}
func (c *cpusValue) Type() string { return "decimal" }

func (c *cpusValue) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return fmt.Errorf("failed to parse %v as a rational number", s)
	}
	nano := r.Mul(r, big.NewRat(1e9, 1))
	if !nano.IsInt() {
		return errors.New("value is too precise")
	}
	*c = cpusValue(nano.Num().Int64())
	return nil
}

// ulimitValue is --ulimit.
type ulimitValue struct{ limits map[string]*container.Ulimit }

func (u *ulimitValue) String() string {
	out := []string{}
	for _, l := range u.list() {
		out = append(out, l.String())
	}
	return fmt.Sprintf("%v", out)
}
func (u *ulimitValue) Type() string { return "ulimit" }

func (u *ulimitValue) Set(s string) error {
	l, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	if u.limits == nil {
		u.limits = map[string]*container.Ulimit{}
	}
	u.limits[l.Name] = l
	return nil
}

func (u *ulimitValue) list() []*container.Ulimit {
	out := []*container.Ulimit{}
	for _, l := range u.limits {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *container.Ulimit) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// weightValue is --blkio-weight-device.
type weightValue struct{ list []*blkiodev.WeightDevice }

func (w *weightValue) String() string { return fmt.Sprintf("%v", w.list) }
func (w *weightValue) Type() string   { return "list" }

func (w *weightValue) Set(s string) error {
	path, num, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(path, "/dev/") {
		return fmt.Errorf("bad format for device path: %s", s)
	}
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil || n > 0 && (n < 10 || n > 1000) {
		return fmt.Errorf("invalid weight for device: %s", s)
	}
	w.list = append(w.list, &blkiodev.WeightDevice{Path: path, Weight: uint16(n)})
	return nil
}

// throttleValue is --device-read-bps and its three sisters.
type throttleValue struct {
	list []*blkiodev.ThrottleDevice
	iops bool
}

func (t *throttleValue) String() string { return fmt.Sprintf("%v", t.list) }
func (t *throttleValue) Type() string   { return "list" }

func (t *throttleValue) Set(s string) error {
	path, num, ok := strings.Cut(s, ":")
	if !ok || path == "" {
		return fmt.Errorf("bad format: %s", s)
	}
	if !strings.HasPrefix(path, "/dev/") {
		return fmt.Errorf("bad format for device path: %s", s)
	}
	var rate uint64
	if t.iops {
		n, err := strconv.ParseUint(num, 10, 64)
		if err != nil {
			return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>. Number must be a positive integer", s)
		}
		rate = n
	} else {
		n, err := units.RAMInBytes(num)
		if err != nil || n < 0 {
			return fmt.Errorf("invalid rate for device: %s. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb", s)
		}
		rate = uint64(n)
	}
	t.list = append(t.list, &blkiodev.ThrottleDevice{Path: path, Rate: rate})
	return nil
}

// gpuValue is --gpus.
type gpuValue struct{ list []container.DeviceRequest }

func (g *gpuValue) String() string {
	out := []string{}
	for _, r := range g.list {
		out = append(out, fmt.Sprintf("%v", r))
	}
	return strings.Join(out, ", ")
}
func (g *gpuValue) Type() string { return "gpu-request" }

func (g *gpuValue) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	req := container.DeviceRequest{}
	seen := map[string]bool{}
	for _, f := range fields {
		key, val, hasVal := strings.Cut(f, "=")
		if seen[key] {
			return fmt.Errorf("gpu request key '%s' can be specified only once", key)
		}
		seen[key] = true
		if !hasVal {
			seen["count"] = true
			if req.Count, err = gpuCount(key); err != nil {
				return err
			}
			continue
		}
		switch key {
		case "driver":
			req.Driver = val
		case "count":
			if req.Count, err = gpuCount(val); err != nil {
				return err
			}
		case "device":
			req.DeviceIDs = strings.Split(val, ",")
		case "capabilities":
			req.Capabilities = [][]string{append(strings.Split(val, ","), "gpu")}
		case "options":
			opts, err := csv.NewReader(strings.NewReader(val)).Read()
			if err != nil {
				return fmt.Errorf("failed to read gpu options: %w", err)
			}
			req.Options = pairs(opts)
		default:
			return fmt.Errorf("unexpected key '%s' in '%s'", key, f)
		}
	}
	if !seen["count"] && req.DeviceIDs == nil {
		req.Count = 1
	}
	if req.Options == nil {
		req.Options = map[string]string{}
	}
	if req.Capabilities == nil {
		req.Capabilities = [][]string{{"gpu"}}
	}
	g.list = append(g.list, req)
	return nil
}

func gpuCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		var ne *strconv.NumError
		if errors.As(err, &ne) {
			err = ne.Err
		}
		return 0, fmt.Errorf(`invalid count (%s): value must be either "all" or an integer: %w`, s, err)
	}
	return n, nil
}

// pairs turns k=v strings into a map.
func pairs(l []string) map[string]string {
	m := make(map[string]string, len(l))
	for _, s := range l {
		k, v, _ := strings.Cut(s, "=")
		m[k] = v
	}
	return m
}

// The checks below rewrite or refuse one value of a list.

func (cli *CLI) checkEnv(s string) (string, error) {
	k, _, has := strings.Cut(s, "=")
	if k == "" {
		return "", fmt.Errorf("invalid environment variable: %s", s)
	}
	if v, ok := cli.environ(k); !has && ok {
		return k + "=" + v, nil
	}
	return s, nil
}

func checkLabel(s string) (string, error) {
	if k, _, _ := strings.Cut(s, "="); strings.TrimSpace(k) == "" {
		return "", fmt.Errorf("invalid label '%s': empty name", s)
	}
	return s, nil
}

func checkIP(s string) (string, error) {
	if ip := net.ParseIP(s); ip != nil {
		return ip.String(), nil
	}
	return "", fmt.Errorf("IP address is not correctly formatted: %s", s)
}

func checkAttach(s string) (string, error) {
	l := strings.ToLower(s)
	if l == "stdin" || l == "stdout" || l == "stderr" {
		return l, nil
	}
	return s, errors.New("valid streams are STDIN, STDOUT and STDERR")
}

func checkExtraHost(s string) (string, error) {
	i := strings.IndexAny(s, ":=")
	if i <= 0 {
		return "", fmt.Errorf("bad format for add-host: %q", s)
	}
	host, ip := s[:i], s[i+1:]
	if len(ip) > 1 && ip[0] == '[' && ip[len(ip)-1] == ']' {
		ip = ip[1 : len(ip)-1]
	}
	if ip != "host-gateway" {
		if net.ParseIP(ip) == nil {
			return "", fmt.Errorf("invalid IP address in add-host: %q", ip)
		}
	}
	return host + ":" + ip, nil
}

func checkLink(s string) (string, error) {
	_, _, err := splitLink(s)
	return s, err
}

func splitLink(s string) (name, alias string, err error) {
	if s == "" {
		return "", "", errors.New("empty string specified for links")
	}
	arr := strings.Split(s, ":")
	switch {
	case len(arr) > 2:
		return "", "", fmt.Errorf("bad format for links: %s", s)
	case len(arr) == 1:
		return s, s, nil
	case strings.HasPrefix(arr[0], "/"): // the form that inspect shows
		_, alias := arr[0][strings.LastIndexByte(arr[0], '/')+1:], arr[1][strings.LastIndexByte(arr[1], '/')+1:]
		return arr[0][1:], alias, nil
	}
	return arr[0], arr[1], nil
}

func checkDNSSearch(s string) (string, error) {
	if s = strings.Trim(s, " "); s == "." {
		return s, nil
	}
	if !regexp.MustCompile(`[a-zA-Z]`).MatchString(s) {
		return "", fmt.Errorf("%s is not a valid domain", s)
	}
	re := regexp.MustCompile(`^(:?(:?[a-zA-Z0-9]|(:?[a-zA-Z0-9][a-zA-Z0-9\-]*[a-zA-Z0-9]))(:?\.(:?[a-zA-Z0-9]|(:?[a-zA-Z0-9][a-zA-Z0-9\-]*[a-zA-Z0-9])))*)\.?\s*$`)
	if m := re.FindStringSubmatch(s); len(m) > 0 && len(s) < 255 {
		return m[1], nil
	}
	return "", fmt.Errorf("%s is not a valid domain", s)
}

func checkDeviceRule(s string) (string, error) {
	if regexp.MustCompile(`^[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}$`).MatchString(s) {
		return s, nil
	}
	return s, fmt.Errorf("invalid device cgroup format '%s'", s)
}

func checkSysctl(s string) (string, error) {
	k, _, ok := strings.Cut(s, "=")
	if ok && slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
		"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	}, k) || ok && (strings.HasPrefix(k, "net.") || strings.HasPrefix(k, "fs.mqueue.")) {
		return s, nil
	}
	return "", fmt.Errorf("sysctl '%s' is not allowed", s)
}

// readKVFile reads a file of variables or labels. lookup gives the value of a
// name without one; nil keeps the bare name.
func readKVFile(path string, lookup func(string) (string, bool)) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, line := range strings.Split(strings.TrimPrefix(string(b), "\ufeff"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if !validUTF8(line) {
			return nil, fmt.Errorf("invalid env file (%s): invalid utf8 bytes at line %d: %v", path, i+1, []byte(line))
		}
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, has := strings.Cut(line, "=")
		if k == "" {
			return nil, fmt.Errorf("invalid env file (%s): no variable name on line '%s'", path, line)
		}
		if strings.ContainsAny(k, " \t") {
			return nil, fmt.Errorf("invalid env file (%s): variable '%s' contains whitespaces", path, k)
		}
		switch {
		case has:
			out = append(out, k+"="+v)
		case lookup == nil:
			out = append(out, k)
		default:
			if v, ok := lookup(k); ok {
				out = append(out, k+"="+v)
			}
		}
	}
	return out, nil
}

func validUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }
