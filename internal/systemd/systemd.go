// Package systemd has systemd make the cgroups of containers, for hosts where
// it is the one that owns the tree: the cgroup driver "systemd".
//
// Each container gets a transient scope below a slice. A scope cannot be without
// a process, so a placeholder is in it from the moment it is made until the
// container's first process is there:
//
//	u, err := m.Start(ctx, systemd.Scope{Name: "berth-ID.scope", Slice: "system.slice", Limits: r})
//	… start the process in u.Cgroup …
//	u.Release()
//	… it ends …
//	m.Stop(ctx, "berth-ID.scope")
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrNotRunning says that this host's init is another one.
var ErrNotRunning = errors.New("systemd not running on this host, cannot use systemd cgroups manager")

// Running reports whether the host was booted with systemd (sd_booted(3)).
func Running() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// DefaultSlice is where containers are that name none.
const DefaultSlice = "system.slice"

// Manager talks to systemd. It connects when it is first needed, and again when
// the connection was lost.
type Manager struct {
	unified     bool                       // cgroup v2
	weight      func(shares uint64) uint64 // cpu.weight for cpu.shares
	placeholder []string                   // program and arguments of a process that waits for the end of its stdin

	mu   sync.Mutex
	conn *dbus.Conn
}

// New returns a manager. placeholder is a program that does nothing but read its
// standard input to the end; weight gives the cpu.weight for cpu.shares.
func New(unified bool, weight func(shares uint64) uint64, placeholder ...string) *Manager {
	return &Manager{unified: unified, weight: weight, placeholder: placeholder}
}

// Scope is what a container's unit is made of.
type Scope struct {
	Name, Description string
	Slice             string // "" is DefaultSlice
	Limits            *specs.LinuxResources
}

// Unit is a scope that was made. Release ends its placeholder.
type Unit struct {
	Cgroup string // below the mount points of the hierarchies

	hold *os.File
	proc *os.Process
}

// CheckSlice refuses what cannot be a slice.
func CheckSlice(parent string) error {
	if len(parent) <= len(".slice") || !strings.HasSuffix(parent, ".slice") || strings.Contains(parent, "/") {
		return errors.New(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	return nil
}

// Path is where a slice is in the tree: "a-b.slice" lies in "a.slice", and
// "-.slice" is the root.
func Path(slice string) (string, error) {
	if slice == "-.slice" {
		return "/", nil
	}
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(slice, "/") {
		return "", fmt.Errorf("invalid slice name: %s", slice)
	}
	at, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("invalid slice name: %s", slice)
		}
		at = path.Join(at, prefix+part+".slice")
		prefix += part + "-"
	}
	return at, nil
}

