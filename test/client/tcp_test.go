package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// sign writes NAME.pem and NAME-key.pem.
func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem":     {Type: "CERTIFICATE", Bytes: der},
		name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// flags are those of a side that has the certificate of this name.
func (a *authority) flags(name string) []string {
	return []string{"--tlsverify", "--tlscacert", a.file("ca.pem"), "--tlscert", a.file(name + ".pem"), "--tlskey", a.file(name + "-key.pem")}
}

// over runs a client with another DOCKER_HOST, where the engine's ports are.
func over(e *enginetest.Engine, c *enginetest.Client, host string, args ...string) (string, error) {
	cmd := c.Command(args...)
	cmd.Env = append(cmd.Env, "DOCKER_HOST="+host)
	cmd.Stdin = strings.NewReader("through the wire\n")
	cmd.WaitDelay = time.Second
	var out []byte
	err := e.Inside(func() (err error) {
		// A client that waits forever is killed.
		timer := time.AfterFunc(30*time.Second, func() {
			if cmd.Process != nil {
				_ = cmd.Process.Kill()
			}
		})
		defer timer.Stop()
		out, err = cmd.CombinedOutput()
		return err
	})
	return string(out), err
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	ours.sign("server", &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	for _, a := range []*authority{ours, other} {
		a.sign("client", &x509.Certificate{
			Subject: pkix.Name{CommonName: "client"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
	}
	const host = "tcp://127.0.0.1:2376"
	e := enginetest.Start(t, enginetest.WithArgs(append(ours.flags("server"), "-H", host)...))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		out, err := over(e, c, host, append(ours.flags("client"), "run", "--rm", "-i", "--network", "none", img, "cat")...)
		if err != nil || out != "through the wire\n" {
			t.Errorf("with a certificate: %v, %q", err, out)
		}
		stranger := []string{"--tlsverify", "--tlscacert", ours.file("ca.pem"), "--tlscert", other.file("client.pem"), "--tlskey", other.file("client-key.pem")}
		for name, tc := range map[string]struct {
			flags []string
			text  string
		}{
			"without a certificate":     {[]string{"--tlsverify", "--tlscacert", ours.file("ca.pem")}, "certificate"},
			"with another's":            {stranger, ""},
			"that trusts another":       {other.flags("client"), "certificate"},
			"without TLS":               {nil, "HTTP request to an HTTPS server"},
			"with a certificate, no CA": {[]string{"--tlsverify", "--tlscacert", ours.file("none.pem")}, "none.pem"},
		} {
			if out, err := over(e, c, host, append(tc.flags, "ps")...); err == nil || !strings.Contains(out, tc.text) {
				t.Errorf("a client %s: %v, %s; want a failure with %q", name, err, out, tc.text)
			}
		}
		// The local socket needs no certificate.
		c.Must("ps")
	})
}

func TestTCP(t *testing.T) {
	t.Parallel()
	const host = "tcp://127.0.0.1:2375"
	e := enginetest.Start(t, enginetest.WithArgs("-H", host))
	e.Each(t, func(t *testing.T, c *enginetest.Client) {
		out, err := over(e, c, host, "run", "--rm", "-i", "--network", "none", img, "cat")
		if err != nil || out != "through the wire\n" {
			t.Errorf("%v, %q", err, out)
		}
	})
}

// The service manager opens the socket and passes it.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "be") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "activated")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	e := enginetest.Start(t, enginetest.WithListener(f))
	check := func(t *testing.T, c *enginetest.Client) {
		t.Helper()
		if out, err := over(e, c, "unix://"+path, "version", "--format", "{{.Server.Version}}"); err != nil || strings.TrimSpace(out) == "" {
			t.Errorf("version: %v, %s", err, out)
		}
		if out, err := over(e, c, "unix://"+path, "run", "--rm", "-i", "--network", "none", img, "cat"); err != nil || out != "through the wire\n" {
			t.Errorf("run: %v, %s", err, out)
		}
	}
	e.Each(t, check)
	e.StopDaemon()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the engine has removed a socket that is not its own: %v", err)
	}
	e.StartDaemon()
	e.Each(t, check)
}
