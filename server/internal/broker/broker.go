// Package broker speaks MQTT for the server: Embedded is a broker of our own, External a connection to one of yours.
// Both are a fleet.Messenger, and both hand what arrives to a Handler, in process and before it is acknowledged.
//
// It promises: a PUBACK (PUBREC) for a status goes out only after Handler.Fold has returned without an error, and a
// status that could not be stored is never acknowledged, so its sender says it again; a peer may do what rights
// allows and nothing else, compared segment by segment; nobody ends or inherits the session of another identity; what
// one peer can cost, before and after its login, is capped.
//
// It refuses anonymous logins, wills to foreign topics, wills of operators, $SYS, shared subscriptions of devices,
// topic aliases (an alias is resolved after the rights were checked) and stored sessions: a session ends with its
// connection. Nothing is lost by that. Commands are retained, statuses are durable before they are acknowledged, and a
// queue for the absent would only grow.
//
// A session's loop is ours, in session.go; mochi decodes, acknowledges, keeps subscriptions and encodes (ADR 35).
//
// The truth is MQTT 3.1.1 and 5.0 (OASIS) and package protocol for topics and messages. This is the only package that
// imports mochi-mqtt; the faults of mochi 2.7.9 it stands in for are named where it does.
package broker

import (
	"context"
	"errors"
	"strings"

	"bmsota/protocol"
	"bmsota/server/internal/fleet"
)

// Handler is what a broker asks and tells; *fleet.Fleet is one. Its methods are called from many goroutines at once,
// each with a deadline in ctx.
type Handler interface {
	// Authenticate says who logs in. fleet.ErrDenied (wrapped) means nobody; any other error means "ask again".
	Authenticate(ctx context.Context, name, secret string) (fleet.Identity, error)
	// AuthenticateCertificate says so of a peer that has shown a certificate of the device authority: the name in it, and its
	// SHA-256 in hex. It may be another than the one on record, which is ErrDenied.
	AuthenticateCertificate(ctx context.Context, name, sha256 string) (fleet.Identity, error)
	// Fold applies a status and returns after it is durable. shared: it came on the topic without a device id.
	Fold(ctx context.Context, device string, shared bool, payload []byte) error
	// Order takes a command that an operator published and returns the payload to send on. An empty retained payload
	// takes back the command of that topic. fleet.ErrUnderWay (wrapped): it is durable, and nothing is to be sent on.
	Order(ctx context.Context, by fleet.Identity, device string, retained bool, payload []byte) ([]byte, error)
	// Connected and Disconnected tell of a device's sessions: of the first that begins and of the last that ends. For
	// one device they are never called at once, and they come in turn. They need not be durable when they return, but before a
	// later Fold of the device is.
	Connected(ctx context.Context, device string) error
	Disconnected(ctx context.Context, device string) error
	// Contested tells that a device's login is used in two places, and how often its sessions have met lately. It must
	// not block.
	Contested(device string, addresses []string, times int)
}

var (
	_ fleet.Messenger = (*Embedded)(nil)
	_ fleet.Messenger = (*External)(nil)
)

// ErrClosed is the answer of a broker that has ended, or has no connection.
var ErrClosed = errors.New("broker is not connected")

// verdict is what becomes of a message after the Handler has seen it.
type verdict int

const (
	taken   verdict = iota // durable: acknowledge and pass on
	kept                   // durable, and said by the server itself when it can be: acknowledge, and pass nothing on
	dropped                // will never be better: acknowledge, so that it is not repeated for ever, and pass nothing on
	again                  // not durable: do not acknowledge
)

// judge sorts the Handler's answer. What it does not know counts as "not durable": an acknowledgement too few costs a
// repetition, one too many loses a status.
func judge(err error, readable bool) verdict {
	switch {
	case err == nil:
		return taken
	case errors.Is(err, fleet.ErrUnderWay):
		return kept
	case errors.Is(err, fleet.ErrStorage), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return again
	case !readable, errors.Is(err, fleet.ErrInvalid), errors.Is(err, fleet.ErrRefused), errors.Is(err, fleet.ErrNotFound),
		errors.Is(err, fleet.ErrConflict), errors.Is(err, fleet.ErrDenied):
		return dropped
	}
	return again
}

func judgeStatus(err error, payload []byte) verdict {
	if err == nil {
		return taken
	}
	_, bad := protocol.ParseStatus(payload)
	return judge(err, bad == nil)
}

func judgeCommand(err error, payload []byte) verdict {
	if err == nil {
		return taken
	}
	_, bad := protocol.ParseCommand(payload)
	return judge(err, bad == nil)
}

// Bounds of a subscription. The deepest filter that means something has two levels below the prefix.
const (
	maxFilter       = 256 // bytes
	maxFilterLevels = 16
)

// rights says who may do what on which topic. Everything it does not name is refused.
type rights struct {
	topics protocol.Topics
	seed   bool // devices may publish on the shared status topic
}

// publish: a device its own status, an operator commands.
func (r rights) publish(id fleet.Identity, topic string) bool {
	kind, device := r.topics.Parse(topic)
	switch id.Role {
	case fleet.RoleDevice:
		return kind == protocol.KindStatus && (device == id.Name || device == "" && r.seed) && id.Name != ""
	case fleet.RoleOperator:
		return kind == protocol.KindCommand && id.Name != ""
	}
	return false
}

// read covers both a filter to subscribe to and a topic to deliver: a device its two command topics, literally; an
// operator what lies below the prefix, also as a shared subscription.
func (r rights) read(id fleet.Identity, filter string) bool {
	if id.Name == "" || len(filter) > maxFilter {
		return false
	}
	switch id.Role {
	case fleet.RoleDevice:
		return filter == r.topics.CommandAll() || filter == r.topics.Command(id.Name)
	case fleet.RoleOperator:
		if rest, shared := cutShare(filter); shared {
			filter = rest
		}
		prefix := strings.TrimSuffix(r.topics.CommandAll(), "command")
		return strings.HasPrefix(filter, prefix) && len(filter) > len(prefix) && wellFormed(filter)
	}
	return false
}

// cutShare takes "$share/<group>/" off a filter. A group that is missing or holds a wildcard makes it no shared
// filter (MQTT 5.0 §4.8.2), and as a plain one it is refused.
func cutShare(filter string) (rest string, shared bool) {
	parts := strings.SplitN(filter, "/", 3)
	if len(parts) != 3 || parts[0] != "$share" || parts[1] == "" || strings.ContainsAny(parts[1], "+#") {
		return "", false
	}
	return parts[2], true
}

// wellFormed: wildcards fill a level, # is the last one (MQTT 3.1.1 §4.7.1), printable ASCII, bounded depth.
func wellFormed(filter string) bool {
	for _, c := range []byte(filter) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.ContainsAny(level, "+#") && level != "+" && (level != "#" || i != len(levels)-1) {
			return false
		}
	}
	return len(levels) <= maxFilterLevels
}
