package broker

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/sync/errgroup"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// Limits that are no configuration, because no honest peer meets them.
const (
	maxPacket        = 8 << 10 // bytes of one MQTT packet; a status is at most 4 KiB, a command 512 bytes
	maxInflight      = 32      // unacknowledged QoS 1 and 2 messages, each way
	maxQueue         = 64      // packets that wait to be encoded for one connection; each costs 8 bytes of every session
	readAhead        = 512     // bytes read at once from a peer; the rest of a longer packet goes where it is decoded
	maxSubscriptions = 32      // of one operator session; a device has two topics
	maxSessions      = 4       // of one device: the original firmware opens three
	maxOperator      = 32      // sessions of one operator
	maxName          = 128     // bytes of user name and client identifier
	maxSecret        = 512     // bytes of password

	minKeepalive = 5 * time.Second
	maxKeepalive = 600 * time.Second

	packetInterval = 10 * time.Millisecond // of a device: 100 packets a second sustained,
	packetBurst    = 200                   // and so many at once; more are delayed
)

// Config is what an embedded broker needs. Zero values mean the defaults in the comments.
type Config struct {
	Handler Handler
	Topics  protocol.Topics
	// AcceptSeedStatus lets devices publish on the shared status topic; who speaks is then the MQTT login.
	AcceptSeedStatus bool

	// Secure carries MQTT over TLS with TLS, Plain carries MQTT as it is. Either may be nil, not both. The broker
	// closes both. Plain must be a loopback address unless PlainAnywhere is set.
	Secure        net.Listener
	TLS           *tls.Config // a peer whose certificate it verifies logs in by that, and needs no password
	Plain         net.Listener
	PlainAnywhere bool

	MaxClients         int           // sessions; 18,000, which leaves room below 20,000 open files
	MaxUnauthenticated int           // connections before their login; 1,024
	MaxFromOne         int           // the same, from one IPv4 address or IPv6 /64; 128
	ConnectTimeout     time.Duration // from accept to a complete CONNECT, TLS handshake included; 5 s
	WriteTimeout       time.Duration // of 16 KiB to a peer; 5 s
	HandlerTimeout     time.Duration // of a single call of Handler; 10 s
	CloseTimeout       time.Duration // for what is under way when Run ends; 5 s

	StatusRate  int // statuses a second of one device, sustained; 10. Beyond it QoS 0 is dropped, QoS 1 and 2 delayed
	StatusBurst int // statuses of one device at once; 50

	Log *slog.Logger // nil = none

	// TurnedAway is told of logins and topics that are refused, and of operators that log in; nil = nobody.
	TurnedAway func(fleet.Knock)
}

func (c Config) withDefaults() Config {
	c.MaxClients = cmp.Or(c.MaxClients, 18_000)
	c.MaxUnauthenticated = cmp.Or(c.MaxUnauthenticated, 1024)
	c.MaxFromOne = cmp.Or(c.MaxFromOne, 128)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 5*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 5*time.Second)
	c.HandlerTimeout = cmp.Or(c.HandlerTimeout, 10*time.Second)
	c.CloseTimeout = cmp.Or(c.CloseTimeout, 5*time.Second)
	c.StatusRate = cmp.Or(c.StatusRate, 10)
	c.StatusBurst = cmp.Or(c.StatusBurst, 50)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}

func (c Config) check() error {
	if c.Handler == nil {
		return errors.New("broker: no handler")
	}
	if c.Topics.Prefix != "" {
		if err := protocol.CheckPrefix(c.Topics.Prefix); err != nil {
			return fmt.Errorf("broker: %w", err)
		}
	}
	if c.Secure == nil && c.Plain == nil {
		return errors.New("broker: no listener")
	}
	if c.Secure != nil && c.TLS == nil {
		return errors.New("broker: a TLS listener without a TLS configuration")
	}
	if c.Plain != nil && !c.PlainAnywhere && !isLoopback(c.Plain.Addr()) {
		return fmt.Errorf("broker: plain MQTT on %s would show tokens to the network; allow it or use TLS", c.Plain.Addr())
	}
	for _, n := range []int{c.MaxClients, c.MaxUnauthenticated, c.MaxFromOne, c.StatusRate, c.StatusBurst} {
		if n < 0 {
			return errors.New("broker: a limit is negative")
		}
	}
	return nil
}

