package device

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bmsota/protocol"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// network is a network in memory: names to what listens there.
type network struct {
	mu        sync.Mutex
	listeners map[string]func(net.Conn)
	dials     atomic.Int64
	fail      atomic.Bool
}

func (n *network) dial(_ context.Context, _, addr string) (net.Conn, error) {
	n.dials.Add(1)
	n.mu.Lock()
	accept := n.listeners[addr]
	n.mu.Unlock()
	if accept == nil || n.fail.Load() {
		return nil, fmt.Errorf("%s: no route", addr)
	}
	near, hop := net.Pipe()
	hop2, far := net.Pipe()
	go relay(hop, hop2)
	go relay(hop2, hop)
	go accept(far)
	return near, nil
}

// relay gives a pipe what TCP has: whoever writes need not wait for the reader.
func relay(from, to net.Conn) {
	queue := make(chan []byte, 256)
	go func() {
		defer to.Close()
		for b := range queue {
			if _, err := to.Write(b); err != nil {
				from.Close()
				for range queue {
				}
			}
		}
	}()
	defer close(queue)
	for {
		b := make([]byte, 2048)
		n, err := from.Read(b)
		if err != nil {
			return
		}
		queue <- b[:n]
	}
}

// pipeListener is a net.Listener fed by dial.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) offer(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// authority makes a CA and certificates for the names.
func authority(t testing.TB, names ...string) (caPEM []byte, cert tls.Certificate) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// listener sees what passes through the broker.
type tap struct {
	mqtt.HookBase
	mu       sync.Mutex
	statuses map[string][]protocol.Status // by topic
	clients  map[string]int
}

func (*tap) ID() string { return "tap" }
func (*tap) Provides(b byte) bool {
	return b == mqtt.OnPublish || b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck
}
func (*tap) OnACLCheck(*mqtt.Client, string, bool) bool { return true }
func (h *tap) OnConnectAuthenticate(c *mqtt.Client, p packets.Packet) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients[c.ID]++
	return string(p.Connect.Password) == "secret-"+string(p.Connect.Username)
}

func (h *tap) OnPublish(_ *mqtt.Client, p packets.Packet) (packets.Packet, error) {
	if s, err := protocol.ParseStatus(p.Payload); err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.statuses[p.TopicName] = append(h.statuses[p.TopicName], s)
	}
	return p, nil
}

// site is a broker and a firmware server over TLS, in memory.
type site struct {
	net    *network
	broker *mqtt.Server
	tap    *tap
	http   *http.Server
	ln     *pipeListener
	ca     []byte
	wg     sync.WaitGroup
}

func newSite(t testing.TB, s *server) *site {
	ca, cert := authority(t, "broker.example", "fw.example")
	st := &site{net: &network{listeners: map[string]func(net.Conn){}}, tap: &tap{statuses: map[string][]protocol.Status{}, clients: map[string]int{}}, ca: ca, ln: newPipeListener()}
	st.broker = mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := st.broker.AddHook(st.tap, nil); err != nil {
		t.Fatal(err)
	}
	if err := st.broker.Serve(); err != nil {
		t.Fatal(err)
	}
	tc := &tls.Config{Certificates: []tls.Certificate{cert}}
	st.net.listeners["broker.example:8883"] = func(c net.Conn) {
		st.wg.Add(1)
		defer st.wg.Done()
		st.broker.EstablishConnection("memory", tls.Server(c, tc))
	}
	st.net.listeners["fw.example:443"] = st.ln.offer
	st.http = overHTTP(s)
	st.wg.Go(func() { st.http.Serve(tls.NewListener(st.ln, tc)) })
	return st
}

// overHTTP is s as a server of net/http.
func overHTTP(s *server) *http.Server {
	return &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := s.RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		if _, err := io.Copy(w, resp.Body); errors.Is(err, errLine) {
			panic(http.ErrAbortHandler)
		}
	}), ErrorLog: log.New(io.Discard, "", 0)}
}

func (st *site) close() {
	st.broker.Close()
	st.http.Close()
	st.wg.Wait()
}

