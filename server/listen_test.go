package server

import (
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
)

// pipes is a listener on which a client is always waiting.
type pipes struct{ net.Listener }

func (pipes) Accept() (net.Conn, error) {
	return &caller{addr: "127.0.0.1"}, nil
}

func (pipes) Close() error { return nil }

func TestConnectionsAboveTheNumberWaitForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(2)
		l := newBoundedListener(pipes{}, p)
		accepted := make(chan net.Conn)
		ended := make(chan error)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					ended <- err
					return
				}
				p.state(c, http.StateActive)
				accepted <- c
			}
		}()
		first, second := <-accepted, <-accepted
		synctest.Wait()
		select {
		case <-accepted:
			t.Fatal("a third connection got a place")
		default:
		}
		first.Close()
		first.Close() // gives its place back once
		third := <-accepted
		synctest.Wait()
		select {
		case <-accepted:
			t.Fatal("one connection gave two places back")
		default:
		}
		l.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a listener that was closed says %v", err)
		}
		l.Close()
		second.Close()
		third.Close()
	})
}

func TestAddressesAsPeopleWriteThem(t *testing.T) {
	for _, c := range []struct {
		host string
		port int
		want string
	}{
		{"a.example", 443, "a.example"}, {"a.example", 8443, "a.example:8443"}, {"fd00::5", 443, "[fd00::5]"}, {"fd00::5", 8443, "[fd00::5]:8443"}, {"10.0.0.1", 443, "10.0.0.1"},
	} {
		if got := hostPort(c.host, c.port, 443); got != c.want {
			t.Errorf("%s %d: %s, want %s", c.host, c.port, got, c.want)
		}
	}
}