func isLoopback(addr net.Addr) bool {
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// Stats are counts since the start, for metrics. Sessions and Waiting are the current numbers.
type Stats struct {
	Sessions, Waiting int
	Banned            int    // addresses kept out now
	TurnedAway        uint64 // connections over a cap
	Refused           uint64 // logins refused
	Takeovers         uint64
	Contested         uint64 // reports of a login that is used in two places
	Denied            uint64 // topics refused
	StatusesDropped   uint64 // unreadable, or QoS 0 over the rate
	StatusesUnstored  uint64 // not acknowledged
	Panics            uint64
}

type counters struct {
	turnedAway, refused, takeovers, contested, denied, dropped, unstored, panics atomic.Uint64
}

// Embedded is a broker inside the server. Create it with NewEmbedded.
type Embedded struct {
	cfg    Config
	rights rights
	log    *slog.Logger
	srv    *mqtt.Server // never served: it owns no listener and no goroutine, see NewEmbedded
	gate   gate
	bans   bans
	noise  bucket // bounds what peers can write into the log
	count  counters

	packetInterval time.Duration // the constant, but for benchmarks

	work     context.Context // of every call of Handler; outlives Run's ctx by CloseTimeout
	stopWork context.CancelFunc
	handlers sync.WaitGroup // the goroutine of each connection

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
	live   map[string]*conn // by session id
	peers  map[fleet.Identity]*peer
	drops  uint64 // how often Drop was called
}

// NewEmbedded checks the configuration. It starts nothing; Send and Clear work from here on, because retained commands
// only have to be there when the first device comes.
func NewEmbedded(cfg Config) (*Embedded, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	e := &Embedded{
		cfg: cfg, log: cfg.Log, packetInterval: packetInterval,
		rights: rights{topics: cfg.Topics, seed: cfg.AcceptSeedStatus},
		gate:   gate{max: cfg.MaxUnauthenticated, maxEach: cfg.MaxFromOne, each: make(map[string]*list.List)},
		conns:  make(map[*conn]struct{}),
		live:   make(map[string]*conn),
		peers:  make(map[fleet.Identity]*peer),
	}
	e.work, e.stopWork = context.WithCancel(context.Background())

	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClients = int64(cfg.MaxClients)
	caps.MaximumPacketSize = maxPacket // the default of none lets five bytes claim 256 MiB
	caps.MaximumClientWritesPending = maxQueue
	caps.MaximumInflight = maxInflight
	caps.ReceiveMaximum = maxInflight
	caps.MaximumSessionExpiryInterval = 0
	caps.MaximumMessageExpiryInterval = 0 // the default deletes retained commands after a day
	caps.TopicAliasMaximum = 0            // mochi checks rights before it resolves an alias
	caps.Compatibilities.NoInheritedPropertiesOnAck = true
	// Serve is never called: its loop would publish $SYS, copy the list of clients each second, expire sessions
	// (without their subscriptions) and send wills past the rights. What remains of it is in sweep.
	e.srv = mqtt.New(&mqtt.Options{
		Capabilities:            caps,
		InlineClient:            true,
		ClientNetReadBufferSize: readAhead,
		Logger:                  slog.New(slog.DiscardHandler), // it logs whole packets, passwords included
	})
	if err := e.srv.AddHook(&hook{e: e}, nil); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return e, nil
}

// Run accepts connections until ctx ends or a listener fails. Then, in this order: no new connections; every packet
// under way is finished and answered; the rest is cut; nil, or what failed. It may be called once.
func (e *Embedded) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	listen := func(ln net.Listener, conf *tls.Config) {
		if ln == nil {
			return
		}
		e.log.Info("mqtt listening", "address", ln.Addr().String(), "tls", conf != nil)
		group.Go(func() error { return e.accept(ctx, ln, conf) })
		group.Go(func() error {
			<-ctx.Done()
			return ignoreClosed(ln.Close())
		})
	}
	listen(e.cfg.Secure, e.cfg.TLS)
	listen(e.cfg.Plain, nil)
	group.Go(func() error {
		e.sweep(ctx)
		return nil
	})
	err := group.Wait()
	return errors.Join(err, e.close())
}

// accept takes connections from ln. Running out of file handles is a state that passes, not an end.
func (e *Embedded) accept(ctx context.Context, ln net.Listener, conf *tls.Config) error {
	delay := time.Duration(0)
	for {
		raw, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
		case errors.Is(err, net.ErrClosed) && ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			e.noteErr("mqtt accept", err)
			if !pause(ctx, delay) {
				return nil
			}
			continue
		default:
			return fmt.Errorf("mqtt accept on %s: %w", ln.Addr(), err)
		}
		source := SourceOf(raw.RemoteAddr())
		leave, ok := func() {}, false
		if !e.bans.out(source, time.Now()) {
			leave, ok = e.gate.enter(source, func() {
				e.count.turnedAway.Add(1)
				_ = raw.Close()
			})
		}
		if !ok {
			e.count.turnedAway.Add(1)
			_ = raw.Close()
			continue
		}
		c := &conn{Conn: raw, raw: raw, source: source, write: e.cfg.WriteTimeout, release: leave,
			gone: make(chan struct{}), done: make(chan struct{})}
		e.mu.Lock()
		e.conns[c] = struct{}{}
		e.mu.Unlock()
		e.handlers.Go(func() { e.handle(c, conf) })
	}
}

