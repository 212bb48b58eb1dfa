package resolvconf

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParse(t *testing.T) {
	const in = `# a comment
nameserver 127.0.0.53
nameserver fe80::1%eth0
nameserver nonsense
domain old.example
search a.example b.example
options edns0 ndots:2
; another
options timeout:3
sortlist 130.155.160.0/255.255.240.0
`
	c := Parse(in)
	want := "nameserver 127.0.0.53\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions edns0 ndots:2 timeout:3\nsortlist 130.155.160.0/255.255.240.0\n"
	if got := c.Text(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestDots(t *testing.T) {
	for in, want := range map[string]string{
		"":                "options ndots:0\n",
		"options ndots:2": "options ndots:2\n",
		"options ndots:x": "options ndots:0\n",
		"options ndots:":  "options ndots:0\n",
		"options ndots":   "options ndots:0\n",
		"options edns0":   "options edns0 ndots:0\n",
	} {
		c := Parse(in)
		c.Dots("0")
		if got := c.Text(); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A file is read again once it has changed, and its absence is no error.
func TestChanges(t *testing.T) {
	p := filepath.Join(t.TempDir(), "resolv.conf")
	t.Setenv(pathVariable, p)
	look := func(want string) {
		t.Helper()
		c := Host()
		if got := c.Text(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	look("")
	for _, text := range []string{"nameserver 10.0.0.1\n", "nameserver 10.0.0.22\n"} {
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		look(text)
	}
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	look("")
}
