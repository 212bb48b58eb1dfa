package cli

import (
	"encoding/json"
	"errors"
	"strconv"
)

// eachField calls f with the raw value of every member of every object in a
// JSON array of objects, and next before each object. It reads over values
// without looking at them, so that a list of which a few columns are shown
// costs little; f decodes what it wants.
func eachField(b []byte, next func(), f func(name, value []byte) error) error {
	s := scanner{b: b}
	if !s.eat('[') {
		return errNotList
	}
	if s.eat(']') {
		return nil
	}
	for {
		if !s.eat('{') {
			return errNotList
		}
		next()
		for more := !s.eat('}'); more; more = !s.eat('}') {
			name, ok := s.value()
			if !ok || len(name) < 2 || name[0] != '"' || !s.eat(':') {
				return errNotList
			}
			value, ok := s.value()
			if !ok {
				return errNotList
			}
			if err := f(name[1:len(name)-1], value); err != nil {
				return err
			}
			if !s.eat(',') {
				if !s.eat('}') {
					return errNotList
				}
				break
			}
		}
		if s.eat(']') {
			return nil
		}
		if !s.eat(',') {
			return errNotList
		}
	}
}

var errNotList = errors.New("the answer is not a list of JSON objects")

// scanner finds where JSON values end.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

func (s *scanner) eat(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// value returns the text of the next value.
func (s *scanner) value() ([]byte, bool) {
	s.space()
	start, depth := s.i, 0
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '"':
			if !s.text() {
				return nil, false
			}
			if depth == 0 {
				return s.b[start:s.i], true
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return s.b[start:s.i], s.i > start
			}
			if depth--; depth == 0 {
				s.i++
				return s.b[start:s.i], true
			}
		case ',', ':', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return s.b[start:s.i], s.i > start
			}
		}
		s.i++
	}
	return nil, false
}

// text reads over a string.
func (s *scanner) text() bool {
	for s.i++; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case '\\':
			s.i++
		case '"':
			s.i++
			return true
		}
	}
	return false
}

// rawText decodes a JSON string, rawInt a whole number.
func rawText(b []byte) (string, error) {
	if n := len(b); n >= 2 && b[0] == '"' && b[n-1] == '"' {
		plain := true
		for _, c := range b[1 : n-1] {
			plain = plain && c >= ' ' && c < 0x80 && c != '\\'
		}
		if plain {
			return string(b[1 : n-1]), nil
		}
	}
	var s string
	err := json.Unmarshal(b, &s)
	return s, err
}

func rawInt(b []byte) (int64, error) { return strconv.ParseInt(string(b), 10, 64) }
