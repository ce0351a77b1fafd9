package device

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/device/internal/agent"
	"bmsota/protocol"
)

// bubbleStart is where the clock of a synctest bubble stands.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// hostOr is the name by which a board calls the server.
func (c chainCase) hostOr() string {
	if c.host == "" {
		return factoryHost
	}
	return c.host
}

// notTLS answers on a connection as a web server without TLS does, and hangs up after the board has.
func notTLS(conn net.Conn) {
	defer conn.Close()
	conn.Read(make([]byte, 1<<10))
	io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
	io.Copy(io.Discard, conn)
}

// webServer answers as s does.
func webServer(s *server) *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := s.RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}), ErrorLog: log.New(io.Discard, "", 0)}
}

// front serves s over TLS as tc says.
func front(s *server, tc *tls.Config) (offer func(net.Conn), stop func()) {
	ln, web := newPipeListener(), webServer(s)
	go web.Serve(tls.NewListener(ln, tc))
	return ln.offer, func() { web.Close() }
}

// TestCertificateFactory is a board against servers whose certificates, names or TLS are wrong in one way each: every one of them is
// refused as tls_failed, with a message that says what it is, and hears no request. Those that are right are not.
func TestCertificateFactory(t *testing.T) {
	f := newFactory(t, bubbleStart)
	refused := 0
	for _, c := range f.cases() {
		if !c.good {
			refused++
		}
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := image(t, "1.1.0")
				s := serve(t, release(t, next, nil), next)
				var heard atomic.Int64
				s.answer = func(*http.Request) *http.Response { heard.Add(1); return nil }
				offer, stop := front(s, c.config())
				if c.plain {
					stop()
					offer = notTLS
				}
				nw := &network{listeners: map[string]func(net.Conn){c.hostOr() + ":443": offer}}
				l := layout(image(t, "1.0.0"), "")
				l.OTAConfig = fmt.Appendf(nil, `{"server_url":"https://%s/firmware/firmware.bin","cert_pem":%q}`, c.hostOr(), c.trusted(f))
				b := newBench(t, l, s, func(cfg *Config) { cfg.Transport, cfg.Dial = nil, nw.dial })
				b.on()
				b.settle(5 * time.Second)
				b.hub.order(`{"action":"check"}`)
				b.settle(5 * time.Minute)
				b.off()
				stop()
				synctest.Wait()
				last := b.hub.last()
				got, want := fmt.Sprintf("%s:%s", last.Phase, last.Reason), "failed:tls_failed"
				if c.good {
					want = "idle:update_available"
				}
				if got != want || !strings.Contains(last.Message, c.detail) || (heard.Load() > 0) != c.good {
					t.Errorf("ends as %s after %d requests, %q; want %s with %q", got, heard.Load(), last.Message, want, c.detail)
				}
			})
		})
	}
	if refused < 50 {
		t.Errorf("%d chains and hosts are refused, at least 50 are meant to be", refused)
	}
}

// TestCertificateFactoryOfBrokers is the same for the session with a broker, to which the board's token goes: a broker that
// does not prove itself is not told it, nor anything else.
func TestCertificateFactoryOfBrokers(t *testing.T) {
	f := newFactory(t, bubbleStart)
	for _, c := range f.cases() {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard atomic.Int64
				nw := &network{listeners: map[string]func(net.Conn){c.hostOr() + ":8883": func(conn net.Conn) {
					defer conn.Close()
					if c.plain {
						notTLS(conn)
						return
					}
					n, _ := tls.Server(conn, c.config()).Read(make([]byte, 1<<10))
					heard.Add(int64(n))
				}}}
				link := agent.NewMQTT(agent.LinkConfig{DeviceID: "bms-abcdef", Trust: new(agent.Trust), Dial: nw.dial, Rand: rand.New(rand.NewPCG(1, 1)),
					MQTT:     protocol.MQTTConfig{BrokerHost: c.hostOr(), BrokerPort: 8883, TLS: true, CAPEM: c.trusted(f), Username: "bms-abcdef", Password: "token"},
					MaxPause: time.Minute, Log: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithCancel(t.Context())
				var trouble error
				link.Run(ctx, agent.LinkEvents{Reached: func() {}, Up: func() { t.Error("a session stands") }, Command: func([]byte, bool) {},
					Down: func(err error) { trouble = err; cancel() }})
				synctest.Wait()
				if c.good {
					if heard.Load() == 0 {
						t.Errorf("a good broker hears nothing: %v", trouble)
					}
					return
				}
				detail := strings.Replace(c.detail, "gave HTTP response", "does not look like a TLS handshake", 1)
				if heard.Load() > 0 || trouble == nil || !strings.Contains(trouble.Error(), detail) {
					t.Errorf("the broker heard %d bytes, the board says %v, want %q", heard.Load(), trouble, detail)
				}
			})
		})
	}
}
