package keeper

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"berth.dev/berth/internal/atomicfile"
)

// The journal holds one JSON line for each start, exit and forget, so that a
// keeper that was killed leaves its successor the pids and exit codes. It lies
// in the exec root: a reboot ends it, as it ends the processes. It is never
// synced.
type journal struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
	live map[string]entry // by id: what a rewrite would hold
	log  *slog.Logger
}

const (
	opStart  = "start"
	opExit   = "exit"
	opForget = "forget"
)

type entry struct {
	Op     string      `json:"op"`
	ID     string      `json:"id"`
	Pid    int         `json:"pid,omitempty"`
	Start  uint64      `json:"start,omitempty"`
	Cgroup string      `json:"cgroup,omitempty"`
	Term   bool        `json:"term,omitempty"`
	NS     uint64      `json:"ns,omitempty"`
	Log    *LogSpec    `json:"log,omitempty"`
	OCI    *OCIRuntime `json:"oci,omitempty"`
	At     time.Time   `json:"at,omitzero"`
	Exit   *Exit       `json:"exit,omitempty"`
	Boot   string      `json:"boot,omitempty"`
}

const journalMax = 1 << 20

// openJournal reads what an earlier keeper of the same boot left.
func openJournal(path string, log *slog.Logger) (*journal, error) {
	j := &journal{path: path, live: map[string]entry{}, log: log}
	raw, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	boot := bootID()
	for i, line := range bytes.Split(raw, []byte("\n")) {
		var e entry
		if json.Unmarshal(line, &e) != nil {
			continue // a torn last line
		}
		if i == 0 && e.Boot != boot {
			break
		}
		j.note(e)
	}
	return j, j.rewrite()
}

func bootID() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(raw))
}

func (j *journal) note(e entry) {
	switch e.Op {
	case opStart:
		j.live[e.ID] = e
	case opExit:
		s := j.live[e.ID]
		s.Op, s.ID, s.Exit = opStart, e.ID, e.Exit
		j.live[e.ID] = s
	case opForget:
		delete(j.live, e.ID)
	}
}

func (j *journal) write(e entry) {
	line, err := json.Marshal(e)
	if err != nil {
		j.log.Error("cannot encode a record", "error", err)
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.note(e)
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		j.log.Error("cannot write the journal", "path", j.path, "error", err)
		_ = j.file.Truncate(j.size) // else a torn line would take the next one with it
		return
	}
	j.size += int64(len(line) + 1)
	if j.size > journalMax {
		if err := j.rewrite(); err != nil {
			j.log.Error("cannot rewrite the journal", "path", j.path, "error", err)
		}
	}
}

// rewrite replaces the journal by what is live.
func (j *journal) rewrite() error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := enc.Encode(entry{Boot: bootID()}); err != nil {
		return err
	}
	for _, e := range j.live {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	if err := atomicfile.WriteNoSync(j.path, b.Bytes(), 0o600, false); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.size = f, int64(b.Len())
	return nil
}

// entries is a copy of what the journal holds.
func (j *journal) entries() map[string]entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.live)
}
