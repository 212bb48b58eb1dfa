package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"

	"berth.dev/berth/internal/errs"
)

var errNoBasic = errors.New("no basic auth credentials")

// challenge is one WWW-Authenticate (RFC 9110, section 11.6.1).
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

// challenges reads the challenges of an answer. Those that make no sense are left out.
func challenges(h http.Header) []challenge {
	var list []challenge
	for _, v := range h.Values("WWW-Authenticate") {
		if len(v) > 8<<10 {
			continue
		}
		scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
		c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
		for rest = strings.TrimLeft(rest, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
			key, after, ok := strings.Cut(rest, "=")
			if !ok {
				break
			}
			var val string
			if after, ok = strings.CutPrefix(after, `"`); ok {
				var b strings.Builder
				i := 0
				for ; i < len(after) && after[i] != '"'; i++ {
					if after[i] == '\\' && i+1 < len(after) {
						i++
					}
					b.WriteByte(after[i])
				}
				val, rest = b.String(), after[min(i+1, len(after)):]
			} else {
				val, rest, _ = strings.Cut(after, ",")
				val = strings.TrimSpace(val)
			}
			c.params[strings.ToLower(strings.TrimSpace(key))] = val
		}
		if c.scheme == "basic" || c.scheme == "bearer" && c.params["realm"] != "" {
			list = append(list, c)
		}
	}
	// A token tells less than a password.
	slices.SortStableFunc(list, func(a, b challenge) int { return strings.Compare(b.scheme, a.scheme) })
	return list
}

// token is what a token service has given out.
type token struct {
	value   string
	expires time.Time
}

const (
	clientID     = "docker"
	minTokenLife = 60 * time.Second
	maxTokenBody = 1 << 20
	tokenLeeway  = 5 * time.Second
)

// authorize signs a request for this registry. Requests for others stay as they are.
func (r *Repository) authorize(ctx context.Context, req *http.Request, scopes []string) error {
	req.Header.Del("Authorization")
	if !sameOrigin(req.URL, r.ep.base) {
		return nil
	}
	if t := r.auth.RegistryToken; t != "" {
		req.Header.Set("Authorization", "Bearer "+t)
		return nil
	}
	r.mu.Lock()
	c := r.challenge
	r.mu.Unlock()
	switch c.scheme {
	case "basic":
		if r.auth.Username == "" || r.auth.Password == "" {
			return &url.Error{Op: verb(req.Method), URL: req.URL.Redacted(), Err: errNoBasic}
		}
		req.SetBasicAuth(r.auth.Username, r.auth.Password)
	case "bearer":
		t, err := r.token(ctx, c, scopes)
		if err != nil {
			return err
		}
		if t != "" {
			req.Header.Set("Authorization", "Bearer "+t)
		}
	}
	return nil
}

// token returns a token for scopes, of those at hand or a new one.
func (r *Repository) token(ctx context.Context, c challenge, scopes []string) (string, error) {
	key := strings.Join(scopes, " ")
	r.tokenMu.Lock() // one request for all that wait
	defer r.tokenMu.Unlock()
	if t, ok := r.tokens[key]; ok && time.Now().Add(tokenLeeway).Before(t.expires) {
		return t.value, nil
	}
	t, _, err := fetchToken(ctx, r.ep, c, &r.auth, scopes, false)
	if err != nil {
		return "", err
	}
	r.tokens[key] = t
	return t.value, nil
}

// forget drops the tokens: one was refused.
func (r *Repository) forget() {
	r.tokenMu.Lock()
	defer r.tokenMu.Unlock()
	clear(r.tokens)
}