func (st *site) configs(id, key string) (ota, mq []byte) {
	cert, _ := json.Marshal(string(st.ca))
	ota = fmt.Appendf(nil, `{"server_url":"https://fw.example/firmware/firmware.bin","cert_pem":%s,"auto_rollback_enabled":true%s}`, cert, key)
	mq = fmt.Appendf(nil, `{"broker_host":"broker.example","broker_port":8883,"username":%q,"password":%q,"qos":1,"tls":true,"ca_pem":%s}`, id, "secret-"+id, cert)
	return ota, mq
}

// TestUpdateOverTLSAndARealBroker runs the whole path as bytes: MQTT and HTTPS over TLS to a broker and a server, in
// memory, with a retained command and a last will.
func TestUpdateOverTLSAndARealBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
		s := serve(t, release(t, next, key), next)
		s.cut, s.cuts = 100<<10, 2
		st := newSite(t, s)
		ota, mq := st.configs("bms-abcdef", trusting(t, key))
		l := Layout{Image: old, OTAConfig: ota, MQTTConfig: mq, MAC: [6]byte{2, 0, 0, 0xab, 0xcd, 0xef}}
		if err := st.broker.Publish("bms/ota/command", []byte(`{"action":"update","id":"all"}`), true, 1); err != nil {
			t.Fatal(err)
		}
		b := newBench(t, l, s, func(c *Config) { c.Transport, c.newLink, c.Dial = nil, nil, st.net.dial })
		b.on()
		b.settle(5 * time.Minute)
		topic := "bms/ota/status/bms-abcdef"
		all := st.tap.statuses[topic]
		if len(all) == 0 {
			t.Fatal("no status at all")
		}
		if last := all[len(all)-1]; last.ImageSHA256 != sha(next) || last.Phase != protocol.PhaseIdle {
			t.Errorf("ends as %s with %s: %s", last.Phase, last.CurrentVersion, last.Message)
		}
		seq := uint64(0)
		boot := ""
		for _, s := range all {
			if s.BootID == boot && s.Seq <= seq {
				t.Errorf("sequence number %d after %d in one boot", s.Seq, seq)
			}
			boot, seq = s.BootID, s.Seq
		}
		for id, n := range st.tap.clients {
			if id != "bms-abcdef" && id != "inline" {
				t.Errorf("client id %q, connected %d times", id, n)
			}
		}
		// A command far beyond the limit is refused by its reason, and costs the session nothing.
		if err := st.broker.Publish("bms/ota/command/bms-abcdef", make([]byte, 1<<20), false, 1); err != nil {
			t.Fatal(err)
		}
		b.settle(10 * time.Second)
		all = st.tap.statuses[topic]
		if last := all[len(all)-1]; last.Reason != protocol.ReasonOversize {
			t.Errorf("a command of 1 MiB is answered %s:%s", last.Phase, last.Reason)
		}
		// The broker goes away and comes back: so does the board.
		n := st.net.dials.Load()
		cl, _ := st.broker.Clients.Get("bms-abcdef")
		cl.Stop(errors.New("test"))
		b.settle(5 * time.Minute)
		if got := st.net.dials.Load(); got == n {
			t.Error("the board does not come back to its broker")
		}
		if err := b.off(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		st.close()
	})
}

