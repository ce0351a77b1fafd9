package server

import (
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// caller is one end of a connection from an address, which knows whether it was closed.
type caller struct {
	net.Conn
	addr   string
	closed bool
}

func (c *caller) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.addr), Port: 40000} }
func (c *caller) Close() error         { c.closed = true; return nil }

// TestConnectionsThatServeNoRequestGiveWay: the oldest of the address that has most of them, and never one that serves a
// request; where all do, the new one waits for the first that rests. One address gets half, loopback all.
func TestConnectionsThatServeNoRequestGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b, c = "192.0.2.1", "192.0.2.2", "2001:db8::1"
		p := newPlaces(6)
		ended := make(chan struct{})
		come := func(addr string) (*placedConn, *caller) {
			raw := &caller{addr: addr}
			return p.take(raw, ended), raw
		}
		var calls []*caller
		var placed []*placedConn
		for _, addr := range []string{a, a, a, b, b, c} {
			conn, raw := come(addr)
			placed, calls = append(placed, conn), append(calls, raw)
		}
		p.state(placed[0], http.StateActive) // the oldest of the loudest, but at work
		p.state(placed[5], http.StateActive)
		if conn, _ := come("2001:db8:1::1"); conn == nil || !calls[1].closed && !calls[3].closed || calls[0].closed || calls[5].closed {
			t.Fatalf("%v: %+v", conn, calls)
		}
		// One address has half at most: a fourth takes the place of one of its own that serves nothing, or none.
		half := newPlaces(6)
		own := func() *placedConn { return half.take(&caller{addr: a}, ended) }
		first := own()
		half.state(own(), http.StateActive)
		half.state(own(), http.StateActive)
		if fourth := own(); fourth == nil || first.placed || half.open != 3 {
			t.Errorf("%v; the first has a place: %t; %d places", fourth, first.placed, half.open)
		} else {
			half.state(fourth, http.StateActive)
		}
		if own() != nil {
			t.Error("one address has more than half of the places")
		}
		// Where all work, who comes waits until one rests.
		full := newPlaces(2)
		one, two := full.take(&caller{addr: a}, ended), full.take(&caller{addr: b}, ended)
		full.state(one, http.StateActive)
		full.state(two, http.StateActive)
		got := make(chan *placedConn)
		go func() { got <- full.take(&caller{addr: c}, ended) }()
		time.Sleep(time.Hour)
		select {
		case <-got:
			t.Fatal("a connection at work gave way")
		default:
		}
		full.state(one, http.StateIdle)
		if <-got == nil || !one.Conn.(*caller).closed || two.Conn.(*caller).closed {
			t.Error("not the connection that rests gave way")
		}
		_ = one.Close() // whose place has gone already
		if full.open != 2 {
			t.Errorf("%d places are taken, of 2", full.open)
		}
		// A proxy on this machine gets every place.
		for _, addr := range []string{"127.0.0.1", "::1"} {
			alone := newPlaces(4)
			for range 4 {
				if conn := alone.take(&caller{addr: addr}, ended); conn == nil {
					t.Errorf("%s does not get every place", addr)
				} else {
					alone.state(conn, http.StateActive)
				}
			}
		}
	})
}

// TestASilentCrowdHoldsUpNobodyElse: when every place is taken by connections that say nothing, one more of theirs is closed at
// once instead of standing before the others, and who comes from elsewhere gets in.
func TestASilentCrowdHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlaces(20)
		ended := make(chan struct{})
		for i := range 20 {
			if p.take(&caller{addr: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}[i%4]}, ended) == nil {
				t.Fatal("no place")
			}
		}
		began := time.Now()
		more := &caller{addr: "192.0.2.1"}
		if p.take(more, ended) != nil || !more.closed {
			t.Error("one more of the crowd waits for a place")
		}
		if p.take(&caller{addr: "198.51.100.1"}, ended) == nil {
			t.Error("the crowd keeps others out")
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}