// fetchToken asks the token service that a registry named. offline asks for a token
// that can be kept instead of a password; it is the second result.
func fetchToken(ctx context.Context, e *endpoint, c challenge, auth *registry.AuthConfig, scopes []string, offline bool) (token, string, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" {
		return token{}, "", errs.New(errs.Unavailable, "%s names an invalid token service", e.base.Host)
	}
	if err := checkLed(e.base, realm); err != nil {
		return token{}, "", errs.New(errs.Unavailable, "token service: %w", err)
	}
	realm.User, realm.Fragment = nil, ""
	req, err := tokenRequest(leading(ctx, e.base, realm), realm, c, auth, scopes, offline)
	if err != nil {
		return token{}, "", err
	}
	res, err := e.send(req)
	if err != nil {
		return token{}, "", err
	}
	if res.StatusCode != http.StatusOK {
		return token{}, "", answerError(res)
	}
	defer res.Body.Close()
	var doc struct {
		Token        string    `json:"token"`
		AccessToken  string    `json:"access_token"`
		RefreshToken string    `json:"refresh_token"`
		ExpiresIn    int       `json:"expires_in"`
		IssuedAt     time.Time `json:"issued_at"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxTokenBody)).Decode(&doc); err != nil {
		return token{}, "", errs.New(errs.Unavailable, "unable to decode token response: %w", err)
	}
	if doc.Token == "" {
		doc.Token = doc.AccessToken
	}
	if doc.Token == "" {
		return token{}, "", errs.New(errs.Unavailable, "authorization server did not include a token in the response")
	}
	life := max(time.Duration(min(doc.ExpiresIn, 1<<20))*time.Second, minTokenLife)
	return token{doc.Token, time.Now().Add(life)}, doc.RefreshToken, nil
}

func tokenRequest(ctx context.Context, realm *url.URL, c challenge, auth *registry.AuthConfig, scopes []string, offline bool) (*http.Request, error) {
	if auth.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "client_id": {clientID}, "refresh_token": {auth.IdentityToken}}
		if s := c.params["service"]; s != "" {
			form.Set("service", s)
		}
		if len(scopes) > 0 {
			form.Set("scope", strings.Join(scopes, " "))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	q := realm.Query()
	if s := c.params["service"]; s != "" {
		q.Set("service", s)
	}
	for _, s := range scopes {
		q.Add("scope", s)
	}
	if offline {
		q.Set("offline_token", "true")
		q.Set("client_id", clientID)
	}
	basic := auth.Username != "" && auth.Password != ""
	if basic {
		q.Set("account", auth.Username)
	}
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err == nil && basic {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	return req, err
}

// Login proves credentials, and returns a token to keep instead of a password where
// the registry gives one. The error of wrong ones is Unauthorized.
func (c *Client) Login(ctx context.Context, auth *registry.AuthConfig) (identity string, err error) {
	domain := Host(auth.ServerAddress)
	hosts, err := c.endpoints(ctx, domain, false)
	if err != nil {
		return "", err
	}
	r, err := open(ctx, hosts[0], "", auth, "")
	if err != nil {
		return "", err
	}
	at := r.ep.base.JoinPath("/v2/")
	if ch := r.challenge; ch.scheme == "bearer" {
		if _, identity, err = fetchToken(ctx, r.ep, ch, auth, nil, true); err != nil {
			var answer *Error
			if errors.As(err, &answer) && answer.Status < 500 {
				return "", errs.Wrap(errs.Unauthorized, &url.Error{Op: "Get", URL: at.String(), Err: err}, "")
			}
			return "", err
		}
		return identity, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return "", err
	}
	if r.challenge.scheme == "basic" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	res, err := r.ep.send(req)
	if err != nil {
		return "", err
	}
	_ = res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK:
		return "", nil
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return "", errs.New(errs.Unauthorized, "login attempt to %s failed with status: %s", at, res.Status)
	}
	return "", errs.New(errs.Unavailable, "login attempt to %s failed with status: %s", at, res.Status)
}

// Host is the domain in a server's address as it is stored: "https://index.docker.io/v1/"
// is docker.io.
func Host(server string) string {
	s := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	if s == "" || s == hubIndex || s == hubHost {
		return Hub
	}
	return s
}
