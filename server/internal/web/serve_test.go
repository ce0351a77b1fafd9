package web

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A server that shuts down gives the answer that is under way, says that it is the last where it has not said more yet, and waits for
// nothing else.
func TestShutdownWaitsForAnswersAndForNobodyElse(t *testing.T) {
	for _, begunToAnswer := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			begun, goOn := make(chan struct{}), make(chan struct{})
			body := strings.Repeat("answer", shortAnswer)
			h := func(w http.ResponseWriter, r *http.Request) {
				rest := body
				if begunToAnswer {
					w.Header().Set("Content-Length", strconv.Itoa(len(body)))
					_, _ = io.WriteString(w, body[:2*shortAnswer])
					rest = body[2*shortAnswer:]
				}
				close(begun)
				<-goOn
				_, _ = io.WriteString(w, rest)
			}
			s := NewServer(http.HandlerFunc(h), quiet())
			connect, end := onPipes(s, nil)
			idle, idleEnd := net.Pipe()
			busy, busyEnd := net.Pipe()
			connect(idleEnd)
			connect(busyEnd)
			if _, err := io.WriteString(busy, simpleRequest); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReaderSize(busy, 10*shortAnswer)
			if begunToAnswer {
				if _, err := in.Peek(2 * shortAnswer); err != nil {
					t.Fatal(err)
				}
			}
			<-begun
			down := make(chan error, 1)
			go func() { down <- s.Shutdown(t.Context()) }()
			asked := time.Now()
			if n, err := idle.Read(make([]byte, 1)); err != io.EOF || time.Since(asked) > 0 {
				t.Errorf("a connection that waits is not closed: %d, %v, after %v", n, err, time.Since(asked))
			}
			synctest.Wait()
			select {
			case err := <-down:
				t.Errorf("the server is down while an answer is under way: %v", err)
			default:
			}
			close(goOn)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.Close == begunToAnswer {
				t.Fatalf("the last answer: %+v, %v", resp, err)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != body || err != nil {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if err := <-down; err != nil || time.Since(asked) > 0 {
				t.Errorf("down after %v: %v", time.Since(asked), err)
			}
			if err := end(); !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
			if err := s.Serve(newPipeListener(), nil); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("a server that is down serves: %v", err)
			}
		})
	}
}

// Of ConnState hangs whose place another connection may have.
func TestALaneSaysWhenItServes(t *testing.T) {
	var states []http.ConnState
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "answer") }), quiet())
		client, server := net.Pipe()
		s.ConnState = func(conn net.Conn, state http.ConnState) {
			if conn != server {
				t.Errorf("told of %v, which was not accepted", conn)
			}
			states = append(states, state)
		}
		connect, end := onPipes(s, nil)
		connect(server)
		in := bufio.NewReader(client)
		for _, request := range []string{simpleRequest, simpleRequest, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
			if _, err := io.WriteString(client, request); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			synctest.Wait()
		}
		client.Close()
		synctest.Wait()
		_ = end()
	})
	want := []http.ConnState{http.StateActive, http.StateIdle, http.StateActive, http.StateIdle, http.StateNew, http.StateActive, http.StateIdle, http.StateClosed}
	if !slices.Equal(states, want) {
		t.Errorf("%v, want %v", states, want)
	}
}

// Who leaves the s out is told, and not met with bytes of TLS.
func TestPlainHTTPWhereHTTPSIsSpokenIsTold(t *testing.T) {
	secure, _ := secured(t)
	for sent, told := range map[string]bool{"GET / HTTP/1.1\r\nHost: x\r\n\r\n": true, "POST /x HTTP/1.1\r\n\r\n": true, "\x00\x01nonsense": false} {
		client, server := net.Pipe()
		connect, end := onPipes(NewServer(http.NotFoundHandler(), quiet()), secure)
		connect(server)
		go func() { _, _ = io.WriteString(client, sent) }() // what is left of it nobody reads
		_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, _ := io.ReadAll(client)
		if strings.HasPrefix(string(b), "HTTP/1.0 400") != told || strings.Contains(string(b), "write https://") != told {
			t.Errorf("%q is answered with %q", sent, b)
		}
		client.Close()
		_ = end()
	}
}

// Whoever shakes no hands is not waited for.
func TestShutdownWaitsForNoHandshake(t *testing.T) {
	secure, _ := secured(t)
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(http.NotFoundHandler(), quiet())
		connect, end := onPipes(s, secure)
		client, server := net.Pipe()
		connect(server)
		synctest.Wait()
		began := time.Now()
		if err := s.Shutdown(t.Context()); err != nil || time.Since(began) > 0 {
			t.Errorf("down after %v: %v", time.Since(began), err)
		}
		client.Close()
		_ = end()
	})
}

// Whoever reads nothing of what net/http sends him does not hold up the end.
func TestTheEndWaitsForNobodyWhoReadsNothing(t *testing.T) {
	secure, trusting := secured(t)
	f := newFake()
	digest := f.add("bms", "1.0.0", testImage(1, 8_000_000))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stalled := make(chan struct{}, 3)
	s := NewServer(New(Config{Fleet: f, Log: quiet()}), quiet())
	s.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateActive {
			stalled <- struct{}{}
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l, secure) // ends with Close
	}()
	for range 3 {
		conn, err := tls.Dial("tcp", l.Addr().String(), trusting)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.NetConn().Close()
		if _, err := io.WriteString(conn, "GET /firmware/"+digest+".bin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-stalled
	}
	stacks, waits := make([]byte, 4<<20), 0
	for began := time.Now(); waits < 20; time.Sleep(10 * time.Millisecond) { // all of them, and for good
		if waits++; strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "web.socket.room") < 3 {
			waits = 0
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal("nobody waits for room")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Shutdown(ctx) // has no time for anything
		_ = s.Close()
	}()
	select {
	case <-ended:
	case <-time.After(4 * time.Second): // the alert of one takes 5
		t.Error("the server waits for those who read nothing")
	}
	<-done
}

// While a server shuts down nothing new is begun on a connection that was handed on either.
func TestShutdownEndsWhatWasHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, goOn := make(chan struct{}), make(chan struct{})
		s := NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/" {
				close(slow)
				<-goOn
			}
			_, _ = io.WriteString(w, "answer")
		}), quiet())
		connect, end := onPipes(s, nil)
		lane, laneEnd := net.Pipe()
		other, otherEnd := net.Pipe()
		connect(laneEnd)
		connect(otherEnd)
		if _, err := io.WriteString(lane, simpleRequest); err != nil {
			t.Fatal(err)
		}
		<-slow
		in := bufio.NewReader(other)
		ask := func() (*http.Response, error) {
			if _, err := io.WriteString(other, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				return nil, err
			}
			resp, err := http.ReadResponse(in, nil)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			return resp, err
		}
		if resp, err := ask(); err != nil || resp.Close {
			t.Fatalf("%+v, %v", resp, err)
		}
		synctest.Wait()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		if resp, err := ask(); err == nil {
			t.Errorf("a server that shuts down answers what is new: %+v", resp)
		}
		close(goOn)
		if _, err := http.ReadResponse(bufio.NewReader(lane), nil); err != nil {
			t.Error(err)
		}
		lane.Close()
		if err := <-down; err != nil {
			t.Error(err)
		}
		_ = end()
		other.Close()
	})
}