// handle lives as long as the connection.
func (e *Embedded) handle(c *conn, conf *tls.Config) {
	ended := errors.New("panic") // what stays when a panic skips the line that sets it
	defer close(c.done)
	defer func() { e.finish(c, ended) }()
	defer func() {
		// mochi's decoders index past the end of some short packets. A panic ends the peer that caused it.
		if p := recover(); p != nil {
			e.count.panics.Add(1)
			e.log.Error("mqtt connection panicked", "panic", p, "peer", c.source, "stack", string(debug.Stack()))
		}
	}()
	// One deadline for handshake and CONNECT; mochi sets none before it has read a CONNECT.
	if c.raw.SetDeadline(time.Now().Add(e.cfg.ConnectTimeout)) != nil {
		return
	}
	if conf != nil {
		secure := tls.Server(c.Conn, conf)
		if err := secure.HandshakeContext(e.work); err != nil {
			e.noteCertificate(c, err)
			ended = err
			return
		}
		c.Conn, c.cert = secure, shown(secure.ConnectionState())
	}
	ended = e.srv.EstablishConnection("", c)
}

// finish puts away what is left of a connection: the will, the session in mochi, the places it took.
func (e *Embedded) finish(c *conn, ended error) {
	c.cut(ErrClosed)
	c.join()
	c.release()
	if c.established {
		if ended != nil && c.will != nil && !c.noWill.Load() {
			e.publishWill(c)
		}
		e.tellEnd(c)
	} else if ban := e.bans.strike(c.source, time.Now()); ban > 0 {
		e.log.Warn("address is kept out: too many connections without a login", "peer", c.source, "for", ban)
	}
	// mochi leaves a session behind when its CONNACK could not be written, and after a panic.
	if cl := c.client.Load(); cl != nil {
		if left, ok := e.srv.Clients.Get(cl.ID); ok && left == cl {
			cl.ClearInflights()
			e.srv.UnsubscribeClient(cl)
			e.srv.Clients.Delete(cl.ID)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
	if c.peer != nil {
		delete(c.peer.sessions, c)
	}
	if c.session != "" && e.live[c.session] == c {
		delete(e.live, c.session)
	}
}

// call bounds one call of Handler. It outlives the peer, whose message may be half stored, and ends with the broker.
func (e *Embedded) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(e.work, e.cfg.HandlerTimeout)
}

// tellStart and tellEnd keep the Handler's view of a device in step with its sessions.
func (e *Embedded) tellStart(c *conn) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	if c.peer.online++; c.peer.online > 1 || c.id.Role != fleet.RoleDevice {
		return
	}
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Connected(ctx, c.id.Name); err != nil {
		e.noteErr("mqtt connect not recorded", err, "device", c.id.Name)
	}
}

func (e *Embedded) tellEnd(c *conn) {
	c.peer.mu.Lock()
	defer c.peer.mu.Unlock()
	if c.peer.online--; c.peer.online > 0 || c.id.Role != fleet.RoleDevice {
		return
	}
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Disconnected(ctx, c.id.Name); err != nil {
		e.noteErr("mqtt disconnect not recorded", err, "device", c.id.Name)
	}
}

// publishWill folds a device's will as the status it is and, when that holds, passes it on. mochi would publish it
// without asking anyone.
func (e *Embedded) publishWill(c *conn) {
	will := c.will
	_, device := e.cfg.Topics.Parse(will.TopicName)
	ctx, cancel := e.call()
	defer cancel()
	if err := e.cfg.Handler.Fold(ctx, c.id.Name, device == "", will.Payload); err != nil {
		e.noteErr("will not taken", err, "device", c.id.Name)
		return
	}
	retain := will.FixedHeader.Retain && device != ""
	if err := e.srv.Publish(will.TopicName, will.Payload, retain, will.FixedHeader.Qos); err != nil {
		e.noteErr("will not published", err, "device", c.id.Name)
	}
	if device != "" {
		e.repeat(will.Payload)
	}
}

// repeat publishes a device's status on the shared topic as well, while somebody listens to just that: the original tool
// knows no other. Its readers are asked for first, because a repetition for nobody would double the work of every status.
func (e *Embedded) repeat(payload []byte) {
	topic := e.cfg.Topics.StatusAll()
	for _, sub := range e.srv.Topics.Subscribers(topic).Subscriptions {
		if sub.Filter != topic {
			continue
		}
		if err := e.srv.Publish(topic, payload, false, 0); err != nil {
			e.noteErr("status not repeated", err)
		}
		return
	}
}

