package broker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sync/errgroup"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// Limits of the connection to an external broker.
const (
	maxPending  = 256              // messages received and not yet acknowledged
	shards      = 16               // calls of Handler at once; messages of one device stay in order
	echoMemory  = 10 * time.Minute // how long an own command is known for ours when it comes back
	maxEchoes   = 100_000
	maxInterval = time.Minute // between two tries to connect, or to store
)

// ExternalConfig is what a connection to a broker needs. Zero values mean the defaults in the comments.
type ExternalConfig struct {
	Handler Handler
	Topics  protocol.Topics

	URL      string // tcp://host:1883 or ssl://host:8883
	TLS      *tls.Config
	Username string
	Password string
	// ClientID names the two sessions, as <ClientID>-in and <ClientID>-out; "bmsota". It stays the same over restarts,
	// so that the broker keeps statuses while the server is away. Two servers need two.
	ClientID string
	// Group is the name by which several servers share what arrives ($share/<Group>/…), so that each message comes to one of
	// them; empty = everything comes to this one. A broker keeps nothing for a server of a group that is away, and retained
	// statuses come to a group at some brokers only (Mosquitto 2.0 is one): each server looks at them by itself when it connects
	// and when LookAgain says so.
	Group string
	// Sent says whether a command was published by another of these servers; nil = there is none.
	Sent func(ctx context.Context, device string, cmd protocol.Command) (bool, error)
	// Operator is the name under which commands of others are recorded, because MQTT does not say who published;
	// "external broker".
	Operator string
	// TestUsername and TestPassword are a device's login at that broker, with which the self-test tries to speak for
	// another; empty = it tries as strangers alone.
	TestUsername, TestPassword string

	Timeout time.Duration // of connecting, of sending, and of a single call of Handler; 10 s
	Log     *slog.Logger  // nil = none
}

// External is a fleet.Commander on a broker of any make (MQTT 3.1.1). That broker's own access rules must keep devices
// apart: whoever may publish on a device's status topic is taken for the device.
//
// Statuses are acknowledged after Handler.Fold has returned; while they cannot be stored it tries again, takes no more,
// and the broker queues. Commands that others publish go to Handler.Order, which cannot change them any more. Retained
// commands that come with a subscription are old and are left alone. Nobody tells of connects and disconnects, so
// Connected and Disconnected are never called: a device's statuses and its will say it. The shared status topic is not
// taken, because the login behind it is unknown.
//
// Receiving and sending have a connection each: with one, a command sent while a status is being handled could wait
// for an acknowledgement that waits behind the statuses.
type External struct {
	cfg     ExternalConfig
	log     *slog.Logger
	madeUp  string        // a device for the self-test
	hearing time.Duration // how long the self-test waits for what must not arrive

	mu     sync.Mutex
	doubts []string
	tested chan struct{} // closed when the self-test has run
	out    paho.Client
	up     bool // subscribed
	echoes map[[sha256.Size]byte]time.Time
	queue  []echo // in order of time

	sleepless bool // the mutant of slept, for its test

	awake atomic.Pointer[time.Time] // when this process last ran, as far as watchSleep has seen
	look  chan struct{}             // capacity 1: the retained statuses are to be looked at
}

type echo struct {
	key [sha256.Size]byte
	at  time.Time
}

