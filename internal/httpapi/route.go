package httpapi

import "strings"

// handler answers one request.
type handler func(*request) (response, error)

// route is one row of the table. In its pattern at most one segment is a
// variable: {id} stands for one segment, {name} for one or more, since image
// names contain slashes.
type route struct {
	method  string
	pattern string
	min     Version // 0 for all
	access  AccessClass
	handle  handler
	upload  bool // its body is a stream of data, not JSON

	segments []string
	at       int  // the index of the variable segment; -1 for none
	multi    bool // it takes several segments
}

func (rt route) compile() *route {
	rt.segments = strings.Split(rt.pattern[1:], "/")
	rt.at = -1
	for i, seg := range rt.segments {
		if seg[0] == '{' {
			rt.at, rt.multi = i, seg == "{name}"
		}
	}
	return &rt
}

// match reports whether path fits and returns what stands for the variable.
func (rt *route) match(path string) (name string, ok bool) {
	if rt.at < 0 {
		return "", path == rt.pattern || strings.TrimSuffix(path, "/") == rt.pattern
	}
	rest := path[1:]
	for _, seg := range rt.segments[:rt.at] {
		if rest, ok = strings.CutPrefix(rest, seg); !ok {
			return "", false
		}
		if rest, ok = strings.CutPrefix(rest, "/"); !ok {
			return "", false
		}
	}
	for i := len(rt.segments) - 1; i > rt.at; i-- {
		if rest, ok = strings.CutSuffix(rest, rt.segments[i]); !ok {
			return "", false
		}
		if rest, ok = strings.CutSuffix(rest, "/"); !ok {
			return "", false
		}
	}
	if rest == "" || !rt.multi && strings.IndexByte(rest, '/') >= 0 {
		return "", false
	}
	return rest, true
}
