package broker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

var _ Handler = (*fleet.Fleet)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// account is one login the fake fleet knows.
type account struct {
	secret  string
	id      fleet.Identity
	revoked bool
}

// fakeFleet keeps the Handler's contract in memory and writes down what it was told, in order.
type fakeFleet struct {
	mu       sync.Mutex
	accounts map[string]account
	events   []string // "fold dev shared payload", "order by device retained payload", "connected dev", …

	changed chan struct{} // closed and replaced at every event

	onFold  func(device string, payload []byte) error // nil = readable statuses are taken
	onOrder func(payload []byte) ([]byte, error)
	onAuth  func(name string) error
}

func newFleet(devices ...string) *fakeFleet {
	f := &fakeFleet{changed: make(chan struct{}), accounts: map[string]account{
		"olga": {secret: "olga-secret", id: fleet.Identity{Name: "olga", Role: fleet.RoleOperator}},
	}}
	for _, d := range devices {
		f.accounts[d] = account{secret: d + "-secret", id: fleet.Identity{Name: d, Role: fleet.RoleDevice}}
	}
	return f
}

func (f *fakeFleet) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf(format, args...))
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits for an event that begins with prefix, in tests with a real network.
func (f *fakeFleet) until(t testing.TB, prefix string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if f.count(prefix) > 0 {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("did not happen: %s; told %q", prefix, f.seen())
		}
	}
}

func (f *fakeFleet) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

func (f *fakeFleet) count(prefix string) (n int) {
	for _, e := range f.seen() {
		if strings.HasPrefix(e, prefix) {
			n++
		}
	}
	return n
}

func (f *fakeFleet) revoke(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.accounts[name]
	a.revoked = true
	f.accounts[name] = a
}

func (f *fakeFleet) Authenticate(_ context.Context, name, secret string) (fleet.Identity, error) {
	if f.onAuth != nil {
		if err := f.onAuth(name); err != nil {
			return fleet.Identity{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.accounts[name]
	if !ok || a.revoked || a.secret != secret {
		return fleet.Identity{}, fmt.Errorf("log in %q: %w", name, fleet.ErrDenied)
	}
	return a.id, nil
}

// AuthenticateCertificate takes the certificate whose fingerprint is the device's secret.
func (f *fakeFleet) AuthenticateCertificate(ctx context.Context, name, sha256 string) (fleet.Identity, error) {
	return f.Authenticate(ctx, name, sha256)
}

func (f *fakeFleet) Fold(_ context.Context, device string, shared bool, payload []byte) error {
	if f.onFold != nil {
		if err := f.onFold(device, payload); err != nil {
			return err
		}
	}
	if _, err := protocol.ParseStatus(payload); err != nil {
		return err
	}
	f.note("fold %s %t %s", device, shared, payload)
	return nil
}

func (f *fakeFleet) Order(_ context.Context, by fleet.Identity, device string, retained bool, payload []byte) ([]byte, error) {
	f.note("order %s %q %t %s", by.Name, device, retained, payload)
	if f.onOrder != nil {
		return f.onOrder(payload)
	}
	if retained && len(payload) == 0 {
		return payload, nil
	}
	cmd, err := protocol.ParseCommand(payload)
	if err != nil {
		return nil, err
	}
	cmd.ID = "id-1"
	return cmd.Append(nil)
}

func (f *fakeFleet) Connected(_ context.Context, device string) error {
	f.note("connected %s", device)
	return nil
}

func (f *fakeFleet) Disconnected(_ context.Context, device string) error {
	f.note("disconnected %s", device)
	return nil
}

func (f *fakeFleet) Contested(device string, addresses []string, times int) {
	f.note("contested %s %v %d", device, addresses, times)
}

// pipeListener hands out the far ends of net.Pipe, so that tests run without a network and inside synctest.
type pipeListener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (l *pipeListener) dial(t testing.TB) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	select {
	case l.ch <- far:
	case <-l.done:
		t.Fatal("dial: broker is closed")
	}
	return near
}

// rig is a running broker over pipes.
type rig struct {
	*Embedded
	t    testing.TB
	ln   *pipeListener
	stop func() error // ends Run and returns its error; idempotent
}

func start(t testing.TB, h Handler, change func(*Config)) *rig {
	t.Helper()
	ln := newPipeListener()
	cfg := Config{Handler: h, Plain: ln}
	if change != nil {
		change(&cfg)
	}
	e, err := NewEmbedded(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return &rig{Embedded: e, t: t, ln: ln, stop: stop}
}

// client is a raw MQTT peer: what a test sends is what goes out, what it reads is what came.
type client struct {
	t testing.TB
	net.Conn
	r       *bufio.Reader
	version byte
	acked   packets.Packet // CONNACK
}

// login describes a CONNECT. Zero fields: 3.1.1, clean, keepalive 60.
type login struct {
	name, secret, id string
	version          byte
	keepalive        uint16
	persistent       bool
	will             *packets.Packet
	props            packets.Properties
	noKeepalive      bool
}

func (l login) packet() packets.Packet {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: l.version, Properties: l.props}
	pk.Connect = packets.ConnectParams{
		ProtocolName: []byte("MQTT"), Clean: !l.persistent, ClientIdentifier: l.id, Keepalive: l.keepalive,
		UsernameFlag: l.name != "", Username: []byte(l.name), PasswordFlag: l.secret != "", Password: []byte(l.secret),
	}
	if l.will != nil {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, l.will.TopicName, l.will.Payload
		pk.Connect.WillQos, pk.Connect.WillRetain = l.will.FixedHeader.Qos, l.will.FixedHeader.Retain
	}
	return pk
}

// connect logs in and returns the client with the CONNACK read, whatever it says.
func (r *rig) connect(l login) *client {
	r.t.Helper()
	return connectOver(r.t, r.ln.dial(r.t), l)
}

func connectOver(t testing.TB, nc net.Conn, l login) *client {
	t.Helper()
	if l.version == 0 {
		l.version = 4
	}
	if l.keepalive == 0 && !l.noKeepalive {
		l.keepalive = 60
	}
	c := &client{t: t, Conn: nc, r: bufio.NewReader(nc), version: l.version}
	t.Cleanup(func() { _ = nc.Close() })
	c.send(l.packet())
	c.acked = c.recv()
	if c.acked.FixedHeader.Type != packets.Connack {
		t.Fatalf("answer to CONNECT is of type %d", c.acked.FixedHeader.Type)
	}
	return c
}

// device and operator log in and insist.
func (r *rig) device(name string) *client {
	r.t.Helper()
	return r.must(login{name: name, secret: name + "-secret", id: name})
}

func (r *rig) operator() *client {
	r.t.Helper()
	return r.must(login{name: "olga", secret: "olga-secret", id: "cli"})
}

func (r *rig) must(l login) *client {
	r.t.Helper()
	c := r.connect(l)
	if c.acked.ReasonCode != 0 {
		r.t.Fatalf("login of %s: CONNACK %d", l.name, c.acked.ReasonCode)
	}
	return c
}

func encode(t testing.TB, pk packets.Packet) []byte {
	t.Helper()
	var buf bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&buf)
	case packets.Publish:
		err = pk.PublishEncode(&buf)
	case packets.Puback:
		err = pk.PubackEncode(&buf)
	case packets.Pubrel:
		err = pk.PubrelEncode(&buf)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&buf)
	case packets.Pingreq:
		err = pk.PingreqEncode(&buf)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&buf)
	default:
		err = fmt.Errorf("type %d", pk.FixedHeader.Type)
	}
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return buf.Bytes()
}