// NewExternal checks the configuration. It connects to nothing.
func NewExternal(cfg ExternalConfig) (*External, error) {
	if cfg.Handler == nil {
		return nil, errors.New("broker: no handler")
	}
	if cfg.Topics.Prefix != "" {
		if err := protocol.CheckPrefix(cfg.Topics.Prefix); err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
	}
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || !slices.Contains([]string{"tcp", "mqtt", "ssl", "tls", "mqtts"}, u.Scheme) {
		return nil, fmt.Errorf("broker: %q is no address like tcp://host:1883 or ssl://host:8883", cfg.URL)
	}
	if _, ok := cutShare("$share/" + cfg.Group + "/x"); !ok && cfg.Group != "" || strings.Contains(cfg.Group, "/") {
		return nil, fmt.Errorf("broker: %q is no name of a group: it has none of + # /", cfg.Group)
	}
	cfg.ClientID = cmp.Or(cfg.ClientID, "bmsota")
	cfg.Operator = cmp.Or(cfg.Operator, "external broker")
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &External{cfg: cfg, log: cfg.Log, madeUp: newMadeUp(), hearing: 2 * time.Second, tested: make(chan struct{}), echoes: make(map[[sha256.Size]byte]time.Time), look: make(chan struct{}, 1)}, nil
}

// Connected says whether both connections stand and the subscriptions were granted.
func (x *External) Connected() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.up && x.out != nil && x.out.IsConnectionOpen()
}

// Run keeps the connections until ctx ends, with growing pauses between tries. What is being stored then is finished
// or stays unacknowledged. The answer is nil: a broker that is away is no reason to end.
func (x *External) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { x.keep(ctx, "receiving", x.receive); return nil })
	group.Go(func() error { x.keep(ctx, "sending", x.send); return nil })
	group.Go(func() error { x.selfTest(ctx); return nil })
	if x.cfg.Group != "" {
		group.Go(func() error { x.lookWhenAsked(ctx); return nil })
	}
	return group.Wait()
}

// keep runs session until ctx ends. The pause doubles while sessions fail at once, and is jittered.
func (x *External) keep(ctx context.Context, what string, session func(context.Context) error) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxInterval {
			delay = 0
		}
		delay = min(max(2*delay, time.Second), maxInterval)
		x.log.Warn("mqtt connection", "for", what, "err", err, "again_in", delay.String())
		pause(ctx, delay/2+rand.N(delay/2))
	}
}

// connect makes a new client for one session of the server. lost is closed when the connection ends.
func (x *External) connect(ctx context.Context, suffix string, clean bool, handle paho.MessageHandler) (client paho.Client, lost <-chan struct{}, err error) {
	client, lost, err = x.login(ctx, x.cfg.ClientID+suffix, x.cfg.Username, x.cfg.Password, clean, handle)
	if errors.Is(err, packets.ErrorRefusedNotAuthorised) || errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) {
		err = fmt.Errorf("%w: the broker refuses the login of user %q: look at mqtt.external.username and mqtt.external.password", err, x.cfg.Username)
	}
	return client, lost, err
}

func (x *External) login(ctx context.Context, id, username, password string, clean bool, handle paho.MessageHandler) (client paho.Client, lost <-chan struct{}, err error) {
	gone := make(chan struct{})
	end := sync.OnceFunc(func() { close(gone) })
	o := paho.NewClientOptions().AddBroker(x.cfg.URL).SetClientID(id).
		SetUsername(username).SetPassword(password).SetProtocolVersion(4).
		SetCleanSession(clean).SetAutoReconnect(false).SetConnectRetry(false).
		SetConnectTimeout(x.cfg.Timeout).SetWriteTimeout(x.cfg.Timeout).SetKeepAlive(x.keepAlive()).
		SetAutoAckDisabled(true).SetOrderMatters(true).
		SetConnectionLostHandler(func(paho.Client, error) { end() })
	if x.cfg.TLS != nil {
		o.SetTLSConfig(x.cfg.TLS.Clone())
	}
	if handle != nil {
		// Messages of a kept session can come before the subscription has a handler.
		o.SetDefaultPublishHandler(handle)
	}
	client = paho.NewClient(o)
	if err := x.await(ctx, client.Connect()); err != nil {
		client.Disconnect(0)
		return nil, nil, fmt.Errorf("connect to %s: %w", x.cfg.URL, err)
	}
	return client, gone, nil
}

