package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"
)

// way is a board's way to its server, as TCP makes it look: what is lost is late, until the way is whole again.
type way struct {
	inner *network

	mu       sync.Mutex
	up, down bool          // lost towards the server, towards the board
	name     error         // what a name resolves to instead of an address
	changed  chan struct{} // closed and replaced at every change
}

func (w *way) set(change func(*way)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
	close(w.changed)
	w.changed = make(chan struct{})
}

// passes waits until what lost says is false; false when done is closed first.
func (w *way) passes(lost func() bool, done <-chan struct{}) bool {
	for {
		w.mu.Lock()
		stopped, changed := lost(), w.changed
		w.mu.Unlock()
		if !stopped {
			return true
		}
		select {
		case <-changed:
		case <-done:
			return false
		}
	}
}

func (w *way) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	err := w.name
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if !w.passes(func() bool { return w.up || w.down }, ctx.Done()) {
		return nil, ctx.Err()
	}
	c, err := w.inner.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &lateConn{Conn: c, way: w, closed: make(chan struct{})}, nil
}

type lateConn struct {
	net.Conn
	way    *way
	once   sync.Once
	closed chan struct{}
}

func (c *lateConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.way.passes(func() bool { return c.way.down }, c.closed) {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *lateConn) Write(p []byte) (int, error) {
	if !c.way.passes(func() bool { return c.way.up }, c.closed) {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *lateConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestWayThatIsLostIsWaitedOut: in both directions, in one, and the name of the server; before the order and in the middle
// of the download. The board switches nothing meanwhile, fails nothing, and is done within three tries after it is well.
func TestWayThatIsLostIsWaitedOut(t *testing.T) {
	key := newKey(t)
	old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
	ca, cert := authority(t, "fw.example")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for name, fault := range map[string]func(*way){
		"partition":            func(w *way) { w.up, w.down = true, true },
		"lost to the server":   func(w *way) { w.up = true },
		"lost from the server": func(w *way) { w.down = true },
		"no such name": func(w *way) {
			w.name = &net.DNSError{Err: "no such host", Name: "fw.example", IsNotFound: true}
		},
	} {
		for _, under := range []string{"before the check", "in the download"} {
			t.Run(name+" "+under, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := serve(t, release(t, next, key), next)
					ln, srv := newPipeListener(), overHTTP(s)
					go srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}))
					w := &way{inner: &network{listeners: map[string]func(net.Conn){"fw.example:443": ln.offer}}, changed: make(chan struct{})}
					b := newBench(t, layout(old, trusting(t, key)), s, func(c *Config) {
						c.Transport, c.Dial, c.Roots = nil, w.dial, roots
					})
					b.on()
					b.settle(5 * time.Second)
					if under == "before the check" {
						w.set(fault)
					} else {
						s.set(func(s *server) {
							s.respond = func(r *http.Request, body []byte) *http.Response {
								// Half of it comes; a connection that stands and one that is made anew meet the fault.
								s.respond, s.cut, s.cuts = nil, 128<<10, 1
								w.set(fault)
								return s.file(r, body)
							}
						})
					}
					b.hub.order(update)
					b.settle(8 * time.Minute)
					if len(b.boots) != 1 || strings.Contains(b.hub.phases(), "failed") {
						t.Fatalf("while the way is lost: %s, boots %v", b.hub.phases(), b.boots)
					}
					w.set(func(w *way) { w.up, w.down, w.name = false, false, nil })
					b.settle(3 * time.Minute) // three of the longest pauses
					b.wantRunning(next)
					b.off()
					srv.Close()
					synctest.Wait()
				})
			})
		}
	}
}

// TestReleaseThatChangesBetweenCheckAndDownload: where images are kept by digest the promised one is installed; where one
// file replaces the other, what came is not what was promised, nothing is started, and the next order takes the new one.
func TestReleaseThatChangesBetweenCheckAndDownload(t *testing.T) {
	key := newKey(t)
	old, first, second := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB), image(t, "1.2.0", quarterMiB)
	for _, kept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := release(t, first, key)
			if !kept {
				f.URL = "firmware.bin"
			}
			s := serve(t, f, first)
			g := release(t, second, key)
			g.URL = f.URL
			if kept {
				g.URL = sha(second) + ".bin"
			}
			body, err := g.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			// It changes while the second half is on its way.
			s.cut, s.cuts = 128<<10, 1
			s.respond = func(r *http.Request, image []byte) *http.Response {
				resp := s.file(r, image)
				s.respond, s.version = nil, body
				s.files[sha(second)+".bin"], s.files["firmware.bin"] = second, second
				return resp
			}
			b := newBench(t, layout(old, trusting(t, key)), s)
			updated(b, 10*time.Minute)
			if kept {
				b.wantRunning(first)
			} else if last := b.hub.last(); last.Phase != protocol.PhaseFailed || len(b.boots) != 1 {
				t.Errorf("another file under the promised one's address: %s, boots %v", b.hub.phases(), b.boots)
			}
			updated(b, 10*time.Minute)
			b.wantRunning(second)
		})
	}
}