func (c *client) send(pk packets.Packet) {
	c.t.Helper()
	if err := c.trySend(pk); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) trySend(pk packets.Packet) error {
	pk.ProtocolVersion = c.version
	_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
	_, err := c.Write(encode(c.t, pk))
	return err
}

// recv reads one packet and fails the test when none comes.
func (c *client) recv() packets.Packet {
	c.t.Helper()
	pk, err := c.next(20 * time.Second)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return pk
}

func (c *client) next(patience time.Duration) (pk packets.Packet, err error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	first, err := c.r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	if pk.FixedHeader.Remaining, _, err = packets.DecodeLength(c.r); err != nil {
		return pk, err
	}
	body := make([]byte, pk.FixedHeader.Remaining)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return pk, err
	}
	pk.ProtocolVersion = c.version
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

// ended insists that the broker closes the connection, whatever it says before that.
func (c *client) ended() {
	c.t.Helper()
	for {
		_, err := c.next(20 * time.Second)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatal("connection still stands")
		}
		if err != nil {
			return
		}
	}
}

// sync insists that everything sent so far was handled and nothing came in answer but the ping's.
func (c *client) sync() {
	c.t.Helper()
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	if pk := c.recv(); pk.FixedHeader.Type != packets.Pingresp {
		c.t.Fatalf("got a packet of type %d on %q, want none", pk.FixedHeader.Type, pk.TopicName)
	}
}

func publish(topic, payload string, qos byte, retain bool, id uint16) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: retain},
		TopicName: topic, Payload: []byte(payload), PacketID: id}
}

func subscribe(id uint16, qos byte, filters ...string) packets.Packet {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	return pk
}

// subscribed subscribes and returns the codes granted.
func (c *client) subscribed(id uint16, qos byte, filters ...string) []byte {
	c.t.Helper()
	c.send(subscribe(id, qos, filters...))
	pk := c.recv()
	if pk.FixedHeader.Type != packets.Suback || pk.PacketID != id {
		c.t.Fatalf("answer to SUBSCRIBE is of type %d", pk.FixedHeader.Type)
	}
	// What is retained goes out after SUBACK. A status that is published in between would come twice: retained and live.
	synctest.Wait()
	return pk.ReasonCodes
}

// status is a readable status of a phase.
func status(phase protocol.Phase) string {
	code, _ := phase.Code()
	b, err := protocol.Status{Status: code, Phase: phase, CurrentVersion: "1.0.0"}.Append(nil)
	if err != nil {
		panic(err)
	}
	return string(b)
}

var errListener = errors.New("listener is broken")

// netListener is an address and a fault.
type netListener struct{ addr string }

func (l *netListener) Accept() (net.Conn, error) { return nil, errListener }
func (l *netListener) Close() error              { return nil }
func (l *netListener) Addr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", l.addr)
	if err != nil {
		panic(err)
	}
	return a
}
