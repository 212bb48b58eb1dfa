// Package keeper is the parent of every container: it creates them, owns their
// stdio, writes their logs, reaps them, and remembers how they ended until the
// engine has taken note.
//
// # Words
//
// A task is one container's first process with its stdio, cgroup and log. An
// exec is one more process in it. An attachment is a socket that gets a
// process's output and may feed its input. The engine is a client: it may come
// and go, tasks stay.
//
// # Protocol
//
// A unix stream socket in the exec root. Each message is
//
//	uint32 length of the body · uint32 number of descriptors · body (JSON)
//
// little endian, the descriptors (SCM_RIGHTS) with the first byte. Requests
// carry an id that the reply repeats; events from the keeper have id 0.
//
//	engine                          keeper
//	  hello {version}          ─▶     {version, tasks}
//	  start {spec…} + fds      ─▶     {pid, …} + [pidfd, stdio read ends]
//	  exec, attach, signal …   ─▶     {…}
//	  relay {id, ports} + fds  ─▶     {…}
//	                           ◀─     event exit {id, code, at}
//	                           ◀─     event oom {id, at}
//	  forget {id}              ─▶     the record of an ended task is dropped
//
// # What survives what
//
// Engine gone: tasks run on, output goes to the log, exits wait in the record.
// Keeper replaced by a new version (upgrade): it re-executes itself with its
// descriptors and a description of its state in a memory file. Keeper killed:
// the engine, which holds copies of the pidfds and read ends, starts a new one
// and hands them over (adopt); without an engine the new keeper finds the
// processes through its journal and opens their pipes through /proc.
package keeper

import (
	"encoding/json"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/internal/runtime"
)

// Version is the protocol's version. An engine with another one has the keeper
// re-execute itself.
const Version = 1

// maxBody bounds a message: arguments and environment of one process may reach
// a few megabytes.
const maxBody = 32 << 20

// message is the envelope in both directions.
type message struct {
	ID    uint64          `json:"i,omitempty"`
	Op    string          `json:"o,omitempty"`
	Body  json.RawMessage `json:"b,omitempty"`
	Error *Failure        `json:"e,omitempty"`
}

// Failure is an error that crosses the socket with its type kept.
type Failure struct {
	Msg   string `json:"msg"`
	Kind  string `json:"kind,omitempty"`  // one of the Kind constants
	Stage string `json:"stage,omitempty"` // a runtime.Stage, for a failed start
	Errno int    `json:"errno,omitempty"`
	Path  string `json:"path,omitempty"`
}

// The kinds of Failure.
const (
	KindStart    = "start"    // the process could not be started; Stage, Errno, Path say why
	KindNotFound = "notfound" // no such task or exec
	KindFilter   = "filter"   // the seccomp filter must be sent with its code; nothing was done
	KindState    = "state"    // not in this state (not running, running already)
)

func (f *Failure) Error() string { return f.Msg }

// AttachSpec asks for the output of a process, and to feed its input, over a
// stream socket. FD is an index into the message's descriptors.
type AttachSpec struct {
	FD     int  `json:"fd"`
	Stdin  bool `json:"in,omitempty"`
	Stdout bool `json:"out,omitempty"`
	Stderr bool `json:"err,omitempty"`
	Mux    bool `json:"mux,omitempty"` // frame output as package stdmux does
}

// LogSpec says where the output of a task is written; nil writes none.
type LogSpec struct {
	Driver   string            `json:"driver"`
	Path     string            `json:"path"`
	MaxSize  int64             `json:"maxSize,omitempty"`
	MaxFile  int               `json:"maxFile,omitempty"`
	Compress bool              `json:"compress,omitempty"`
	Attrs    map[string]string `json:"attrs,omitempty"`

	NonBlocking bool  `json:"nonBlocking,omitempty"` // drop lines rather than wait for the file
	Buffer      int64 `json:"buffer,omitempty"`      // bytes kept for that
}

// Filter is a compiled seccomp filter. It is sent once; later requests name it by Key.
type Filter struct {
	Key   string `json:"key"`
	Code  []byte `json:"code,omitempty"`
	Flags uint   `json:"flags,omitempty"`
}

// HostIDs are the host's ids of a container in a user namespace.
type HostIDs struct {
	Owner    runtime.Owner `json:"owner"` // its root
	UID, GID uint32        // the process's own
}

