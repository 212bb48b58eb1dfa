package registryd

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// authenticator decides about requests. The implementations are htpasswd,
// tokenIssuer (htpasswd for those who have a password, pulls for all others) and tokenVerifier.
type authenticator interface {
	// authorize returns who asks, or an Error after it has set the challenge's headers.
	authorize(w http.ResponseWriter, r *http.Request, needs []access) (user string, err error)
	// mayMount tells whether a request may read a repository, or with "" all of them.
	mayMount(r *http.Request, from string) bool
}

func newAuthenticator(c *Config, log *slog.Logger) (authenticator, *tokenIssuer, error) {
	switch {
	case c.Auth.Token != nil:
		v, err := newTokenVerifier(c.Auth.Token)
		if err != nil {
			return nil, nil, fmt.Errorf("auth.token: %w", err)
		}
		return v, nil, nil
	case c.Auth.Htpasswd != nil:
		h := &htpasswd{realm: c.Auth.Htpasswd.Realm, path: c.Auth.Htpasswd.Path, log: log, turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
		if err := h.load(); err != nil {
			return nil, nil, fmt.Errorf("auth.htpasswd: %w", err)
		}
		if c.Auth.Anonymous == "" {
			return h, nil, nil
		}
		i := &tokenIssuer{h: h, host: c.HTTP.Host, tls: c.HTTP.TLS.Certificate != ""}
		i.key = make([]byte, 32)
		_, _ = rand.Read(i.key)
		if c.HTTP.Secret != "" { // servers behind one name take each other's tokens
			k := sha256.Sum256([]byte("token " + c.HTTP.Secret))
			i.key = k[:]
		}
		return i, i, nil
	}
	return nil, nil, nil
}

func unauthorized(needs []access) *Error {
	detail := []map[string]string{}
	for _, a := range needs {
		detail = append(detail, map[string]string{"Type": a.kind, "Name": a.name, "Action": a.action})
	}
	return fail(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", detail)
}

// htpasswd knows users by a file of names and bcrypt hashes, which is read again when it
// changes.
type htpasswd struct {
	realm, path string
	log         *slog.Logger

	mu    sync.Mutex
	at    time.Time // the file's
	size  int64
	users map[string][]byte
	known map[[32]byte]struct{} // name and password that were right, hashed with salt
	salt  [32]byte
	looks time.Time // when the file was last looked at

	// turns are those of checking a password, which is made to take long: guesses from
	// many connections leave other requests a processor.
	turns chan struct{}
}

const maxKnown = 10_000

// absent is a hash of nothing, compared so that a name that is not there takes as long.
const absent = "$2a$10$7EqJtq98hPqEX7fNZaFWoOHiFi2aXk8n9bOaFzAsX1oHqsQeQFmu6"

// load reads the file if it changed. It is called with mu held, or before others know h.
func (h *htpasswd) load() error {
	st, err := os.Stat(h.path)
	if err != nil {
		return err
	}
	if st.ModTime().Equal(h.at) && st.Size() == h.size {
		return nil
	}
	b, err := os.ReadFile(h.path)
	if err != nil {
		return err
	}
	users := map[string][]byte{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("%s:%d: this is not NAME:HASH", h.path, n)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return fmt.Errorf("%s:%d: the password of %s is not hashed by bcrypt (htpasswd -B)", h.path, n, name)
		}
		users[name] = []byte(hash)
	}
	h.users, h.at, h.size, h.known = users, st.ModTime(), st.Size(), map[[32]byte]struct{}{}
	_, _ = rand.Read(h.salt[:])
	return nil
}

func (h *htpasswd) check(user, password string) bool {
	h.mu.Lock()
	if time.Since(h.looks) > time.Second {
		h.looks = time.Now()
		if err := h.load(); err != nil {
			h.log.Error("the passwords cannot be read; those known go on", "err", err)
		}
	}
	hash, there := h.users[user]
	mac := hmac.New(sha256.New, h.salt[:])
	fmt.Fprintf(mac, "%d:%s:%s", len(user), user, password)
	var k [32]byte
	mac.Sum(k[:0])
	_, known := h.known[k]
	h.mu.Unlock()
	if known {
		return true
	}
	if !there {
		hash = []byte(absent)
	}
	h.turns <- struct{}{}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-h.turns
	if err != nil || !there {
		return false
	}
	h.mu.Lock()
	if len(h.known) >= maxKnown {
		clear(h.known)
	}
	if now := h.users[user]; string(now) == string(hash) {
		h.known[k] = struct{}{}
	}
	h.mu.Unlock()
	return true
}

func (h *htpasswd) authorize(w http.ResponseWriter, r *http.Request, needs []access) (string, error) {
	if user, password, ok := r.BasicAuth(); ok && h.check(user, password) {
		return user, nil
	}
	w.Header().Set("Www-Authenticate", fmt.Sprintf("Basic realm=%q", h.realm))
	return "", unauthorized(needs)
}

func (h *htpasswd) mayMount(*http.Request, string) bool { return true } // every user may read all

// tokenIssuer issues tokens to those whose password htpasswd knows, for everything, and
// to all others for pulls. A client is told of it by the challenge, as clients
// that have no password do not answer one for basic authentication.
type tokenIssuer struct {
	h    *htpasswd
	key  []byte
	host string
	tls  bool
}

const (
	tokenPath = "/auth/token"
	tokenLife = 5 * time.Minute
)

type ownToken struct {
	User    string `json:"u"` // "": nobody
	Expires int64  `json:"e"`
}

func (i *tokenIssuer) sign(t ownToken) string {
	b, _ := json.Marshal(t)
	m := hmac.New(sha256.New, i.key)
	m.Write(b)
	return base64.RawURLEncoding.EncodeToString(b) + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func (i *tokenIssuer) verify(s string) (t ownToken, ok bool) {
	a, b, _ := strings.Cut(s, ".")
	body, err := base64.RawURLEncoding.DecodeString(a)
	if err != nil {
		return t, false
	}
	sum, err := base64.RawURLEncoding.DecodeString(b)
	if err != nil {
		return t, false
	}
	m := hmac.New(sha256.New, i.key)
	m.Write(body)
	if !hmac.Equal(sum, m.Sum(nil)) || json.Unmarshal(body, &t) != nil {
		return t, false
	}
	return t, time.Now().Unix() < t.Expires
}

// serve answers GET /auth/token, and the form that is posted to it.
func (i *tokenIssuer) serve(w http.ResponseWriter, r *http.Request) error {
	t := ownToken{Expires: time.Now().Add(tokenLife).Unix()}
	user, password, given := r.BasicAuth()
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if r.PostFormValue("grant_type") != "password" {
			return fail(http.StatusBadRequest, "UNSUPPORTED", "only the grant type password is supported", nil)
		}
		user, password, given = r.PostFormValue("username"), r.PostFormValue("password"), true
	}
	if given {
		if !i.h.check(user, password) {
			return fail(http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password", nil)
		}
		t.User = user
	}
	s := i.sign(t)
	return writeJSON(w, "application/json", map[string]any{
		"token": s, "access_token": s, "expires_in": int(tokenLife.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

func (i *tokenIssuer) authorize(w http.ResponseWriter, r *http.Request, needs []access) (string, error) {
	if user, password, ok := r.BasicAuth(); ok && i.h.check(user, password) {
		return user, nil
	}
	problem := ""
	if s, ok := bearer(r); ok {
		t, ok := i.verify(s)
		onlyPulls := !slices.ContainsFunc(needs, func(a access) bool { return a.kind != "repository" || a.action != "pull" })
		switch {
		case ok && (t.User != "" || onlyPulls):
			return t.User, nil
		case ok:
			problem = "insufficient_scope"
		default:
			problem = "invalid_token"
		}
	}
	base := i.host
	if base == "" {
		scheme := "http"
		if i.tls || r.Header.Get("X-Forwarded-Proto") == "https" {
			scheme = "https"
		}
		base = scheme + "://" + r.Host
	}
	challenge(w, base+tokenPath, "registry", needs, problem)
	return "", unauthorized(needs)
}

func (i *tokenIssuer) mayMount(*http.Request, string) bool { return true } // everybody may read all

func bearer(r *http.Request) (string, bool) {
	kind, s, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(s), ok && strings.EqualFold(kind, "bearer")
}

// challenge tells a client where to get a token, and for what.
func challenge(w http.ResponseWriter, realm, service string, needs []access, problem string) {
	v := fmt.Sprintf("Bearer realm=%q,service=%q", realm, service)
	var scopes []string
	for i := 0; i < len(needs); {
		actions := []string{}
		j := i
		for ; j < len(needs) && needs[j].kind == needs[i].kind && needs[j].name == needs[i].name; j++ {
			actions = append(actions, needs[j].action)
		}
		scopes = append(scopes, needs[i].kind+":"+needs[i].name+":"+strings.Join(actions, ","))
		i = j
	}
	if len(scopes) > 0 {
		v += fmt.Sprintf(",scope=%q", strings.Join(scopes, " "))
	}
	if problem != "" {
		v += fmt.Sprintf(",error=%q", problem)
	}
	w.Header().Set("Www-Authenticate", v)
}

var errToken = errors.New("invalid token")
