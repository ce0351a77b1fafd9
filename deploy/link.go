package deploy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"bmsota/protocol"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Faults of a link that an exit code depends on.
var (
	ErrUnreachable = errors.New("broker cannot be reached")
	ErrLogin       = errors.New("broker refused the login")
	ErrUntrusted   = errors.New("broker's certificate is not trusted")
	ErrDenied      = errors.New("broker denied the subscription")
)

// Broker says how to reach a broker as an operator.
type Broker struct {
	Host     string
	Port     int // 0 = 8883 with TLS, 1883 without
	TLS      bool
	CAPEM    []byte // empty with TLS = the system's authorities
	Username string
	Password string
	Prefix   string // of the topics; empty = protocol.DefaultPrefix
}

func (b Broker) address() string {
	port := b.Port
	if port == 0 {
		port = 1883
		if b.TLS {
			port = 8883
		}
	}
	return net.JoinHostPort(b.Host, strconv.Itoa(port))
}

// Link is an operator's connection to a broker: commands out, statuses in. One goroutine reads Statuses; the other
// methods may be called from any.
type Link struct {
	client   mqtt.Client
	topics   protocol.Topics
	qos      byte
	statuses chan Report
	done     chan struct{}
}

// Report is a status as it came.
type Report struct {
	Device   string // from the topic; empty for firmware of the original tool, which names itself nowhere
	Status   protocol.Status
	Retained bool  // said before this link was there
	Err      error // the payload was no status; Status is empty
}

// Dial connects and subscribes to every status. The link reconnects by itself until Close.
func Dial(ctx context.Context, b Broker) (*Link, error) {
	if b.Host == "" {
		return nil, errors.New("no broker given")
	}
	l := &Link{topics: protocol.Topics{Prefix: b.Prefix}, qos: 1, statuses: make(chan Report, 256), done: make(chan struct{})}
	var suffix [6]byte
	if _, err := rand.Read(suffix[:]); err != nil {
		return nil, fmt.Errorf("client id: %w", err)
	}
	opt := mqtt.NewClientOptions().SetClientID("bmsota-" + hex.EncodeToString(suffix[:])).
		SetUsername(b.Username).SetPassword(b.Password).SetProtocolVersion(4).
		SetCleanSession(true).SetKeepAlive(30 * time.Second).SetConnectTimeout(10 * time.Second).
		SetAutoReconnect(true).SetConnectRetry(false).SetMaxReconnectInterval(10 * time.Second).SetOrderMatters(true)
	scheme := "tcp://"
	if b.TLS {
		scheme = "ssl://"
		config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: b.Host}
		if len(b.CAPEM) > 0 {
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(b.CAPEM) {
				return nil, errors.New("no certificate in the broker's CA file")
			}
		}
		opt.SetTLSConfig(config)
	}
	opt.AddBroker(scheme + b.address())
	denied := make(chan error, 1)
	// Subscribing in the connect handler makes it hold after every reconnect too.
	opt.SetOnConnectHandler(func(c mqtt.Client) {
		token := c.Subscribe(l.topics.StatusFilter(), l.qos, l.receive)
		go func() {
			err := wait(ctx, token)
			if sub, ok := token.(*mqtt.SubscribeToken); ok && err == nil && sub.Result()[l.topics.StatusFilter()] == 0x80 {
				err = ErrDenied
			}
			select {
			case denied <- err:
			default:
			}
		}()
	})
	l.client = mqtt.NewClient(opt)
	if err := wait(ctx, l.client.Connect()); err != nil {
		l.client.Disconnect(0)
		return nil, fmt.Errorf("%w: %s: %w", kindOf(err), b.address(), err)
	}
	select {
	case err := <-denied:
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("subscribe to %s: %w", l.topics.StatusFilter(), err)
		}
	case <-ctx.Done():
		l.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, b.address(), ctx.Err())
	}
	return l, nil
}

func kindOf(err error) error {
	var unknown x509.UnknownAuthorityError
	var verify *tls.CertificateVerificationError
	var name x509.HostnameError
	switch {
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedNotAuthorised):
		return ErrLogin
	case errors.As(err, &unknown), errors.As(err, &verify), errors.As(err, &name):
		return ErrUntrusted
	}
	return ErrUnreachable
}

// wait returns when token is complete or ctx ends.
func wait(ctx context.Context, token mqtt.Token) error {
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// receive hands a message on. It blocks the connection while nobody reads: an operator's tool that stalls should slow
// its own link, not lose a verdict.
func (l *Link) receive(_ mqtt.Client, m mqtt.Message) {
	kind, device := l.topics.Parse(m.Topic())
	if kind != protocol.KindStatus || len(m.Payload()) == 0 {
		return
	}
	status, err := protocol.ParseStatus(m.Payload())
	if device == "" && status.DeviceID != "" {
		return // the repetition, for the original tool, of what came on the device's own topic
	}
	select {
	case l.statuses <- Report{Device: device, Status: status, Retained: m.Retained(), Err: err}:
	case <-l.done:
	}
}

// Statuses is where every status arrives, those retained from before the link first.
func (l *Link) Statuses() <-chan Report { return l.statuses }

// Send publishes a command: to one device, retained so that it learns it when it next connects, or to every device
// (empty) that is connected now. It returns when the broker has it.
func (l *Link) Send(ctx context.Context, device string, cmd protocol.Command) error {
	payload, err := cmd.Append(nil)
	if err != nil {
		return err
	}
	topic, retained := l.topics.CommandAll(), false
	if device != "" {
		if err := protocol.CheckDeviceID(device); err != nil {
			return err
		}
		topic = l.topics.Command(device)
		retained = Kept(cmd)
	}
	if err := wait(ctx, l.client.Publish(topic, l.qos, retained, payload)); err != nil {
		return fmt.Errorf("%w: send %s: %w", ErrUnreachable, cmd.Action, err)
	}
	return nil
}

// Kept says whether the broker keeps cmd for a named device that is not connected. Only a wish that is harmless when it
// is met again may wait: see docs/protocol.md §2.
func Kept(cmd protocol.Command) bool {
	return cmd.Action == protocol.ActionUpdate || cmd.Action == protocol.ActionRollback && cmd.Version != ""
}

// Close ends the link.
func (l *Link) Close() {
	close(l.done)
	l.client.Disconnect(250)
}

// NewCommandID makes an id that ties statuses to a command.
func NewCommandID() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("command id: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
