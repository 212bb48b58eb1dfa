package container

import (
	"encoding/json"
	"regexp"
	"strings"

	"berth.dev/berth/internal/errs"
	"berth.dev/berth/internal/state"
)

// load reads every record into the index.
func (s *Service) load() error {
	return s.o.DB.Each("container", func(key string, raw []byte) error {
		r := &Record{}
		if err := json.Unmarshal(raw, r); err != nil {
			return err
		}
		st := &Status{Phase: Created}
		if _, err := s.o.DB.Get("status", key, st); err != nil {
			return err
		}
		c := &Container{execs: map[string]*Exec{}}
		c.rec.Store(r)
		c.st.Store(st)
		s.byID[r.ID] = c
		s.names[r.Name] = r.ID
		if len(r.HostConfig.Links) > 0 {
			s.linked.Store(true)
		}
		return nil
	})
}

// Get finds a container by id, name, unambiguous prefix of an id, or the name of a
// link to it: OWNER/ALIAS.
func (s *Service) Get(ref string) (*Container, error) {
	ref = strings.TrimPrefix(ref, "/")
	if owner, alias, ok := strings.Cut(ref, "/"); ok { // a link's name
		return s.linkTarget(owner, alias)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byID[ID(ref)]; c != nil {
		return c, nil
	}
	if id, ok := s.names[ref]; ok {
		if c := s.byID[id]; c != nil {
			return c, nil
		}
	}
	var found *Container
	if ref != "" {
		for id, c := range s.byID {
			if strings.HasPrefix(string(id), ref) {
				if found != nil {
					return nil, errs.New(errs.Invalid, "multiple IDs found with provided prefix: %s", ref)
				}
				found = c
			}
		}
	}
	if found == nil {
		return nil, errNoContainer(ref)
	}
	return found, nil
}

// all returns every container, in no order.
func (s *Service) all() []*Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*Container, 0, len(s.byID))
	for _, c := range s.byID {
		list = append(list, c)
	}
	return list
}

var nameRule = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// reserve gives a name to id, a generated one when name is "".
func (s *Service) reserve(name string, id ID) (string, error) {
	if name != "" && !nameRule.MatchString(name) {
		return "", errs.New(errs.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	name = strings.TrimPrefix(name, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		for i := 0; ; i++ {
			name = randomName(i)
			if _, taken := s.names[name]; !taken {
				break
			}
		}
	}
	if holder, taken := s.names[name]; taken && holder != id {
		return "", errs.New(errs.Conflict, "Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", name, string(holder))
	}
	s.names[name] = id
	return name, nil
}

// release gives a name back if id holds it.
func (s *Service) release(name string, id ID) {
	s.mu.Lock()
	if s.names[name] == id {
		delete(s.names, name)
	}
	s.mu.Unlock()
}

func putRecord(tx *state.Tx, r *Record) error { return tx.Put("container", string(r.ID), r) }
