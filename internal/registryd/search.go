package registryd

import (
	"net/http"
	"strconv"
	"strings"
)

// v1 answers what is left of the first protocol: the search that `docker search HOST/TERM` asks.
func (s *Server) v1(w http.ResponseWriter, r *request, path string) error {
	w.Header().Set("X-Docker-Registry-Version", "0.9.1")
	w.Header().Set("X-Docker-Registry-Standalone", "true")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return unsupported("the method is not allowed here")
	}
	switch path {
	case "/v1/_ping":
		return writeJSON(w, "application/json", true)
	case "/v1/search":
	default:
		http.NotFound(w, r.Request)
		return nil
	}
	if s.auth != nil {
		user, err := s.auth.authorize(w, r.Request, []access{{"registry", "catalog", "*"}})
		if err != nil {
			return err
		}
		r.user = user
	}
	all, err := s.store.catalog()
	if err != nil {
		return err
	}
	type result struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		StarCount   int    `json:"star_count"`
		IsOfficial  bool   `json:"is_official"`
		IsAutomated bool   `json:"is_automated"`
	}
	q := r.URL.Query()
	term := strings.ToLower(q.Get("q"))
	term = strings.TrimPrefix(term, "library/")
	found := []result{}
	for _, name := range all {
		if strings.Contains(name, term) {
			found = append(found, result{Name: name})
		}
	}
	size := number(q.Get("n"), 25, 100)
	at := number(q.Get("page"), 1, 1<<20)
	total := len(found)
	begin := min(total, (at-1)*size)
	found = found[begin:min(total, begin+size)]
	return writeJSON(w, "application/json", map[string]any{
		"num_results": total, "num_pages": (total + size - 1) / size, "page": at, "page_size": size, "query": q.Get("q"), "results": found,
	})
}

// number reads a parameter between 1 and most.
func number(s string, usual, most int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return usual
	}
	return min(n, most)
}
