package registryd

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// tokenVerifier trusts tokens (JSON web tokens) of one issuer, signed by a key of a set, or
// by a certificate that one of a bundle vouches for.
type tokenVerifier struct {
	realm, service, issuer string
	algorithms             []string
	roots                  *x509.CertPool
	keys                   map[string]crypto.PublicKey // by key id
	now                    func() time.Time
}

// tokenLeeway is how far the issuer's clock may be from ours.
const tokenLeeway = time.Minute

// maxToken is how long a token may be; servers of names in thousands issue some of 8 KiB.
const maxToken = 32 << 10

func allAlgorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

func newTokenVerifier(c *TokenConfig) (*tokenVerifier, error) {
	v := &tokenVerifier{realm: c.Realm, service: c.Service, issuer: c.Issuer, roots: x509.NewCertPool(), keys: map[string]crypto.PublicKey{}, now: time.Now}
	v.algorithms = allAlgorithms()
	if len(c.SigningAlgorithms) > 0 {
		v.algorithms = c.SigningAlgorithms
		for _, a := range v.algorithms {
			if !slices.Contains(allAlgorithms(), a) {
				return nil, fmt.Errorf("signing algorithm %q is not supported", a)
			}
		}
	}
	if c.RootCertBundle != "" {
		if err := v.readBundle(c.RootCertBundle); err != nil {
			return nil, err
		}
	}
	if c.JWKS != "" {
		if err := v.readKeys(c.JWKS); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *tokenVerifier) readBundle(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	n := 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		v.roots.AddCert(cert)
		v.keys[fingerprint(cert)] = cert.PublicKey
		n++
	}
	if n == 0 {
		return fmt.Errorf("%s has no certificate", path)
	}
	return nil
}

// fingerprint is the id that issuers give to a certificate's key: 240 bits of its
// SHA-256 in base 32, in groups of four.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	s := base32.StdEncoding.EncodeToString(sum[:30])
	var parts []string
	for i := 0; i < len(s); i += 4 {
		parts = append(parts, s[i:i+4])
	}
	return strings.Join(parts, ":")
}

type jwk struct {
	Kty, Kid, Crv, N, E, X, Y string
}

func (v *tokenVerifier) readKeys(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var set struct{ Keys []jwk }
	if err := json.Unmarshal(b, &set); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, k := range set.Keys {
		key, err := k.public()
		if err != nil {
			return fmt.Errorf("%s: key %q: %w", path, k.Kid, err)
		}
		v.keys[k.Kid] = key
	}
	if len(set.Keys) == 0 {
		return fmt.Errorf("%s has no key", path)
	}
	return nil
}

func (k *jwk) public() (crypto.PublicKey, error) {
	part := func(s string) []byte { b, _ := base64.RawURLEncoding.DecodeString(s); return b }
	switch k.Kty + k.Crv {
	case "RSA":
		e := new(big.Int).SetBytes(part(k.E))
		key := &rsa.PublicKey{N: new(big.Int).SetBytes(part(k.N)), E: int(e.Int64())}
		if key.N.BitLen() < 2048 || !e.IsInt64() || key.E < 3 {
			return nil, errors.New("it is no RSA key of at least 2048 bits")
		}
		return key, nil
	case "ECP-256", "ECP-384", "ECP-521":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[k.Crv]
		size := (curve.Params().BitSize + 7) / 8
		point := make([]byte, 1+2*size)
		x, y := part(k.X), part(k.Y)
		if len(x) != size || len(y) != size {
			return nil, errors.New("its point has the wrong length")
		}
		point[0] = 4
		copy(point[1:], x)
		copy(point[1+size:], y)
		return ecdsa.ParseUncompressedPublicKey(curve, point)
	case "OKPEd25519":
		if x := part(k.X); len(x) == ed25519.PublicKeySize {
			return ed25519.PublicKey(x), nil
		}
	}
	return nil, errors.New("its type is not supported")
}

// claims are what a token says.
type claims struct {
	Issuer    string          `json:"iss"`
	Subject   string          `json:"sub"`
	Audience  json.RawMessage `json:"aud"` // a string or a list
	Expires   float64         `json:"exp"`
	NotBefore float64         `json:"nbf"`
	Access    []struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	} `json:"access"`
}