func (m *Manager) connection(ctx context.Context) (*dbus.Conn, error) {
	if !Running() {
		return nil, ErrNotRunning
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	// The connection outlives the request that it is made for.
	c, err := dbus.NewSystemdConnectionContext(context.WithoutCancel(ctx))
	if err != nil {
		if c, err = dbus.NewSystemConnectionContext(context.WithoutCancel(ctx)); err != nil {
			return nil, fmt.Errorf("cannot connect to systemd: %w", err)
		}
	}
	m.conn = c
	return c, nil
}

// jobTime is how long systemd may take for a scope.
const jobTime = 30 * time.Second

// Start makes a scope with a placeholder in it.
func (m *Manager) Start(ctx context.Context, s Scope) (_ *Unit, err error) {
	if s.Slice == "" {
		s.Slice = DefaultSlice
	}
	dir, err := Path(s.Slice)
	if err != nil {
		return nil, err
	}
	c, err := m.connection(ctx)
	if err != nil {
		return nil, err
	}
	u := &Unit{Cgroup: path.Join(dir, s.Name)}
	if err := u.hire(m.placeholder); err != nil {
		return nil, fmt.Errorf("cannot start a placeholder: %w", err)
	}
	defer func() {
		if err != nil {
			u.Release()
		}
	}()
	props := append([]dbus.Property{
		dbus.PropDescription(s.Description), dbus.PropSlice(s.Slice), dbus.PropPids(uint32(u.proc.Pid)),
		property("Delegate", true), property("DefaultDependencies", false), property("CollectMode", "inactive-or-failed"),
		property("MemoryAccounting", true), property("CPUAccounting", true), property("TasksAccounting", true),
	}, m.properties(s.Limits)...)
	if m.unified {
		props = append(props, property("IOAccounting", true))
	} else {
		props = append(props, property("BlockIOAccounting", true))
	}
	ctx, cancel := context.WithTimeout(ctx, jobTime)
	defer cancel()
	err = m.job(ctx, func(done chan<- string) error {
		_, err := c.StartTransientUnitContext(ctx, s.Name, "replace", props, done)
		return err
	})
	var de godbus.Error
	if errors.As(err, &de) && strings.Contains(de.Name, "UnitExists") {
		// What is left of the run before, which systemd has not noticed the end of.
		_ = m.job(ctx, func(done chan<- string) error {
			_, err := c.StopUnitContext(ctx, s.Name, "replace", done)
			return err
		})
		_ = c.ResetFailedUnitContext(ctx, s.Name)
		err = m.job(ctx, func(done chan<- string) error {
			_, err := c.StartTransientUnitContext(ctx, s.Name, "replace", props, done)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("unable to start unit %q: %w", s.Name, err)
	}
	return u, nil
}

// job starts a job of systemd and waits for its end.
func (m *Manager) job(ctx context.Context, start func(done chan<- string) error) error {
	done := make(chan string, 1)
	if err := start(done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("the job ended with %q", result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemd did not answer in time: %w", ctx.Err())
	}
}

// stopTime is how long a scope without a process may take to end.
const stopTime = 5 * time.Second

// Stop ends a scope whose processes are gone. systemd would see that by itself,
// but for a cgroup that is removed before it has looked. One that is not there
// any more is fine.
func (m *Manager) Stop(ctx context.Context, name string) {
	c, err := m.connection(ctx)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	_ = m.job(ctx, func(done chan<- string) error {
		_, err := c.StopUnitContext(ctx, name, "replace", done)
		return err
	})
}

// Update changes the limits of a scope.
func (m *Manager) Update(ctx context.Context, name string, r *specs.LinuxResources) error {
	c, err := m.connection(ctx)
	if err != nil {
		return err
	}
	props := m.properties(r)
	if len(props) == 0 {
		return nil
	}
	return c.SetUnitPropertiesContext(ctx, name, true, props...)
}

func (u *Unit) hire(program []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	if u.proc, err = os.StartProcess(program[0], program[1:], &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{r}}); err != nil {
		_ = w.Close()
		return err
	}
	u.hold = w
	return nil
}

// Release ends the placeholder. A scope with nothing else in it ends too.
func (u *Unit) Release() {
	if u.hold == nil {
		return
	}
	_ = u.hold.Close()
	u.hold = nil
	_ = u.proc.Kill()
	_, _ = u.proc.Wait()
}

func property(name string, v any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(v)}
}

// properties are limits in systemd's words, so that it does not set others when
// it is reloaded. What it has no word for stands in the cgroup's files only.
func (m *Manager) properties(r *specs.LinuxResources) (out []dbus.Property) {
	if r == nil {
		return nil
	}
	add := func(name string, v any) { out = append(out, property(name, v)) }
	unlimited := func(n int64) uint64 { return uint64(n) } // -1 is systemd's "infinity"
	if x := r.Memory; x != nil {
		limit := "MemoryLimit"
		if m.unified {
			limit = "MemoryMax"
		}
		if x.Limit != nil && *x.Limit != 0 {
			add(limit, unlimited(*x.Limit))
		}
		if m.unified && x.Reservation != nil && *x.Reservation != 0 {
			add("MemoryLow", unlimited(*x.Reservation))
		}
		if m.unified && x.Swap != nil && *x.Swap != 0 {
			swap := *x.Swap
			if swap > 0 && x.Limit != nil && *x.Limit > 0 {
				swap -= *x.Limit
			}
			add("MemorySwapMax", unlimited(swap))
		}
	}
	if x := r.CPU; x != nil {
		switch {
		case x.Shares == nil || *x.Shares == 0:
		case m.unified:
			add("CPUWeight", m.weight(*x.Shares))
		default:
			add("CPUShares", *x.Shares)
		}
		if quota := x.Quota; quota != nil && *quota != 0 {
			period := uint64(100000)
			if x.Period != nil && *x.Period != 0 {
				period = *x.Period
			}
			if m.unified {
				add("CPUQuotaPeriodUSec", period)
			}
			perSecond := ^uint64(0)
			if *quota > 0 { // systemd rounds to a hundredth of a processor
				const cent = 10000
				perSecond = (uint64(*quota)*1000000/period + cent - 1) / cent * cent
			}
			add("CPUQuotaPerSecUSec", perSecond)
		}
		if m.unified {
			for _, s := range []struct{ name, list string }{{"AllowedCPUs", x.Cpus}, {"AllowedMemoryNodes", x.Mems}} {
				if bits := bitmap(s.list); len(bits) > 0 {
					add(s.name, bits)
				}
			}
		}
	}
	if x := r.Pids; x != nil && x.Limit != nil {
		add("TasksMax", unlimited(*x.Limit))
	}
	return out
}

// bitmap turns "0-2,7" into the bits that systemd takes, the lowest first. A
// list that cannot be read is nothing.
func bitmap(list string) []byte {
	var bits []byte
	for part := range strings.SplitSeq(list, ",") {
		var lo, hi int
		if n, _ := fmt.Sscanf(part, "%d-%d", &lo, &hi); n == 1 {
			hi = lo
		} else if n != 2 {
			return nil
		}
		if lo < 0 || hi < lo || hi > 8192 {
			return nil
		}
		for n := lo; n <= hi; n++ {
			if need := n/8 + 1 - len(bits); need > 0 {
				bits = append(bits, make([]byte, need)...)
			}
			bits[n/8] |= 1 << (n % 8)
		}
	}
	return slices.Clip(bits)
}
