package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDeviceRules are what every container may use, besides the nodes made
// for it: any mknod, the devices of DefaultDevices, ptmx, pts and console, and
// what a VPN in a container opens, net/tun.
var defaultDeviceRules = []string{
	"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
	"c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm", "c 10:200 rwm",
}

// RestrictDevices limits what the cgroups below parent may use to the default
// devices, which they inherit and which costs a start nothing. On v1 the parent
// must have no children yet, unless it is restricted already; else Inherits
// tells that it did not work.
func (c *Cgroups) RestrictDevices(parent string) error {
	if err := c.prepareParent(parent); err != nil {
		return err
	}
	g := &Cgroup{Rel: parent, V2FD: -1, View: -1}
	if c.host.CgroupV2 {
		g.V2 = c.host.Hierarchies[0].Path + parent
		return c.AllowDefaultDevices(g)
	}
	dir := c.dirFor(g, "devices")
	if dir == "" {
		return nil
	}
	if raw, err := os.ReadFile(dir + "/devices.list"); err != nil || !strings.HasPrefix(string(raw), "a *:* ") {
		return err
	}
	if err := c.AllowDefaultDevices(g); err != nil {
		// There are children already, of somebody else: each cgroup gets its rules itself.
		c.mu.Lock()
		c.unrestricted = parent
		c.mu.Unlock()
	}
	return nil
}

// Inherits reports whether cgroups below parent inherit the default device rules.
func (c *Cgroups) Inherits(parent string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unrestricted != parent
}

