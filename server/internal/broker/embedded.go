package broker

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/sync/errgroup"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
	"bmsota/server/internal/workers"
)

// Limits that are no configuration, because no honest peer meets them.
const (
	maxPacket        = 8 << 10 // bytes of one MQTT packet; a status is at most 4 KiB, a command 512 bytes
	maxInflight      = 32      // unacknowledged QoS 1 and 2 messages, each way
	readAhead        = 64      // bytes read at first of what a silent peer sends; every session has them. A PINGREQ over TLS has 31
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
	cfg     Config
	rights  rights
	log     *slog.Logger
	srv     *mqtt.Server // never served: it owns no listener and no goroutine, see NewEmbedded
	hook    *hook
	aliases mqtt.TopicAliases // of everybody: there are none
	gate    gate
	bans    bans
	noise   bucket // bounds what peers can write into the log
	count   counters

	packetInterval time.Duration // the constant, but for benchmarks
	statusAll      string        // the topic

	work     context.Context // of every call of Handler; outlives Run's ctx by CloseTimeout
	stopWork context.CancelFunc
	handlers sync.WaitGroup // one for each connection
	workers  workers.Pool[*conn]

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
		aliases:   mqtt.NewTopicAliases(0),
		statusAll: cfg.Topics.StatusAll(),
		rights:    rights{topics: cfg.Topics, seed: cfg.AcceptSeedStatus},
		gate:      gate{max: cfg.MaxUnauthenticated, maxEach: cfg.MaxFromOne, each: make(map[string]*list.List)},
		conns:     make(map[*conn]struct{}),
		live:      make(map[string]*conn),
		peers:     make(map[fleet.Identity]*peer),
	}
	e.workers.Turn = e.turn
	e.work, e.stopWork = context.WithCancel(context.Background())

	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = maxPacket  // the default of none lets five bytes claim 256 MiB
	caps.MaximumClientWritesPending = 0 // nobody would empty the queue: see pass
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
		ClientNetReadBufferSize: 1,                             // it becomes the least there is; conn reads ahead
		Logger:                  slog.New(slog.DiscardHandler), // it logs whole packets, passwords included
	})
	e.hook = &hook{e: e}
	if err := e.srv.AddHook(e.hook, nil); err != nil {
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

// accept takes connections from ln.
func (e *Embedded) accept(ctx context.Context, ln net.Listener, conf *tls.Config) error {
	for {
		raw, err := ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) && ctx.Err() != nil:
			return nil
		case err != nil:
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
		c := &conn{conf: conf, source: source, release: leave, gone: make(chan struct{})}
		c.wire.connect(raw, e.cfg.WriteTimeout)
		c.Conn = &c.wire
		e.mu.Lock()
		e.conns[c] = struct{}{}
		e.mu.Unlock()
		e.handlers.Add(1)
		e.workers.Give(c)
	}
}

// call bounds one call of Handler. It outlives the peer, whose message may be half stored, and ends with the broker.
func (e *Embedded) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(e.work, e.cfg.HandlerTimeout)
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

	defer e.workers.End()
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
		e.workers.Rest()
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

// Drop ends every session of a device or an operator, also one that is logging in now. When it returns the connections
// are closed; a status that the Handler has in hand may still be stored.
func (e *Embedded) Drop(_ context.Context, name string) error {
	e.mu.Lock()
	e.drops++
	var sessions []*conn
	for _, role := range []fleet.Role{fleet.RoleDevice, fleet.RoleOperator} {
		if p := e.peers[fleet.Identity{Name: name, Role: role}]; p != nil {
			sessions = append(sessions, p.sessions...)
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
