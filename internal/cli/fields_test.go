package cli

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// The columns of the table read from the raw answer are those of a full decode.
func TestPsColumns(t *testing.T) {
	for _, in := range []string{
		`[]`, ` [ ] `, `[{}]`,
		`[{"Id":"0123456789abcdef","Names":["/a\u00e9","/x/\"y"],"Image":"busybox","ImageID":"sha256:00","Command":"sh -c \"echo \\\\ }]\"","Created":1700000000,
		  "Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}],"Labels":{"a":"}","b":"]"},"Status":"Up 2 minutes","HostConfig":{"NetworkMode":"bridge"},"X":[[],{}]},
		 {"Id":"é","Names":null,"Ports":null,"Extra":-1.5e3 , "Created" : 0}]`,
	} {
		var want []container.Summary
		if err := json.Unmarshal([]byte(in), &want); err != nil {
			t.Fatal(err)
		}
		got, err := psColumns([]byte(in))
		if err != nil || len(got) != len(want) {
			t.Fatal(in, got, err)
		}
		for i, w := range want {
			w = container.Summary{ID: w.ID, Names: w.Names, Image: w.Image, ImageID: w.ImageID, Command: w.Command, Created: w.Created, Ports: w.Ports, Status: w.Status}
			if !reflect.DeepEqual(got[i], w) {
				t.Errorf("%+v, want %+v", got[i], w)
			}
		}
	}
	for _, in := range []string{``, `{}`, `[`, `[{]`, `[{"Id"}]`, `[{"Id":}]`, `[{"Id":"x]`, `[{"Id":1}]`, `[{"Created":"x"}]`, `[{"a":[}]`, `[{"a":1}`, `[1]`, `[{"Id":"x"} {}]`} {
		if got, err := psColumns([]byte(in)); err == nil {
			t.Errorf("%s: %+v", in, got)
		}
	}
}

func FuzzEachField(f *testing.F) {
	f.Add([]byte(`[{"a":"b","c":[1,{"d":null}]}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var want []map[string]json.RawMessage
		valid := json.Unmarshal(b, &want) == nil
		n := 0
		err := eachField(b, func() { n++ }, func(_, _ []byte) error { return nil })
		if valid && want != nil && !hasNull(want) && (err != nil || n != len(want)) {
			t.Errorf("%q: %v %d", b, err, n)
		}
	})
}

// hasNull reports an element null, which is no object.
func hasNull(l []map[string]json.RawMessage) bool {
	for _, m := range l {
		if m == nil {
			return true
		}
	}
	return false
}

// The hand-written table is what the template makes.
func TestPsPlain(t *testing.T) {
	rows := []psRow{
		{s: container.Summary{ID: "0123456789abcdef", Names: []string{"/a"}, Image: "busybox", Command: "a very long command line with é in it", Created: 1, Status: "Up"}},
		{s: container.Summary{ID: "y", Names: []string{"/b", "/c/b"}, Command: "x\ty"}, full: true},
	}
	for n := range len(rows) + 1 {
		var want, got, ids, wantIDs testWriter
		if err := render(&want, "", psTable, psHeader, rows[:n]); err != nil {
			t.Fatal(err)
		}
		if err := psPlain(&got, false, rows[:n]); err != nil {
			t.Fatal(err)
		}
		if err := render(&wantIDs, "{{.ID}}", psTable, psHeader, rows[:n]); err != nil {
			t.Fatal(err)
		}
		if err := psPlain(&ids, true, rows[:n]); err != nil {
			t.Fatal(err)
		}
		if want.s != got.s || ids.s != wantIDs.s {
			t.Errorf("%q, want %q; %q, want %q", got.s, want.s, ids.s, wantIDs.s)
		}
		if got.n != 1 {
			t.Errorf("%d writes", got.n)
		}
	}
}

type testWriter struct {
	s string
	n int
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.s += string(p)
	w.n++
	return len(p), nil
}
