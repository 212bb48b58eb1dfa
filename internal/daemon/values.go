package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/system"
)

// value is an option's place in the configuration. It is set from a flag's text
// (several times, for lists) or from the file's JSON.
type value interface {
	Set(text string) error
	SetJSON(raw json.RawMessage) error
	String() string
	Type() string
}

// scalar is a value with one text.
type scalar[T any] struct {
	p     *T
	kind  string
	parse func(string) (T, error)
}

func (v *scalar[T]) Set(s string) (err error) {
	x, err := v.parse(s)
	if err == nil {
		*v.p = x
	}
	return err
}

// SetJSON takes the JSON of the type itself, or a string in the flag's form.
func (v *scalar[T]) SetJSON(raw json.RawMessage) error {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return v.Set(s)
	}
	if json.Unmarshal(raw, v.p) == nil {
		return nil
	}
	return v.Set(strings.TrimSpace(string(raw)))
}

func (v *scalar[T]) String() string {
	if a, ok := any(*v.p).(netip.Addr); ok && !a.IsValid() {
		return ""
	}
	return fmt.Sprint(*v.p)
}

func (v *scalar[T]) Type() string     { return v.kind }
func (v *scalar[T]) IsBoolFlag() bool { return v.kind == "bool" }

func text(p *string) value {
	return &scalar[string]{p, "string", func(s string) (string, error) { return s, nil }}
}

func boolean(p *bool) value {
	return &scalar[bool]{p, "bool", func(s string) (bool, error) {
		b, err := strconv.ParseBool(s)
		if err != nil {
			return false, fmt.Errorf("strconv.ParseBool: parsing %q: invalid syntax", s)
		}
		return b, nil
	}}
}

func integer(p *int) value {
	return &scalar[int]{p, "int", func(s string) (int, error) { return strconv.Atoi(s) }}
}

func long(p *int64) value {
	return &scalar[int64]{p, "int", func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }}
}

// size is a number of bytes: "64m", "64MiB" or a plain number.
func size(p *int64) value { return &sizeValue{scalar[int64]{p, "bytes", units.RAMInBytes}} }

type sizeValue struct{ scalar[int64] }

func (v *sizeValue) String() string { return units.BytesSize(float64(*v.p)) }

func addr(p *netip.Addr) value {
	return &scalar[netip.Addr]{p, "ip", func(s string) (netip.Addr, error) {
		if s == "" {
			return netip.Addr{}, nil
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return a, fmt.Errorf("%s is not an ip address", s)
		}
		return a, nil
	}}
}

// list collects texts; check, when set, also normalises them.
type list struct {
	p     *[]string
	check func(string) (string, error)
}

func texts(p *[]string, check func(string) (string, error)) value { return &list{p, check} }

func (v *list) Set(s string) error {
	if v.check != nil {
		var err error
		if s, err = v.check(s); err != nil {
			return err
		}
	}
	*v.p = append(*v.p, s)
	return nil
}

func (v *list) SetJSON(raw json.RawMessage) error {
	var l []string
	if err := json.Unmarshal(raw, &l); err != nil {
		return err
	}
	if len(l) == 0 && *v.p == nil {
		*v.p = []string{} // said to be empty, which is more than not said
	}
	for _, s := range l {
		if err := v.Set(s); err != nil {
			return err
		}
	}
	return nil
}

func (v *list) String() string { return "[" + strings.Join(*v.p, " ") + "]" }
func (v *list) Type() string   { return "list" }

// addrs collects addresses.
type addrs struct{ p *[]netip.Addr }

func (v addrs) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return fmt.Errorf("%s is not an ip address", part)
		}
		*v.p = append(*v.p, a)
	}
	return nil
}

func (v addrs) SetJSON(raw json.RawMessage) error {
	var l []string
	var one string
	if json.Unmarshal(raw, &one) == nil {
		l = []string{one}
	} else if err := json.Unmarshal(raw, &l); err != nil {
		return err
	}
	for _, s := range l {
		if err := v.Set(s); err != nil {
			return err
		}
	}
	return nil
}

func (v addrs) String() string { return fmt.Sprint(*v.p) }
func (v addrs) Type() string   { return "list" }

// dict collects key=value.
type dict struct{ p *map[string]string }

func (v dict) Set(s string) error {
	key, val, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("invalid argument %q: must be formatted as key=value", s)
	}
	m := maps.Clone(*v.p)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = val
	*v.p = m
	return nil
}

func (v dict) SetJSON(raw json.RawMessage) error { return json.Unmarshal(raw, v.p) }
func (v dict) Type() string                      { return "map" }

func (v dict) String() string {
	keys := slices.Sorted(maps.Keys(*v.p))
	for i, k := range keys {
		keys[i] = k + ":" + (*v.p)[k]
	}
	return "map[" + strings.Join(keys, " ") + "]"
}