// TestServerThatProvesNothing: with verification a server under another authority is refused, with a reason of its own;
// without, which the configuration must ask for, TLS is spoken to anybody and plain http is allowed.
func TestServerThatProvesNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(string) string
		want   string
	}{
		{"verified", func(s string) string { return s }, "failed:tls_failed"},
		{"not verified", func(s string) string {
			return strings.Replace(s, `"auto_rollback`, `"skip_cert_verification":true,"auto_rollback`, 1)
		}, "idle:update_available"},
		{"plain http, not verified", func(s string) string {
			return strings.Replace(strings.Replace(s, `"auto_rollback`, `"skip_cert_verification":true,"auto_rollback`, 1), "https://", "http://", 1)
		}, "idle:update_available"},
		{"plain http, verified", func(s string) string { return strings.Replace(s, "https://", "http://", 1) }, "idle:bad_config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, next := image(t, "1.0.0"), image(t, "1.1.0")
				s := serve(t, release(t, next, nil), next)
				st := newSite(t, s)
				open := newPipeListener()
				st.net.listeners["fw.example:80"] = open.offer
				st.wg.Go(func() { st.http.Serve(open) })
				_, mq := st.configs("bms-abcdef", "")
				st.ca, _ = authority(t, "fw.example")
				ota, _ := st.configs("bms-abcdef", "")
				l := Layout{Image: old, OTAConfig: []byte(c.change(string(ota))), MQTTConfig: mq, MAC: [6]byte{2, 0, 0, 0xab, 0xcd, 0xef}}
				b := newBench(t, l, s, func(cfg *Config) { cfg.Transport, cfg.newLink, cfg.Dial = nil, nil, st.net.dial })
				b.on()
				b.settle(10 * time.Second)
				if err := st.broker.Publish("bms/ota/command", []byte(`{"action":"check"}`), false, 1); err != nil {
					t.Fatal(err)
				}
				b.settle(10 * time.Minute)
				all := st.tap.statuses["bms/ota/status/bms-abcdef"]
				if last := all[len(all)-1]; string(last.Phase)+":"+string(last.Reason) != c.want {
					t.Errorf("ends as %s:%s %s, want %s", last.Phase, last.Reason, last.Message, c.want)
				}
				b.off()
				synctest.Wait()
				st.close()
			})
		})
	}
}

// TestFleetUpdatesTogether: 200 boards of one flash in one process.
func TestFleetUpdatesTogether(t *testing.T) {
	const count = 200
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		old, next := image(t, "1.0.0"), image(t, "1.1.0", quarterMiB)
		s := serve(t, release(t, next, key), next)
		h := newHub()
		h.retain(`{"action":"update"}`)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		f, err := NewFleet(FleetConfig{Layout: layout(old, trusting(t, key)), Count: count, Spread: time.Minute,
			Board: Config{Seed: 42, Transport: s, newLink: h.link, strict: true}})
		if err != nil {
			t.Fatal(err)
		}
		each := func() int64 {
			runtime.GC()
			runtime.ReadMemStats(&after)
			return int64(after.HeapAlloc-before.HeapAlloc) / count
		}
		perBoard := each()
		t.Logf("%d KiB per board before it is switched on", perBoard>>10)
		if perBoard > 64<<10 {
			t.Errorf("a board takes %d bytes before it is switched on", perBoard)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// Each has written the whole image. Were it the board's own, that alone would be more than what is allowed here.
		if perBoard := each(); perBoard > 160<<10 {
			t.Errorf("a board takes %d bytes after the update", perBoard)
		} else {
			t.Logf("%d KiB per board after the update", perBoard>>10)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		last := map[string]protocol.Status{}
		for _, s := range h.all() {
			last[s.DeviceID] = s
		}
		if len(last) != count {
			t.Errorf("%d boards spoke, want %d", len(last), count)
		}
		for id, s := range last {
			if s.ImageSHA256 != sha(next) {
				t.Errorf("%s runs %s", id, s.CurrentVersion)
			}
		}
		f.Close()
	})
}

func BenchmarkWholeUpdate(b *testing.B) {
	key := newKey(b)
	old, next := image(b, "1.0.0"), image(b, "1.1.0", quarterMiB)
	f := release(b, next, key)
	flash, err := Build(layout(old, trusting(b, key)))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(next)))
	for b.Loop() {
		h := newHub()
		h.retain(`{"action":"update"}`)
		ctx, cancel := context.WithCancel(context.Background())
		board, err := Open(Config{Flash: flash, Transport: serve(b, f, next), newLink: h.link,
			Timing: Timing{Boot: time.Microsecond, Frame: time.Microsecond},
			OnStatus: func(s protocol.Status) {
				if s.Reason == protocol.ReasonUpToDate {
					cancel()
				}
			}})
		if err != nil {
			b.Fatal(err)
		}
		if err := board.Run(ctx); err != nil {
			b.Fatal(err)
		}
		if h.last().ImageSHA256 != sha(next) {
			b.Fatal(h.phases())
		}
		cancel()
	}
}
