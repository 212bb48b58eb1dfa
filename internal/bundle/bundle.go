// Package bundle is the OCI runtime command line, the program berth-runtime:
// it runs containers from bundles, as other engines ask of a runtime.
//
// # Words
//
// A bundle is a directory with config.json and a root filesystem. A container
// is named by its id below the root directory of this program's state:
//
//	<root>/<id>/state.json   what it is: see record
//	<root>/<id>/start        a FIFO; there from create until start
//	<root>/<id>/late         a FIFO; reports of an execve that failed after start
//
// # Life
//
//	create   the process is complete but for its execve: it reads from "start"
//	start    writes to it, and reads from "late" whether the program was reached
//	kill     a signal
//	delete   cgroups and state are removed, what still runs is ended if forced
//
// No process of this program stays behind: the caller is the parent of the
// container, and its status is read from /proc by pid and start time.
//
// # Hooks
//
// All of them run where and when runtime.md says. While those of create do, the
// process waits with its root filesystem stacked on root.path of its own mount
// namespace: what createContainer mounts below that path the container has,
// unless one of the configuration's mounts, which follow, covers it.
//
// # Not supported
//
// What the configuration asks for and this program cannot do is an error of
// create that names the property (check.go), never left out in silence. Names,
// flags, messages and the format of the log are those of runc, since engines
// match them.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/runtime"
)

// Version is what --version shows. The build sets it.
var Version = "0.1.0"

// program is one call of berth-runtime.
type program struct {
	root  string // of all state
	out   io.Writer
	note  func(format string, args ...any) // a warning for the log
	errno int                              // exit status of a failure; 1 where it is 0
}

// record is state.json.
type record struct {
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Pid         int               `json:"pid"`
	StartTime   uint64            `json:"startTime"` // of the process, in ticks since boot
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner,omitempty"`
	Cgroup      string            `json:"cgroup"` // below the hierarchies' mount points
	Annotations map[string]string `json:"annotations,omitempty"`
	Spec        *specs.Spec       `json:"spec"`

	dir string
}

var validID = regexp.MustCompile(`^[A-Za-z0-9_+.-]+$`)

func (p *program) dir(id string) (string, error) {
	if !validID.MatchString(id) || id == "." || id == ".." {
		return "", fmt.Errorf("invalid container ID format: %q", id)
	}
	return filepath.Join(p.root, id), nil
}

func (p *program) load(id string) (*record, error) {
	dir, err := p.dir(id)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, unknown(id)
	}
	if err != nil {
		return nil, err
	}
	r := &record{dir: dir}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("cannot read the state of container %q: %w", id, err)
	}
	return r, nil
}

// unknown is the error for a container that there is not.
type unknown string

func (id unknown) Error() string { return fmt.Sprintf("container %q does not exist", string(id)) }

// save writes the record under a name that no reader looks at, then renames it.
func (r *record) save() error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(r.dir, "state.new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(r.dir, "state.json"))
}

func (r *record) fifo(name string) string { return filepath.Join(r.dir, name) }

// alive reports whether the container's process has not ended; a zombie has.
func (r *record) alive() bool {
	if r.Pid <= 0 {
		return false
	}
	state, start, err := processStat(r.Pid)
	return err == nil && start == r.StartTime && state != 'Z' && state != 'X'
}

// The status beyond those of the specification.
const statusPaused specs.ContainerState = "paused"

func (r *record) status(c *runtime.Cgroups) specs.ContainerState {
	switch {
	case r.Pid == 0:
		return specs.StateCreating
	case !r.alive():
		return specs.StateStopped
	}
	if _, err := os.Lstat(r.fifo("start")); err == nil {
		return specs.StateCreated
	}
	if c != nil && frozen(c.Find(r.Cgroup)) {
		return statusPaused
	}
	return specs.StateRunning
}

// state is what hooks and the command state show.
func (r *record) state(status specs.ContainerState) *specs.State {
	s := &specs.State{Version: specs.Version, ID: r.ID, Status: status, Bundle: r.Bundle, Annotations: r.Annotations}
	if status != specs.StateStopped {
		s.Pid = r.Pid
	}
	return s
}

// processStat reads state and start time from /proc/PID/stat (proc(5)).
func processStat(pid int) (state byte, start uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	text := string(raw)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	if _, err := fmt.Sscan(f[19], &start); err != nil {
		return 0, 0, err
	}
	return f[0][0], start, nil
}

// pidFD opens the container's process, making sure that it is the one.
func (r *record) pidFD() (int, error) {
	fd, err := unix.PidfdOpen(r.Pid, 0)
	if err != nil || !r.alive() {
		if err == nil {
			_ = unix.Close(fd)
		}
		return -1, errNotRunning
	}
	return fd, nil
}

var errNotRunning = errors.New("container not running")

// readSpec reads the configuration of a bundle.
func readSpec(file string) (*specs.Spec, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("JSON specification file %s not found", file)
	}
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", file, err)
	}
	return s, nil
}