// await waits for a token, ctx or the timeout, whichever is first.
func (x *External) await(ctx context.Context, token paho.Token) error {
	ctx, cancel := context.WithTimeout(ctx, x.cfg.Timeout)
	defer cancel()
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send is one session for commands going out.
func (x *External) send(ctx context.Context) error {
	client, lost, err := x.connect(ctx, "-out", true, nil)
	if err != nil {
		return err
	}
	defer client.Disconnect(250)
	x.setOut(client)
	defer x.setOut(nil)
	x.log.Info("mqtt connected", "for", "sending")
	select {
	case <-ctx.Done():
		return nil
	case <-lost:
		return errors.New("connection lost")
	}
}

func (x *External) setOut(c paho.Client) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.out = c
}

// pending is a message between its arrival and its acknowledgement.
type pending struct {
	msg  paho.Message
	done chan struct{} // closed when it may be acknowledged
}

// receive is one session for statuses and commands coming in. Messages of one device are handled in order by one
// worker, and acknowledged in the order of arrival (MQTT 3.1.1 §4.6).
func (x *External) receive(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	arrived := make(chan *pending, maxPending)
	var queues [shards]chan *pending
	for i := range shards {
		queues[i] = make(chan *pending, maxPending)
		group.Go(func() error {
			for {
				select {
				case p := <-queues[i]:
					if x.slept() {
						cancel()
						return nil
					}
					if x.handle(ctx, p.msg) {
						close(p.done)
					}
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	if x.cfg.Group != "" {
		x.wakeUp()
		group.Go(func() error { x.watchSleep(ctx); cancel(); return nil })
	}
	group.Go(func() error {
		for {
			select {
			case p := <-arrived:
				select {
				case <-p.done:
					p.msg.Ack()
				case <-ctx.Done():
					return nil
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
	// A full arrived stops reading. A shard holds no more than arrived does, so it never blocks.
	take := func(_ paho.Client, msg paho.Message) {
		p := &pending{msg: msg, done: make(chan struct{})}
		select {
		case arrived <- p:
		case <-ctx.Done():
			return
		}
		_, device := x.cfg.Topics.Parse(msg.Topic())
		sum := sha256.Sum256([]byte(device))
		select {
		case queues[sum[0]%shards] <- p:
		case <-ctx.Done():
		}
	}
	err := x.subscribed(ctx, take)
	cancel()
	return errors.Join(err, group.Wait())
}

func (x *External) subscribed(ctx context.Context, take paho.MessageHandler) error {
	// Of a group a broker goes on giving a share to whoever is away and kept: it would lie there until that one is back.
	client, lost, err := x.connect(ctx, "-in", x.cfg.Group != "", take)
	if err != nil {
		return err
	}
	defer client.Disconnect(250)
	statuses, commands := x.cfg.Topics.StatusFilter(), x.cfg.Topics.CommandFilter()
	if x.cfg.Group != "" {
		share := "$share/" + x.cfg.Group + "/"
		statuses, commands = share+statuses, share+commands
	}
	token := client.SubscribeMultiple(map[string]byte{statuses: 1, commands: 1}, take)
	if err := x.await(ctx, token); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if t, ok := token.(*paho.SubscribeToken); ok {
		for filter, code := range t.Result() {
			if code > 2 {
				return fmt.Errorf("the broker refuses a subscription to %s", filter)
			}
		}
	}
	x.setUp(true)
	defer x.setUp(false)
	x.log.Info("mqtt connected", "for", "receiving")
	x.LookAgain() // at what was said while nobody of the group was there
	select {
	case <-ctx.Done():
		return nil
	case <-lost:
		return errors.New("connection lost")
	}
}

func (x *External) setUp(up bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.up = up
}

// handle brings one message to the Handler and says whether it may be acknowledged. What cannot be stored is tried
// again until it can or the session ends.
func (x *External) handle(ctx context.Context, msg paho.Message) bool {
	kind, device := x.cfg.Topics.Parse(msg.Topic())
	var once func() (verdict, error)
	switch {
	case device == x.madeUp, x.cfg.Group != "" && strings.HasPrefix(device, madeUpPrefix):
		return true
	case kind == protocol.KindStatus && device != "" && len(msg.Payload()) > 0:
		once = func() (verdict, error) {
			call, cancel := context.WithTimeout(ctx, x.cfg.Timeout)
			defer cancel()
			err := x.cfg.Handler.Fold(call, device, false, msg.Payload())
			return judgeStatus(err, msg.Payload()), err
		}
	case kind == protocol.KindCommand && !msg.Retained() && len(msg.Payload()) > 0 && !x.own(msg.Topic(), msg.Payload()):
		once = func() (verdict, error) {
			if sent, err := x.sentByAnother(ctx, device, msg.Payload()); sent || err != nil {
				return judgeCommand(err, msg.Payload()), err
			}
			by := fleet.Identity{Name: x.cfg.Operator, Role: fleet.RoleOperator}
			call := func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, x.cfg.Timeout) }
			// Whether it was published retained is not said to a subscriber that was there before.
			_, err := order(call, x.cfg.Handler, by, device, false, msg.Payload())
			return judgeCommand(err, msg.Payload()), err
		}
	default:
		return true
	}
	for delay := time.Second; ; delay = min(2*delay, maxInterval) {
		v, err := once()
		if v == taken || v == kept {
			return true
		}
		x.log.Warn("message not taken", "topic", msg.Topic(), "err", err, "again", v == again)
		if v == dropped {
			return true
		}
		if !pause(ctx, delay) {
			return false
		}
	}
}

// Send publishes cmd retained, at QoS 1, on the device's own topic, and returns when the broker has acknowledged it.
func (x *External) Send(ctx context.Context, device string, cmd protocol.Command) error {
	payload, err := cmd.Append(nil)
	if err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return x.publish(ctx, device, payload, true)
}

// Tell publishes cmd once on the device's own topic, and leaves what is retained there as it is.
func (x *External) Tell(ctx context.Context, device string, cmd protocol.Command) error {
	payload, err := cmd.Append(nil)
	if err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return x.publish(ctx, device, payload, false)
}

// Clear removes the retained command of a device.
func (x *External) Clear(ctx context.Context, device string) error {
	return x.publish(ctx, device, nil, true)
}

// Drop does nothing: sessions belong to the broker. Whoever revokes a device takes its login away there too.
func (x *External) Drop(context.Context, string) error { return nil }

func (x *External) publish(ctx context.Context, device string, payload []byte, retain bool) error {
	if err := protocol.CheckDeviceID(device); err != nil {
		return fmt.Errorf("send command: %w", err)
	}
	x.mu.Lock()
	client := x.out
	x.mu.Unlock()
	if client == nil {
		return fmt.Errorf("send to %s: %w", device, ErrClosed)
	}
	topic := x.cfg.Topics.Command(device)
	x.remember(topic, payload, time.Now()) // first, because the echo can be faster than the acknowledgement
	if err := x.await(ctx, client.Publish(topic, 1, retain, payload)); err != nil {
		return fmt.Errorf("send to %s: %w", device, err)
	}
	return nil
}

func echoKey(topic string, payload []byte) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(topic+"\x00"), payload...))
}

// remember and own tell our commands from those of others: MQTT 3.1.1 brings both back. What is equal to ours within
// echoMemory does no harm unrecorded, because a command is idempotent.
func (x *External) remember(topic string, payload []byte, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.queue) > 0 && (len(x.queue) >= maxEchoes || now.Sub(x.queue[0].at) > echoMemory) {
		if old := x.queue[0]; x.echoes[old.key].Equal(old.at) {
			delete(x.echoes, old.key)
		}
		x.queue = x.queue[1:]
	}
	key := echoKey(topic, payload)
	x.echoes[key] = now
	x.queue = append(x.queue, echo{key, now})
}

func (x *External) own(topic string, payload []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.echoes[echoKey(topic, payload)]
	return ok
}