// AllowDefaultDevices limits one cgroup to the default devices.
func (c *Cgroups) AllowDefaultDevices(g *Cgroup) error {
	if c.host.CgroupV2 {
		return c.devicesV2(g, nil)
	}
	dir := c.dirFor(g, "devices")
	if dir == "" {
		return nil
	}
	if err := writeCgroup(dir, "devices.deny", "a"); err != nil {
		return err
	}
	fd, err := unix.Open(dir+"/devices.allow", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, r := range defaultDeviceRules {
		if _, err := unix.Write(fd, []byte(r)); err != nil {
			return fmt.Errorf("cannot allow the device %q: %w", r, err)
		}
	}
	return nil
}

// deviceRule is a rule in the words of devices.allow and devices.deny.
//
// The Devices of an OCI specification that this engine makes begin with
// "deny all" and the default rules; a cgroup from Make holds them already.
func deviceRule(d specs.LinuxDeviceCgroup) string {
	num := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	typ := d.Type
	if typ == "" {
		typ = "a"
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	if typ == "a" {
		return "a"
	}
	return fmt.Sprintf("%s %s:%s %s", typ, num(d.Major), num(d.Minor), access)
}

// deviceSet is what v1's device controller holds for a cgroup, so that a list
// of rules means the same on v2: an answer for everything, and exceptions.
type deviceSet struct {
	allow      bool
	exceptions []deviceException
}

type deviceException struct {
	typ          byte  // 'b' or 'c'
	major, minor int64 // -1 for any
	access       uint32
}

// access bits, those of bpf_cgroup_dev_ctx
const (
	accessMknod = 1 << iota
	accessRead
	accessWrite
	accessAll = accessMknod | accessRead | accessWrite
)

func accessBits(s string) (bits uint32) {
	for _, r := range s {
		switch r {
		case 'm':
			bits |= accessMknod
		case 'r':
			bits |= accessRead
		case 'w':
			bits |= accessWrite
		}
	}
	return bits
}

func defaultDevices() *deviceSet {
	s := &deviceSet{}
	for _, text := range defaultDeviceRules {
		f := strings.Fields(text)
		major, minor, _ := strings.Cut(f[1], ":")
		num := func(s string) int64 {
			if n, err := strconv.ParseInt(s, 10, 64); err == nil {
				return n
			}
			return -1
		}
		s.add(deviceException{f[0][0], num(major), num(minor), accessBits(f[2])})
	}
	return s
}

// apply changes the set as a write to devices.allow or devices.deny would.
func (s *deviceSet) apply(d specs.LinuxDeviceCgroup) error {
	if d.Type == "" || d.Type == "a" {
		s.allow, s.exceptions = d.Allow, nil
		return nil
	}
	e := deviceException{major: -1, minor: -1, access: accessAll}
	if d.Type != "b" && d.Type != "c" {
		return fmt.Errorf("invalid device type %q", d.Type)
	}
	e.typ = d.Type[0]
	if d.Major != nil && *d.Major >= 0 {
		e.major = *d.Major
	}
	if d.Minor != nil && *d.Minor >= 0 {
		e.minor = *d.Minor
	}
	if d.Access != "" {
		e.access = accessBits(d.Access)
	}
	if d.Allow == s.allow {
		s.remove(e)
	} else {
		s.add(e)
	}
	return nil
}

func (s *deviceSet) find(e deviceException) int {
	return slices.IndexFunc(s.exceptions, func(x deviceException) bool {
		return x.typ == e.typ && x.major == e.major && x.minor == e.minor
	})
}

func (s *deviceSet) add(e deviceException) {
	if i := s.find(e); i >= 0 {
		s.exceptions[i].access |= e.access
	} else {
		s.exceptions = append(s.exceptions, e)
	}
}

// remove takes access away from the exception for exactly these numbers, as
// the kernel does it: a wider one stays.
func (s *deviceSet) remove(e deviceException) {
	if i := s.find(e); i >= 0 {
		if s.exceptions[i].access &^= e.access; s.exceptions[i].access == 0 {
			s.exceptions = slices.Delete(s.exceptions, i, i+1)
		}
	}
}

// devicesV2 limits a v2 cgroup to the default devices and what the rules
// change about them, in place of what limited it before.
func (c *Cgroups) devicesV2(g *Cgroup, rules []specs.LinuxDeviceCgroup) error {
	set := defaultDevices()
	for _, r := range rules {
		if err := set.apply(r); err != nil {
			return err
		}
	}
	dir := g.V2FD
	if dir < 0 {
		fd, err := unix.Open(g.V2, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: g.V2, Err: err}
		}
		defer unix.Close(fd)
		dir = fd
	}
	old, err := attachedPrograms(dir)
	if err != nil {
		return fmt.Errorf("cannot restrict devices: %w", err)
	}
	if !set.allow || len(set.exceptions) > 0 {
		// The same program cannot be attached twice, even to replace itself.
		prog, shared, err := c.deviceProgram(set, len(rules) == 0 && len(old) == 0)
		if err != nil {
			return fmt.Errorf("cannot restrict devices: %w", err)
		}
		if !shared {
			defer unix.Close(prog)
		}
		if err := attachProgram(dir, prog); err != nil {
			return fmt.Errorf("cannot restrict devices: %w", err)
		}
	}
	for _, id := range old {
		if err := detachProgram(dir, id); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot change the device rules: %w", err)
		}
	}
	return nil
}

// deviceProgram loads the program of a set. That of the default rules is loaded
// once and kept.
func (c *Cgroups) deviceProgram(set *deviceSet, byDefault bool) (fd int, shared bool, err error) {
	if !byDefault {
		fd, err = loadProgram(set.program())
		return fd, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.devices == 0 {
		if fd, err = loadProgram(set.program()); err != nil {
			return -1, false, err
		}
		c.devices = fd
	}
	return c.devices, true, nil
}

// DefaultDeviceRules are the rules of a container's cgroup for a runtime that
// starts from none: all is denied but the default devices.
func DefaultDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, text := range defaultDeviceRules {
		f := strings.Fields(text)
		r := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
		major, minor, _ := strings.Cut(f[1], ":")
		for _, p := range []struct {
			text string
			to   **int64
		}{{major, &r.Major}, {minor, &r.Minor}} {
			if n, err := strconv.ParseInt(p.text, 10, 64); err == nil {
				*p.to = &n
			}
		}
		rules = append(rules, r)
	}
	return rules
}
