package broker

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"sync"
	"testing"

	"bmsota/protocol"
)

// silent is a Handler that takes everything and keeps nothing.
type silent struct{ *fakeFleet }

func (silent) Fold(ctx context.Context, _ string, _ bool, _ []byte) error { return ctx.Err() }
func (silent) Connected(context.Context, string) error                    { return nil }
func (silent) Disconnected(context.Context, string) error                 { return nil }
func (silent) Contested(string, []string, int)                            {}

// BenchmarkConnect is a TCP connect, a login and a farewell.
func BenchmarkConnect(b *testing.B) {
	ln := loopback(b)
	start(b, silent{newFleet("d1")}, func(c *Config) { c.Plain = ln })
	for i := 0; b.Loop(); i++ {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		c := connectOver(b, nc, login{name: "d1", secret: "d1-secret", id: strconv.Itoa(i % 2)})
		_ = c.Close()
	}
}

// BenchmarkConnectTLS adds a full handshake.
func BenchmarkConnectTLS(b *testing.B) {
	cert, pool := selfSigned(b)
	ln := loopback(b)
	start(b, silent{newFleet("d1")}, func(c *Config) {
		c.Plain, c.Secure, c.TLS = nil, ln, &tls.Config{Certificates: []tls.Certificate{cert}}
	})
	for i := 0; b.Loop(); i++ {
		nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: pool})
		if err != nil {
			b.Fatal(err)
		}
		c := connectOver(b, nc, login{name: "d1", secret: "d1-secret", id: strconv.Itoa(i % 2)})
		_ = c.Close()
	}
}

// BenchmarkStatus is one status at QoS 1 from one of 8 devices over loopback, until its PUBACK.
func BenchmarkStatus(b *testing.B) {
	ln := loopback(b)
	var names []string
	for i := range 8 {
		names = append(names, "d"+strconv.Itoa(i))
	}
	r := start(b, silent{newFleet(names...)}, func(c *Config) { c.Plain, c.StatusRate, c.StatusBurst = ln, 1<<29, 1<<30 })
	r.Embedded.packetInterval = 0
	payload := status(protocol.PhaseDownloading)
	var mu sync.Mutex
	next := 0
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		mu.Lock()
		name := names[next]
		next++
		mu.Unlock()
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		c := connectOver(b, nc, login{name: name, secret: name + "-secret", id: name})
		out := encode(b, publish("bms/ota/status/"+name, payload, 1, true, 1))
		for pb.Next() {
			if _, err := c.Write(out); err != nil {
				b.Error(err)
				return
			}
			c.recv()
		}
	})
}