func (c *claims) allows(a access) bool {
	for _, x := range c.Access {
		if x.Type == a.kind && x.Name == a.name && (slices.Contains(x.Actions, a.action) || slices.Contains(x.Actions, "*")) {
			return true
		}
	}
	return false
}

// verify checks a token's signature, issuer, audience and times.
func (v *tokenVerifier) verify(token string) (*claims, error) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return nil, errToken
	}
	var raw [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(p, "="))
		if err != nil {
			return nil, errToken
		}
		raw[i] = b
	}
	var h struct {
		Alg  string   `json:"alg"`
		Kid  string   `json:"kid"`
		X5c  []string `json:"x5c"`
		Crit []string `json:"crit"`
	}
	if err := json.Unmarshal(raw[0], &h); err != nil || len(h.Crit) > 0 || !slices.Contains(v.algorithms, h.Alg) {
		return nil, errToken
	}
	key, err := v.key(h.Kid, h.X5c)
	if err != nil {
		return nil, err
	}
	if !verifySignature(h.Alg, key, []byte(parts[0]+"."+parts[1]), raw[2]) {
		return nil, errToken
	}
	var c claims
	d := json.NewDecoder(bytes.NewReader(raw[1]))
	if err := d.Decode(&c); err != nil {
		return nil, errToken
	}
	now := v.now()
	if c.Issuer != v.issuer || !audience(c.Audience, v.service) ||
		float64(now.Add(-tokenLeeway).Unix()) >= c.Expires || float64(now.Add(tokenLeeway).Unix()) < c.NotBefore {
		return nil, errToken
	}
	return &c, nil
}

func audience(raw json.RawMessage, service string) bool {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return one == service
	}
	var list []string
	return json.Unmarshal(raw, &list) == nil && slices.Contains(list, service)
}

// key finds the signer's key: by the chain of certificates in the token, or by its id.
func (v *tokenVerifier) key(kid string, chain []string) (crypto.PublicKey, error) {
	if len(chain) == 0 {
		if k, ok := v.keys[kid]; ok {
			return k, nil
		}
		return nil, errToken
	}
	if len(chain) > 10 {
		return nil, errToken
	}
	var leaf *x509.Certificate
	between := x509.NewCertPool()
	for i, s := range chain {
		der, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			return nil, errToken
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, errToken
		}
		if i == 0 {
			leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: v.roots, Intermediates: between, CurrentTime: v.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, errToken
	}
	return leaf.PublicKey, nil
}

func verifySignature(alg string, key crypto.PublicKey, text, sig []byte) bool {
	if alg == "EdDSA" {
		k, ok := key.(ed25519.PublicKey)
		return ok && ed25519.Verify(k, text, sig)
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]]
	w := hash.New()
	w.Write(text)
	sum := w.Sum(nil)
	switch alg[:2] {
	case "RS":
		k, ok := key.(*rsa.PublicKey)
		return ok && rsa.VerifyPKCS1v15(k, hash, sum, sig) == nil
	case "PS":
		k, ok := key.(*rsa.PublicKey)
		return ok && rsa.VerifyPSS(k, hash, sum, sig, nil) == nil
	case "ES":
		k, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return false
		}
		bits := map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[alg]
		size := (bits + 7) / 8
		if k.Curve.Params().BitSize != bits || len(sig) != 2*size {
			return false
		}
		return ecdsa.Verify(k, sum, new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:]))
	}
	return false
}

func (v *tokenVerifier) authorize(w http.ResponseWriter, r *http.Request, needs []access) (string, error) {
	problem := ""
	if s, ok := bearer(r); ok {
		c, err := v.verify(s)
		if err == nil {
			if !slices.ContainsFunc(needs, func(a access) bool { return !c.allows(a) }) {
				return c.Subject, nil
			}
			problem = "insufficient_scope"
		} else {
			problem = "invalid_token"
		}
	}
	challenge(w, v.realm, v.service, needs, problem)
	return "", unauthorized(needs)
}

// mayMount wants a right to pull. Without a repository nothing is mounted: whose content
// it is could be learned by asking.
func (v *tokenVerifier) mayMount(r *http.Request, from string) bool {
	s, _ := bearer(r)
	c, err := v.verify(s)
	return err == nil && from != "" && c.allows(access{"repository", from, "pull"})
}