// StartRequest starts a task. Descriptor numbers are indexes into the
// message's descriptors.
type StartRequest struct {
	ID        string                           `json:"id"`
	Spec      *specs.Spec                      `json:"spec"`
	RootFD    int                              `json:"root"`
	HooksFD   int                              `json:"hooks,omitempty"`  // the mount namespace that Spec.Hooks run in; 0 without hooks
	MountFD   map[int]int                      `json:"mounts,omitempty"` // Spec.Mounts index → descriptor
	NSFD      map[specs.LinuxNamespaceType]int `json:"ns,omitempty"`
	Filter    *Filter                          `json:"filter,omitempty"`
	Parent    string                           `json:"parent,omitempty"` // cgroup parent, "" for the keeper's own
	Cgroup    string                           `json:"cgroup,omitempty"` // a cgroup that is there already, in place of one below Parent
	Log       *LogSpec                         `json:"log,omitempty"`
	Stdin     bool                             `json:"stdin,omitempty"`     // keep stdin open
	StdinOnce bool                             `json:"stdinOnce,omitempty"` // close it when the first attachment ends its input
	Init      bool                             `json:"init,omitempty"`
	IDs       *HostIDs                         `json:"ids,omitempty"`
	Devices   bool                             `json:"devices,omitempty"` // Spec.Linux.Devices holds more than the default nodes
	Attach    []AttachSpec                     `json:"attach,omitempty"`
	OCI       *OCIRuntime                      `json:"oci,omitempty"` // the runtime that is to run it, nil for the engine's own
}

// StartReply tells where the task is. Its descriptors are the pidfd, then the
// read ends of stdout and stderr, or the terminal.
type StartReply struct {
	Pid       int       `json:"pid"`
	StartTime uint64    `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
	Cgroup    string    `json:"cgroup"`
	At        time.Time `json:"at"`
}

// ExecRequest starts one more process in a task.
type ExecRequest struct {
	ID      string         `json:"id"`
	ExecID  string         `json:"exec"`
	Process *specs.Process `json:"process"`
	Filter  *Filter        `json:"filter,omitempty"`
	Stdin   bool           `json:"stdin,omitempty"`
	Attach  []AttachSpec   `json:"attach,omitempty"`
	IDs     *HostIDs       `json:"ids,omitempty"`
	Host    int            `json:"host,omitempty"` // descriptor of the host's mount namespace, for a task of another runtime
}

// Target names a task, or an exec of it, with one argument.
type Target struct {
	ID     string                `json:"id"`
	ExecID string                `json:"exec,omitempty"`
	Signal int                   `json:"signal,omitempty"`
	Height uint16                `json:"h,omitempty"`
	Width  uint16                `json:"w,omitempty"`
	Frozen bool                  `json:"frozen,omitempty"`
	Limits *specs.LinuxResources `json:"limits,omitempty"`
	Attach *AttachSpec           `json:"attach,omitempty"`
}

// Exit is how a process ended. Events carry it, and the list of tasks.
type Exit struct {
	ID     string    `json:"id"`
	ExecID string    `json:"exec,omitempty"`
	Code   int       `json:"code"` // 128+n after signal n
	At     time.Time `json:"at"`
	OOM    bool      `json:"oom,omitempty"`
	Lost   bool      `json:"lost,omitempty"` // the code could not be learnt
	// Running tells of no exit: the kernel ended a process of the task for
	// want of memory, and the task may go on. OOM is set.
	Running bool `json:"running,omitempty"`
}

// TaskInfo is one task in the answer to hello.
type TaskInfo struct {
	ID        string    `json:"id"`
	Pid       int       `json:"pid"`
	StartTime uint64    `json:"start"`
	At        time.Time `json:"at"`
	Cgroup    string    `json:"cgroup"`
	Frozen    bool      `json:"frozen,omitempty"`
	Exit      *Exit     `json:"exit,omitempty"`
}

// Hello is the answer to the first message.
type Hello struct {
	Version int        `json:"version"`
	Build   string     `json:"build"` // digest of the keeper's program
	Pid     int        `json:"pid"`
	Tasks   []TaskInfo `json:"tasks"`
	Orphans []string   `json:"orphans,omitempty"` // tasks of a keeper that was killed: adopt them
}

// AdoptRequest has a keeper take over a task that the keeper before it left.
// Descriptors, where the engine holds them: the pidfd, then the terminal.
// Without them the process is found by pid and start time.
type AdoptRequest struct {
	ID string `json:"id"`
}
