package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// spareDirs keeps the directories of removed containers, with their network
// files, for new ones: making and deleting many small files is slow on some
// file systems.
type spareDirs struct {
	mu   sync.Mutex
	list []string
	seq  int
}

const (
	maxSpares   = 32
	sparePrefix = "spare-"
)

// dropSpares removes what an engine before this one kept.
func dropSpares(dataRoot string) error {
	dirs, err := filepath.Glob(filepath.Join(dataRoot, "containers", sparePrefix+"*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a container's directory.
func (p *spareDirs) makeDir(to string) error {
	p.mu.Lock()
	n := len(p.list)
	if n > 0 {
		dir := p.list[n-1]
		p.list = p.list[:n-1]
		p.mu.Unlock()
		if unix.Rename(dir, to) == nil {
			return nil
		}
	} else {
		p.mu.Unlock()
	}
	return os.Mkdir(to, 0o710)
}

// keepDir keeps the directory of a removed container if nothing but network
// files and logs is in it; the logs go.
func (p *spareDirs) keepDir(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case !e.Type().IsRegular():
			return false
		case name == "hosts", name == "hostname", name == "resolv.conf":
		case strings.HasPrefix(name, filepath.Base(dir)):
			if os.Remove(filepath.Join(dir, name)) != nil {
				return false
			}
		default:
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.list) >= maxSpares {
		return false
	}
	p.seq++
	to := filepath.Join(filepath.Dir(dir), fmt.Sprint(sparePrefix, p.seq))
	if unix.Rename(dir, to) != nil {
		return false
	}
	p.list = append(p.list, to)
	return true
}
