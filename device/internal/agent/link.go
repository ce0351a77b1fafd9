package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"bmsota/protocol"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Link is a board's session with its broker. There is one per board: a second client under the same id would throw the
// first one off, and a second one under another id costs heap the board does not have.
type Link interface {
	// Run keeps the session up until ctx ends, reconnecting for ever with growing, jittered pauses. It calls on from
	// goroutines of its own, never two at a time.
	Run(ctx context.Context, on LinkEvents)
	// Publish sends a retained status on the board's own topic. With QoS 1 or 2 it returns nil when the broker has
	// taken it over (PUBACK), with QoS 0 when it is on its way.
	Publish(ctx context.Context, payload []byte, qos byte) error
}

// LinkEvents is what a session tells its board.
type LinkEvents struct {
	Up      func()                              // subscribed to both command topics
	Down    func(error)                         // session lost, or an attempt that failed
	Command func(payload []byte, retained bool) // at most maxCommandKept bytes of it
	Reached func()                              // a connection to the broker's address exists
}

// LinkConfig is what a session needs.
type LinkConfig struct {
	DeviceID string
	Topics   protocol.Topics
	MQTT     protocol.MQTTConfig
	Identity *tls.Certificate // the board's own; nil for none
	Roots    *x509.CertPool   // nil is the system's bundle
	Trust    *Trust
	Repeat   bool   // statuses on the shared topic as well, for the original tool
	Will     []byte // retained on the board's own status topic when the session is lost
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Rand     *rand.Rand
	MaxPause time.Duration // between two sessions
	Log      *slog.Logger
}

const (
	keepAlive      = 60 * time.Second
	connectTimeout = 20 * time.Second
	ackTimeout     = 20 * time.Second
	maxPause       = 2 * time.Minute
)

// mqttLink is the Link over MQTT 3.1.1.
type mqttLink struct {
	cfg LinkConfig

	mu     sync.Mutex
	client mqtt.Client // nil while there is no session
}

// NewMQTT returns a Link over MQTT 3.1.1.
func NewMQTT(cfg LinkConfig) Link { return &mqttLink{cfg: cfg} }

var errNoSession = errors.New("no session with the broker")

func (l *mqttLink) Run(ctx context.Context, on LinkEvents) {
	pause := pauses{rand: l.cfg.Rand, first: min(time.Second, l.cfg.MaxPause), limit: l.cfg.MaxPause}
	for ctx.Err() == nil {
		began := time.Now()
		err := l.session(ctx, on)
		if ctx.Err() != nil {
			return
		}
		on.Down(err)
		// A session that held for a while was a good one: start again with short pauses. One that breaks at once
		// (another board under the same id, a broker that refuses after CONNECT) must not come back at full speed.
		if time.Since(began) > 2*keepAlive {
			pause.reset()
		}
		if !sleep(ctx, pause.next()) {
			return
		}
	}
}