// close ends what Run left: packets under way first, then everything.
func (e *Embedded) close() error {
	e.mu.Lock()
	e.closed = true
	for c := range e.conns {
		c.noWill.Store(true) // the server goes, the devices do not
		c.drain()
	}
	e.mu.Unlock()

	done := make(chan struct{})
	go func() {
		e.handlers.Wait()
		close(done)
	}()
	timer := time.NewTimer(e.cfg.CloseTimeout)
	defer timer.Stop()
	select {
	case <-done:
		e.stopWork()
		return e.srv.Close()
	case <-timer.C:
	}
	e.stopWork()
	e.mu.Lock()
	for c := range e.conns {
		c.cut(ErrClosed)
	}
	left := len(e.conns)
	e.mu.Unlock()
	timer.Reset(time.Second)
	select {
	case <-done:
		return e.srv.Close()
	case <-timer.C:
		return fmt.Errorf("broker: %d connections did not end in time", left)
	}
}

// sweep forgets, once a minute: devices that are gone and have their rate back, retained messages that have expired.
func (e *Embedded) sweep(ctx context.Context) {
	for pause(ctx, time.Minute) {
		now := time.Now()
		e.mu.Lock()
		for id, p := range e.peers {
			quiet := len(p.contest) == 0 || now.Sub(p.contest[len(p.contest)-1].at) > contestWindow
			if len(p.sessions) == 0 && p.statuses.rested(now) && quiet {
				delete(e.peers, id)
			}
		}
		e.mu.Unlock()
		e.bans.forget(now)
		for topic, pk := range e.srv.Topics.Retained.GetAll() {
			if pk.Expiry > 0 && pk.Expiry < now.Unix() {
				e.srv.Topics.RetainMessage(packets.Packet{TopicName: topic})
			}
		}
	}
}

// Send publishes cmd retained, at QoS 1, on the device's own topic. It returns when the broker has it.
func (e *Embedded) Send(ctx context.Context, device string, cmd protocol.Command) error {
	payload, err := cmd.Append(nil)
	if err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return e.publish(ctx, device, payload, true)
}

// Tell publishes cmd once on the device's own topic, and leaves what is retained there as it is.
func (e *Embedded) Tell(ctx context.Context, device string, cmd protocol.Command) error {
	payload, err := cmd.Append(nil)
	if err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return e.publish(ctx, device, payload, false)
}

// Clear removes the retained command of a device. Who listens gets an empty message, which is no command.
func (e *Embedded) Clear(ctx context.Context, device string) error {
	return e.publish(ctx, device, nil, true)
}

func (e *Embedded) publish(ctx context.Context, device string, payload []byte, retain bool) error {
	if err := protocol.CheckDeviceID(device); err != nil {
		return fmt.Errorf("send command: %w", err)
	}
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return fmt.Errorf("send to %s: %w", device, ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	if err := e.srv.Publish(e.cfg.Topics.Command(device), payload, retain, 1); err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return nil
}

// Drop ends every session of a device or an operator, also one that is logging in now. When it returns the connections
// are closed; a status that the Handler has in hand may still be stored.
func (e *Embedded) Drop(_ context.Context, name string) error {
	e.mu.Lock()
	e.drops++
	var sessions []*conn
	for _, role := range []fleet.Role{fleet.RoleDevice, fleet.RoleOperator} {
		if p := e.peers[fleet.Identity{Name: name, Role: role}]; p != nil {
			sessions = slices.AppendSeq(sessions, maps.Keys(p.sessions))
		}
	}
	e.mu.Unlock()
	for _, c := range sessions {
		c.noWill.Store(true)
		c.cut(packets.ErrAdministrativeAction)
	}
	return nil
}

// Stats reads the counters.
func (e *Embedded) Stats() Stats {
	e.mu.Lock()
	sessions := len(e.live)
	e.mu.Unlock()
	return Stats{
		Sessions: sessions, Waiting: e.gate.waiting(), Banned: e.bans.count(time.Now()), Contested: e.count.contested.Load(), TurnedAway: e.count.turnedAway.Load(), Refused: e.count.refused.Load(),
		Takeovers: e.count.takeovers.Load(), Denied: e.count.denied.Load(), StatusesDropped: e.count.dropped.Load(),
		StatusesUnstored: e.count.unstored.Load(), Panics: e.count.panics.Load(),
	}
}

// note logs what a peer has caused: at most 10 lines a second, 50 at once; the counters miss nothing.
func (e *Embedded) note(msg string, args ...any) {
	if e.noise.take(time.Now(), 100*time.Millisecond, 50, false) == 0 {
		e.log.Warn(msg, args...)
	}
}

func (e *Embedded) noteErr(msg string, err error, args ...any) {
	e.note(msg, append(args, "err", err)...)
}

// pause waits, and says false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
