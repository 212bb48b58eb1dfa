package survive

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/internal/enginetest"
)

// Published ports and names do not notice that the engine is killed and started again,
// twenty times: no new connection fails, none that is open ends.
func TestNetworkSurvives(t *testing.T) {
	t.Parallel()
	e := enginetest.Start(t)
	c := e.Client("berth")
	c.Must("network", "create", "net")
	c.Must("run", "-d", "--name", "web", "--network", "net", "-p", "8080:80", "-p", "8007:7", enginetest.Image, "sh", "-c",
		"mkdir /w; echo hello > /w/index.html; exec httpd -f -p 0.0.0.0:80 -h /w")
	c.Must("run", "-d", "--name", "asker", "--network", "net", enginetest.Image, "sh", "-c", "while sleep 0.05; do ping -c1 -W1 web >/dev/null || echo lost; done")
	var echo net.Listener
	if err := c.Inside("web")(func() (err error) { echo, err = net.Listen("tcp4", ":7"); return err }); err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		if conn, err := echo.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	dial := func(addr string) (conn net.Conn, err error) {
		err = e.Inside(func() error { conn, err = net.DialTimeout("tcp4", addr, 5*time.Second); return err })
		return conn, err
	}
	get := func(addr string) error {
		conn, err := dial(addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		body, err := io.ReadAll(conn)
		if err == nil && len(body) == 0 {
			err = errors.New("an empty answer")
		}
		return err
	}
	var open net.Conn
	enginetest.Eventually(t, "the servers answer", func() bool {
		if open == nil {
			open, _ = dial("127.0.0.1:8007")
		}
		return open != nil && get("127.0.0.1:8080") == nil
	})
	defer open.Close()
	stop := make(chan struct{})
	errs := make(chan error, 2)
	var wg sync.WaitGroup
	loop := func(what string, f func() error) {
		wg.Go(func() {
			n := 0
			for {
				select {
				case <-stop:
					if n < 20 {
						errs <- fmt.Errorf("%s: only %d rounds", what, n)
					}
					return
				default:
				}
				if err := f(); err != nil {
					errs <- fmt.Errorf("%s, round %d: %w", what, n, err)
					return
				}
				n++
			}
		})
	}
	loop("a new connection", func() error { return get("127.0.0.1:8080") })
	loop("the open connection", func() error {
		_ = open.SetDeadline(time.Now().Add(5 * time.Second))
		buf := []byte("ping")
		if _, err := open.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(open, buf)
		time.Sleep(2 * time.Millisecond)
		return err
	})
	for range 20 {
		e.Kill9Daemon()
		time.Sleep(20 * time.Millisecond)
		e.StartDaemon()
	}
	close(stop)
	wg.Wait()
	select {
	case err := <-errs:
		t.Error(err)
	default:
	}
	if out := c.Must("logs", "asker"); out != "" {
		t.Errorf("names: %s", out)
	}
	if got := c.Must("port", "web", "80"); got != "0.0.0.0:8080\n[::]:8080" {
		t.Errorf("ports afterwards: %s", got)
	}
	_ = open.Close()
	c.Must("rm", "-f", "web", "asker")
	c.Must("network", "rm", "net")
}