// session is one connection from dial to loss.
func (l *mqttLink) session(ctx context.Context, on LinkEvents) error {
	lost := make(chan error, 1)
	opts := mqtt.NewClientOptions().
		AddBroker("tcp://"+net.JoinHostPort(l.cfg.MQTT.BrokerHost, strconv.Itoa(l.cfg.MQTT.BrokerPort))).
		SetProtocolVersion(4).
		SetClientID(l.cfg.DeviceID).
		SetUsername(l.cfg.MQTT.Username).
		SetPassword(l.cfg.MQTT.Password).
		// Commands are retained, statuses are too: a session of the broker's would only replay what is stale.
		SetCleanSession(true).
		SetKeepAlive(keepAlive).
		SetPingTimeout(keepAlive/2).
		SetConnectTimeout(connectTimeout).
		SetWriteTimeout(ackTimeout).
		// Reconnecting is Run's, because paho's pauses have no jitter and a fleet would come back in step.
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetMessageChannelDepth(4).
		SetBinaryWill(l.cfg.Topics.Status(l.cfg.DeviceID), l.cfg.Will, 1, true).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) {
			select {
			case lost <- err:
			default:
			}
		}).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return l.open(ctx, on) })
	client := mqtt.NewClient(opts)
	// Disconnect waits for paho's goroutines, so a board that is switched off leaves none behind.
	defer client.Disconnect(0)
	if err := wait(ctx, client.Connect(), connectTimeout+5*time.Second); err != nil {
		return fmt.Errorf("connect to broker: %w", err)
	}
	topics := map[string]byte{l.cfg.Topics.CommandAll(): 1, l.cfg.Topics.Command(l.cfg.DeviceID): 1}
	sub := client.SubscribeMultiple(topics, func(_ mqtt.Client, m mqtt.Message) {
		// Literal comparison: a prefix or a wildcard of the topic is somebody else's.
		if _, ours := topics[m.Topic()]; ours {
			on.Command(m.Payload(), m.Retained())
		}
	})
	if err := wait(ctx, sub, ackTimeout); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for topic, code := range sub.(*mqtt.SubscribeToken).Result() {
		if code > 2 {
			return fmt.Errorf("subscribe: broker refuses %s", topic)
		}
	}
	l.set(client)
	defer l.set(nil)
	on.Up()
	select {
	case err := <-lost:
		return fmt.Errorf("session lost: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *mqttLink) set(c mqtt.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client = c
}

func (l *mqttLink) open(ctx context.Context, on LinkEvents) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	addr := net.JoinHostPort(l.cfg.MQTT.BrokerHost, strconv.Itoa(l.cfg.MQTT.BrokerPort))
	conn, err := l.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	on.Reached()
	if l.cfg.MQTT.TLS {
		roots := l.cfg.Roots
		if l.cfg.MQTT.CAPEM != "" {
			if roots, err = l.cfg.Trust.pool(l.cfg.MQTT.CAPEM); err != nil {
				conn.Close()
				return nil, fmt.Errorf("ca_pem: %w", err)
			}
		}
		conf := &tls.Config{RootCAs: roots, ServerName: l.cfg.MQTT.BrokerHost, MinVersion: tls.VersionTLS12}
		if l.cfg.Identity != nil {
			conf.Certificates = []tls.Certificate{*l.cfg.Identity}
		}
		secure := tls.Client(conn, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("broker certificate: %w", err)
		}
		if err := strong(secure.ConnectionState()); err != nil {
			conn.Close()
			return nil, fmt.Errorf("broker certificate: %w", err)
		}
		conn = secure
	}
	return newFrameGuard(conn), nil
}

func (l *mqttLink) Publish(ctx context.Context, payload []byte, qos byte) error {
	l.mu.Lock()
	client := l.client
	l.mu.Unlock()
	if client == nil {
		return errNoSession
	}
	if err := wait(ctx, client.Publish(l.cfg.Topics.Status(l.cfg.DeviceID), qos, true, payload), ackTimeout); err != nil {
		return fmt.Errorf("publish status: %w", err)
	}
	if l.cfg.Repeat {
		// What counts is on the board's own topic, and was acknowledged; this one may be lost.
		_ = wait(ctx, client.Publish(l.cfg.Topics.StatusAll(), 0, false, payload), ackTimeout)
	}
	return nil
}

func wait(ctx context.Context, t mqtt.Token, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-timer.C:
		return errors.New("no answer from the broker")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pauses are the times between tries: doubling up to a limit, each at random between half and whole, so that a fleet
// that lost its server together does not come back together.
type pauses struct {
	rand         *rand.Rand
	first, limit time.Duration
	n            int
}

func (p *pauses) next() time.Duration {
	d := p.first << min(p.n, 20)
	if d > p.limit {
		d = p.limit
	}
	p.n++
	return d/2 + time.Duration(p.rand.Int64N(int64(d/2)+1))
}

func (p *pauses) reset() { p.n = 0 }

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Trust reads certificates to trust, and reads each text once: the boards of a fleet have the same few. The zero value
// is ready; it may be used from any goroutine.
type Trust struct {
	mu    sync.Mutex
	pools map[string]*x509.CertPool
}

const maxPools = 64 // texts remembered

func (t *Trust) pool(text string) (*x509.CertPool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.pools[text]; ok {
		return p, nil
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(text)) {
		return nil, errors.New("no certificate in it")
	}
	if t.pools == nil {
		t.pools = make(map[string]*x509.CertPool)
	}
	if len(t.pools) < maxPools {
		t.pools[text] = p
	}
	return p, nil
}
