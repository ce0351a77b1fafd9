package server

import (
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
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

// short has nothing to take a connection with for some times, and says so in turn.
type short struct {
	net.Listener
	errs []error
}

func (s *short) Accept() (net.Conn, error) {
	if len(s.errs) == 0 {
		return &caller{addr: "127.0.0.1"}, nil
	}
	err := s.errs[0]
	if len(s.errs) > 1 || !passes(err) {
		s.errs = s.errs[1:]
	}
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
}

func (s *short) Addr() net.Addr { return &net.TCPAddr{} }
func (s *short) Close() error   { return nil }

func TestAShortageIsNoEndOfAListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		l := newPatientListener(&short{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, errFilesWindows, errBuffersWindows, syscall.EBADF}}, quiet())
		if _, err := l.Accept(); !errors.Is(err, syscall.EBADF) {
			t.Errorf("what does not pass: %v", err)
		}
		if waited := time.Since(began); waited != (5+10+20+40+80)*time.Millisecond {
			t.Errorf("it tried again for %v", waited)
		}
		if conn, err := l.Accept(); conn == nil || err != nil {
			t.Errorf("after the shortage: %v", err)
		}
		l = newPatientListener(&short{errs: []error{syscall.ENOMEM}}, quiet()) // for good
		ended := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			ended <- err
		}()
		time.Sleep(time.Minute)
		l.Close()
		l.Close()
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed amid a shortage: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("it tries on after it was closed")
		}
	})
}