// flagsMap collects name[=bool].
type flagsMap struct{ p *map[string]bool }

func (v flagsMap) Set(s string) error {
	name, val, ok := strings.Cut(s, "=")
	on := true
	if ok {
		var err error
		if on, err = strconv.ParseBool(val); err != nil {
			return fmt.Errorf("invalid boolean value for feature %q: %q", name, val)
		}
	}
	if *v.p == nil {
		*v.p = map[string]bool{}
	}
	(*v.p)[name] = on
	return nil
}

func (v flagsMap) SetJSON(raw json.RawMessage) error { return json.Unmarshal(raw, v.p) }
func (v flagsMap) String() string                    { return fmt.Sprint(*v.p) }
func (v flagsMap) Type() string                      { return "map" }

// ulimits collects name=soft[:hard].
type ulimits struct{ p *map[string]*units.Ulimit }

func (v ulimits) Set(s string) error {
	u, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	if *v.p == nil {
		*v.p = map[string]*units.Ulimit{}
	}
	(*v.p)[u.Name] = u
	return nil
}

func (v ulimits) SetJSON(raw json.RawMessage) error { return json.Unmarshal(raw, v.p) }
func (v ulimits) Type() string                      { return "ulimit" }

func (v ulimits) String() string {
	var l []string
	for _, name := range slices.Sorted(maps.Keys(*v.p)) {
		l = append(l, (*v.p)[name].String())
	}
	return "[" + strings.Join(l, " ") + "]"
}

// runtimes collects name=path.
type runtimes struct{ p *map[string]system.Runtime }

func (v runtimes) Set(s string) error {
	name, path, ok := strings.Cut(s, "=")
	name, path = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(path)
	if !ok || name == "" || path == "" {
		return fmt.Errorf("invalid runtime argument: %s", s)
	}
	if _, dup := (*v.p)[name]; dup {
		return fmt.Errorf("runtime '%s' was already defined", name)
	}
	if *v.p == nil {
		*v.p = map[string]system.Runtime{}
	}
	(*v.p)[name] = system.Runtime{Path: path}
	return nil
}

func (v runtimes) SetJSON(raw json.RawMessage) error {
	m := maps.Clone(*v.p)
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	*v.p = m
	return nil
}

func (v runtimes) String() string {
	return fmt.Sprint(slices.Sorted(maps.Keys(*v.p)))
}
func (v runtimes) Type() string { return "runtime" }

// pools collects base=…,size=….
type pools struct{ p *[]AddressPool }

func (v pools) Set(s string) error {
	var pool AddressPool
	for field := range strings.SplitSeq(s, ",") {
		key, val, ok := strings.Cut(field, "=")
		if !ok {
			return fmt.Errorf("invalid field '%s' must be a key=value pair", field)
		}
		var err error
		switch strings.ToLower(key) {
		case "base":
			pool.Base, err = netip.ParsePrefix(val)
		case "size":
			pool.Size, err = strconv.Atoi(val)
		default:
			err = fmt.Errorf("unexpected key '%s' in '%s'", key, field)
		}
		if err != nil {
			return err
		}
	}
	*v.p = append(*v.p, pool)
	return nil
}

func (v pools) SetJSON(raw json.RawMessage) error { return json.Unmarshal(raw, v.p) }
func (v pools) String() string                    { return fmt.Sprint(*v.p) }
func (v pools) Type() string                      { return "pool-options" }

// netOpts collects driver=key=value.
type netOpts struct{ p *map[string]map[string]string }

func (v netOpts) Set(s string) error {
	driver, opt, _ := strings.Cut(s, "=")
	key, val, ok := strings.Cut(opt, "=")
	if !ok {
		return fmt.Errorf("invalid argument %q: must be formatted as driver=key=value", s)
	}
	if *v.p == nil {
		*v.p = map[string]map[string]string{}
	}
	if (*v.p)[driver] == nil {
		(*v.p)[driver] = map[string]string{}
	}
	(*v.p)[driver][key] = val
	return nil
}

func (v netOpts) SetJSON(raw json.RawMessage) error { return json.Unmarshal(raw, v.p) }
func (v netOpts) String() string                    { return fmt.Sprint(*v.p) }
func (v netOpts) Type() string                      { return "mapmap" }

// ignored takes anything: an option of dockerd that means nothing here.
type ignored struct {
	isBool bool
	text   string
}

func (v *ignored) Set(s string) error                { v.text = s; return nil }
func (v *ignored) SetJSON(raw json.RawMessage) error { v.text = string(raw); return nil }
func (v *ignored) String() string                    { return v.text }

func (v *ignored) Type() string {
	if v.isBool {
		return "bool"
	}
	return "string"
}
