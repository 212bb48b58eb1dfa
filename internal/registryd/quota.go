package registryd

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/docker/go-units"
)

// quota counts what repositories link and what the store holds, in bytes. A nil
// *quota counts nothing and allows everything.
type quota struct {
	total, repo int64 // limits; 0: none

	mu    sync.Mutex
	held  int64            // by the store, each blob once
	repos map[string]int64 // linked by each repository
}

// count reads what is there. It is called at the start and after each collection.
func (q *quota) count(s *store) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held, q.repos = 0, map[string]int64{}
	err := filepath.WalkDir(s.root+"/blobs", func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "data" {
			return err
		}
		st, err := e.Info()
		if err == nil {
			q.held += st.Size()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.repositories(func(name string) error {
		for _, dir := range []string{"_layers", "_manifests/revisions"} {
			list, err := digests(s.repoPath(name) + "/" + dir)
			if err != nil {
				return err
			}
			for _, d := range list {
				if st, err := os.Stat(s.blobPath(d)); err == nil {
					q.repos[name] += st.Size()
				}
			}
		}
		return nil
	})
}

// add counts n bytes more that a repository links, and content bytes that are new to
// the store, or says which limit is in the way.
func (q *quota) add(name string, n, content int64) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.repo > 0 && q.repos[name]+n > q.repo {
		return denied(fmt.Sprintf("quota exceeded: repository %s holds %s of %s, and this is %s more", name, human(q.repos[name]), human(q.repo), human(n)))
	}
	if q.total > 0 && q.held+content > q.total {
		return denied(fmt.Sprintf("quota exceeded: the registry holds %s of %s, and this is %s more", human(q.held), human(q.total), human(content)))
	}
	q.repos[name] += n
	q.held += content
	return nil
}

func (q *quota) give(name string, n, content int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.repos[name] = max(0, q.repos[name]-n)
	q.held = max(0, q.held-content)
}

// room is how large an upload to a repository may become; negative: as large as it wants.
func (q *quota) room(name string) int64 {
	if q == nil {
		return -1
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	room := int64(-1)
	if q.repo > 0 {
		room = max(0, q.repo-q.repos[name])
	}
	if q.total > 0 {
		if r := max(0, q.total-q.held); room < 0 || r < room {
			room = r
		}
	}
	return room
}

func human(n int64) string { return units.BytesSize(float64(n)) }
